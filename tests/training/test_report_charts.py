"""The report's charts: what they draw, what they leave out, and that words stay words."""

from __future__ import annotations

import base64
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from gemb.training import charts
from gemb.training.charts import Chart, Series, histograms, line_chart, thinned
from gemb.training.record import Similarity


@pytest.fixture
def axes(monkeypatch):
    """The axes of each chart that is drawn."""
    drawn = []
    image = charts._image
    monkeypatch.setattr(
        charts, "_image", lambda figure: drawn.append(figure.axes[0]) or image(figure)
    )
    return drawn


def curve(y: np.ndarray, **fields: float) -> Series:
    return Series(name="a", x=np.arange(1, len(y) + 1, dtype=float), y=y, **fields)


def words(chart: Chart) -> list[str]:
    svg = base64.b64decode(chart.image.partition("base64,")[2])
    return [
        node.text or "" for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")
    ]


def test_a_curve_is_drawn_by_its_values(axes) -> None:
    y = np.array([3.0, np.nan, 1.25, -2.0, 4.5])
    chart = line_chart("t", "u", [curve(y)], is_noisy=False)
    (line,) = axes[0].lines
    np.testing.assert_array_equal(line.get_xdata(), [1, 3, 4, 5])
    np.testing.assert_array_equal(line.get_ydata(), [3, 1.25, -2, 4.5])
    assert chart[:4] == ("t", "u", "a from 3 to 4.5", "")
    assert "step" in words(chart)


def test_a_long_curve_keeps_its_mean_and_the_shade_every_extreme(axes) -> None:
    y = 5 + np.random.default_rng(1).random(50_000)
    line_chart("t", "u", [curve(y)])
    (line,) = axes[0].lines
    assert len(line.get_xdata()) <= charts.POINTS
    # a mean over 50,000 / 25 values of a uniform number is within 5 sigma = 0.033 of 5.5
    assert np.abs(line.get_ydata()[5:-5] - 5.5).max() < 0.033
    (shade,) = axes[0].collections
    edges = shade.get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == (y.min(), y.max())


def test_a_rare_spike_does_not_flatten_the_curve_and_is_told(axes) -> None:
    y = 1 + np.random.default_rng(2).random(1000)
    y[500] = 700.0
    assert line_chart("t", "u", [curve(y)]).note == "Outside: up to 700, at step 501"
    assert axes[0].get_ylim()[1] < 3
    assert axes[0].lines[0].get_ydata().max() < 2
    y[500] = 2.05
    assert line_chart("t", "u", [curve(y)]).note == ""


def test_a_baseline_lies_within_the_frame(axes) -> None:
    line_chart("t", "u", [curve(np.array([1.0, 2.0]), baseline=9.0)], is_noisy=False)
    low, high = axes[0].get_ylim()
    assert low < 1
    assert high > 9
    assert list(axes[0].lines[0].get_ydata()) == [9.0, 9.0]


@pytest.mark.parametrize("y", [[2.0], [0.0, 0.0], [1e-9, 1e-9, 1e-9], [5e8, 5e8]])
def test_one_value_and_equal_values_are_drawn(axes, y: list[float]) -> None:
    line_chart("t", "u", [curve(np.array(y))])
    low, high = axes[0].get_ylim()
    assert low < y[0] < high
    np.testing.assert_array_equal(axes[0].lines[0].get_ydata(), y)


def test_a_chart_without_values_is_nothing() -> None:
    assert line_chart("t", "u", [curve(np.full(3, np.nan))]) is None


def test_a_thinned_curve_keeps_its_ends_and_its_mean() -> None:
    y = np.random.default_rng(3).random(10_007)
    short = thinned(curve(y))
    assert len(short.x) == charts.POINTS
    assert (short.x[0], short.x[-1], short.y[0], short.y[-1]) == (1, 10_007, y[0], y[-1])
    assert short.y.mean() == pytest.approx(y.mean(), abs=0.01)
    assert thinned(curve(y[: charts.POINTS])).x[-1] == charts.POINTS


def test_histograms_are_in_percent_and_in_one_frame(axes) -> None:
    def similarity(low: int, high: int) -> Similarity:
        positive, negative = np.zeros(200, np.int64), np.zeros(200, np.int64)
        positive[high], negative[low] = 30, 90
        return Similarity(
            pairs=30, positive=positive, negative=negative, positive_mean=0.0, negative_mean=0.0,
            alignment=0.0, uniformity=0.0,
        )  # fmt: skip

    both = histograms([("Before", similarity(100, 120)), ("After", similarity(90, 150))])
    assert [chart.title for chart in both] == ["Before", "After"]
    assert len({one.get_xlim() for one in axes}) == 1
    assert len({one.get_ylim() for one in axes}) == 1
    heights = [patch.get_data().values for patch in axes[0].patches]
    assert [values.max() for values in heights] == [100.0, 100.0]
    edges = axes[0].patches[0].get_data().edges
    assert edges[heights[0].argmax()] == pytest.approx(
        0.2, abs=0.011
    )  # bin 120 of 200 over [-1, 1]


def test_names_are_never_mathematics_or_markup() -> None:
    hostile = ["$x^2$", "_hidden", "</text><script>alert(1)</script>"]
    chart = line_chart(
        "t", "u", [Series(name=name, x=np.arange(2.0), y=np.ones(2)) for name in hostile]
    )
    shown = [text.lstrip("\N{ZERO WIDTH SPACE}") for text in words(chart)]
    assert set(hostile) <= set(shown)


def test_the_same_run_gives_the_same_bytes() -> None:
    one, other = (line_chart("t", "u", [curve(np.arange(9.0))]) for _ in range(2))
    assert one == other
