"""Exact ranking: every stored vector against every query, by blocks, in bounded memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemb.vectors import unpacked

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

BLOCK_ROWS = 4096


class Found(NamedTuple):
    """What was found for each query, best first; of two equal scores that of the lower row."""

    rows: Ints  # [Q, k]; -1 where there are no more
    scores: Floats  # [Q, k]: dot products, so cosines of unit vectors; -inf where rows is -1


def exact(
    queries: Floats, stored: NDArray[Any], *, dtype: str, k: int, rows: Ints | None = None
) -> Found:
    """Return the `k` rows of `stored` with the highest dot product for each query.

    Args:
        queries: unit rows [Q, D].
        stored: [N, D] as `vectors.packed` made it, usually a memmap: f32, f16 or int8. A row of
            NaN is never found.
        dtype: "f32", "f16" or "int8".
        k: at least 1; may be more than there are rows.
        rows: the only ones to look at, ascending, each once; None: all.

    Memory: some 50 MB, and 12 Q k bytes.
    """
    numbers = np.arange(len(stored)) if rows is None else rows
    best = nothing_found(len(queries), k)
    for first in range(0, len(numbers), BLOCK_ROWS):
        some = numbers[first : first + BLOCK_ROWS]
        scores = queries @ unpacked(stored[some], dtype, queries.shape[1]).T
        best = merged(best, scores, np.broadcast_to(some, scores.shape))
    return best


def nothing_found(count: int, k: int) -> Found:
    """Return the empty answer of `count` queries."""
    return Found(np.full((count, k), -1, np.int64), np.full((count, k), -np.inf, np.float32))


def merged(best: Found, scores: Floats, rows: Ints) -> Found:
    """Return the best of what was found and of `scores` [Q, n] of `rows` [Q, n]."""
    k = best.rows.shape[1]
    all_scores = np.concatenate([best.scores, np.nan_to_num(scores, nan=-np.inf)], axis=1)
    all_rows = np.concatenate([best.rows, rows], axis=1)
    order = np.lexsort((all_rows, -all_scores), axis=1)[:, :k]
    scores = np.take_along_axis(all_scores, order, 1)
    rows = np.where(np.isneginf(scores), -1, np.take_along_axis(all_rows, order, 1))
    return Found(rows, scores)
