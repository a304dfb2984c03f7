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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gemb.search.ranking import Found
    from gemb.search.sign_codes import Coder, Codes

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
    from gemb.search.ranking import exact
    from gemb.search.two_stage import two_stage

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
