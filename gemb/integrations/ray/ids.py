"""Ids that repeat, found in bounded memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

LIMIT = 1 << 20  # hashes that are kept: 8 MiB


def hashes(ids: Iterable[object]) -> NDArray[np.uint64]:
    """Return 64 bits of each id."""
    digests = b"".join(
        hashlib.blake2b(str(row_id).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for row_id in ids
    )
    return np.frombuffer(digests, "<u8")


class IdSample:
    """The ids whose hashes are smallest: all of the first million rows, then a share of them.

    An id is in the sample with all its rows or with none, so that what repeats there repeats.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._largest = (1 << 64) - 1  # hash that is kept
        self._kept = np.empty(0, np.uint64)
        self._repeated = np.empty(0, np.uint64)

    def add(self, new: NDArray[np.uint64]) -> None:
        """Add the hashes of rows."""
        sample = np.sort(np.concatenate([self._kept, new[new <= self._largest]]))
        is_again = sample[1:] == sample[:-1]
        self._repeated = np.unique(np.concatenate([self._repeated, sample[1:][is_again]]))
        self._kept = np.delete(sample, np.flatnonzero(is_again) + 1)
        while len(self._kept) > self._limit:
            self._largest //= 2
            self._kept = self._kept[self._kept <= self._largest]

    @property
    def is_all(self) -> bool:
        """Whether every row is in it."""
        return self._largest == (1 << 64) - 1

    @property
    def repeated(self) -> NDArray[np.uint64]:
        """The hashes of ids that came more than once."""
        return self._repeated
