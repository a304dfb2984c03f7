"""Read the folder of a training run into values; files and keys may be missing.

A run that was stopped early, or has no evaluation or teacher, lacks some of them. A missing value
is None, NaN or empty here, and is left out of the report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from gemb.errors import UsageError
from gemb.io.foreign import check_regular
from gemb.training.log import read_metrics

COLUMNS = ("loss", "lr", "grad_norm", "tokens", "tokens_per_s", "pairs_per_s", "data_s", "step_s")


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """The logged steps; all arrays float64 [n], NaN where a line lacks the number."""

    step: NDArray[np.float64]
    columns: Mapping[str, NDArray[np.float64]]  # of COLUMNS, those that some line has
    parts: Mapping[str, NDArray[np.float64]]  # loss parts: contrastive@768, distill, ...
    source: NDArray[np.str_]  # of the batch
    dev: Mapping[int, tuple[NDArray[np.float64], NDArray[np.float64]]]  # dim -> steps, means


@dataclass(frozen=True, kw_only=True)
class SourceSummary:
    """Statistics of a source of the data, from the check before the first step."""

    name: str
    format: str
    rows: float
    bad: float
    duplicates: float
    share: float  # of the batches, 0 to 1
    passes: float  # over its rows
    cut: float  # share of the texts that are cut, 0 to 1
    median_tokens: float
    p95_tokens: float
    max_tokens: float


@dataclass(frozen=True, kw_only=True)
class ShownExample:
    """A row of the data with its prompts."""

    source: str
    place: str
    sides: tuple[tuple[str, str], ...]  # query, positive or negative; and the text


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric with its confidence interval."""

    value: float
    low: float
    high: float


class ScoreKey(NamedTuple):
    """The set, metric and vector size of a score."""

    set: str  # a set's name, or `mean`
    metric: str
    dim: int
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """The statistics of `gemb.evaluation.similarities`; counts are int64 [200] over [-1, 1]."""

    pairs: float
    positive: NDArray[np.int64]
    negative: NDArray[np.int64]
    positive_mean: float
    negative_mean: float
    alignment: float
    uniformity: float


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The contents of a training run's folder."""

    name: str
    recipe_text: str
    recipe: Mapping[str, Any]
    metrics: Metrics
    planned_steps: float
    sources: tuple[SourceSummary, ...]
    examples: tuple[ShownExample, ...]
    shared_rows: float  # of the data, with documents of the evaluation
    metric: str  # the dev set's main one
    baseline: Mapping[ScoreKey, Score]
    final: Mapping[ScoreKey, Score]
    changes: Mapping[ScoreKey, Score]  # paired differences, of those that the verdict names
    verdict: str  # WIN, TIE, REGRESSION; empty where there is none
    verdict_line: str
    before: Similarity | None
    after: Similarity | None


def read_run(run: Path) -> RunRecord:
    """Read a run's folder.

    Raises:
        UsageError: `run` is no folder, or a file in it cannot be parsed.
        OSError: a file cannot be read.
    """
    if not run.is_dir():
        raise UsageError(f"{run} is no folder; name the folder of a training run")
    recipe_text = _text(run / "recipe.yaml")
    recipe = _recipe(recipe_text, run / "recipe.yaml")
    preflight = _json(run / "preflight.json")
    verdict = _json(run / "verdict.json")
    similarities = _json(run / "similarities.json")
    baseline, final = (_json(run / f"scores-{which}.json") for which in ("baseline", "final"))
    return RunRecord(
        name=run.resolve().name,
        recipe_text=recipe_text,
        recipe=recipe,
        metrics=_metrics(run / "metrics.jsonl"),
        planned_steps=number(preflight.get("steps") or (recipe.get("run") or {}).get("steps")),
        sources=tuple(_source(fields) for fields in preflight.get("sources") or ()),
        examples=tuple(_example(fields) for fields in preflight.get("examples") or ()),
        shared_rows=number(preflight.get("shared_rows")),
        metric=str((final or baseline).get("metric", "")),
        baseline=_scores(baseline, "value"),
        final=_scores(final, "value"),
        changes=_scores({"rows": verdict.get("sets"), "means": verdict.get("sizes")}, "difference"),
        verdict=str(verdict.get("word", "")),
        verdict_line=str(verdict.get("line", "")),
        before=_similarity(similarities.get("before")),
        after=_similarity(similarities.get("after")),
    )


def number(value: object) -> float:
    """Return a number of a JSON file, NaN for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else float("nan")  # type: ignore[arg-type]


def _metrics(path: Path) -> Metrics:
    lines = list(read_metrics(path)) if path.exists() else []
    steps = [line for line in lines if "loss" in line]
    columns = {name: _column(steps, name) for name in COLUMNS}
    parts = [line.get("parts") or {} for line in steps]
    names = dict.fromkeys(name for step_parts in parts for name in step_parts)
    dev: dict[int, dict[int, float]] = {}  # a step that was evaluated twice has the later mean
    for line in lines:
        for dim, scores in (line.get("eval") or {}).items():
            dev.setdefault(int(dim), {})[line["step"]] = number(scores.get("mean"))
    return Metrics(
        step=np.array([line["step"] for line in steps], np.float64),
        columns={name: values for name, values in columns.items() if np.isfinite(values).any()},
        parts={name: _column(parts, name) for name in names},
        source=np.array([str(line.get("source") or "") for line in steps], np.str_),
        dev={
            dim: (np.array(list(means), np.float64), np.array(list(means.values()), np.float64))
            for dim, means in dev.items()
        },
    )


def _column(lines: Iterable[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    return np.array([number(line.get(name)) for line in lines], np.float64)


def _source(fields: Mapping[str, Any]) -> SourceSummary:
    tokens = fields.get("tokens") or {}
    return SourceSummary(
        name=str(fields.get("name", "")),
        format=str(fields.get("format", "")),
        rows=number(fields.get("rows")),
        bad=number(fields.get("bad")),
        duplicates=number(fields.get("duplicates")),
        share=number(fields.get("share")),
        passes=number(fields.get("passes")),
        cut=number(fields.get("cut")),
        median_tokens=number(tokens.get("median")),
        p95_tokens=number(tokens.get("p95")),
        max_tokens=number(tokens.get("max")),
    )


def _example(fields: Mapping[str, Any]) -> ShownExample:
    return ShownExample(
        source=str(fields.get("source", "")),
        place=str(fields.get("place", "")),
        sides=tuple((str(side), str(text)) for side, text in fields.get("sides") or ()),
    )


def _scores(document: Mapping[str, Any], value: str) -> dict[ScoreKey, Score]:
    """Return the means, then the scores of the sets; a suite of one set has no means."""
    rows = document.get("rows") or ()
    means = document.get("means") or ()
    of_many = len({row["set"] for row in rows}) > 1
    return {
        ScoreKey(str(row["set"]), str(row["metric"]), int(row["dim"]), str(row["dtype"])): Score(
            value=number(row.get(value)), low=number(row.get("low")), high=number(row.get("high"))
        )
        for row in [*(means if of_many else ()), *rows]
    }


def _similarity(fields: Mapping[str, Any] | None) -> Similarity | None:
    if not fields:
        return None
    return Similarity(
        pairs=number(fields.get("pairs")),
        positive=np.array(fields["positive"]["counts"], np.int64),
        negative=np.array(fields["negative"]["counts"], np.int64),
        positive_mean=number(fields["positive"].get("mean")),
        negative_mean=number(fields["negative"].get("mean")),
        alignment=number(fields.get("alignment")),
        uniformity=number(fields.get("uniformity")),
    )


def _recipe(text: str, path: Path) -> dict[str, Any]:
    import yaml

    try:
        recipe = yaml.safe_load(text) if text else {}
    except yaml.YAMLError:
        raise UsageError(f"{path} is no YAML; restore it, or remove it") from None
    return recipe if isinstance(recipe, dict) else {}


def _text(path: Path) -> str:
    return _bytes(path).decode("utf-8", "replace") if path.exists() else ""


def _bytes(path: Path) -> bytes:
    check_regular(path)  # a run may be somebody else's
    return path.read_bytes()


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        document = orjson.loads(_bytes(path))
    except orjson.JSONDecodeError:
        raise UsageError(f"{path} is no JSON; remove it, or make it again") from None
    return document if isinstance(document, dict) else {}
