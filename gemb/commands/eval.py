"""`gemb eval`: measure a model on the user's own sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gemb.commands.options import ENCODING, GroupedCommand, ModelOptions, runtime_options
from gemb.commands.params import AnyPath, ModelReference
from gemb.embedding import DTYPES
from gemb.errors import NegativeAnswer
from gemb.io.notes import answer, note, warn
from gemb.models.references import DEFAULT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gemb.backend import Encoder
    from gemb.datasets.sets import Suite
    from gemb.evaluation.scores import MetricRow, Scores
    from gemb.evaluation.verdict import Verdict


PREFIXES = ("builtin:", "mteb:")
GROUPS = {
    "What is measured": ("data", "encoding", "dims", "dtypes", "baseline", "gate"),
    "Output": ("every_metric", "as_json", "output"),
    "Model": ("backend", "device", "precision", "threads"),
}


@click.command("eval", cls=GroupedCommand, groups=GROUPS)
@click.argument(
    "reference", type=ModelReference(), metavar="[MODEL]", default=DEFAULT, envvar="GEMB_MODEL"
)
@click.option(
    "--data",
    multiple=True,
    type=AnyPath(),
    metavar="PATH|builtin:tiny|mteb:TASK",
    help="A set, a folder or a tree of sets, as above; mteb:TASK needs gemb[mteb]; repeatable.  "
    "[default: builtin:tiny]",
)
@ENCODING
@click.option(
    "--dims",
    metavar="A,B",
    help="Widths of the vectors.  [default: all that the model was trained for]",
)
@click.option(
    "--dtype",
    "dtypes",
    metavar="A,B",
    default="f32",
    show_default=True,
    help="Types of the numbers, as gemb embed stores them: f32, f16, int8, ubinary.",
)
@click.option(
    "--baseline",
    type=ModelReference(".json"),
    metavar="REF|FILE",
    help="What to compare with: a model, or the FILE.json that -o wrote for it.",
)
@click.option(
    "--gate",
    is_flag=True,
    help="For CI: exit code 1 also where the verdict is TOO FEW.",
)
@click.option(
    "-a",
    "--all",
    "every_metric",
    is_flag=True,
    help="Print every metric of a set, not only the main one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Save the scores as JSON for a later --baseline; name it .json.",
)
@runtime_options
def evaluate(
    reference: str,
    data: tuple[str, ...],
    encoding: str,
    dims: str | None,
    dtypes: str,
    baseline: str | None,
    gate: bool,
    every_metric: bool,
    as_json: bool,
    output: Path | None,
    options: ModelOptions,
) -> None:
    """Measure a model on sets of texts, for each size of vector.

    STS, retrieval, reranking, pairs, classification and bitext, each by the layout of its files.
    MODEL is a name (mini, the default; embeddinggemma-300m), a folder, a .gguf file or
    org/repo[:file].

    \b
    gemb eval runs/a/model --data dev/
    gemb eval embeddinggemma-300m --data dev/ --dims 768,256 --dtype f32,int8,ubinary
    gemb eval embeddinggemma-300m --data dev/ -o before.json
    gemb eval runs/b/model --data dev/ --baseline before.json
    gemb eval runs/b/model --data mteb:STSBenchmark

    \b
    Sets that --data finds in a folder, at any depth, and the main metric of each:
      NAME/corpus.jsonl, queries.jsonl, qrels.tsv   retrieval, as BEIR has it: nDCG@10
      rerank/NAME/...                               the same among judged documents: MAP
      NAME.tsv: sentence1, sentence2, score         STS: Spearman; scores 0 and 1: AP
      NAME.tsv: two columns                         bitext: accuracy
      NAME-train.jsonl, NAME-val.jsonl              text, label; linear probe: accuracy
      NAME.jsonl                                    the same, in five folds
    A set.json beside corpus.jsonl may say {"task": "code"}: which prompt queries have.

    Intervals are 95 %, by bootstrap over queries, pairs or rows; where all have one value, exact
    (Clopper-Pearson). With --baseline the last line is WIN, TIE or REGRESSION of the mean of the
    sets, by paired bootstrap. A set of fewer than 10 has no interval, and the verdict is TOO FEW.

    \b
    Exit codes: 0 done, 1 a regression (with --gate also TOO FEW), 2 wrong usage or a wrong
    file, 4 something is absent, 5 the run failed.
    """
    import dataclasses

    if reference.startswith(PREFIXES):  # gemb eval mteb:STSBenchmark
        data, reference = (reference, *data), _default_model()
    widths, types = _widths(dims), _types(dtypes)
    options = dataclasses.replace(options, model=reference)
    tasks = [name.partition(":")[2] for name in data if name.startswith("mteb:")]
    if gate and baseline is None:
        raise click.UsageError("--gate judges a comparison: name its --baseline")
    if tasks:
        if len(tasks) < len(data):
            raise click.UsageError("mteb: tasks and other sets are evaluated in separate commands")
        if baseline is not None or output is not None or dtypes != "f32" or every_metric:
            raise click.UsageError("--baseline, -o, -a and --dtype are not for mteb: tasks")
        _run_mteb(tasks, options, widths, as_json=as_json)
        return
    sets = data or ("builtin:tiny",)
    comparison = _run(
        sets, encoding, options, widths, types, baseline, every_metric, as_json, output
    )
    if comparison and (comparison.word == "REGRESSION" or (gate and comparison.word == "TOO FEW")):
        what = "worse than" if comparison.word == "REGRESSION" else "not comparable with"
        raise NegativeAnswer(f"{what} {baseline}: {comparison.line.removeprefix('VERDICT ')}")


def _default_model() -> str:
    import os

    return os.environ.get("GEMB_MODEL") or DEFAULT


def _run(
    data: Sequence[str],
    encoding: str,
    options: ModelOptions,
    widths: tuple[int, ...],
    types: tuple[str, ...],
    baseline: str | None,
    every_metric: bool,
    as_json: bool,
    output: Path | None,
) -> Verdict | None:
    """Measure, print and save; return the verdict, where there is a baseline."""
    import dataclasses

    from gemb.datasets.sets import open_suite
    from gemb.evaluation.scores import Scores, check_target
    from gemb.evaluation.verdict import check_sets, check_type, too_few, verdict
    from gemb.models.profile import check_dims

    if output is not None:
        check_target(output)
    suite = open_suite(*data, encoding=encoding)
    before: Scores | None = None
    if baseline is not None and Path(baseline).suffix == ".json":
        before = Scores.load(Path(baseline))
        check_sets(before, suite.fingerprints())
        check_type(before, types[0])
    _check_dims(options, widths)
    encoder = options.open().encoder
    check_dims(widths, encoder.profile.matryoshka_dims)
    if baseline is not None and before is None:
        other_options = dataclasses.replace(options, model=baseline)
        _check_dims(other_options, widths)
        baseline_encoder = other_options.open().encoder
        before = _scores(suite, baseline_encoder, widths, types, options, f"eval {baseline}")
        del baseline_encoder
    after = _scores(suite, encoder, widths, types, options, "eval")
    _say_notes(after, encoder.profile.max_tokens)
    comparison = verdict(before, after) if before else None
    try:  # save the scores even if printing fails
        answer(
            _in_json(after, comparison)
            if as_json
            else _in_words(after, comparison, every_metric=every_metric)
        )
    finally:
        if output is not None:
            after.save(output)
    if comparison and comparison.word == "TOO FEW":
        note(too_few(comparison.main.units))
    return comparison


def _check_dims(options: ModelOptions, widths: tuple[int, ...]) -> None:
    """Refuse a width that the model was not trained for, before it is loaded, if possible."""
    from gemb.models.profile import check_dims
    from gemb.models.references import resolve
    from gemb.plugins import for_model

    if not widths:
        return
    path = resolve(options.model)
    backend = for_model(path, options.backend, options.runtime)
    if backend.can("describe"):
        check_dims(widths, backend.describe(path).matryoshka_dims)


def _scores(
    suite: Suite,
    encoder: Encoder,
    widths: tuple[int, ...],
    types: tuple[str, ...],
    options: ModelOptions,
    label: str,
) -> Scores:
    from gemb.embedding.text_vectors import text_progress
    from gemb.evaluation.evaluate import evaluate as measure

    with text_progress(label) as progress:
        return measure(suite, encoder, dims=widths, dtypes=types, progress=progress)


def _widths(dims: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(dim) for dim in dims.split(",")) if dims else ()
    except ValueError:
        raise click.UsageError(f"--dims {dims}: widths with commas between, as 768,256") from None


def _types(dtypes: str) -> tuple[str, ...]:
    types = tuple(dtype.strip() for dtype in dtypes.split(","))
    for dtype in types:
        if dtype not in DTYPES:
            raise click.UsageError(f"--dtype {dtype}: one of {', '.join(DTYPES)}")
    return types


def _run_mteb(
    tasks: Sequence[str], options: ModelOptions, widths: tuple[int, ...], *, as_json: bool
) -> None:
    import json

    from gemb.evaluation.mteb import run, tasks_named

    _check_dims(options, widths)
    loaded = tasks_named(tasks)
    results = run(loaded, options.open().encoder, widths)
    if as_json:
        answer(json.dumps([row._asdict() for row in results], ensure_ascii=False, indent=2))
        return
    for row in results:
        answer(f"{row.task}  {row.split}  {row.subset}  {row.metric}  {row.dim}  {row.value:.5f}")


def _in_words(scores: Scores, verdict: Verdict | None, *, every_metric: bool) -> str:
    """Return a line for each set and type: the metric, its units, and a column for each width.

    Args:
        scores: of the model.
        verdict: the comparison with another model, for the last line; None: there is none.
        every_metric: show every metric of a set, not only the main one.
    """
    dims = list(dict.fromkeys(size.dim for size in scores.sizes))
    types = list(dict.fromkeys(size.dtype for size in scores.sizes))
    units = {dataset.name: str(dataset.units) for dataset in scores.sets}
    main = {(dataset.name, dataset.metric) for dataset in scores.sets}
    shown = [row for row in scores.rows if every_metric or (row.set, row.metric) in main]
    if len(scores.sets) > 1:
        shown += scores.means()
    lines: dict[tuple[str, str, str], dict[int, MetricRow]] = {}
    for row in shown:
        lines.setdefault((row.set, row.metric, row.dtype), {})[row.dim] = row
    head = ["set", "metric", "n", *(["dtype"] if len(types) > 1 else []), *map(str, dims)]
    table = [head]
    for (name, metric, dtype), cells in lines.items():
        kind = [dtype] if len(types) > 1 else []
        table.append([name, metric, units.get(name, ""), *kind, *map(_cell, cells.values())])
    widths = [max(len(line[column]) for line in table) for column in range(len(head))]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
    return "\n".join(text + ([verdict.line] if verdict else []))


def _cell(row: MetricRow) -> str:
    if row.low is None or row.high is None:
        return f"{row.value:.3f}"
    if row.low < row.value < row.high:
        return f"{row.value:.3f} ±{(row.high - row.low) / 2:.3f}"
    return f"{row.value:.3f} ({row.low:.3f} to {row.high:.3f})"  # all units have one value


def _in_json(scores: Scores, verdict: Verdict | None) -> str:
    """Return the scores and the verdict as one JSON document."""
    document = {**scores.to_json(), **({"verdict": verdict.to_json()} if verdict else {})}
    return json.dumps(document, ensure_ascii=False, indent=2)


def _say_notes(scores: Scores, longest: int) -> None:
    """Print notes on stderr: prompts, texts that were cut, rows that were left out.

    Args:
        scores: of the model.
        longest: the most tokens of a text that the model takes.
    """
    from gemb.evaluation.metrics import LEAST_UNITS

    if scores.cut:
        warn(f"{scores.cut} of {scores.texts} texts were cut at {longest} tokens")
    for dataset in scores.sets:
        if dataset.units < LEAST_UNITS:
            note(f"{dataset.name}: n={dataset.units}: no interval of fewer than {LEAST_UNITS}")
        if dataset.left_out:
            warn(f"{dataset.name}: {dataset.left_out}; they take no part")
    users: dict[tuple[str, ...], list[str]] = {}
    for dataset in scores.sets:
        users.setdefault(tuple(dict.fromkeys(dataset.prompts)), []).append(dataset.name)
    for prompts, names in users.items():
        templates = " and ".join(f"'{prompt}'" for prompt in prompts)
        note(f"prompts of {', '.join(names)}: {templates}")
