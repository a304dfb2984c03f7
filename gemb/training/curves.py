"""Which curves and histograms a run's report shows."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from gemb.training.charts import Markup, Series, histogram_chart, line_chart, percent, tag
from gemb.training.record import Metrics, RunRecord, Similarity

SOURCES_DRAWN = 8  # as many as there are colours
BINS_DRAWN = 80  # of a histogram, at most
_NAME = re.compile(r"([^@/]*)([@/]?)(.*)", re.DOTALL)  # contrastive@768, distill/query, similarity


def curves(run: RunRecord) -> Markup:
    """Return the curves over steps."""
    metrics = run.metrics
    charts = [
        _one(metrics, "loss", "Loss", "weighted sum of the parts"),
        *_part_charts(metrics),
        _source_chart(metrics),
        _dev_chart(run),
        _one(metrics, "lr", "Learning rate", "", is_noisy=False, from_zero=True),
        _one(metrics, "grad_norm", "Gradient norm", "L2, before clipping", from_zero=True),
        _one(metrics, "tokens_per_s", "Speed", "tokens/s", from_zero=True),
        _waiting_chart(metrics),
    ]
    if not any(charts):
        return Markup()
    words = (
        "Long or noisy curves are moving means; the shade behind holds every logged value. "
        "Dotted lines are the baseline, before training."
    )
    return tag("section", tag("h2", "Curves"), tag("p", words, class_="soft"), grid(charts))


def _one(
    metrics: Metrics,
    column: str,
    title: str,
    unit: str,
    *,
    is_noisy: bool = True,
    from_zero: bool = False,
) -> Markup:
    if column not in metrics.columns:
        return Markup()
    curve = Series(name=title, x=metrics.step, y=metrics.columns[column])
    return line_chart(title, unit, [curve], is_noisy=is_noisy, from_zero=from_zero)


def _part_charts(metrics: Metrics) -> list[Markup]:
    """Return a chart for each part, with a curve for each Matryoshka size or side."""
    families: dict[str, list[Series]] = {}
    for name, values in metrics.parts.items():
        part, mark, detail = _NAME.findall(name)[0]
        label = {"@": f"{detail} dims", "/": detail, "": part}[mark]
        families.setdefault(part, []).append(Series(name=label, x=metrics.step, y=values))
    return [
        line_chart(f"Part: {part.replace('_', '-')}", "unweighted", series, is_noisy=True)
        for part, series in families.items()
    ]


def _source_chart(metrics: Metrics) -> Markup:
    """Return the loss of each source, as every batch is of one."""
    names, counts = np.unique(metrics.source[metrics.source != ""], return_counts=True)
    if len(names) < 2 or "loss" not in metrics.columns:
        return Markup()
    series = []
    for name in names[np.argsort(-counts, kind="stable")][:SOURCES_DRAWN]:
        rows = metrics.source == name
        series.append(Series(name=str(name), x=metrics.step[rows], y=metrics.columns["loss"][rows]))
    more = f"the {SOURCES_DRAWN} most frequent of {len(names)}" if len(names) > len(series) else ""
    return line_chart("Loss by source", more, series, is_noisy=True)


def _dev_chart(run: RunRecord) -> Markup:
    series = []
    for dim, (steps, means) in sorted(run.metrics.dev.items(), reverse=True):
        baseline = next(
            (score.value for key, score in run.baseline.items() if key.dim == dim), math.nan
        )
        series.append(Series(name=f"{dim} dims", x=steps, y=means, baseline=baseline))
    title = "Dev set" if run.metric in ("", "mean") else f"Dev set: {run.metric}"
    return line_chart(title, "mean over the sets", series, is_noisy=False)


def _waiting_chart(metrics: Metrics) -> Markup:
    if not {"data_s", "step_s"} <= set(metrics.columns):
        return Markup()
    seconds = np.where(metrics.columns["step_s"] > 0, metrics.columns["step_s"], np.nan)
    share = Series(name="waiting", x=metrics.step, y=100 * metrics.columns["data_s"] / seconds)
    return line_chart("Waiting for data", "% of a step", [share], is_noisy=True, from_zero=True)


def histograms(models: Sequence[tuple[str, Similarity]]) -> list[Markup]:
    """Return a chart for each model, in the same frame."""
    bins = len(models[0][1].positive)
    all_counts = [counts for _, found in models for counts in (found.positive, found.negative)]
    held = np.flatnonzero(np.sum(all_counts, axis=0))
    if not len(held):
        return []
    wide = next(each for each in (1, 2, 5) if (held[-1] - held[0]) / each < BINS_DRAWN)
    begin = held[0] // wide * wide
    end = min(-(-(held[-1] + 1) // wide) * wide, bins)
    drawn = [
        np.add.reduceat(counts[begin:end], np.arange(0, end - begin, wide)) for counts in all_counts
    ]
    top = max(float(percent(counts).max()) for counts in drawn)
    low, high = (2 * edge / bins - 1 for edge in (begin, end))
    return [
        histogram_chart(
            name,
            ("positives", "negatives"),
            drawn[2 * place : 2 * place + 2],
            low=low,
            high=high,
            top=top,
        )
        for place, (name, _) in enumerate(models)
    ]


def grid(charts: Sequence[Markup]) -> Markup:
    """Return charts side by side, where there is room."""
    return tag("div", *charts, class_="charts")
