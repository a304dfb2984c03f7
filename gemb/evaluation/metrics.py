"""The metrics of an evaluation, and their confidence intervals.

Every metric is defined as in its reference program: `spearman` as in
scipy.stats.spearmanr, `average_precision` as in sklearn.metrics.average_precision_score, and the
metrics of a ranking as in NIST's trec_eval 9 (`ndcg_cut_10`, `recall_10`, `recall_100`, `map_cut`,
`recip_rank`). Intervals are by percentile bootstrap over pairs, queries or rows (Efron 1979); where
all units have one value, so that a bootstrap sees no spread, they are exact (Clopper and Pearson).
The resamples of a set depend only on its content, so two models are measured on the same ones: the
difference of their resampled scores is the paired bootstrap.

Legend: R resamples, N units (pairs, queries, rows), K places of a ranking.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemb.arrays import Doubles, Rows

DEPTH = 100  # ranks that count
RANKING = ("ndcg@10", "recall@10", "recall@100", "mrr@10", "map@100")
RESAMPLES = 2000
LEVEL = 0.95
# Units of a set from which there is an interval, and a verdict. The bootstrap takes the spread of n
# values for that of all, and is too sure of itself: of n normal values its interval is
# 1.96 sqrt((n - 1) / n) standard errors to each side, where Student's t asks for more. So where
# nothing has changed, 15 verdicts in 100 are wrong at n = 5, 10.2 at n = 9 and 9.6 at n = 10, in
# the place of 5. And one of two equal models wins in all of n queries, which makes a verdict of any
# size of the changes, with a chance of 2 / 2^n: 1 at n = 1, 0.06 at n = 5, 0.002 at n = 10.
LEAST_UNITS = 10
_CELLS = 1 << 21  # counts in memory at a time

Form = Literal["mean", "spearman", "average_precision"]


def spearman(a: Doubles, b: Doubles, counts: Doubles | None = None) -> Doubles:
    """Return Spearman's rank correlation, float64 [R]; ties have their mean rank.

    Args:
        a: [N].
        b: [N].
        counts: [R, N], how often each pair is in each resample; None: once, and R is 1.

    The correlation is 0 where it is undefined, because all values of a side are equal.
    """
    counts = np.ones((1, len(a))) if counts is None else counts
    middle = (counts.sum(axis=1, keepdims=True) + 1) / 2
    x, y = _mean_ranks(a, counts) - middle, _mean_ranks(b, counts) - middle
    both = np.einsum("rn,rn,rn->r", counts, x, y)
    size = np.sqrt(np.einsum("rn,rn,rn->r", counts, x, x) * np.einsum("rn,rn,rn->r", counts, y, y))
    return _ratio(both, size)


def _mean_ranks(values: Doubles, counts: Doubles) -> Doubles:
    """Return the rank of each value in each resample, from 1, equal ones at their mean; [R, N]."""
    _, group = np.unique(values, return_inverse=True)
    in_group = _in_groups(counts, group)  # [R, groups]
    before = in_group.cumsum(axis=1) - in_group
    ranks: Doubles = (before + (in_group + 1) / 2)[:, group]
    return ranks


def _in_groups(counts: Doubles, group: NDArray[Any]) -> Doubles:
    """Return the sums of the counts whose group is 0, 1, ...; [R, groups]. No group is empty."""
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    return np.add.reduceat(counts[:, order], starts, axis=1)


def average_precision(scores: Doubles, positive: Doubles, counts: Doubles | None = None) -> Doubles:
    """Return the average precision, float64 [R]: sum of (R_k - R_{k-1}) P_k over the thresholds k.

    Args:
        scores: [N]; equal ones are one threshold.
        positive: [N], 1 where the pair belongs together, else 0.
        counts: [R, N], as for `spearman`.

    A resample without positives has 0.
    """
    counts = np.ones((1, len(scores))) if counts is None else counts
    _, group = np.unique(-scores, return_inverse=True)
    hits = _in_groups(counts * positive, group)
    precision = _ratio(hits.cumsum(axis=1), _in_groups(counts, group).cumsum(axis=1))
    return _ratio((hits * precision).sum(axis=1), hits.sum(axis=1))


def _ratio(top: Doubles, bottom: Doubles) -> Doubles:
    """Return top / bottom, 0 where the bottom is 0."""
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom != 0)


def best(scores: NDArray[np.float32], places: int = DEPTH) -> Rows:
    """Return the rows of the highest scores, best first; of equal scores the lower row is first.

    trec_eval puts the greater document id first among equal scores: give it the documents in
    descending order of their ids' UTF-8 bytes.

    Args:
        scores: [documents]; -inf is out.
        places: how many rows at most.
    """
    rows = np.arange(len(scores))
    if len(scores) > places:
        least = np.partition(scores, len(scores) - places)[len(scores) - places]
        rows = np.flatnonzero(scores >= least)
    rows = rows[np.argsort(-scores[rows], kind="stable")][:places]
    ranking: Rows = rows[np.isfinite(scores[rows])]
    return ranking


def of_rankings(grades: Doubles, ideal: Doubles, relevant: Doubles) -> dict[str, Doubles]:
    """Return each metric of `RANKING` for each query, float64 [N].

    nDCG has linear gains and the discount log2(place + 1) (Jarvelin and Kekalainen 2002, as
    trec_eval computes it, not 2^grade - 1).

    Args:
        grades: [N, K], those of the documents found, best first; 0 for one that was not judged.
        ideal: [N, 10], the highest grades of the query, highest first, filled up with 0.
        relevant: [N], how many documents have a grade above 0; at least 1.
    """
    gains = np.maximum(grades, 0)
    hits = (grades > 0).astype(np.float64)
    discount = 1 / np.log2(np.arange(2, 12))
    places = np.arange(1, grades.shape[1] + 1)
    first = np.where(hits[:, :10].any(axis=1), hits[:, :10].argmax(axis=1) + 1.0, np.inf)
    precision = hits.cumsum(axis=1) / places
    top = gains[:, :10]
    return {
        "ndcg@10": (top @ discount[: top.shape[1]]) / (np.maximum(ideal, 0) @ discount),
        "recall@10": hits[:, :10].sum(axis=1) / relevant,
        "recall@100": hits.sum(axis=1) / relevant,
        "mrr@10": 1 / first,
        "map@100": (hits * precision).sum(axis=1) / relevant,
    }


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Statistic:
    """A score with the values that a bootstrap needs: one number for each unit, or two."""

    form: Form
    values: Doubles  # [N]: the values that are averaged, or the cosines of pairs
    gold: Doubles | None = None  # [N]: human scores of pairs, or 1 for a pair that belongs together

    def value(self) -> float:
        """Return the score."""
        return float(self.of(np.ones((1, len(self.values))))[0])

    def of(self, counts: Doubles) -> Doubles:
        """Return the score of each resample, [R]; counts [R, N]."""
        if self.gold is None:
            means: Doubles = counts @ self.values / counts.sum(axis=1)
            return means
        score = spearman if self.form == "spearman" else average_precision
        return score(self.values, self.gold, counts)

    def resampled(self, seed: int) -> Doubles:
        """Return the score of `RESAMPLES` resamples; the same ones for the same seed and N."""
        parts = resamples(len(self.values), seed)
        return np.concatenate([self.of(counts) for counts in parts])


def resamples(units: int, seed: int) -> Iterator[Doubles]:
    """Yield counts [r, units]: how often each unit was drawn; `RESAMPLES` rows in all."""
    random = np.random.default_rng(seed)
    step = max(1, _CELLS // units)
    for begin in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - begin)
        drawn = random.integers(units, size=(rows, units))
        drawn += np.arange(rows)[:, None] * units
        counts = np.bincount(drawn.ravel(), minlength=rows * units)
        yield counts.reshape(rows, units).astype(np.float64)


def score_interval(statistic: Statistic, scores: Doubles) -> Interval | None:
    """Return the interval of a score; None: too few units, or a rank statistic without any spread.

    Where all units have one value c (of 0 to 1), the interval is that of Clopper and Pearson
    (Biometrika 26, 1934) for the share of units that differ, of which none was seen: at 1, N of N,
    from 0.025^(1/N) to 1; at 0, from 0 to 1 - 0.025^(1/N).

    Args:
        statistic: of a set.
        scores: of its resamples, [R].
    """
    values = statistic.values
    if len(values) < LEAST_UNITS:
        return None
    if statistic.form == "mean" and np.all(values == values[0]):
        same = float(((1 - LEVEL) / 2) ** (1 / len(values)))  # the least share of such units
        return Interval(float(values[0]) * same, 1 - (1 - float(values[0])) * same)
    bounds = interval(scores)
    return bounds if bounds.low < bounds.high else None


def interval(scores: Doubles) -> Interval:
    """Return the middle `LEVEL` of the resampled scores [R]."""
    low, high = np.quantile(scores, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
