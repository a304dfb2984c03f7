"""Two-stage ranking: a scan over sign codes finds candidates, their vectors decide.

Between the two the candidates' own codes are read once more, now against the query's numbers
instead of its bits. About an eighth is left: the fewer vectors are read, the better, for they lie
scattered over a file of many gigabytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemb.search.code_scan import nearest_codes
from gemb.search.ranking import Found, exact
from gemb.search.sign_codes import Coder, Codes

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

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
