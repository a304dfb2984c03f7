"""What every writer of vectors has in common.

A writer is given each window's rows in order, then `finish`. What describes the numbers is in every
row (JSON lines), in the file (npz, Parquet), or in a sidecar that the caller writes (the others).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gemb.arrays import Vectors
from gemb.embedding.pipeline import Row
from gemb.embedding.vectors import VectorSpec, packed


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a writer knows beside the vectors."""

    spec: VectorSpec
    task: str  # name of the prompt, for people
    text_ids: bool = False  # ids are texts, not row numbers
    kept: Sequence[str] = ()  # names of kept fields; in the order of the columns


class Writer(Protocol):
    """Writes rows with their vectors."""

    def write(self, rows: Sequence[Row], vectors: Vectors) -> None:
        """Write rows; vectors are float32 [len(rows), dim], NaN where a row has an error."""

    def finish(self) -> None:
        """Write what comes after the last row."""


def stored(vectors: Vectors, spec: VectorSpec) -> NDArray[Any]:
    """Return the rows as they are stored: packed, contiguous and little-endian."""
    numbers = packed(vectors, spec)
    return np.ascontiguousarray(numbers, dtype=numbers.dtype.newbyteorder("<"))
