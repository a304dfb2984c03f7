"""An index as its readers see it: what was committed when it was opened, whoever writes meanwhile.

with Index.open(Path("docs.gemb")) as index:
    found = exact(queries, index.stored, dtype=index.spec.dtype, k=10, rows=index.alive)
    hits = index.hits(found.rows[0], found.scores[0])
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gemb.errors import GembError, UsageError
from gemb.index.manifest import (
    Manifest,
    codes_path,
    read_manifest,
    rows_path,
    vectors_path,
)
from gemb.index.schema import open_to_read, readable
from gemb.search.hits import Hit
from gemb.vectors import VectorSpec, unpacked
from gemb.visible import visible

Rows = NDArray[np.int64]
ITEM = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2"), "int8": np.dtype("i1")}


class Index:
    """A snapshot of an index. It can be closed, and is a context manager; one thread at a time."""

    folder: Path
    manifest: Manifest
    spec: VectorSpec  # of the stored vectors
    model: str  # reference of the model; empty: nobody named it
    count: int  # rows that can be found: the slots without the removed ones
    stored: NDArray[Any]  # memmap [slots, dim], f32, f16 or int8, as `vectors.packed` made it
    codes: NDArray[np.uint8] | None  # memmap [slots, bytes]; None: they are not all there: scan
    alive: Rows | None  # slots that can be found, ascending; None: all of them
    connection: sqlite3.Connection  # reads the tables of `gemb.index.schema` in this snapshot

    @staticmethod
    def open(folder: Path) -> Index:
        """Return the index of a folder.

        Raises:
            UsageError: it is no index, one that is not whole yet, or one of a newer gemb.
            GembError: a file of it is missing, cut short or damaged.
        """
        raise NotImplementedError

    def hits(self, rows: Rows, scores: NDArray[np.float32]) -> list[Hit]:
        """Return what stands in these slots, in their order; a slot of -1 is left out.

        Paths are as the user would type them here, whatever folder the index was built in.

        Args:
            rows: int64 [n].
            scores: float32 [n].

        Raises:
            GembError: a row is damaged.
        """
        raise NotImplementedError

    def find(self, reference: str) -> int:
        """Return the slot of a row: its id, or FILE:LINE for the passage that holds the line.

        Raises:
            UsageError: there is none.
        """
        raise NotImplementedError

    def vector(self, row: int) -> NDArray[np.float32]:
        """Return the vector of a slot, float32 [dim], of length one."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the files."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
