"""The best passages of each query so far."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SPARE = 32  # beyond k, for those that turn out to have changed


class Best:
    """Scores and numbers of the best, for some queries, of what is added block by block."""

    def __init__(self, queries: int, k: int | None, floor: float) -> None:
        """Begin with nothing. k None: all that reach the floor."""
        self._k = None if k is None else k + SPARE
        self._floor = floor
        self._scores = [np.zeros(0, np.float32) for _ in range(queries)]
        self._numbers = [np.zeros(0, np.int64) for _ in range(queries)]

    def add(self, scores: NDArray[np.float32], numbers: NDArray[np.int64]) -> None:
        """Add passages: scores [n, queries], and their numbers [n]."""
        for query in range(len(self._scores)):
            column = scores[:, query]
            least = self._floor
            if self._k is not None and len(self._scores[query]) >= self._k:
                least = max(least, float(self._scores[query].min()))
            keep = np.flatnonzero(column >= least)
            if not len(keep):
                continue
            joined = np.concatenate([self._scores[query], column[keep]])
            named = np.concatenate([self._numbers[query], numbers[keep]])
            if self._k is not None and len(joined) > self._k:
                order = np.lexsort((named, -joined))[: self._k]
                joined, named = joined[order], named[order]
            self._scores[query], self._numbers[query] = joined, named

    def ranked(self, query: int) -> list[tuple[int, float]]:
        """Return number and score of a query's best, best first; of equal ones the first first."""
        scores, numbers = self._scores[query], self._numbers[query]
        order = np.lexsort((numbers, -scores))
        return list(zip(numbers[order].tolist(), scores[order].tolist(), strict=True))
