"""Vectors as `gemb embed --dim --dtype` stores them, for scoring."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gemb.embedding.pipeline import shortened
from gemb.embedding.vectors import VectorSpec, packed, unpacked
from gemb.metrics import Rows
from gemb.scores import Size

Vectors = NDArray[np.float32]


class Stored:
    """Vectors as they are stored, as float32: whole numbers where the type has them.

    The products of whole numbers are exact in float32 (below 2^24), so equal similarities are tied
    and not ordered by the last bit of a sum.
    """

    def __init__(self, vectors: Vectors, size: Size) -> None:
        dim, dtype = size
        spec = VectorSpec(model="", prompt="", dim=dim, dtype=dtype, max_tokens=0)
        stored = packed(shortened(vectors, dim), spec)
        signs = dtype == "ubinary"
        self.codes: Vectors = unpacked(stored, dtype, dim) if signs else stored.astype(np.float32)
        squares = np.einsum("nd,nd->n", self.codes, self.codes, dtype=np.float64)
        self.lengths: Vectors = np.sqrt(squares).astype(np.float32)
        if dtype == "f32":
            self.lengths = np.ones_like(self.lengths)  # as near as float32 comes

    @property
    def unit(self) -> Vectors:
        """Return rows of length one."""
        rows: Vectors = self.codes / self.lengths[:, None]
        return rows

    def cosines(self, rows: slice | Rows, other: Stored) -> Vectors:
        """Return the cosines of these rows with all rows of the other, [rows, N]."""
        products = self.codes[rows] @ other.codes.T
        found: Vectors = products / (self.lengths[rows, None] * other.lengths)
        return found
