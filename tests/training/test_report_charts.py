"""The report's charts: their coordinates, what they leave out, and their ticks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemb.training.charts import PLOT_HEIGHT, PLOT_WIDTH, Markup, Series, axis, line_chart, tag
from html_page import Page


def drawn(chart: Markup, kind: str = "line") -> list[np.ndarray]:
    """The values [n, 2] of a chart's paths, read back from its coordinates and ranges."""
    page = Page(chart)
    frame = next(each for _, each, _ in page.found if "data-x" in each)
    (x0, x1), (y0, y1) = (
        [float(each) for each in str(frame[name]).split()] for name in ("data-x", "data-y")
    )
    values = []
    for tag_name, attributes, _ in page.found:
        if tag_name == "path" and str(attributes["class"]).split()[0] == kind:
            d = str(attributes["d"])[1:].rstrip("Z")
            points = np.array([point.split() for point in d.split("L")], float)
            x = x0 + points[:, 0] / PLOT_WIDTH * (x1 - x0)
            values.append(np.stack([x, y1 - points[:, 1] / PLOT_HEIGHT * (y1 - y0)], 1))
    return values


def curve(y: np.ndarray, **fields: float) -> Series:
    return Series(name="a", x=np.arange(1, len(y) + 1, dtype=float), y=y, **fields)


def test_a_curves_coordinates_are_its_values() -> None:
    y = np.array([3.0, np.nan, 1.25, -2.0, 4.5])
    (line,) = drawn(line_chart("t", "u", [curve(y)], is_noisy=False))
    # coordinates have one and two decimals of a unit, in plots about 400 by 190 units
    np.testing.assert_allclose(line[:, 0], [1, 3, 4, 5], atol=5 / PLOT_WIDTH)
    np.testing.assert_allclose(line[:, 1], [3, 1.25, -2, 4.5], atol=0.1 / PLOT_HEIGHT)


def test_a_long_curve_keeps_its_mean_and_the_shade_every_extreme() -> None:
    y = 5 + np.random.default_rng(1).random(50_000)
    chart = line_chart("t", "u", [curve(y)], is_noisy=True)
    (line,), (band,) = drawn(chart), drawn(chart, "band")
    assert len(line) <= 240
    # a mean over 50,000 / 25 values of a uniform number is within 5 sigma = 0.033 of 5.5
    assert np.abs(line[:, 1] - 5.5).max() < 0.033 + 0.1
    assert np.abs(line[5:, 1] - 5.5).max() < 0.033
    assert band[:, 1].max() == pytest.approx(y.max(), abs=0.01)
    assert band[:, 1].min() == pytest.approx(y.min(), abs=0.01)


def test_a_rare_spike_does_not_flatten_the_curve_and_is_told() -> None:
    y = 1 + np.random.default_rng(2).random(1000)
    y[500] = 700.0
    chart = line_chart("t", "u", [curve(y)], is_noisy=True)
    assert "Outside: up to 700, at step 501" in chart
    assert drawn(chart)[0][:, 1].max() < 2
    y[500] = 2.1
    assert "Outside" not in line_chart("t", "u", [curve(y)], is_noisy=True)


def test_a_baseline_lies_within_the_frame() -> None:
    chart = line_chart("t", "u", [curve(np.array([1.0, 2.0]), baseline=9.0)], is_noisy=False)
    (d,) = [str(each["d"]) for _, each, _ in Page(chart).found if "base s1" in str(each)]
    assert 0 <= float(d.split()[1].split("H")[0]) <= PLOT_HEIGHT


@pytest.mark.parametrize("y", [[2.0], [0.0, 0.0], [1e-9, 1e-9, 1e-9], [5e8, 5e8]])
def test_one_value_and_equal_values_are_drawn(y: list[float]) -> None:
    (line,) = drawn(line_chart("t", "u", [curve(np.array(y))], is_noisy=True))
    np.testing.assert_allclose(line[: len(y), 1], y, rtol=1e-3, atol=1e-12)


def test_a_chart_without_values_is_nothing() -> None:
    assert line_chart("t", "u", [curve(np.full(3, np.nan))], is_noisy=True) == ""


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(3, 8), st.booleans())
def test_ticks_are_round_within_the_range_and_told_apart(low, span, count, is_round) -> None:
    high = low + span
    if high - low <= 1e-8 * max(abs(low), abs(high)):
        return
    found = axis(low, high, count=count, is_round=is_round)
    step = found.ticks[1] - found.ticks[0] if len(found.ticks) > 1 else span
    assert found.low <= low + 1e-6 * step
    assert found.high >= high - 1e-6 * step
    assert 1 <= len(found.ticks) <= count + 2
    labels = [found.label(tick) for tick in found.ticks]
    assert len(set(labels)) == len(labels)
    for tick, label in zip(found.ticks, labels, strict=True):
        told = float(label.replace("−", "-").replace(",", "")) * 10.0**found.power
        assert told == pytest.approx(tick, abs=1e-6 * step)
    if len(found.ticks) > 1:
        digit = f"{step:.1e}"[0]
        assert digit in "125", step


@pytest.mark.parametrize(
    ("low", "high", "labels", "unit"),
    [
        (0, 2e-5, ["0.0", "0.5", "1.0", "1.5", "2.0"], "×10⁻⁵"),
        (0, 41_000, ["0", "20", "40", "60"], "thousand"),
        (0.35, 0.47, ["0.35", "0.40", "0.45", "0.50"], ""),
        (-1.2, 0.4, ["−1.5", "−1.0", "−0.5", "0.0", "0.5"], ""),
        (0, 5_000, ["0", "2,000", "4,000", "6,000"], ""),
    ],
)
def test_labels_are_short(low: float, high: float, labels: list[str], unit: str) -> None:
    found = axis(low, high, count=4, is_round=True)
    assert ([found.label(tick) for tick in found.ticks], found.unit) == (labels, unit)


def test_markup_alone_is_not_escaped() -> None:
    assert tag("p", "a<b", tag("i", "&"), class_="x\"'") == (
        '<p class="x&quot;&#x27;">a&lt;b<i>&amp;</i></p>'
    )
