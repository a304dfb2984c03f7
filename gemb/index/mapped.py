"""A file of rows mapped into memory: what is read ahead of its use, and what is not mapped at all.

A page that is not in memory stops the thread that touches it, one page after the other. What is
asked for is read in the background; asking for what is in memory costs a microsecond.

A row that is touched brings up to 2 MB of its file into the process with it, where the system keeps
the file in pieces so large (ext4 from Linux 6.16 on does after a build): 250 scattered rows of 1.5
kB took 290 MB. Advice (MADV_RANDOM, MADV_NOHUGEPAGE) does not stop it. Reading them does, in the
time that mapping them takes.
"""

from __future__ import annotations

import mmap
import os
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemb.errors import GembError
from gemb.io.text import visible


class MappedRows(np.memmap[Any, np.dtype[Any]]):
    """A read-only memmap [count, width] that keeps its file open, for `gathered`."""

    file: int | None = None  # descriptor; a view of the array has none

    @staticmethod
    def open(path: Path, numbers: np.dtype[Any], count: int, width: int) -> MappedRows:
        """Map the first `count` rows, at least one, of a file that has as many.

        Raises:
            OSError: it cannot be read.
        """
        with path.open("rb") as file:
            rows = MappedRows(file, numbers, "r", shape=(count, width))
            rows.file = os.dup(file.fileno())
        weakref.finalize(rows, os.close, rows.file)
        return rows


def gathered(stored: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """Return stored[rows], [n, width]; of `MappedRows` without mapping them. For a few rows.

    Raises:
        GembError: the file was cut short meanwhile.
    """
    file = getattr(stored, "file", None)
    if file is None:
        return np.asarray(stored)[rows]
    gathered_rows = np.empty((len(rows), stored.shape[1]), stored.dtype)
    width = gathered_rows.strides[0]
    # Rows that follow one another in the file are read at once.
    starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1).tolist()
    for first, end in pairwise([*starts, len(rows)]):
        run = gathered_rows[first:end].data
        if os.preadv(file, [run], int(rows[first]) * width) < run.nbytes:
            name = visible(str(getattr(stored, "filename", "")))
            raise GembError(f"{name} was cut short meanwhile; gemb index verify says what is left")
    return gathered_rows


def read_ahead(mapped: NDArray[Any], rows: NDArray[np.int64] | None = None) -> None:
    """Begin to read all of a memmap, or some of its rows, and return at once.

    An array that is no map of a file, or a system that takes no advice: nothing happens.
    """
    file = _map_of(mapped)
    if file is None or not hasattr(mmap, "MADV_WILLNEED") or not mapped.nbytes:
        return
    begin = _address(mapped) - _address(np.frombuffer(file, np.uint8))
    width = mapped.strides[0]
    spans = [(0, mapped.nbytes)] if rows is None else [(int(row) * width, width) for row in rows]
    for first, length in spans:
        page = (begin + first) // mmap.PAGESIZE * mmap.PAGESIZE
        file.madvise(mmap.MADV_WILLNEED, page, begin + first + length - page)


def _map_of(array: object) -> mmap.mmap | None:
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    return array


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])
