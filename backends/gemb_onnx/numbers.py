"""The numbers of a model, alike for a GGUF file and a model folder: float32, read when asked for.

`gguf_numbers` and `folder_numbers` read them. Names are those of a model folder
(`gemb.models.checkpoint`). A norm's weight is what the normed state is multiplied with: a GGUF file
stores it so, a folder stores it less one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the arithmetic depends on beside the numbers; letters as in `graph.py`."""

    layers: int
    hidden: int  # D
    inner: int  # F
    heads: int  # H
    key_heads: int  # K
    head_dim: int  # E
    eps: float  # of the norms
    scale: float  # of q k^T
    window: int  # both sides together
    is_sliding: tuple[bool, ...]  # by layer
    theta: float  # base of RoPE in the global layers
    local_theta: float  # and in the sliding ones
    max_tokens: int
    pooling: str  # mean, first, last or attention


class Numbers(Protocol):
    """An open model's numbers."""

    shape: Shape

    @property
    def tokens(self) -> int:
        """How many rows the token table has."""

    def matrix(self, name: str) -> Floats:
        """Return a matrix, float32 [out, in]; the queries of attention pooling, too.

        Raises:
            UsageError: it holds numbers that are not finite, or is of a type that the package gguf
                cannot unpack.
        """

    def norm(self, name: str) -> Floats:
        """Return what a norm multiplies with, float32 [width]."""

    def token_rows(self, ids: NDArray[Any]) -> Floats:
        """Return rows of the token table, float32 [tokens, D], for ids [tokens]."""


def finite(values: Floats, path: Path, name: str) -> Floats:
    """Return the numbers of a tensor.

    Raises:
        UsageError: one is not finite; path and name say which.
    """
    if not np.isfinite(values.sum(dtype=np.float32)):
        from gemb.models.safetensors import not_finite

        raise not_finite(path, f"tensor {name}")
    return values
