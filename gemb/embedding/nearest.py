"""The nearest candidates of many queries, under a ceiling: exact, by blocks, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gemb.arrays import Floats, Ints

CANDIDATES = 8192  # a block
CROWDED = 4  # times as many hits as the depth: then a partition leaves most of them out


class Nearest(NamedTuple):
    """The nearest candidates of each query, best first; of equal ones the lower number first."""

    scores: Floats  # [B, depth]; -inf where there are no more
    numbers: Ints  # [B, depth]; -1 there


def nearest(
    queries: Floats,
    candidates: Callable[[int, int], Floats],
    count: int,
    *,
    depth: int,
    ceiling: Floats,
    left_out: tuple[Ints, Ints],
    unlike: tuple[Floats, float] | None = None,
) -> Nearest:
    """Return the candidates with the highest dot product that is not above each query's ceiling.

    Args:
        queries: [B, D].
        candidates: gives the vectors [n, D] of the candidates from one number up to another.
        count: of candidates.
        depth: how many to return of each query.
        ceiling: [B]; a candidate with a higher score is passed over.
        left_out: rows of `queries`, and a candidate that each must not have; both [n].
        unlike: vectors [B, D], and the highest dot product that a row's candidates may have with
            its own; None: any.
    """
    shape = len(queries), depth
    best = Nearest(np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int64))
    rows, numbers = left_out
    for first in range(0, count, CANDIDATES):
        last = min(count, first + CANDIDATES)
        block = candidates(first, last)
        scores: Floats = queries @ block.T
        inside = (numbers >= first) & (numbers < last)
        scores[rows[inside], numbers[inside] - first] = -np.inf
        scores[scores > ceiling[:, None]] = -np.inf
        if unlike is not None:
            scores[unlike[0] @ block.T > unlike[1]] = -np.inf
        best = merged(best, scores, first)
    return best


def merged(best: Nearest, scores: Floats, first: int) -> Nearest:
    """Return the best of what was found and of a block of scores, [B, n], from number `first`."""
    count, depth = best.scores.shape
    bar = best.scores[:, -1:]
    hits = scores > bar
    if np.count_nonzero(hits) > CROWDED * count * depth and scores.shape[1] > depth:
        own_bar = np.partition(scores, -depth, axis=1)[:, -depth, None]
        hits = (scores >= own_bar) & (scores > bar)
    rows, columns = np.nonzero(hits)
    of_row = np.concatenate([np.repeat(np.arange(count), depth), rows])
    values = np.concatenate([best.scores.ravel(), scores[rows, columns]])
    numbers = np.concatenate([best.numbers.ravel(), columns + first])
    # What was found before has lower numbers; its empty places, -1, are the worst by their score.
    order = np.lexsort((numbers, -values, of_row))
    starts = np.searchsorted(of_row[order], np.arange(count))
    chosen = order[starts[:, None] + np.arange(depth)]
    return Nearest(values[chosen], numbers[chosen])
