"""How sure a score is: percentile bootstrap over pairs, queries or rows (Efron 1979).

A set's resamples depend on its content alone, so that two models are measured on the same ones:
the difference of their resampled scores is the paired bootstrap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from gemb.metrics import Floats, average_precision, spearman

RESAMPLES = 2000
LEVEL = 0.95
_CELLS = 1 << 21  # counts in memory at a time

Form = Literal["mean", "spearman", "average_precision"]


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Statistic:
    """A score with what a bootstrap needs: one number for each unit, or two."""

    form: Form
    values: Floats  # [N]: what is averaged; the cosines of pairs
    gold: Floats | None = None  # [N]: human scores of pairs, or 1 for a pair that belongs together

    def value(self) -> float:
        """Return the score."""
        return float(self.of(np.ones((1, len(self.values))))[0])

    def of(self, counts: Floats) -> Floats:
        """Return the score of each resample, [R]; counts [R, N]."""
        if self.gold is None:
            means: Floats = counts @ self.values / counts.sum(axis=1)
            return means
        score = spearman if self.form == "spearman" else average_precision
        return score(self.values, self.gold, counts)

    def resampled(self, seed: int) -> Floats:
        """Return the score of `RESAMPLES` resamples; the same ones for the same seed and N."""
        parts = resamples(len(self.values), seed)
        return np.concatenate([self.of(counts) for counts in parts])


def resamples(units: int, seed: int) -> Iterator[Floats]:
    """Yield counts [r, units]: how often each unit was drawn; `RESAMPLES` rows in all."""
    random = np.random.default_rng(seed)
    step = max(1, _CELLS // units)
    for begin in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - begin)
        drawn = random.integers(units, size=(rows, units))
        drawn += np.arange(rows)[:, None] * units
        counts = np.bincount(drawn.ravel(), minlength=rows * units)
        yield counts.reshape(rows, units).astype(np.float64)


def interval(scores: Floats) -> Interval:
    """Return the middle `LEVEL` of the resampled scores [R]."""
    low, high = np.quantile(scores, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
