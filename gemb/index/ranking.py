"""How closely to look: what `--accuracy` means for a corpus of a size.

Recall of the exact ten best among vectors of EmbeddingGemma-300M, 57,000 as they are and the rest
made from them (tests/bench/bench_search.py):

    candidates       400    800   1600   3200   6400
    57,000        0.9840 0.9913 0.9973
    1,000,000     0.9805 0.9910 0.9970 0.9990 1.0000
    10,000,000    0.8700 0.9200 0.9500 0.9725 0.9950

Narrower vectors, and those of the bundled model, do as well or better. The ten million hold each
vector 180 times with small changes: so many near-equals are the hardest case for codes. Of a
hundred best among 57,000, 8,000 candidates find 0.9934.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemb.arrays import Floats, Ints
from gemb.embedding.nearest import Nearest, merged
from gemb.embedding.vectors import unpacked
from gemb.index.codes import Coder, Codes, nearest_codes
from gemb.index.mapped import gathered, read_ahead
from gemb.io.machine import ahead

ACCURACIES = ("auto", "exact", "balanced", "fast")

EXACT_ROWS = 50_000  # two cores read so many vectors of 768 halves in 30 ms
LEAST = {"balanced": 1600, "fast": 400}  # candidates among up to a million rows
FOR_EACH = {"balanced": 80, "fast": 20}  # candidates for each answer that is wanted
MOST = 0.2  # of the rows: with more candidates an exact scan is as fast
MILLION = 1_000_000  # ten times as many rows: twice as many candidates


@dataclass(frozen=True)
class Plan:
    """How to rank; `str` of it is for people."""

    candidates: int | None  # of the scan over codes, for each query; None: exact

    def __str__(self) -> str:
        return "exact" if self.candidates is None else f"two-stage, {self.candidates} candidates"


def plan(accuracy: str, count: int, k: int) -> Plan:
    """Return how to rank `count` rows (those that a filter leaves) for the best `k`.

    accuracy: one of `ACCURACIES`. auto is exact where that takes no time to speak of, else
    balanced; all are exact where a large part of the rows would be candidates.
    """
    assert accuracy in ACCURACIES, f"{accuracy} is no accuracy"
    if accuracy == "auto":
        accuracy = "exact" if count <= EXACT_ROWS else "balanced"
    if accuracy == "exact":
        return Plan(None)
    growth = 1 + math.log10(max(1.0, count / MILLION))
    candidates = round(growth * max(LEAST[accuracy], FOR_EACH[accuracy] * k))
    return Plan(candidates if candidates <= count * MOST else None)


def ranked(
    queries: NDArray[np.float32],
    stored: NDArray[Any],
    codes: Codes | None,
    coder: Coder | None,
    how: Plan,
    *,
    dtype: str,
    k: int,
    rows: NDArray[np.int64] | None = None,
) -> Found:
    """Rank as the plan says: `ranking.exact` or `two_stage.two_stage`, whose arguments these are.

    Without codes (None) it is exact.
    """
    if how.candidates is None or codes is None or coder is None:
        return exact(queries, stored, dtype=dtype, k=k, rows=rows)
    return two_stage(
        queries,
        stored,
        codes,
        coder,
        dtype=dtype,
        k=k,
        candidates=how.candidates,
        rows=rows,
    )


# Two-stage ranking: a scan over sign codes finds candidates, their vectors decide.
#
# Between the two the candidates' own codes are read once more, now against the query's numbers
# instead of its bits. About an eighth is left: the fewer vectors are read, the better, for they lie
# scattered over a file of many gigabytes.


CODES_AT_A_TIME = 256  # see `ranking.BLOCK_COMPONENTS`
RERANKED = 8  # one in so many candidates is ranked by its vector,
SPARE = 5  # and so many more for each answer that is wanted


def two_stage(
    queries: Floats,
    stored: NDArray[Any],
    codes: Codes,
    coder: Coder,
    *,
    dtype: str,
    k: int,
    candidates: int,
    rows: Ints | None = None,
) -> Found:
    """Return what `exact` would, but for a neighbour whose code is far from its query's.

    Args:
        queries: unit rows [Q, D].
        stored: [N, D], f32, f16 or int8 as `vectors.packed` made it, usually a memmap.
        codes: uint8 [N, B] of the same rows, usually a memmap.
        coder: that made the codes.
        dtype: of `stored`.
        k: at least 1.
        candidates: how many rows the scan finds for each query; at least 5 k do.
        rows: the only ones to look at (of a filter, or not removed), ascending, each once; None:
            all. k of them are found wherever there are k.
    """
    kept_count = candidates // RERANKED + SPARE * k
    candidates = max(candidates, kept_count)
    if len(stored if rows is None else rows) <= kept_count or not len(queries):
        return exact(queries, stored, dtype=dtype, k=k, rows=rows)
    codes = np.asarray(codes)
    places = nearest_codes(coder.codes(queries), codes, count=candidates, rows=rows)
    weights = coder.weights(queries)
    found = []
    for number, near in enumerate(places):
        near = near if rows is None else rows[near]
        estimates = _estimates(codes, near, weights[number])
        kept = np.argpartition(-estimates, kept_count - 1)[:kept_count]
        best = np.sort(near[kept])
        found.append(exact(queries[number : number + 1], stored, dtype=dtype, k=k, rows=best))
    return Found(
        np.concatenate([one.rows for one in found]), np.concatenate([one.scores for one in found])
    )


def _estimates(codes: Codes, rows: Ints, weights: Floats) -> Floats:
    """Return for each row an estimate of its dot product [n], a constant left out."""
    blocks = (rows[n : n + CODES_AT_A_TIME] for n in range(0, len(rows), CODES_AT_A_TIME))
    return np.concatenate([np.unpackbits(codes[some], axis=1) @ weights for some in blocks])


# Exact ranking: every stored vector against every query, by blocks, in bounded memory.


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
