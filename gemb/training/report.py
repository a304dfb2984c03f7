"""The report's words and tables: a section each, or nothing where the run has none of it."""

from __future__ import annotations

import base64
import hashlib
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemb.io.atomic import new_file
from gemb.io.text import duration
from gemb.training.charts import Markup, joined, tag
from gemb.training.curves import curves, grid, histograms
from gemb.training.record import RunRecord, Score, ScoreKey, Similarity, read_run

NOTHING = "\N{EN DASH}"
STYLE_OF = {"WIN": "win", "TIE": "tie", "REGRESSION": "regression"}


def headline(run: RunRecord) -> Markup:
    """Return what was trained, for how long, and what came of it."""
    model = run.recipe.get("init") or {}
    stage = str(run.recipe.get("stage", ""))
    parts = [
        tag("h1", run.name),
        tag("div", f"gemb train, stage {stage}" if stage else "gemb train", class_="soft"),
    ]
    if run.verdict:
        line = run.verdict_line.removeprefix("VERDICT ").removeprefix(run.verdict).strip()
        badge = tag("span", run.verdict, class_=f"badge {STYLE_OF.get(run.verdict, 'tie')}")
        parts.append(tag("p", badge, " ", tag("span", line), class_="verdict"))
    if trouble := _trouble(run):
        badge = tag("span", "STOPPED", class_="badge stopped")
        parts.append(tag("p", badge, " ", tag("span", trouble), class_="verdict"))
    facts = {"Model": str(model.get("from", "")) or NOTHING, **_facts(run)}
    pairs = [tag("div", tag("dt", name), tag("dd", said)) for name, said in facts.items()]
    return tag("header", *parts, tag("dl", *pairs))


def _trouble(run: RunRecord) -> str:
    """Return why the run is not whole, if it is not."""
    metrics = run.metrics
    if not len(metrics.step):
        return "no step was logged"
    last = metrics.step[-1]
    loss = metrics.columns.get("loss")
    if loss is None or not math.isfinite(loss[-1]):
        return f"the loss at step {last:,.0f} is not finite"
    if last < run.planned_steps:
        return f"the log ends at step {last:,.0f} of {run.planned_steps:,.0f}"
    return ""


def _facts(run: RunRecord) -> dict[str, str]:
    columns, step = run.metrics.columns, run.metrics.step
    batch = run.recipe.get("batch") or {}
    facts = {"Steps": f"{step[-1]:,.0f}" if len(step) else NOTHING}
    if "pairs" in batch and run.recipe.get("stage") != "adapt":
        facts["Pairs a step"] = f"{batch['pairs'] * batch.get('accumulate', 1):,}"
    if "tokens" in columns:
        facts["Tokens"] = f"{np.nanmax(columns['tokens']):,.0f}"
    seconds = _training_seconds(columns)
    if math.isfinite(seconds):
        facts["Time in steps"] = duration(seconds)
    if "tokens_per_s" in columns:
        facts["Speed"] = f"{np.nanmedian(columns['tokens_per_s']):,.0f} tokens/s"
    if run.sources:
        facts["Sources"] = f"{len(run.sources):,}"
    return facts


def _training_seconds(columns: Mapping[str, NDArray[np.float64]]) -> float:
    """Return the time that the tokens took at the speeds that were logged, NaN if unknown."""
    if not {"tokens", "tokens_per_s"} <= set(columns):
        return math.nan
    known = np.isfinite(columns["tokens"]) & (columns["tokens_per_s"] > 0)
    tokens = np.diff(columns["tokens"][known], prepend=0)
    return float((tokens / columns["tokens_per_s"][known]).sum())


def similarity(run: RunRecord) -> Markup:
    """Return the histograms of right and wrong partners, alignment and uniformity."""
    models = [
        (name, found)
        for name, found in (("Before training", run.before), ("After training", run.after))
        if found is not None
    ]
    if not models:
        return Markup()
    words = (
        "Cosines of some training queries with their own positives, and with other pairs'. "
        "Alignment is the mean squared distance of partners (0 is equal); uniformity is the log "
        "of the mean of exp(\N{MINUS SIGN}2 d\N{SUPERSCRIPT TWO}) over other pairs: the lower, "
        "the more evenly the vectors fill the sphere (Wang & Isola, arXiv 2005.10242)."
    )
    rows = [
        [name, *(_decimals(value) for value in _places(found)), _count(found.pairs)]
        for name, found in models
    ]
    if len(models) == 2:
        changes = np.subtract(_places(models[1][1]), _places(models[0][1]))
        rows.append(["Change", *(_signed(value) for value in changes), ""])
    names = ["", "Mean positive", "Mean negative", "Alignment", "Uniformity", "Pairs"]
    return tag(
        "section",
        tag("h2", "Similarities"),
        tag("p", words, class_="soft"),
        grid(histograms(models)),
        tag("p"),
        table(names, rows, words=1),
    )


def _places(found: Similarity) -> tuple[float, float, float, float]:
    return found.positive_mean, found.negative_mean, found.alignment, found.uniformity


def scores(run: RunRecord) -> Markup:
    """Return the dev sets' scores before and after, with their 95 % intervals."""
    keys = dict.fromkeys([*run.final, *run.baseline])
    if not keys:
        return Markup()
    widths = list(dict.fromkeys((key.dim, key.dtype) for key in keys))
    rows = [
        [
            key.set,
            key.metric,
            f"{key.dim} {key.dtype}",
            _interval(run.baseline.get(key)),
            _interval(run.final.get(key)),
            _change(key, run),
        ]
        for width in widths
        for key in keys
        if (key.dim, key.dtype) == width
    ]
    words = (
        "In brackets: 95 % confidence intervals by bootstrap; of a change, by paired bootstrap "
        "where the verdict has one. A coloured change has an interval without 0."
    )
    names = ["Set", "Metric", "Dims, type", "Before", "After", "Change"]
    return tag(
        "section",
        tag("h2", "Scores"),
        tag("p", words, class_="soft"),
        table(names, rows, words=3),
    )


def _interval(score: Score | None, sign: str = "") -> Markup:
    if score is None or not math.isfinite(score.value):
        return Markup(NOTHING)
    value = _minus(f"{score.value:{sign}.4f}")
    if not (math.isfinite(score.low) and math.isfinite(score.high)):
        return Markup(value)
    bounds = _minus(f"[{score.low:{sign}.3f}, {score.high:{sign}.3f}]")
    return joined([value, " ", tag("span", bounds, class_="ci")])


def _change(key: ScoreKey, run: RunRecord) -> Markup:
    paired = run.changes.get(key)
    if paired is not None:
        kind = "up" if paired.low > 0 else "down" if paired.high < 0 else ""
        return tag("span", _interval(paired, "+"), class_=kind) if kind else _interval(paired, "+")
    before, after = run.baseline.get(key), run.final.get(key)
    if before is None or after is None:
        return Markup(NOTHING)
    return Markup(_signed(after.value - before.value))


def data(run: RunRecord) -> Markup:
    """Return the table of sources."""
    if not run.sources:
        return Markup()
    names = ["Source", "Format", "Rows", "Bad", "Duplicates", "Share of batches", "Passes"]
    names += ["Median tokens", "95 %", "Longest", "Cut texts"]
    rows = [
        [
            source.name,
            source.format,
            *map(_count, (source.rows, source.bad, source.duplicates)),
            _percent(source.share),
            f"{source.passes:,.2f}" if math.isfinite(source.passes) else NOTHING,
            *map(_count, (source.median_tokens, source.p95_tokens, source.max_tokens)),
            _percent(source.cut),
        ]
        for source in run.sources
    ]
    parts = [tag("h2", "Data")]
    if run.shared_rows > 0:
        words = (
            f"{run.shared_rows:,.0f} rows have documents of the evaluation, as the recipe allows."
        )
        parts.append(tag("p", words))
    return tag("section", *parts, table(names, rows, words=2), _examples(run))


def _examples(run: RunRecord) -> Markup:
    if not run.examples:
        return Markup()
    shown = [
        joined(
            [
                tag("dt", f"{example.source}, {example.place}"),
                *(tag("dd", tag("b", side), " ", text) for side, text in example.sides),
            ]
        )
        for example in run.examples
    ]
    title = tag("summary", "Rows as the model sees them")
    return tag("details", title, tag("dl", *shown, class_="examples"))


def recipe(run: RunRecord) -> Markup:
    """Return the recipe as it was resolved."""
    if not run.recipe_text:
        return Markup()
    return tag("section", tag("h2", "Recipe"), tag("pre", run.recipe_text))


def table(names: Sequence[str], rows: Sequence[Sequence[str]], *, words: int) -> Markup:
    """Return a table; the first `words` columns hold words, the others numbers."""
    style = [{} if place < words else {"class_": "n"} for place in range(len(names))]
    head = [tag("th", name, scope="col", **style[place]) for place, name in enumerate(names)]
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(tag("td", cell, **style[place]) for place, cell in enumerate(row) if place),
        )
        for row in rows
    ]
    whole = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *body))
    return tag("div", whole, class_="table", tabindex=0)  # it scrolls, by keys too


def _count(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else NOTHING


def _percent(share: float) -> str:
    return f"{share:.1%}" if math.isfinite(share) else NOTHING


def _decimals(value: float) -> str:
    return _minus(f"{value:.3f}") if math.isfinite(value) else NOTHING


def _signed(value: float) -> str:
    return _minus(f"{value:+.4f}") if math.isfinite(value) else NOTHING


def _minus(words: str) -> str:
    return words.replace("-", "\N{MINUS SIGN}")


# report.html: a training run on one page that needs nothing beside it, no network and no files.


STATIC = Path(__file__).parents[1] / "data"
LIBRARIES = ("gemb", "torch", "numpy", "tokenizers")  # whose versions are told


def write_report(run: Path) -> Path:
    """Write the page of a run from what its folder holds, and return its path.

    Files and keys that are missing leave their sections out: a run may have been stopped early, or
    have no evaluation.

    Args:
        run: the run's folder; report.html in it is replaced, whole or not at all.

    Raises:
        UsageError: `run` is no folder, or a file in it is not what its name says.
        OSError: a file cannot be read or written.
    """
    page = _page(read_run(run))
    target = run / "report.html"
    with new_file(target) as part:
        part.write_text(page, "utf-8")
    return target


def _page(run: RunRecord) -> str:
    style = Markup((STATIC / "report.css").read_text("utf-8"))
    script = Markup((STATIC / "report.js").read_text("utf-8"))
    # Only the page's own style and script run, whatever a source's name or a text may hold.
    policy = f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}"
    head = [
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", f"{run.name} \N{MIDDLE DOT} gemb train"),
        tag("style", style),
    ]
    sections = [headline(run), curves(run), similarity(run), scores(run), data(run), recipe(run)]
    body = [*sections, tag("footer", _versions()), tag("script", script)]
    html = tag("html", tag("head", *head), "\n", tag("body", joined(body, "\n")), lang="en")
    return f"<!doctype html>\n{html}\n"


def _digest(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    known = []
    for library in LIBRARIES:
        try:
            known.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            continue
    known.append(f"Python {platform.python_version()}")
    return f"Written by {', '.join(known)} on {platform.system()} {platform.machine()}."
