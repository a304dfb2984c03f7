"""Similarity statistics of pairs: cosines of right and wrong partners, alignment, uniformity.

After Wang & Isola, "Understanding Contrastive Representation Learning through Alignment and
Uniformity on the Hypersphere" (arXiv 2005.10242), equations 1 and 2 with alpha = 2, t = 2:
    alignment  = mean |q_i - p_i|^2            0 if partners are equal, 2 if unrelated
    uniformity = log mean exp(-2 |x_i - x_j|^2)  over i != j: 0 if all points are equal, lower if
                                                 they are spread; the best are at -4 and below
Uniformity is of the queries and of the positives, averaged, as in the authors' code.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 200  # of the cosines, over [-1, 1]
WRONG_PARTNERS = 20  # positives of others, a query
ROWS_AT_A_TIME = 1024  # memory: so many times N float32


def similarities(queries: NDArray[np.float32], positives: NDArray[np.float32]) -> dict[str, Any]:
    """Return the entry of one model in `similarities.json`; it is deterministic.

    Args:
        queries: unit rows [N, D].
        positives: unit rows [N, D], the right partners. Leave repeated texts out: a repeat
            would count as a wrong partner.

    Returns:
        pairs: N.
        positive, negative: {"mean": of the cosines, "counts": their number in each of 200 bins of
            0.01 over [-1, 1]}; the negatives of a query are up to 20 other pairs' positives.
        alignment, uniformity: as above; None if there are too few pairs.
        Numbers have four decimals.
    """
    assert queries.shape == positives.shape, f"{queries.shape} and {positives.shape} are no pairs"
    count = len(queries)
    right = np.einsum("nd,nd->n", queries, positives)
    wrong = _wrong_partners(queries, positives)
    uniformity = (_uniformity(queries) + _uniformity(positives)) / 2
    return {
        "pairs": count,
        "positive": _histogram(right),
        "negative": _histogram(wrong),
        "alignment": _rounded(np.mean(2 - 2 * right) if count else np.nan),
        "uniformity": _rounded(uniformity),
    }


def _wrong_partners(
    queries: NDArray[np.float32], positives: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return cosines of q_i and p_(i + shift), for shifts spread evenly over the pairs."""
    count = len(queries)
    shifts = min(WRONG_PARTNERS, count - 1)
    spread = [1 + step * (count - 1) // shifts for step in range(shifts)]
    cosines = [np.einsum("nd,nd->n", queries, np.roll(positives, -shift, 0)) for shift in spread]
    return np.concatenate(cosines) if cosines else np.empty(0, np.float32)


def _uniformity(x: NDArray[np.float32]) -> float:
    count = len(x)
    if count < 2:
        return float("nan")
    total = 0.0
    for start in range(0, count, ROWS_AT_A_TIME):
        part = np.exp(4 * (x[start : start + ROWS_AT_A_TIME] @ x.T - 1))  # exp(-2 |x - y|^2)
        part[np.arange(len(part)), np.arange(start, start + len(part))] = 0  # i = j
        total += float(part.sum(dtype=np.float64))
    return float(np.log(total / (count * (count - 1))))


def _histogram(cosines: NDArray[np.float32]) -> dict[str, Any]:
    inside = np.clip(cosines, -1, 1)  # rounding leaves 1.0000001
    counts, _ = np.histogram(inside, BINS, (-1, 1))
    mean = np.mean(cosines, dtype=np.float64) if len(cosines) else np.nan
    return {"mean": _rounded(mean), "counts": counts.tolist()}


def _rounded(value: float | np.floating[Any]) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
