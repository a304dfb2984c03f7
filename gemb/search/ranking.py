"""Exact ranking: every stored vector against every query, by blocks, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemb.embedding.nearest import Nearest, merged
from gemb.embedding.vectors import unpacked
from gemb.io.machine import ahead
from gemb.search.mapped_file import gathered, read_ahead

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

# Of vectors that are widened to f32 at a time: 1 MB stays in a core's cache, and its product with
# one query is too small for OpenBLAS to share out. Its threads and ours would fight: on busy cores
# twice the components take six times as long, and 32 queries in one product twice as long as one
# by one.
BLOCK_COMPONENTS = 1 << 18
SCATTERED = 4096  # rows that are read one by one, and asked for before they are needed
SCORES = 1 << 22  # of a block, held at a time: queries by rows


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

    Memory: some 50 MB, and 30 Q k bytes.
    """
    look = _reader(stored, rows)
    count = len(stored) if rows is None else len(rows)
    best = Nearest(
        np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
    )
    dim = queries.shape[1]
    step = max(1, min(BLOCK_COMPONENTS // dim, SCORES // max(1, len(queries))))

    def scores(first: int) -> Floats:
        vectors = unpacked(look(slice(first, min(count, first + step))), dtype, dim)
        products = np.stack([vectors @ query for query in queries])
        products[np.isnan(products)] = -np.inf
        return products

    starts = range(0, count if len(queries) else 0, step)
    for first, block in zip(starts, ahead(scores, starts), strict=True):
        best = merged(best, block, first)
    numbers = best.numbers
    if rows is not None and count:
        numbers = np.where(numbers < 0, -1, rows[numbers])
    return Found(numbers, best.scores)


def _reader(stored: NDArray[Any], rows: Ints | None) -> Callable[[slice], NDArray[Any]]:
    """Return what gives the vectors of a part of `rows`, or of all."""
    if rows is not None and len(rows) <= SCATTERED:
        read_ahead(stored, rows)
        return lambda part: gathered(stored, rows[part])
    array = np.asarray(stored)  # slices of a memmap cost five times those of an array
    if rows is None:
        return lambda part: array[part]

    def look(part: slice) -> NDArray[Any]:
        wanted = rows[part]
        begin, end = int(wanted[0]), int(wanted[-1]) + 1
        return array[begin:end] if end - begin == len(wanted) else array[wanted]

    return look
