"""Is one model better than another? WIN, TIE or REGRESSION, by a paired bootstrap, or TOO FEW.

It is TOO FEW where a set has fewer units than `metrics.LEAST_UNITS`, which says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gemb.arrays import Doubles
from gemb.errors import UsageError
from gemb.evaluation.metrics import LEAST_UNITS, Interval, interval
from gemb.evaluation.scores import Scores, Size

Word = Literal["WIN", "TIE", "REGRESSION", "TOO FEW"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The change of one score."""

    set: str  # a set's name, or `mean`
    metric: str
    before_dim: int
    dim: int
    dtype: str
    before: float
    after: float
    difference: float
    units: int  # queries, pairs or rows; of several sets, those of the one that has the fewest
    low: float | None  # 95 % confidence interval of the difference; None: there are too few units
    high: float | None

    @property
    def word(self) -> Word:
        """The verdict of the interval: a tie if it holds 0."""
        if self.low is None or self.high is None:
            return "TOO FEW"
        if self.low > 0:
            return "WIN"
        return "REGRESSION" if self.high < 0 else "TIE"


@dataclass(frozen=True)
class Verdict:
    """The changes of all scores; the word is that of the mean over the sets at the widest size."""

    main: Difference
    sets: tuple[Difference, ...]  # at the widest size
    sizes: tuple[Difference, ...]  # the mean at each size that both have

    @property
    def word(self) -> Word:
        """WIN, TIE, REGRESSION or TOO FEW."""
        return self.main.word

    @property
    def line(self) -> str:
        """`VERDICT WIN ndcg@10 0.412 → 0.437 (+0.025, 95% CI +0.011 to +0.040)`."""
        main = self.main
        widths = f" {main.before_dim} → {main.dim} dims" if main.before_dim != main.dim else ""
        return (
            f"VERDICT {main.word} {main.metric}{widths} {main.before:.3f} → {main.after:.3f} "
            f"({main.difference:+.3f}, {spread(main.low, main.high, main.units)})"
        )

    def to_json(self) -> dict[str, Any]:
        """Return everything, with the line."""
        return {
            "verdict": self.word,
            "line": self.line,
            **_json(self.main),
            "sets": [_json(difference) for difference in self.sets],
            "sizes": [_json(difference) for difference in self.sizes],
        }


def spread(low: float | None, high: float | None, units: int, form: str = "+.3f") -> str:
    """Return the interval of a change in words; where there is none, of how few units it is."""
    if low is None or high is None:
        return f"n={units}: no interval"
    return f"95% CI {low:{form}} to {high:{form}}"


def too_few(units: int) -> str:
    """Return why there is no verdict, for a note."""
    return (
        f"n={units} is too few for a verdict: each set needs {LEAST_UNITS} queries, pairs or rows, "
        "and some hundred for a small change"
    )


def _json(difference: Difference) -> dict[str, Any]:
    return {**asdict(difference), "word": difference.word}


def verdict(before: Scores, after: Scores) -> Verdict:
    """Compare the scores of two models on the same sets.

    The widest vectors of each are compared, in the first type that was evaluated. The resamples of
    each set are drawn independently, and are the same for both models.

    Raises:
        UsageError: the two were not evaluated on the same sets, or not in the same type.
    """
    check_sets(before, {dataset.name: dataset.fingerprint for dataset in after.sets})
    old, new = before.widest, after.widest
    check_type(before, new.dtype)
    sets = tuple(_of_set(before, after, dataset.name, old, new) for dataset in after.sets)
    shared_sizes = [size for size in after.sizes if size in before.sizes]
    return Verdict(
        main=_of_mean(before, after, old, new),
        sets=sets,
        sizes=tuple(_of_mean(before, after, size, size) for size in shared_sizes),
    )


def check_sets(before: Scores, fingerprints: Mapping[str, str]) -> None:
    """Refuse scores of other sets than these; `fingerprints` maps a name to a fingerprint.

    Raises:
        UsageError: a set is missing on one side, or its content has changed.
    """
    baseline = {dataset.name: dataset.fingerprint for dataset in before.sets}
    for name in [*baseline, *fingerprints]:
        if name not in baseline or name not in fingerprints:
            missing = "the new scores have" if name in baseline else "the baseline has"
            raise UsageError(
                f"{missing} no set '{name}'; a comparison needs the same sets on both sides"
            )
        if baseline[name] != fingerprints[name]:
            raise UsageError(
                f"the set '{name}' has changed since the baseline; evaluate the baseline again"
            )


def check_type(before: Scores, dtype: str) -> None:
    """Refuse scores whose first vector type is not `dtype`.

    Raises:
        UsageError: the types differ.
    """
    old_dtype = before.sizes[0].dtype
    if old_dtype != dtype:
        raise UsageError(
            f"one side is of vectors in {old_dtype}, the other in {dtype}; "
            "evaluate both in one --dtype"
        )


def _of_mean(before: Scores, after: Scores, old: Size, new: Size) -> Difference:
    units = min(before.fewest.units, after.fewest.units)
    resampled = after.resampled(new) - before.resampled(old)
    values = before.mean(*old), after.mean(*new)
    name = after.sets[0].name if len(after.sets) == 1 else "mean"
    return _difference(name, after.metric, old, new, values, units, resampled)


def _of_set(before: Scores, after: Scores, name: str, old: Size, new: Size) -> Difference:
    dataset = next(dataset for dataset in after.sets if dataset.name == name)
    resampled = after.resampled_set(dataset, new) - before.resampled_set(dataset, old)
    values = before.main(name, *old).value, after.main(name, *new).value
    return _difference(name, dataset.metric, old, new, values, dataset.units, resampled)


def _difference(
    name: str,
    metric: str,
    old: Size,
    new: Size,
    values: tuple[float, float],
    units: int,
    resampled: Doubles,
) -> Difference:
    bounds: Interval | None = interval(resampled) if units >= LEAST_UNITS else None
    return Difference(
        set=name,
        metric=metric,
        before_dim=old.dim,
        dim=new.dim,
        dtype=new.dtype,
        before=values[0],
        after=values[1],
        difference=values[1] - values[0],
        units=units,
        low=bounds.low if bounds else None,
        high=bounds.high if bounds else None,
    )
