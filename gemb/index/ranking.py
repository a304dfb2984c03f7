"""The rows whose vectors are nearest to a query's: by all vectors, or by codes and then by vectors.

`plan` says what `--accuracy` means for an index of a size. Recall of the exact ten best among
vectors of EmbeddingGemma-300M, 57,000 as they are and the rest made from them
(tests/bench/bench_search.py):

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
from gemb.errors import GembError
from gemb.index.codes import Coder, Codes, nearest_codes
from gemb.index.mapped import gathered, read_ahead
from gemb.io.machine import ahead
from gemb.io.text import visible

ACCURACIES = ("auto", "exact", "balanced", "fast")

EXACT_ROWS = 50_000  # two cores read so many vectors of 768 halves in 30 ms
LEAST = {"balanced": 1600, "fast": 400}  # candidates among up to a million rows
FOR_EACH = {"balanced": 80, "fast": 20}  # candidates for each answer that is wanted
MOST = 0.2  # of the rows: with more candidates an exact scan is as fast
MILLION = 1_000_000  # ten times as many rows: twice as many candidates

RERANKED = 8  # one in so many candidates of the scan is ranked by its vector,
SPARE = 5  # and so many more for each answer that is wanted
CODES_AT_A_TIME = 256  # unpacked: see BLOCK_COMPONENTS

# Of vectors that are widened to f32 at a time: 1 MB stays in a core's cache, and its product with
# one query is too small for OpenBLAS to share out. Its threads and ours would fight: on busy cores
# twice the components take six times as long, and 32 queries in one product twice as long as one
# by one.
BLOCK_COMPONENTS = 1 << 18
HIGHEST = 1.02  # no product of a query and a stored unit vector is so large
SCATTERED = 4096  # rows that are read one by one, and asked for before they are needed
SCORES = 1 << 22  # of a block, held at a time: queries by rows


@dataclass(frozen=True)
class Plan:
    """How to rank; `str` of it is for people."""

    candidates: int | None  # of the scan over codes, for each query; None: exact

    def __str__(self) -> str:
        return "exact" if self.candidates is None else f"two-stage, {self.candidates} candidates"


@dataclass(frozen=True, eq=False)
class StoredVectors:
    """Vectors as an index stores them, with their codes; arrays are usually memory maps."""

    array: NDArray[Any]  # [N, D] as `vectors.packed` makes it; a row of NaN is never found
    dtype: str  # f32, f16 or int8
    codes: Codes | None = None  # uint8 [N, B] of the same rows; None: not all are there
    coder: Coder | None = None  # that made the codes
    index: str = (
        ""  # whose they are, in messages: each row is a unit vector; empty: they may be NaN
    )


class Found(NamedTuple):
    """What was found for each query, best first; of two equal scores that of the lower row."""

    rows: Ints  # [Q, k]; -1 where there are no more
    scores: Floats  # [Q, k]: dot products, so cosines of unit vectors; -inf where rows is -1


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
    queries: Floats, stored: StoredVectors, how: Plan, *, k: int, rows: Ints | None = None
) -> Found:
    """Return the `k` rows with the highest dot product for each query, as the plan says.

    A scan over codes finds candidates, and their vectors decide: a neighbour whose code is far from
    its query's is missed. Between the two the candidates' own codes are read once more, now against
    the query's numbers instead of its bits. About an eighth is left: the fewer vectors are read,
    the better, for they lie scattered over a file of many gigabytes.

    Args:
        queries: unit rows [Q, D].
        stored: what is ranked; without codes it is ranked by all vectors.
        how: the plan; at least 5 k candidates are taken.
        k: at least 1; may be more than there are rows.
        rows: the only ones to look at (of a filter, or not removed), ascending, each once; None:
            all. k of them are found wherever there are k.
    """
    if how.candidates is None or stored.codes is None or stored.coder is None:
        return exact(queries, stored, k=k, rows=rows)
    reranked = how.candidates // RERANKED + SPARE * k
    if len(stored.array if rows is None else rows) <= reranked or not len(queries):
        return exact(queries, stored, k=k, rows=rows)
    codes, coder = np.asarray(stored.codes), stored.coder
    candidates = max(how.candidates, reranked)
    nearest = nearest_codes(coder.codes(queries), codes, count=candidates, rows=rows)
    weights = coder.weights(queries)
    answers = []
    for number, near in enumerate(nearest):
        near = near if rows is None else rows[near]
        estimates = _estimates(codes, near, weights[number])
        best = np.sort(near[np.argpartition(-estimates, reranked - 1)[:reranked]])
        answers.append(exact(queries[number : number + 1], stored, k=k, rows=best))
    return Found(
        np.concatenate([answer.rows for answer in answers]),
        np.concatenate([answer.scores for answer in answers]),
    )


def _estimates(codes: Codes, rows: Ints, weights: Floats) -> Floats:
    """Return for each row an estimate of its dot product [n], a constant left out."""
    blocks = (rows[n : n + CODES_AT_A_TIME] for n in range(0, len(rows), CODES_AT_A_TIME))
    return np.concatenate([np.unpackbits(codes[block], axis=1) @ weights for block in blocks])


def exact(queries: Floats, stored: StoredVectors, *, k: int, rows: Ints | None = None) -> Found:
    """Return the `k` rows with the highest dot product for each query: all vectors are read.

    Arguments as of `ranked`. Memory: some 50 MB, and 30 Q k bytes.

    Raises:
        GembError: a vector of an index is damaged: its product is that of no unit vector.
    """
    read = _reader(stored.array, rows)
    count = len(stored.array) if rows is None else len(rows)
    best = Nearest(
        np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
    )
    dim = queries.shape[1]
    step = max(1, min(BLOCK_COMPONENTS // dim, SCORES // max(1, len(queries))))

    def scores(first: int) -> Floats:
        block = read(slice(first, min(count, first + step)))
        vectors = unpacked(block, stored.dtype, dim)
        products = np.stack([vectors @ query for query in queries])
        if stored.index and not (np.abs(products) < HIGHEST).all():  # nor NaN
            number = first + int(np.argmin((np.abs(products) < HIGHEST).all(axis=0)))
            raise damaged_vector(stored.index, number if rows is None else int(rows[number]))
        products[np.isnan(products)] = -np.inf
        return products

    starts = range(0, count if len(queries) else 0, step)
    for first, products in zip(starts, ahead(scores, starts), strict=True):
        best = merged(best, products, first)
    numbers = best.numbers
    if rows is not None and count:
        numbers = np.where(numbers < 0, -1, rows[numbers])
    return Found(numbers, best.scores)


def damaged_vector(index: str, row: int) -> GembError:
    """Return the error of a vector that is not of length 1."""
    folder = visible(index)
    return GembError(
        f"{folder} is damaged: the vector of row {row} is not of length 1; "
        f"gemb index verify {folder} says more"
    )


def _reader(stored: NDArray[Any], rows: Ints | None) -> Callable[[slice], NDArray[Any]]:
    """Return what gives the vectors of a part of `rows`, or of all."""
    if rows is not None and len(rows) <= SCATTERED:
        read_ahead(stored, rows)
        return lambda part: gathered(stored, rows[part])
    array = np.asarray(stored)  # slices of a memmap cost five times those of an array
    if rows is None:
        return lambda part: array[part]

    def read(part: slice) -> NDArray[Any]:
        numbers = rows[part]
        begin, end = int(numbers[0]), int(numbers[-1]) + 1
        return array[begin:end] if end - begin == len(numbers) else array[numbers]

    return read
