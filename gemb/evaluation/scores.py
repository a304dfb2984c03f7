"""The scores of a model on a suite, with the values for a paired comparison; saved as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from gemb.arrays import Doubles
from gemb.errors import UsageError
from gemb.evaluation.metrics import LEAST_UNITS, Form, Interval, Statistic, interval
from gemb.io.foreign import check_types
from gemb.io.lfs import check_no_pointer

MARK = "gemb_scores"  # the key of the format's version


class Size(NamedTuple):
    """The width and the type of stored vectors."""

    dim: int
    dtype: str  # of gemb.embedding.DTYPES


@dataclass(frozen=True, kw_only=True)
class SetDescription:
    """An evaluated set: its content, metric and prompts."""

    name: str
    kind: str
    metric: str  # the main one
    units: int  # pairs, queries or rows that are averaged
    fingerprint: str
    prompts: tuple[str, ...]  # templates, of queries and documents, or both columns
    left_out: str = ""

    @property
    def seed(self) -> int:
        """The seed of the resamples: the same for every model on this set."""
        return int(self.fingerprint, 16)


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """The value of one metric on a set, for one vector size."""

    set: str  # a set's name, or `mean`
    metric: str
    dim: int
    dtype: str
    value: float
    low: float | None  # 95 % confidence interval over the set's units; None: they are too few
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The result of `gemb eval`."""

    model: str  # fingerprint
    arithmetic: str  # fp32, bf16, q4_0, ...
    suite: str
    texts: int  # distinct, embedded
    cut: int  # of these, the number cut to the length that the model takes
    sets: tuple[SetDescription, ...]
    sizes: tuple[Size, ...]
    rows: tuple[MetricRow, ...]  # of each set and size, the main metric first
    evidence: Mapping[tuple[str, Size], Statistic]  # of each set's main metric
    _resampled: dict[tuple[str, Size], Doubles] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def metric(self) -> str:
        """The main metric, or `mean` where the sets have several."""
        metrics = {dataset.metric for dataset in self.sets}
        return metrics.pop() if len(metrics) == 1 else "mean"

    @property
    def widest(self) -> Size:
        """The widest size, in the first type that was evaluated."""
        dtype = self.sizes[0].dtype
        return max(size for size in self.sizes if size.dtype == dtype)

    @property
    def value(self) -> float:
        """The mean of the sets' main metrics at the widest size, by which models are compared."""
        return self.mean(*self.widest)

    def mean(self, dim: int, dtype: str = "f32") -> float:
        """Return the mean of the sets' main metrics."""
        return float(np.mean([self.main(dataset.name, dim, dtype).value for dataset in self.sets]))

    def main(self, name: str, dim: int, dtype: str = "f32") -> MetricRow:
        """Return the main score of a set."""
        metric = next(dataset.metric for dataset in self.sets if dataset.name == name)
        key = (name, metric, dim, dtype)
        return next(row for row in self.rows if (row.set, row.metric, *_size(row)) == key)

    def resampled(self, size: Size) -> Doubles:
        """Return the mean of the sets' main metrics in each resample, [R]."""
        scores = np.stack([self.resampled_set(dataset, size) for dataset in self.sets])
        mean: Doubles = scores.mean(axis=0)
        return mean

    def resampled_set(self, dataset: SetDescription, size: Size) -> Doubles:
        """Return the main metric of a set in each resample, [R]."""
        key = (dataset.name, size)
        if key not in self._resampled:
            self._resampled[key] = self.evidence[key].resampled(dataset.seed)
        return self._resampled[key]

    def means(self) -> tuple[MetricRow, ...]:
        """Return the mean of the sets for each size, with its interval."""
        rows = []
        for size in self.sizes:
            bounds = self._mean_interval(size)
            rows.append(
                MetricRow(
                    set="mean",
                    metric=self.metric,
                    dim=size.dim,
                    dtype=size.dtype,
                    value=self.mean(*size),
                    low=bounds.low if bounds else None,
                    high=bounds.high if bounds else None,
                )
            )
        return tuple(rows)

    @property
    def fewest(self) -> SetDescription:
        """The set with the fewest units."""
        return min(self.sets, key=lambda dataset: dataset.units)

    def _mean_interval(self, size: Size) -> Interval | None:
        if self.fewest.units < LEAST_UNITS:
            return None
        bounds = interval(self.resampled(size))
        if bounds.low < bounds.high:
            return bounds
        # No set has any spread, so that their intervals are exact, or there is none.
        main = [self.main(dataset.name, *size) for dataset in self.sets]
        lows = [row.low for row in main if row.low is not None]
        highs = [row.high for row in main if row.high is not None]
        if len(lows) < len(main):
            return None
        return Interval(float(np.mean(lows)), float(np.mean(highs)))

    def to_json(self) -> dict[str, Any]:
        """Return everything but the evidence."""
        return {
            "model": self.model,
            "arithmetic": self.arithmetic,
            "suite": self.suite,
            "texts": self.texts,
            "cut": self.cut,
            "metric": self.metric,
            "sizes": [size._asdict() for size in self.sizes],
            "sets": [asdict(dataset) for dataset in self.sets],
            "means": [asdict(row) for row in self.means()],
            "rows": [asdict(row) for row in self.rows],
        }

    def save(self, path: Path) -> None:
        """Write everything as JSON, complete or not at all."""
        import orjson

        from gemb.io.atomic import new_file

        evidence = [
            {
                "set": name,
                **size._asdict(),
                "form": statistic.form,
                "values": statistic.values,
                "gold": statistic.gold,
            }
            for (name, size), statistic in self.evidence.items()
        ]
        document = {MARK: 1, **self.to_json(), "evidence": evidence}
        with new_file(path) as part:
            part.write_bytes(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")

    @staticmethod
    def load(path: Path) -> Scores:
        """Read scores that `save` wrote.

        Raises:
            UsageError: there is no such file, or `save` did not write it.
        """
        import orjson

        if not path.is_file():
            raise UsageError(f"no such file: {path}")
        try:
            document = orjson.loads(path.read_bytes())
            if document.get(MARK) != 1:
                raise ValueError
            scores = _from_json(document)
            _check(scores)
            return scores
        except (ValueError, KeyError, TypeError, AttributeError):
            check_no_pointer(path)
            raise UsageError(
                f"{path}: no scores that gemb eval -o wrote (--json alone has not what a "
                "comparison needs)"
            ) from None


def _from_json(document: dict[str, Any]) -> Scores:
    evidence = {}
    for entry in document["evidence"]:
        form: Form = entry["form"]
        gold = None if entry["gold"] is None else np.array(entry["gold"], np.float64)
        statistic = Statistic(form, np.array(entry["values"], np.float64), gold)
        evidence[entry["set"], Size(entry["dim"], entry["dtype"])] = statistic
    return Scores(
        model=document["model"],
        arithmetic=document["arithmetic"],
        suite=document["suite"],
        texts=document["texts"],
        cut=document["cut"],
        sets=tuple(
            SetDescription(**{**entry, "prompts": tuple(entry["prompts"])})
            for entry in document["sets"]
        ),
        sizes=tuple(Size(**size) for size in document["sizes"]),
        rows=tuple(
            MetricRow(**{**row, "value": math.nan if row["value"] is None else row["value"]})
            for row in document["rows"]
        ),
        evidence=evidence,
    )


def _check(scores: Scores) -> None:
    """Refuse what `save` does not write: the file may be somebody else's.

    Raises:
        TypeError: a value is of another type.
        ValueError: it is not allowed.
        KeyError: a score of a set is missing.
    """
    for part in (scores, *scores.sets, *scores.rows):
        check_types(type(part), vars(part))
    for size in scores.sizes:
        if not (type(size.dim) is int and size.dim > 0 and isinstance(size.dtype, str)):
            raise ValueError("a size")
    if not scores.sets or not scores.sizes:
        raise ValueError("no scores")
    main = {(row.set, row.metric, *_size(row)) for row in scores.rows}
    for dataset in scores.sets:
        if dataset.seed < 0:
            raise ValueError("a fingerprint")
        for size in scores.sizes:
            if (dataset.name, dataset.metric, *size) not in main:
                raise KeyError("a main score")
            _check_statistic(scores.evidence[dataset.name, size])


def _check_statistic(statistic: Statistic) -> None:
    values, gold = statistic.values, statistic.gold
    if statistic.form not in get_args(Form):
        raise ValueError("a form")
    if values.ndim != 1 or not len(values) or (gold is not None and gold.shape != values.shape):
        raise ValueError("the values of a set")


def check_target(path: Path) -> None:
    """Refuse an output path whose file is something other than scores.

    Raises:
        UsageError: the file holds no scores, or its folder cannot be written to.
    """
    from gemb.io.paths import check_folder_of

    mark = f'{{"{MARK}"'.encode()
    if path.exists():
        if not path.is_file():
            raise UsageError(f"{path} is no regular file; name a file on a disk")
        with path.open("rb") as file:
            if file.read(len(mark)) not in (mark, b""):
                raise UsageError(f"{path} exists and holds no scores; name another file")
    check_folder_of(path)


def _size(row: MetricRow) -> Size:
    return Size(row.dim, row.dtype)
