"""What a target holds, compared with what was written: some vectors, and the answers to some."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gemb.targets.base import Content, Part, Target

VECTORS = 100  # that are read back
QUERIES = 20  # of these are searched for
K = 10  # answers of each
EQUAL = 1e-6  # scores that differ by less are equal


@dataclass(frozen=True, kw_only=True)
class ReadBack:
    """What was found."""

    read: int  # vectors that were read back
    wrong: int  # of these, absent or not bit for bit what was written
    queries: int
    k: int  # answers of each
    recall: float  # of the answers of an exact scan, so many the usual search finds

    def words(self) -> str:
        """Return it for the end of a line."""
        return (
            f"; {self.read - self.wrong} of {self.read} vectors read back are equal, "
            f"recall@{self.k} {self.recall:.3f} of {self.queries} queries"
        )


class Sample:
    """Random rows of all that pass, each as likely as any other.

    Source: Vitter, "Random Sampling with a Reservoir", 1985, algorithm R.
    """

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._passed = 0
        self.rows: list[tuple[str, NDArray[np.generic]]] = []

    def add(self, part: Part) -> None:
        """Let rows pass."""
        for number, row in enumerate(part.rows):
            self._passed += 1
            place = len(self.rows)
            if place == VECTORS:
                place = self._random.randrange(self._passed)
                if place >= VECTORS:
                    continue
                self.rows[place] = (row.id, part.vectors[number].copy())
            else:
                self.rows.append((row.id, part.vectors[number].copy()))


def read_back(target: Target, content: Content, sample: Sample) -> ReadBack:
    """Read the rows of a sample, and search for some of them in two ways."""
    there = target.read([row_id for row_id, _ in sample.rows])
    wrong = sum(
        row_id not in there or there[row_id].tobytes() != vector.tobytes()
        for row_id, vector in sample.rows
    )
    found = wanted = 0
    queries = sample.rows[:QUERIES]
    for _, stored in queries:
        (vector,) = content.vectors(stored[None])
        exact = target.search(vector, K, is_exact=True)
        least = min((row.score for row in exact), default=0.0) - EQUAL
        answers = target.search(vector, K)
        wanted += len(exact)
        found += sum(row.score >= least for row in answers)
    recall = found / wanted if wanted else 0.0
    return ReadBack(
        read=len(sample.rows), wrong=wrong, queries=len(queries), k=K, recall=round(recall, 4)
    )
