"""Ask the system for parts of a mapped file before they are needed, so that reads run side by side.

A page that is not in memory stops the thread that touches it, one page after the other. What is
asked for is read in the background; asking for what is in memory costs a microsecond.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray


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
