"""The charts of a run's report: matplotlib draws them, each as an SVG image of its own."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemb.arrays import Doubles
from gemb.training.record import Metrics, RunRecord, Similarity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INCHES = (5.0, 2.6)  # of a chart
INK = "#7b8591"  # of frames and words: readable on a light and on a dark page
COLOURS = (
    "#2f81d6", "#e0662a", "#1f9d72", "#a05cc4", "#b8860b", "#1597ab", "#cf4a76", "#7c8692",
)  # fmt: skip
POINTS = 240  # of a curve
SMOOTH_SHARE = 25  # a moving mean is over this part of the values
NOISY_FROM = 40  # values; fewer are drawn as they are
CLIP_FROM = 100  # values; of so many, one in a hundred may lie above the frame
BINS = 80  # of a histogram, at most
SOURCES = len(COLOURS)  # whose losses are drawn
_UNSIGNED = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # fields that a page leaves out
_PART_NAME = re.compile(r"([^@/]*)([@/]?)(.*)", re.DOTALL)  # contrastive@768, distill/query


@dataclass(frozen=True, kw_only=True)
class Series:
    """A curve: `x` and `y` are both [n]; values that are not finite are left out."""

    name: str
    x: Doubles
    y: Doubles
    baseline: float = math.nan  # a dotted line across


class Chart(NamedTuple):
    """An image and the words around it."""

    title: str
    unit: str
    description: str  # alternative text
    note: str  # what the frame cuts off, or nothing
    image: str  # data:image/svg+xml;base64,...


def curves(run: RunRecord) -> list[Chart]:
    """Return the charts over steps: loss, parts, sources, dev sets, rate, norm, speed, waiting."""
    return [chart for chart in _curves(run) if chart is not None]


def _curves(run: RunRecord) -> Iterator[Chart | None]:
    metrics = run.metrics
    yield _column_chart(metrics, "loss", "Loss", "weighted sum of the parts")
    yield from _part_charts(metrics)
    yield _source_chart(metrics)
    yield _dev_chart(run)
    yield _column_chart(metrics, "lr", "Learning rate", "", is_noisy=False, from_zero=True)
    yield _column_chart(metrics, "grad_norm", "Gradient norm", "L2, unclipped", from_zero=True)
    yield _column_chart(metrics, "tokens_per_s", "Speed", "tokens/s", from_zero=True)
    yield _waiting_chart(metrics)


def _column_chart(
    metrics: Metrics,
    column: str,
    title: str,
    unit: str,
    *,
    is_noisy: bool = True,
    from_zero: bool = False,
) -> Chart | None:
    if column not in metrics.columns:
        return None
    curve = Series(name=title, x=metrics.step, y=metrics.columns[column])
    return line_chart(title, unit, [curve], is_noisy=is_noisy, from_zero=from_zero)


def _part_charts(metrics: Metrics) -> list[Chart | None]:
    """Return a chart for each part, with a curve for each Matryoshka size or side."""
    families: dict[str, list[Series]] = {}
    for name, values in metrics.parts.items():
        part, mark, detail = _PART_NAME.findall(name)[0]
        label = {"@": f"{detail} dims", "/": detail, "": part}[mark]
        families.setdefault(part, []).append(Series(name=label, x=metrics.step, y=values))
    return [
        line_chart(f"Part: {part.replace('_', '-')}", "unweighted", series)
        for part, series in families.items()
    ]


def _source_chart(metrics: Metrics) -> Chart | None:
    """Return the loss of each source: every batch is of one."""
    names, counts = np.unique(metrics.source[metrics.source != ""], return_counts=True)
    if len(names) < 2 or "loss" not in metrics.columns:
        return None
    series = []
    for name in names[np.argsort(-counts, kind="stable")][:SOURCES]:
        rows = metrics.source == name
        series.append(Series(name=str(name), x=metrics.step[rows], y=metrics.columns["loss"][rows]))
    unit = f"the {SOURCES} most frequent of {len(names)}" if len(names) > len(series) else ""
    return line_chart("Loss by source", unit, series)


def _dev_chart(run: RunRecord) -> Chart | None:
    series = []
    for dim, (steps, means) in sorted(run.metrics.dev.items(), reverse=True):
        baseline = next(
            (score.value for key, score in run.baseline.items() if key.dim == dim), math.nan
        )
        series.append(Series(name=f"{dim} dims", x=steps, y=means, baseline=baseline))
    title = "Dev set" if run.metric in ("", "mean") else f"Dev set: {run.metric}"
    return line_chart(title, "mean over the sets", series, is_noisy=False)


def _waiting_chart(metrics: Metrics) -> Chart | None:
    if not {"data_s", "step_s"} <= set(metrics.columns):
        return None
    seconds = np.where(metrics.columns["step_s"] > 0, metrics.columns["step_s"], np.nan)
    share = Series(name="waiting", x=metrics.step, y=100 * metrics.columns["data_s"] / seconds)
    return line_chart("Waiting for data", "% of a step", [share], from_zero=True)


def line_chart(
    title: str,
    unit: str,
    series: Sequence[Series],
    *,
    is_noisy: bool = True,
    from_zero: bool = False,
) -> Chart | None:
    """Return a chart of curves over steps, or None where no curve has a value.

    Args:
        title: of the chart.
        unit: what the values are, behind the title.
        series: the curves, of which those with values are drawn.
        is_noisy: draw moving means; a single curve also shows the range of its values.
        from_zero: begin the axis of the values at 0.
    """
    drawn = [curve for curve in map(_finite, series) if len(curve.y)]
    if not drawn:
        return None
    top = max(_usual_top(curve.y) for curve in drawn)
    means = [_moving_mean(curve, top) if is_noisy else curve for curve in drawn]
    figure, axes = _frame("step")
    for number, (curve, mean) in enumerate(zip(drawn, means, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        if len(drawn) == 1 and mean is not curve:
            low, high = _envelope(curve)
            axes.fill_between(low.x, low.y, high.y, color=colour, alpha=0.25, linewidth=0)
        if math.isfinite(curve.baseline):
            axes.axhline(curve.baseline, color=colour, linestyle=":", linewidth=1.2)
        shown = thinned(mean)
        axes.plot(shown.x, shown.y, color=colour, marker="" if len(shown.x) > 1 else "o")
    _limit(axes, drawn if len(drawn) == 1 else means, top, from_zero=from_zero)
    if len(drawn) > 1:
        _legend(axes, [curve.name for curve in drawn])
    description = "; ".join(
        f"{curve.name} from {curve.y[0]:.4g} to {curve.y[-1]:.4g}" for curve in means
    )
    note = _outside(drawn[0], axes.get_ylim()[1]) if len(drawn) == 1 else ""
    return Chart(title, unit, description, note, _image(figure))


def histograms(models: Sequence[tuple[str, Similarity]]) -> list[Chart]:
    """Return a chart of cosines for each model, in the same frame."""
    counts = [
        side for _, similarity in models for side in (similarity.positive, similarity.negative)
    ]
    filled = np.flatnonzero(np.sum(counts, axis=0))
    if not len(filled):
        return []
    bins = len(counts[0])
    width = next(size for size in (1, 2, 5) if (filled[-1] - filled[0]) / size < BINS)
    begin, end = filled[0] // width * width, min(-(-(filled[-1] + 1) // width) * width, bins)
    starts = np.arange(0, end - begin, width)
    shares = [
        100 * np.add.reduceat(side[begin:end], starts) / max(1, side.sum()) for side in counts
    ]
    edges = 2 * np.append(begin + starts, end) / bins - 1
    top = 1.05 * max(float(share.max()) for share in shares)
    charts = []
    for number, (name, _) in enumerate(models):
        figure, axes = _frame("cosine similarity")
        for colour, share in zip(COLOURS, shares[2 * number : 2 * number + 2], strict=False):
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.45)
        axes.set_ylim(0, top)
        _legend(axes, ["positives", "negatives"])
        unit = f"% of pairs, bins of {2 * width / bins:.2f}"
        charts.append(Chart(name, unit, "histograms of positives, negatives", "", _image(figure)))
    return charts


def thinned(curve: Series) -> Series:
    """Return at most `POINTS` points, the means of stretches of equal length; both ends stay."""
    if len(curve.y) <= POINTS:
        return curve
    begin = _stretches(len(curve.y))
    size = np.diff(np.append(begin, len(curve.y)))
    x, y = (np.add.reduceat(values, begin) / size for values in (curve.x, curve.y))
    x[[0, -1]], y[[0, -1]] = curve.x[[0, -1]], curve.y[[0, -1]]
    return replace(curve, x=x, y=y)


def _envelope(curve: Series) -> tuple[Series, Series]:
    """Return the lowest and the highest value of each stretch."""
    begin = _stretches(len(curve.y))
    low, high = (extreme.reduceat(curve.y, begin) for extreme in (np.minimum, np.maximum))
    return replace(curve, x=curve.x[begin], y=low), replace(curve, x=curve.x[begin], y=high)


def _stretches(count: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, count, POINTS, endpoint=False).astype(np.int64))


def _finite(curve: Series) -> Series:
    finite = np.isfinite(curve.x) & np.isfinite(curve.y)
    return replace(curve, x=curve.x[finite], y=curve.y[finite])


def _moving_mean(curve: Series, top: float) -> Series:
    """Return means around each value, a spike counting as `top`.

    The window begins at one value and grows, as a curve is steep at first.
    """
    count = len(curve.y)
    if count < NOISY_FROM:
        return curve
    index = np.arange(count)
    reach = np.minimum(max(2, count // SMOOTH_SHARE // 2), index)
    begin, end = index - reach, np.minimum(index + reach + 1, count)
    total = np.concatenate([[0], np.cumsum(np.minimum(curve.y, top))])
    return replace(curve, y=(total[end] - total[begin]) / (end - begin))


def _usual_top(y: Doubles) -> float:
    """Return the highest value, but not a rare one that would flatten the others."""
    highest = float(y.max())
    if len(y) < CLIP_FROM:
        return highest
    usual = float(np.percentile(y, 99))
    return usual if highest - y.min() > 4 * (usual - y.min()) else highest


def _limit(axes: Axes, series: Sequence[Series], top: float, *, from_zero: bool) -> None:
    baselines = [curve.baseline for curve in series if math.isfinite(curve.baseline)]
    low = min([0.0] * from_zero + baselines + [float(curve.y.min()) for curve in series])
    high = max(baselines + [min(float(curve.y.max()), top) for curve in series])
    margin = 0.05 * (high - low) or abs(high) / 2 or 1.0
    axes.set_ylim(low if from_zero and low == 0 else low - margin, high + margin)


def _outside(curve: Series, top: float) -> str:
    """Return a note about values that the frame cuts off; empty: there are none."""
    highest = curve.y.argmax()
    if curve.y[highest] <= top:
        return ""
    return f"Outside: up to {curve.y[highest]:,.4g}, at step {curve.x[highest]:,.0f}"


def _frame(x_name: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.set_xlabel(x_name, color=INK)
    axes.tick_params(colors=INK)
    axes.grid(visible=True, axis="y", color=INK, alpha=0.25)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(INK)
    axes.locator_params(axis="y", nbins=5)
    axes.ticklabel_format(axis="y", useMathText=True, scilimits=(-3, 5))
    axes.yaxis.get_offset_text().set_color(INK)
    return figure, axes


def _legend(axes: Axes, names: Sequence[str]) -> None:
    curves = [line for line in axes.lines if line.get_linestyle() != ":"]
    handles = [*curves, *axes.patches]
    # A name may hold what matplotlib reads as mathematics, and `_` hides it.
    labels = [f"\N{ZERO WIDTH SPACE}{name}".replace("$", r"\$") for name in names]
    legend = axes.legend(handles, labels, frameon=False, fontsize="small")
    for text in legend.get_texts():
        text.set_color(INK)


def _image(figure: Figure) -> str:
    """Return the figure as the address of an SVG image: in the page, and apart from its markup."""
    import matplotlib as mpl

    # Words stay words, and the same run gives the same bytes.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gemb", "path.simplify": False}):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=_UNSIGNED)
    # A hundredth of a point is less than a pixel: the decimals behind it are half of the bytes.
    svg = re.sub(rb"(\d\.\d\d)\d+", rb"\1", buffer.getvalue())
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
