"""What two-stage ranking misses on one's own corpus: measured, not promised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from gemb.search.accuracy import Plan
    from gemb.search.sign_codes import Coder, Codes


@dataclass(frozen=True)
class Recall:
    """What was measured."""

    queries: int
    k: int
    recall: float  # share of the exact k that the plan found, over all queries
    worst: float  # of the query with the lowest share
    exact_ms: float  # a query, warm
    plan_ms: float  # a query, warm


def check_recall(
    queries: NDArray[np.float32],
    stored: NDArray[Any],
    codes: Codes,
    coder: Coder,
    how: Plan,
    *,
    dtype: str,
    k: int,
    rows: NDArray[np.int64] | None = None,
) -> Recall:
    """Rank as `how` says and exactly, and compare. A row with the k-th score's equal counts.

    Args as of `two_stage`; queries: unit rows [Q, D], the user's own or `rows_as_queries`.
    """
    raise NotImplementedError


def rows_as_queries(
    stored: NDArray[Any],
    *,
    dtype: str,
    count: int,
    rows: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Return up to `count` stored vectors, drawn evenly, as queries [n, D]: unit rows, no NaN."""
    raise NotImplementedError
