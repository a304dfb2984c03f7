"""What a target holds, compared with what was written: some vectors, and the answers to some."""

from __future__ import annotations

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
    """Random rows of all that pass: those of the least of random keys."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._rows: list[tuple[float, str, NDArray[np.generic]]] = []

    def add(self, part: Part) -> None:
        """Let rows pass."""
        keys = self._random.random(len(part.rows.ids))
        self._rows += [
            (float(keys[number]), part.rows.ids[number], part.vectors[number].copy())
            for number in np.argsort(keys)[:VECTORS].tolist()
        ]
        self._rows = sorted(self._rows, key=lambda row: row[0])[:VECTORS]

    @property
    def rows(self) -> list[tuple[str, NDArray[np.generic]]]:
        """The ids of the rows with their stored vectors."""
        return [(row_id, vector) for _, row_id, vector in self._rows]


def read_back(target: Target, content: Content, sample: Sample) -> ReadBack:
    """Read the rows of a sample, and search for some of them in two ways."""
    rows = sample.rows
    there = target.read([row_id for row_id, _ in rows])
    wrong = sum(
        row_id not in there or there[row_id].tobytes() != vector.tobytes()
        for row_id, vector in rows
    )
    hit = wanted = 0
    queries = rows[:QUERIES]
    for _, stored in queries:
        (vector,) = content.vectors(stored[None])
        exact = target.search(vector, K, is_exact=True)
        least = min((row.score for row in exact), default=0.0) - EQUAL
        answers = target.search(vector, K)
        wanted += len(exact)
        hit += sum(row.score >= least for row in answers)
    recall = hit / wanted if wanted else 0.0
    return ReadBack(read=len(rows), wrong=wrong, queries=len(queries), k=K, recall=round(recall, 4))
