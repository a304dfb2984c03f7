"""What a search is asked to find, and what it found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gemb.search.hits import Hit
from gemb.search.queries import Query

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NO_FLOOR = -1.0  # no cosine is below


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which passages or rows are wanted."""

    k: int | None = 10  # of each query; None: all that reach the floor
    min_score: float | None = None  # None: what is better than chance
    is_weak: bool = False  # what does not reach the floor, too
    where: str | None = None  # a filter of rows
    is_hybrid: bool = False  # by words, too
    accuracy: str = "auto"  # of `gemb.search.accuracy.ACCURACIES`


@dataclass(frozen=True, kw_only=True)
class QueryHits:
    """The answers to one query."""

    query: Query
    vector: NDArray[np.float32]  # of the query, [dim]
    hits: list[Hit]  # that reach the floor, best first
    floor: float  # NO_FLOOR: there is none
    best_below: float | None  # the best score that does not reach it; None: nothing was left out


def above(
    query: Query, vector: NDArray[np.float32], hits: list[Hit], floor: float, wanted: Wanted
) -> QueryHits:
    """Return the hits that reach the floor; with `wanted.is_weak` all of them."""
    below = [] if wanted.is_weak else [hit for hit in hits if hit.score < floor]
    kept = hits if not below else [hit for hit in hits if hit.score >= floor]
    return QueryHits(
        query=query,
        vector=vector,
        hits=kept,
        floor=floor,
        best_below=max((hit.score for hit in below), default=None),
    )
