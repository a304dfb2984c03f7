"""How closely to look: what `--accuracy` means for a corpus of a size.

Measured at a million rows, made from vectors of EmbeddingGemma-300M (tests/bench/bench_search.py):
recall of the exact ten best is 0.973 with 100 candidates, 0.993 with 200, 0.9985 with 400, and
complete with 800.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gemb.search.ranking import Found
    from gemb.search.sign_codes import Coder, Codes

ACCURACIES = ("auto", "exact", "balanced", "fast")

EXACT_ROWS = 50_000  # two cores read so many vectors of 768 halves in 30 ms
LEAST = {"balanced": 800, "fast": 200}  # candidates
FOR_EACH = {"balanced": 40, "fast": 15}  # candidates for each answer that is wanted


@dataclass(frozen=True)
class Plan:
    """How to rank; `str` of it is for people."""

    candidates: int | None  # of the scan over codes, for each query; None: exact

    def __str__(self) -> str:
        return "exact" if self.candidates is None else f"two-stage, {self.candidates} candidates"


def plan(accuracy: str, count: int, k: int) -> Plan:
    """Return how to rank `count` rows (those that a filter leaves) for the best `k`.

    accuracy: one of `ACCURACIES`. auto is exact where that takes no time to speak of, else
    balanced.
    """
    assert accuracy in ACCURACIES, f"{accuracy} is no accuracy"
    if accuracy == "auto":
        accuracy = "exact" if count <= EXACT_ROWS else "balanced"
    if accuracy == "exact":
        return Plan(None)
    return Plan(max(LEAST[accuracy], FOR_EACH[accuracy] * k))


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
