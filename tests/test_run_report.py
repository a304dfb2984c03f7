"""report.html: what it shows of whole, cut and hostile runs, and that it needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemb.errors import UsageError
from gemb.metrics_log import MetricsLog
from gemb.report_axes import axis
from gemb.report_charts import PLOT_HEIGHT, PLOT_WIDTH, Series, line_chart
from gemb.report_markup import Markup, tag
from gemb.run_report import write_report
from gemb.similarities import similarities

HOSTILE = "<script>alert(1)</script>\"'&"
VOID = {"meta"}


class Page(HTMLParser):
    """A page's elements, in order, and the text within each; open and close must match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[int] = []
        self.feed(text)
        self.close()
        assert not self._open, "an element is not closed"

    def handle_starttag(self, name, attrs):
        self.found.append((name, dict(attrs), []))
        if name not in VOID:
            self._open.append(len(self.found) - 1)

    def handle_endtag(self, name):
        assert self.found[self._open.pop()][0] == name

    def handle_data(self, data):
        for place in self._open:
            self.found[place][2].append(data)

    def texts(self, name: str) -> list[str]:
        return ["".join(words) for each, _, words in self.found if each == name]

    def rows(self) -> list[list[str]]:
        """Every table row, as its cells' words."""
        rows: list[list[str]] = []
        for name, _, words in self.found:
            if name == "tr":
                rows.append([])
            elif name in ("td", "th"):
                rows[-1].append("".join(words))
        return rows


def report(run: Path) -> Page:
    path = write_report(run)
    assert path == run / "report.html"
    return Page(path.read_text("utf-8"))


def write(run: Path, name: str, content: object) -> None:
    (run / name).write_text(json.dumps(content))


def score(name: str, metric: str, dim: int, value: float) -> dict[str, object]:
    low, high = value - 0.03, value + 0.03
    return {
        "set": name, "metric": metric, "dim": dim, "dtype": "f32",
        "value": value, "low": low, "high": high,
    }  # fmt: skip


def change(name: str, metric: str, dim: int, low: float, high: float) -> dict[str, object]:
    return {
        "set": name, "metric": metric, "dim": dim, "dtype": "f32",
        "difference": (low + high) / 2, "low": low, "high": high,
    }  # fmt: skip


def log_steps(run: Path, steps: range) -> None:
    log = MetricsLog(run / "metrics.jsonl", -1)
    log.write(step=0, eval={768: {"mean": 0.4}, 128: {"mean": 0.3}})
    for step in steps:
        log.write(
            step=step,
            loss=2 + 1 / step,
            parts={"contrastive@768": 1 / step, "contrastive@128": 2.0, "distill": 0.5},
            lr=1e-5,
            grad_norm=1.0,
            tokens=1000 * step,
            tokens_per_s=500.0,
            data_s=0.01,
            step_s=2.0,
            source=("boolq", "tldr")[step % 2],
        )
    log.write(step=steps[-1], eval={768: {"mean": 0.45}, 128: {"mean": 0.33}})
    log.close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 90 steps with everything."""
    run = tmp_path / "pets"
    run.mkdir()
    log_steps(run, range(1, 91))
    (run / "recipe.yaml").write_text(
        "stage: finetune\ninit:\n  from: embeddinggemma-300m\nbatch:\n  pairs: 128\n"
    )
    source = {
        "name": "boolq", "format": "JSONL", "rows": 5665, "bad": 2, "share": 0.25,
        "duplicates": 31, "tokens": {"median": 84, "p95": 310.4, "max": 2911},
    }  # fmt: skip
    write(run, "preflight.json", {"steps": 90, "sources": [source]})
    for name, more in (("baseline", 0.0), ("final", 0.02)):
        rows = [score("cosqa", "ndcg@10", 768, 0.4 + more), score("cosqa", "mrr", 768, 0.5 + more)]
        rows += [score("stsb", "spearman", 768, 0.8 - more)]
        mean = [score("mean", "mean", 768, 0.6)]
        write(run, f"scores-{name}.json", {"metric": "mean", "rows": rows, "means": mean})
    verdict = {
        "word": "TIE",
        "line": "VERDICT TIE mean 0.600 → 0.600 (+0.000, 95% CI -0.010 to +0.010)",
        "sets": [
            change("cosqa", "ndcg@10", 768, 0.01, 0.03),
            change("stsb", "spearman", 768, -0.03, -0.01),
        ],
        "sizes": [change("mean", "mean", 768, -0.01, 0.01)],
    }
    write(run, "verdict.json", verdict)
    x = np.eye(40, dtype=np.float32)
    write(run, "similarities.json", {"before": similarities(x, -x), "after": similarities(x, x)})
    return run


def test_a_whole_run_is_told_in_all_its_sections(run: Path) -> None:
    page = report(run)
    assert page.texts("h1") == ["pets"]
    assert page.texts("h2") == ["Curves", "Similarities", "Scores", "Data", "Recipe"]
    assert page.texts("dd") == [
        "embeddinggemma-300m", "90", "128", "90,000", "3 min", "500 tokens/s", "1",
    ]  # fmt: skip
    (header,) = page.texts("header")
    assert "TIE mean 0.600 → 0.600 (+0.000, 95% CI -0.010 to +0.010)" in header
    assert "VERDICT" not in header
    assert "STOPPED" not in header
    assert [words.split(" ")[0] for words in page.texts("figcaption")] == [
        "Loss", "Part:", "Part:", "Loss", "Dev", "Learning", "Gradient", "Speed", "Waiting",
        "Before", "After",
    ]  # fmt: skip
    assert page.texts("pre") == [(run / "recipe.yaml").read_text()]
    assert page.texts("footer")[0].startswith("Written by gemb ")


def test_the_tables_hold_the_numbers_of_the_files(run: Path) -> None:
    rows = report(run).rows()
    assert ["Before training", "−1.000", "0.000", "4.000", "−4.000", "40"] in rows
    assert ["Change", "+2.0000", "+0.0000", "−4.0000", "+0.0000", ""] in rows
    assert ["boolq", "JSONL", "5,665", "2", "31", "25.0%", "84", "310", "2,911"] in rows
    scores = [row for row in rows if "768 f32" in row]
    assert [row[:2] for row in scores] == [
        ["mean", "mean"], ["cosqa", "ndcg@10"], ["cosqa", "mrr"], ["stsb", "spearman"],
    ]  # fmt: skip
    assert scores[1][3:] == [
        "0.4000 [0.370, 0.430]", "0.4200 [0.390, 0.450]", "+0.0200 [+0.010, +0.030]",
    ]  # fmt: skip
    assert scores[2][5] == "+0.0200", "no paired interval is known"


def test_only_a_change_whose_interval_is_without_0_is_coloured(run: Path) -> None:
    found = report(run).found
    coloured = [
        (attributes["class"], "".join(words)[:7])
        for _, attributes, words in found
        if attributes.get("class") in ("up", "down")
    ]
    assert coloured == [("up", "+0.0200"), ("down", "−0.0200")]


def test_the_page_needs_no_other_file_and_no_network(run: Path) -> None:
    page = report(run)
    text = (run / "report.html").read_text()
    assert not re.search(r"https?:|@import|url\(|<link|<img|<iframe|\bsrc=|\bhref=", text)
    policy = next(
        attributes["content"]
        for _, attributes, _ in page.found
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    directives = dict(part.strip().split(" ") for part in policy.split(";"))
    assert directives.pop("default-src") == "'none'"
    for name in ("style", "script"):
        (content,) = page.texts(name)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert directives.pop(f"{name}-src") == f"'sha256-{digest}'"
    assert not directives
    assert not [each for _, each, _ in page.found if "style" in each or "onclick" in each]


def test_words_of_the_data_are_never_markup(tmp_path: Path) -> None:
    run = tmp_path / "<b>run"
    run.mkdir()
    log = MetricsLog(run / "metrics.jsonl", -1)
    for step in range(1, 9):
        parts = {f"{HOSTILE}@{HOSTILE}": 1.0, f"{HOSTILE}@2": 1.0}
        log.write(step=step, loss=1.0, parts=parts, source=("a", HOSTILE)[step % 2])
    log.close()
    (run / "recipe.yaml").write_text(f"stage: >-\n  {HOSTILE}\ninit: {{from: '{HOSTILE[:20]}'}}\n")
    write(run, "preflight.json", {"sources": [{"name": HOSTILE, "format": HOSTILE}]})
    rows = [score(HOSTILE, HOSTILE, 768, 0.5) | {"dtype": HOSTILE}]
    write(run, "scores-final.json", {"metric": HOSTILE, "rows": rows})
    write(run, "verdict.json", {"word": HOSTILE, "line": HOSTILE})
    page = report(run)
    assert len(page.texts("script")) == 1
    assert not page.texts("b") or all("run" not in words for words in page.texts("b"))
    assert page.texts("h1") == ["<b>run"]
    assert [HOSTILE, HOSTILE, *["–"] * 7] in page.rows()
    assert HOSTILE in page.texts("li")
    assert sum("alert(1)" in words for words in page.texts("figcaption")) == 1


@pytest.mark.parametrize(
    "missing",
    [
        "recipe.yaml", "metrics.jsonl", "preflight.json", "scores-baseline.json",
        "scores-final.json", "verdict.json", "similarities.json",
    ],
)  # fmt: skip
def test_what_is_missing_is_left_out(run: Path, missing: str) -> None:
    whole = report(run).texts("h2")
    (run / missing).unlink()
    left = {
        "recipe.yaml": "Recipe", "metrics.jsonl": "Curves",
        "preflight.json": "Data", "similarities.json": "Similarities",
    }.get(missing)  # fmt: skip
    assert report(run).texts("h2") == [title for title in whole if title != left]


def test_an_empty_folder_has_a_page_that_says_so(tmp_path: Path) -> None:
    page = report(tmp_path)
    assert "no step was logged" in page.texts("header")[0]
    assert page.texts("h2") == []


def test_files_without_most_keys_have_a_page(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step":1,"loss":2.5}\n{"step":2,"eval":{"8":{}}}\n')
    (tmp_path / "recipe.yaml").write_text("just words")
    write(tmp_path, "preflight.json", {"sources": [{}]})
    write(tmp_path, "verdict.json", {})
    write(tmp_path, "similarities.json", {"after": similarities(np.ones((1, 1)), np.ones((1, 1)))})
    page = report(tmp_path)
    assert page.texts("figcaption")[0].startswith("Loss")
    assert page.texts("h2") == ["Curves", "Similarities", "Data", "Recipe"]


def test_a_run_that_ended_early_says_where(run: Path) -> None:
    log_steps(run, range(1, 31))
    assert "STOPPED the log ends at step 30 of 90" in report(run).texts("header")[0]


def test_a_loss_that_is_not_finite_is_said_and_left_out_of_the_curve(run: Path) -> None:
    log = MetricsLog(run / "metrics.jsonl", 40)
    log.write(step=41, loss=float("nan"))
    log.close()
    page = report(run)
    assert "STOPPED the loss at step 41 is not finite" in page.texts("header")[0]
    assert "nan" not in "".join(str(each.get("d")) for _, each, _ in page.found)


@pytest.mark.parametrize("name", ["preflight.json", "verdict.json", "recipe.yaml"])
def test_a_broken_file_is_named_and_the_page_before_stays(run: Path, name: str) -> None:
    path = write_report(run)
    before = path.read_bytes()
    (run / name).write_text("{'broken: [")
    with pytest.raises(UsageError, match=rf"{name} is no (JSON|YAML); "):
        write_report(run)
    assert path.read_bytes() == before
    with pytest.raises(UsageError, match="no folder; name the folder of a training run"):
        write_report(path)


def test_a_hundred_thousand_steps_make_a_small_page(run: Path) -> None:
    random = np.random.default_rng(0)
    log = MetricsLog(run / "metrics.jsonl", -1)
    names = [f"{part}@{dim}" for part in ("contrastive", "spread_out") for dim in range(8)]
    for step in range(1, 100_001):
        noise = random.random(4).tolist()
        log.write(
            step=step, loss=noise[0], parts=dict.fromkeys(names, noise[1]), lr=1e-5,
            grad_norm=noise[2], tokens=step, tokens_per_s=noise[3], data_s=0.01, step_s=1.0,
            source=f"source {step % 20}",
        )  # fmt: skip
    log.close()
    page = report(run)
    assert (run / "report.html").stat().st_size < 400_000
    (caption,) = (words for words in page.texts("figcaption") if words.startswith("Loss by"))
    assert caption == "Loss by source the 8 most frequent of 20"


def test_no_tensor_and_no_drawing_library_is_loaded(run: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from gemb.run_report import write_report\n"
        "write_report(Path(sys.argv[1])); print(*{'torch', 'matplotlib', 'scipy'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(run)], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == ""


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
