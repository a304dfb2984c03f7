"""report.html: a training run on one self-contained page, which loads no other file.

The page is gemb/data/report.html, a Jinja template; its charts are images that `charts` draws.
"""

from __future__ import annotations

import base64
import hashlib
import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gemb.arrays import Doubles
from gemb.errors import Missing
from gemb.io.atomic import new_file
from gemb.io.packages import version
from gemb.io.text import duration
from gemb.training.record import RunRecord, Score, ScoreKey, Similarity, SourceSummary, read_run

DATA = Path(__file__).parents[1] / "data"
LIBRARIES = ("gemb", "torch", "numpy", "tokenizers")  # whose versions the page states
NOTHING = "\N{EN DASH}"
BADGES = {"WIN": "win", "TIE": "tie", "REGRESSION": "regression"}


def write_report(run: Path) -> Path:
    """Write the page of a run from the files in its folder, and return its path.

    Sections whose files or keys are missing are left out: a run may have been stopped early, or
    have no evaluation.

    Args:
        run: the run's folder; report.html in it is replaced, completely or not at all.

    Raises:
        UsageError: `run` is no folder, or a file in it cannot be parsed.
        Missing: jinja2 or matplotlib is not installed.
        OSError: a file cannot be read or written.
    """
    page = _page(read_run(run))
    target = run / "report.html"
    with new_file(target) as part:
        part.write_text(page, "utf-8")
    return target


def _page(run: RunRecord) -> str:
    try:
        import jinja2

        from gemb.training.charts import curves, histograms

        template = _environment(jinja2).get_template("report.html")
        models = _models(run)
        charts = {"curves": curves(run), "histograms": histograms(models)}
    except ModuleNotFoundError as error:
        raise Missing(f"a report requires {error.name}: pip install 'gemb[torch]'") from error
    style = (DATA / "report.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    from markupsafe import Markup

    page: str = template.render(
        run=run,
        stage=str(run.recipe.get("stage", "")),
        verdict_class=BADGES.get(run.verdict, "tie"),
        verdict_line=run.verdict_line.removeprefix("VERDICT ").removeprefix(run.verdict).strip(),
        trouble=_trouble(run),
        facts=_facts(run),
        similarities=_similarity_rows(models),
        scores=_score_rows(run),
        sources=[_source_row(source) for source in run.sources],
        versions=_versions(),
        style=Markup(style),
        style_digest=Markup(f"'sha256-{digest}'"),
        **charts,
    )
    return page


def _environment(jinja2: Any) -> Any:  # noqa: ANN401 - a library of an extra
    """Return the environment of the template; it escapes every value but the page's own style."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(DATA),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["finite"] = math.isfinite
    environment.filters["number"] = _number
    return environment


def _trouble(run: RunRecord) -> str:
    """Return why the run is incomplete; empty: it is complete."""
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
    start = run.recipe.get("init") or {}
    facts = {
        "Model": str(start.get("from", "")) or NOTHING,
        "Steps": f"{step[-1]:,.0f}" if len(step) else NOTHING,
    }
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


def _training_seconds(columns: Mapping[str, Doubles]) -> float:
    """Return the seconds that the tokens took at the logged speeds, NaN if unknown."""
    if not {"tokens", "tokens_per_s"} <= set(columns):
        return math.nan
    is_logged = np.isfinite(columns["tokens"]) & (columns["tokens_per_s"] > 0)
    tokens = np.diff(columns["tokens"][is_logged], prepend=0)
    return float((tokens / columns["tokens_per_s"][is_logged]).sum())


def _models(run: RunRecord) -> list[tuple[str, Similarity]]:
    models = (("Before training", run.before), ("After training", run.after))
    return [(name, similarity) for name, similarity in models if similarity is not None]


def _similarity_rows(models: list[tuple[str, Similarity]]) -> list[list[str]]:
    """Return the means, alignment and uniformity of each model, and their change."""
    rows = [
        [name, *(_number(value, ".3f") for value in _numbers(similarity)), _count(similarity.pairs)]
        for name, similarity in models
    ]
    if len(models) == 2:
        changes = np.subtract(_numbers(models[1][1]), _numbers(models[0][1]))
        rows.append(["Change", *(_number(value, ".4f", "+") for value in changes), ""])
    return rows


def _numbers(similarity: Similarity) -> tuple[float, float, float, float]:
    means = similarity.positive_mean, similarity.negative_mean
    return *means, similarity.alignment, similarity.uniformity


class ScoreRow(NamedTuple):
    """A row of the table of scores."""

    key: ScoreKey
    before: Score | None
    after: Score | None
    change: Score | None
    colour: str  # up, down; empty where the interval holds 0, or there is none


def _score_rows(run: RunRecord) -> list[ScoreRow]:
    """Return the dev sets' scores before and after, one width after the other."""
    keys = dict.fromkeys([*run.final, *run.baseline])
    widths = list(dict.fromkeys((key.dim, key.dtype) for key in keys))
    return [
        _score_row(key, run) for width in widths for key in keys if (key.dim, key.dtype) == width
    ]


def _score_row(key: ScoreKey, run: RunRecord) -> ScoreRow:
    before, after, paired = (scores.get(key) for scores in (run.baseline, run.final, run.changes))
    if paired is not None:
        colour = "up" if paired.low > 0 else "down" if paired.high < 0 else ""
        return ScoreRow(key, before, after, paired, colour)
    change = None
    if before is not None and after is not None:
        change = Score(value=after.value - before.value, low=math.nan, high=math.nan)
    return ScoreRow(key, before, after, change, "")


def _source_row(source: SourceSummary) -> list[str]:
    return [
        source.name,
        source.format,
        *map(_count, (source.rows, source.bad, source.duplicates)),
        _percent(source.share),
        _number(source.passes, ",.2f"),
        *map(_count, (source.median_tokens, source.p95_tokens, source.max_tokens)),
        _percent(source.cut),
    ]


def _count(value: float) -> str:
    return _number(value, ",.0f")


def _percent(share: float) -> str:
    return _number(share, ".1%")


def _number(value: float, form: str, sign: str = "") -> str:
    """Return a number with a typographic minus; a dash for an unknown value."""
    if not math.isfinite(value):
        return NOTHING
    return f"{value:{sign}{form}}".replace("-", "\N{MINUS SIGN}")


def _versions() -> str:
    installed = [(library, version(library)) for library in LIBRARIES]
    versions = [f"{library} {number}" for library, number in installed if number]
    versions.append(f"Python {platform.python_version()}")
    return f"Written by {', '.join(versions)} on {platform.system()} {platform.machine()}."
