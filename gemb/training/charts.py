"""HTML whose text is escaped unless it says that it is markup."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


class Markup(str):
    """A string that is markup already, and goes to the page as it is."""

    __slots__ = ()


def tag(name: str, /, *content: str, **attributes: str | float) -> Markup:
    """Return an element; content that is no `Markup`, and all attributes, are escaped.

    Args:
        name: of the element.
        content: texts and elements within.
        attributes: class_ is class, and _ within a name is -.
    """
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
    )
    return Markup(f"<{name}{said}>{joined(content)}</{name}>")


def joined(content: Sequence[str], between: str = "") -> Markup:
    """Return texts and elements as one piece."""
    pieces = (each if isinstance(each, Markup) else html.escape(each) for each in content)
    return Markup(between.join(pieces))


# Round ticks for an axis, and numbers in words that fit them.


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A range of values that begins and ends where it must, with round ticks within."""

    low: float
    high: float
    ticks: tuple[float, ...]
    power: int  # ticks and read-outs are told in units of 10^power
    decimals: int  # of a tick, in that unit

    def label(self, value: float) -> str:
        """Return a tick's words."""
        return f"{value / 10**self.power:,.{self.decimals}f}".replace("-", "\N{MINUS SIGN}")

    @property
    def unit(self) -> str:
        """What the labels leave out: ×10⁻⁵, thousand, million; or nothing."""
        named = {0: "", 3: "thousand", 6: "million", 9: "billion"}
        digits = str(self.power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return named.get(self.power, f"×10{digits}")


def axis(low: float, high: float, *, count: int, is_round: bool) -> Axis:
    """Return an axis over at least [low, high].

    Args:
        low: finite.
        high: finite, not below `low`.
        count: about how many ticks.
        is_round: let the axis begin and end at a tick; else it is [low, high] itself.
    """
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value: a frame around it
        margin = abs(high) / 2 or 1.0
        low, high = low - margin, high + margin
    step = _round_step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [number * step for number in range(first, last + 1)]
    if not is_round:
        ticks = [tick for tick in ticks if low - 1e-9 * step <= tick <= high + 1e-9 * step]
    power = _power(max(map(abs, ticks), default=max(abs(low), abs(high))))
    return Axis(
        low=ticks[0] if is_round else low,
        high=ticks[-1] if is_round else high,
        ticks=tuple(ticks),
        power=power,
        decimals=max(0, power - math.floor(math.log10(step) + 1e-9)),
    )


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= least * (1 - 1e-9))


def _power(largest: float) -> int:
    exponent = math.floor(math.log10(largest)) if largest > 0 else 0
    if exponent >= 4:
        return exponent // 3 * 3
    return exponent if exponent < -2 else 0


# Charts as inline SVG: curves over steps, and two histograms in one frame.
#
# What is drawn is bounded: a long curve is drawn by the means of its stretches, and a noisy one by
# a moving mean, before a shade that covers every value. Each line carries its name, and the frame
# its ranges, so that the page's script can tell values at the pointer.


Values = NDArray[np.float64]

WIDTH, HEIGHT = 480, 236  # of a chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 52, 24, 10, 40  # around the plot
PLOT_WIDTH, PLOT_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
EDGE = 3  # around the plot, so that what lies on its edge is not cut
POINTS = 240  # of a line: two units apart
COLOURS = 8  # that the style sheet has
NOISY_FROM = 40  # values; fewer are drawn as they are
SMOOTH_SHARE = 25  # a moving mean is over this part of the values
CLIP_FROM = 100  # values; of so many, one in a hundred may lie above the frame


@dataclass(frozen=True, kw_only=True)
class Series:
    """A curve. `x` and `y` are [n] alike; values that are not finite are left out."""

    name: str
    x: Values
    y: Values
    baseline: float = float("nan")  # a dashed line across


def line_chart(
    title: str, unit: str, series: Sequence[Series], *, is_noisy: bool, from_zero: bool = False
) -> Markup:
    """Return a figure with curves over steps, or nothing where no curve has a value.

    Args:
        title: of the figure.
        unit: what the values are, behind the title.
        series: the curves, of which those with values are drawn.
        is_noisy: draw moving means, and the values behind where there is one curve.
        from_zero: let the values' axis begin at 0.
    """
    drawn = [curve for curve in map(_finite, series) if len(curve.y)]
    if not drawn:
        return Markup()
    most = max(_high(curve.y) for curve in drawn)
    means = [_moving_mean(curve, most) if is_noisy else curve for curve in drawn]
    x_axis = _step_axis(drawn)
    y_axis = _value_axis(drawn if len(drawn) == 1 else means, most, from_zero=from_zero)
    pieces = []
    for place, (curve, mean) in enumerate(zip(drawn, means, strict=True)):
        colour = f"s{place % COLOURS + 1}"
        if is_noisy and len(drawn) == 1 and mean is not curve:
            pieces.append(_shade(curve, x_axis, y_axis, colour))
        if np.isfinite(curve.baseline):
            y = _down(np.array(curve.baseline), y_axis)
            path = f"M0 {y:.2f}H{PLOT_WIDTH}"
            pieces.append(tag("path", class_=f"base {colour}", d=path))
        pieces.append(_line(_thinned(mean, keep_ends=not is_noisy), x_axis, y_axis, colour))
    unit = " ".join(filter(None, [y_axis.unit, unit]))
    said = "; ".join(f"{each.name} from {each.y[0]:.4g} to {each.y[-1]:.4g}" for each in means)
    svg = _frame(pieces, x_axis, y_axis, "step", said)
    return _figure(title, unit, [each.name for each in drawn], svg, _outside(drawn, y_axis))


def histogram_chart(
    title: str,
    names: Sequence[str],
    counts: Sequence[NDArray[np.int64]],
    *,
    low: float,
    high: float,
    top: float,
) -> Markup:
    """Return a figure with overlaid histograms, in percent of each one's sum.

    Args:
        title: of the figure.
        names: of the histograms.
        counts: int64 [bins] each, over [low, high].
        low: where the first bin begins.
        high: where the last bin ends.
        top: percent at the frame's upper edge at least.
    """
    x_axis = axis(low, high, count=8, is_round=False)
    y_axis = axis(0, top, count=4, is_round=True)
    pieces = []
    for place, each in enumerate(counts):
        edges = np.repeat(np.linspace(low, high, len(each) + 1), 2)
        heights = np.concatenate([[0], np.repeat(percent(each), 2), [0]])
        outline = Series(name=names[place], x=edges, y=heights)
        pieces.append(_line(outline, x_axis, y_axis, f"area s{place + 1}"))
    svg = _frame(pieces, x_axis, y_axis, "cosine similarity", f"histograms of {', '.join(names)}")
    unit = f"% of pairs, bins of {(high - low) / len(counts[0]):.2f}"
    return _figure(title, unit, names, svg, "")


def percent(counts: NDArray[np.int64]) -> Values:
    """Return each count's share of their sum, in percent; zeros where there is none."""
    return np.asarray(100 * counts / max(1, counts.sum()), np.float64)


def _finite(curve: Series) -> Series:
    keep = np.isfinite(curve.x) & np.isfinite(curve.y)
    return Series(name=curve.name, x=curve.x[keep], y=curve.y[keep], baseline=curve.baseline)


def _moving_mean(curve: Series, most: float) -> Series:
    """Return means around each value, a spike counting as `most`.

    The window begins at one value and grows, as a curve is steep at first.
    """
    count = len(curve.y)
    if count < NOISY_FROM:
        return curve
    half = max(2, count // SMOOTH_SHARE // 2)
    place = np.arange(count)
    reach = np.minimum(half, place)
    begin, end = place - reach, np.minimum(place + reach + 1, count)
    total = np.concatenate([[0], np.cumsum(np.minimum(curve.y, most))])
    y = (total[end] - total[begin]) / (end - begin)
    return Series(name=curve.name, x=curve.x, y=y, baseline=curve.baseline)


def _thinned(curve: Series, *, keep_ends: bool) -> Series:
    """Return at most POINTS points: the means of stretches of equal length, over all steps."""
    if len(curve.y) <= POINTS:
        return curve
    begin = _stretches(len(curve.y))
    size = np.diff(np.append(begin, len(curve.y)))
    x, y = (np.add.reduceat(values, begin) / size for values in (curve.x, curve.y))
    x[[0, -1]] = curve.x[[0, -1]]
    if keep_ends:
        y[[0, -1]] = curve.y[[0, -1]]
    return Series(name=curve.name, x=x, y=y)


def _stretches(count: int) -> NDArray[np.int64]:
    return np.linspace(0, count, POINTS, endpoint=False).astype(np.int64)


def _shade(curve: Series, x_axis: Axis, y_axis: Axis, colour: str) -> Markup:
    """Return all values: a thin line, or the area between the stretches' extremes."""
    if len(curve.y) <= 2 * POINTS:
        path = _path(curve.x, curve.y, x_axis, y_axis)
        return tag("path", class_=f"raw {colour}", d=path)
    begin = _stretches(len(curve.y))
    low, high = np.minimum.reduceat(curve.y, begin), np.maximum.reduceat(curve.y, begin)
    x = curve.x[begin]
    path = _path(np.append(x, x[::-1]), np.append(low, high[::-1]), x_axis, y_axis) + "Z"
    return tag("path", class_=f"band {colour}", d=path)


def _line(curve: Series, x_axis: Axis, y_axis: Axis, classes: str) -> Markup:
    path = _path(curve.x, curve.y, x_axis, y_axis)
    if len(curve.x) == 1:
        path += path.replace("M", "L")  # round ends make a dot of it
        classes = f"dot-like {classes}"
    return tag("path", class_=f"line {classes}", d=path, data_name=curve.name)


def _path(x: Values, y: Values, x_axis: Axis, y_axis: Axis) -> str:
    across = (x - x_axis.low) / (x_axis.high - x_axis.low) * PLOT_WIDTH
    points = zip(across.tolist(), _down(y, y_axis).tolist(), strict=True)
    return "M" + "L".join(f"{right:.1f} {down:.2f}" for right, down in points)


def _down(y: Values, y_axis: Axis) -> Values:
    down = (y_axis.high - y) / (y_axis.high - y_axis.low) * PLOT_HEIGHT
    return np.clip(down, -PLOT_HEIGHT, 2 * PLOT_HEIGHT)


def _step_axis(series: Sequence[Series]) -> Axis:
    first = min(float(curve.x[0]) for curve in series)
    last = max(float(curve.x[-1]) for curve in series)
    return axis(0 if first < last / 10 else first, last, count=5, is_round=False)


def _value_axis(series: Sequence[Series], most: float, *, from_zero: bool) -> Axis:
    baselines = [curve.baseline for curve in series if np.isfinite(curve.baseline)]
    low = min([0.0] * from_zero + baselines + [float(curve.y.min()) for curve in series])
    high = max(baselines + [min(float(curve.y.max()), most) for curve in series])
    return axis(low, max(low, high), count=4, is_round=True)


def _outside(series: Sequence[Series], y_axis: Axis) -> str:
    """Return words about what the frame cuts off, or nothing."""
    curve = max(series, key=lambda each: float(each.y.max()))
    highest = curve.y.argmax()
    most = y_axis.high + (y_axis.high - y_axis.low) / 1000  # no tick is exact
    if len(series) > 1 or curve.y[highest] <= most:
        return ""  # of several curves, only means are drawn
    return f"Outside: up to {curve.y[highest]:,.4g}, at step {curve.x[highest]:,.0f}"


def _high(y: Values) -> float:
    """Return the highest value, but not a rare one that would flatten the others."""
    highest = float(y.max())
    if len(y) < CLIP_FROM:
        return highest
    usual = float(np.percentile(y, 99))
    return usual if highest - y.min() > 4 * (usual - y.min()) else highest


def _frame(
    pieces: list[Markup], x_axis: Axis, y_axis: Axis, x_name: str, description: str
) -> Markup:
    """Return the SVG: grid, ticks, and the pieces in a plot that cuts what is outside."""
    grid, labels = "", []
    for tick in y_axis.ticks:
        y = TOP + float(_down(np.array(tick), y_axis))
        grid += f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}"
        labels.append(tag("text", y_axis.label(tick), class_="y", x=LEFT - 6, y=f"{y + 4:.1f}"))
    foot = HEIGHT - BOTTOM
    for tick in x_axis.ticks:
        x = LEFT + (tick - x_axis.low) / (x_axis.high - x_axis.low) * PLOT_WIDTH
        grid += f"M{x:.1f} {foot}v4"
        labels.append(tag("text", x_axis.label(tick), class_="x", x=f"{x:.1f}", y=foot + 17))
    words = f"{x_name}, {x_axis.unit}" if x_axis.unit else x_name
    labels.append(tag("text", words, class_="x", x=LEFT + PLOT_WIDTH / 2, y=HEIGHT - 6))
    plot = tag(
        "svg",
        *pieces,
        class_="plot",
        x=LEFT - EDGE,
        y=TOP - EDGE,
        width=PLOT_WIDTH + 2 * EDGE,
        height=PLOT_HEIGHT + 2 * EDGE,
        viewBox=f"{-EDGE} {-EDGE} {PLOT_WIDTH + 2 * EDGE} {PLOT_HEIGHT + 2 * EDGE}",
    )
    return tag(
        "svg",
        tag("path", class_="grid", d=grid),
        plot,
        *labels,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=description,
        data_x=f"{float(x_axis.low)} {float(x_axis.high)}",
        data_y=f"{float(y_axis.low)} {float(y_axis.high)}",
        data_name=x_name,
    )


def _figure(title: str, unit: str, names: Sequence[str], svg: Markup, note: str) -> Markup:
    parts = [tag("figcaption", tag("b", title), " ", tag("span", unit))]
    if len(names) > 1:
        items = [
            tag("li", tag("i", class_=f"s{place % COLOURS + 1}"), name)
            for place, name in enumerate(names)
        ]
        parts.append(tag("ul", joined(items), class_="legend"))
    parts.append(svg)
    if note:
        parts.append(tag("p", note, class_="small"))
    return tag("figure", *parts)
