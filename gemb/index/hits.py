"""What a search returns: hits, and several rankings of them made one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemb.texts.records import Id


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One passage or row that answers a query."""

    score: float  # cosine of its vector and the query's
    text: str  # all of the passage, without its prompt
    path: str | None = None  # as the user would type it; None: the row came from no file
    line: int | None = None  # of the passage's first line, from 1; None where there are no lines
    last_line: int | None = None  # of its last line, itself included
    title: str | None = None
    id: Id | None = None  # of a row; None for a passage of a file
    kept: Mapping[str, object] = field(default_factory=dict)  # a row's further fields
    stale: str | None = None  # its file is gone or changed since it was indexed; None: neither
    is_estimate: bool = False  # it has no vector yet: the score is what it would probably be
    copies: int = 1  # passages of the same text, of which only this one is shown
    ranks: Mapping[str, int | None] = field(default_factory=dict)  # by words, draft and vector


# Source: Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual
# Rank Learning Methods", SIGIR 2009. Ranks are added, since scores of two kinds cannot be compared.
K = 60  # of the paper: the larger, the less the first ranks stand out


class Ranked(NamedTuple):
    """Rows, best first."""

    rows: NDArray[np.int64]  # [n]; slots of an index, or places in a list of passages
    scores: NDArray[np.float64]  # [n], higher is better


def fused(rankings: Sequence[NDArray[np.int64]]) -> Ranked:
    """Return the rows of several rankings as one; its scores are sums of 1 / (60 + rank).

    Args:
        rankings: each int64 [n], best first, no row twice; -1 is no row. Of two rows with equal
            sums that one comes first which the first ranking has higher, then the lower row.
    """
    scores: dict[int, float] = {}
    ranks: dict[int, list[float]] = {}  # of a row in each ranking
    for number, ranking in enumerate(rankings):
        for rank, row in enumerate(ranking[ranking >= 0].tolist(), 1):
            scores[row] = scores.get(row, 0.0) + 1 / (K + rank)
            ranks.setdefault(row, [math.inf] * len(rankings))[number] = rank
    ordered = sorted(scores, key=lambda row: (-scores[row], ranks[row], row))
    return Ranked(
        np.array(ordered, np.int64), np.array([scores[row] for row in ordered], np.float64)
    )
