"""report.html: what it shows of whole, cut and hostile runs, and that it needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from gemb.errors import Missing, UsageError
from gemb.evaluation.metrics import Statistic
from gemb.evaluation.scores import MetricRow, Scores, SetDescription, Size
from gemb.evaluation.similarities import similarities
from gemb.evaluation.verdict import verdict
from gemb.training.log import MetricsLog
from gemb.training.preflight import Lengths, Preflight, Rendered, SourceCheck
from gemb.training.record import read_run
from gemb.training.report import write_report
from html_page import Page

HOSTILE = "<script>alert(1)</script>\"'&"


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
        "duplicates": 31, "passes": 1.5, "cut": 0.004,
        "tokens": {"median": 84, "p95": 310.4, "max": 2911},
    }  # fmt: skip
    write(run, "preflight.json", {"steps": 90, "sources": [source]})
    for name, more in (("baseline", 0.0), ("final", 0.02)):
        rows = [score("cosqa", "ndcg@10", 768, 0.4 + more), score("cosqa", "mrr", 768, 0.5 + more)]
        rows += [score("stsb", "spearman", 768, 0.8 - more)]
        mean = [score("mean", "mean", 768, 0.6)]
        write(run, f"scores-{name}.json", {"metric": "mean", "rows": rows, "means": mean})
    judged = {
        "word": "TIE",
        "line": "VERDICT TIE mean 0.600 → 0.600 (+0.000, 95% CI -0.010 to +0.010)",
        "sets": [
            change("cosqa", "ndcg@10", 768, 0.01, 0.03),
            change("stsb", "spearman", 768, -0.03, -0.01),
        ],
        "sizes": [change("mean", "mean", 768, -0.01, 0.01)],
    }
    write(run, "verdict.json", judged)
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
    assert [
        "boolq",
        "JSONL",
        "5,665",
        "2",
        "31",
        "25.0%",
        "1.50",
        "84",
        "310",
        "2,911",
        "0.4%",
    ] in rows
    scores = [row for row in rows if "768 f32" in row]
    assert [row[:2] for row in scores] == [
        ["mean", "mean"], ["cosqa", "ndcg@10"], ["cosqa", "mrr"], ["stsb", "spearman"],
    ]  # fmt: skip
    assert scores[1][3:] == [
        "0.4000 [0.370, 0.430]", "0.4200 [0.390, 0.450]", "+0.0200 [+0.010, +0.030]",
    ]  # fmt: skip
    assert scores[2][5] == "+0.0200", "no paired interval is known"


def test_the_files_that_the_parts_of_gemb_write_are_understood(run: Path) -> None:
    metric = {"kind": "retrieval", "metric": "ndcg@10", "units": 30, "prompts": ()}
    sets = tuple(
        SetDescription(name=name, fingerprint=f"{place:032x}", **metric)
        for place, name in enumerate(("cosqa", "xsum"))
    )
    scores = []
    for size, more in ((Size(64, "f32"), 0.0), (Size(64, "f32"), 0.05)):
        values = np.random.default_rng(0).random((2, 30)) / 2 + more
        statistics = {(one.name, size): Statistic("mean", values[i]) for i, one in enumerate(sets)}
        rows = tuple(
            MetricRow(
                set=one.name, metric="ndcg@10", dim=64, dtype="f32", value=value, low=0, high=1
            )
            for one, value in zip(sets, values.mean(axis=1).tolist(), strict=True)
        )
        scores.append(
            Scores(
                model="m", arithmetic="fp32", suite="s", texts=9, cut=0, sets=sets, sizes=(size,),
                rows=rows, evidence=statistics,
            )
        )  # fmt: skip
    before, after = scores
    before.save(run / "scores-baseline.json")
    after.save(run / "scores-final.json")
    write(run, "verdict.json", verdict(before, after).to_json())
    lengths = Lengths(10.5, 20.0, 30)
    check = SourceCheck(
        name="pairs", format="CSV", rows=40, bad=1, bad_rows=(("pairs.csv:3", "no query"),),
        held_out=0,
        share=1.0, passes=2.0, duplicates=3, equal_queries=4, equal_positives=5, sampled=40,
        contradictions=6, tokens=lengths, query=lengths, positive=lengths, cut=0.25,
        row_tokens=20.0,
    )  # fmt: skip
    sides = (("query", f"task | query: {HOSTILE}"), ("positive", "title: none | text: b"))
    preflight = Preflight(
        sources=(check,), examples=(Rendered("pairs", "pairs.csv:2", sides),), rows=40, bad=1,
        pairs=4, max_tokens=512, steps=90, epochs=2.0, step_tokens=80.0, evaluation="s",
        evaluation_texts=9,
        shared_rows=1234, held_out=(),
    )  # fmt: skip
    write(run, "preflight.json", preflight.to_json())
    page = report(run)
    assert "WIN ndcg@10" in page.texts("header")[0]
    rows = page.rows()
    assert ["pairs", "CSV", "40", "1", "3", "100.0%", "2.00", "10", "20", "30", "25.0%"] in rows
    means = next(row for row in rows if row[:3] == ["mean", "ndcg@10", "64 f32"])
    assert means[4].startswith(f"{after.mean(64):.4f} [")
    assert means[5] == "+0.0500 [+0.050, +0.050]"
    assert [row[0] for row in rows if "64 f32" in row] == ["mean", "cosqa", "xsum"]
    shared = "1,234 rows have documents of the evaluation, as the recipe allows."
    assert shared in page.texts("p")
    assert "pairs, pairs.csv:2" in page.texts("dt")
    assert f"query task | query: {HOSTILE}" in page.texts("dd")


def test_few_queries_have_no_interval_in_a_report(run: Path) -> None:
    size = Size(64, "f32")
    one = SetDescription(
        name="few", kind="retrieval", metric="ndcg@10", units=3, fingerprint="1", prompts=()
    )
    scores = []
    for value in (0.25, 0.75):
        row = MetricRow(
            set="few", metric="ndcg@10", dim=64, dtype="f32", value=value, low=None, high=None
        )
        scores.append(
            Scores(
                model="m",
                arithmetic="fp32",
                suite="s",
                texts=9,
                cut=0,
                sets=(one,),
                sizes=(size,),
                rows=(row,),
                evidence={("few", size): Statistic("mean", np.full(3, value))},
            )
        )
    for which, found in zip(("baseline", "final"), scores, strict=True):
        found.save(run / f"scores-{which}.json")
        assert Scores.load(run / f"scores-{which}.json").rows == found.rows
    write(run, "verdict.json", verdict(*scores).to_json())
    page = report(run)
    assert "TOO FEW ndcg@10 0.250 → 0.750 (+0.500, n=3: no interval)" in page.texts("header")[0]
    row = next(row for row in page.rows() if row[:3] == ["few", "ndcg@10", "64 f32"])
    assert row[3:6] == ["0.2500", "0.7500", "+0.5000"]


def test_parts_are_drawn_by_kind_with_a_curve_for_each_size_or_side(run: Path) -> None:
    names = [
        "contrastive@768",
        "contrastive@128",
        "distill/query",
        "distill/positive",
        "similarity",
    ]
    log = MetricsLog(run / "metrics.jsonl", -1)
    for step in (1, 2):
        log.write(step=step, loss=1.0, parts=dict.fromkeys(names, 0.5))
    log.close()
    page = report(run)
    captions = [words for words in page.texts("figcaption") if words.startswith("Part")]
    assert captions == [
        f"Part: {part} unweighted" for part in ("contrastive", "distill", "similarity")
    ]
    told = [str(each["alt"]) for name, each, _ in page.found if name == "img"]
    assert "768 dims from 0.5 to 0.5; 128 dims from 0.5 to 0.5" in told
    assert "query from 0.5 to 0.5; positive from 0.5 to 0.5" in told


def test_a_step_that_was_evaluated_twice_has_the_later_mean(run: Path) -> None:
    log = MetricsLog(run / "metrics.jsonl", 0)
    log.write(step=0, eval={768: {"mean": 0.7}})
    log.close()
    page = report(run)
    told = [str(each["alt"]) for name, each, _ in page.found if name == "img"]
    assert "768 dims from 0.7 to 0.7; 128 dims from 0.3 to 0.3" in told


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
    assert not re.search(r"https?:|@import|url\(|<link|<iframe|<script|\bhref=", text)
    images = [str(each["src"]) for name, each, _ in page.found if name == "img"]
    assert len(images) == 11
    assert all(image.startswith("data:image/svg+xml;base64,") for image in images)
    policy = next(
        attributes["content"]
        for _, attributes, _ in page.found
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    directives = dict(part.strip().split(" ") for part in policy.split(";"))
    (style,) = page.texts("style")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert directives == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": f"'sha256-{digest}'",
    }
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
    assert page.texts("script") == []
    assert not page.texts("b") or all("run" not in words for words in page.texts("b"))
    assert page.texts("h1") == ["<b>run"]
    assert [HOSTILE, HOSTILE, *["–"] * 9] in page.rows()
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
    (run / "preflight.json").unlink()
    assert "STOPPED" not in report(run).texts("header")[0], "how many were planned is not known"
    with (run / "recipe.yaml").open("a") as recipe:
        recipe.write("run:\n  steps: 60\n")
    assert "STOPPED the log ends at step 30 of 60" in report(run).texts("header")[0]


def test_a_loss_that_is_not_finite_is_said_and_left_out_of_the_curve(run: Path) -> None:
    log = MetricsLog(run / "metrics.jsonl", 40)
    log.write(step=41, loss=float("nan"))
    log.close()
    page = report(run)
    assert "STOPPED the loss at step 41 is not finite" in page.texts("header")[0]
    (loss,) = (str(each["alt"]) for _, each, _ in page.found if str(each.get("alt"))[:5] == "Loss ")
    assert "nan" not in loss


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


def test_no_tensor_library_and_no_window_is_loaded(run: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from gemb.training.report import write_report\n"
        "write_report(Path(sys.argv[1]));"
        "print(*{'torch', 'scipy', 'tkinter', 'matplotlib.pyplot'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(run)], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("library", ["jinja2", "matplotlib"])
def test_a_library_that_is_absent_is_named(run: Path, library: str, monkeypatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in (library, "gemb")]:
        if name.partition(".")[0] == library:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(Missing, match=rf"a report requires {library}.*pip install 'gemb\[torch\]'"):
        write_report(run)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["recipe.yaml", "preflight.json", "metrics.jsonl"])
def test_a_pipe_among_the_files_of_a_run_is_named(run: Path, name: str) -> None:
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    with pytest.raises(UsageError, match=f"{name}: no regular file"):
        read_run(run)
