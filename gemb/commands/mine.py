"""`gemb mine`: hard negatives for a file of pairs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import get_args

import click

from gemb.commands.options import ENCODING, QUOTING, GroupedCommand, ModelOptions, model_options
from gemb.commands.params import AnyPath, DataPath
from gemb.errors import UsageError
from gemb.recipe.names import Task

GROUPS = {
    "Output": ("output", "without", "dry_run"),
    "Candidates": ("corpus",),
    "How texts are written": ("encoding", "quoting"),
    "Which candidates are negatives": (
        "negatives",
        "margin",
        "absolute_margin",
        "max_score",
        "max_likeness",
        "ranks",
        "sample",
    ),
    "Prompt": ("task",),
    "Model": ("model", "backend", "device", "precision", "threads", "cache"),
}


@click.command(cls=GroupedCommand, groups=GROUPS)
@click.argument("pairs", type=DataPath(path_type=Path, allow_dash=True), metavar="PAIRS")
@click.option(
    "-o",
    "--output",
    type=AnyPath(),
    metavar="FILE",
    help="Where the rows go, all or none.  [default: standard output]",
)
@click.option(
    "--without",
    type=click.Choice(["keep", "drop"]),
    default="keep",
    show_default=True,
    help="A row that gets no negative: write it without, or leave it out.",
)
@click.option(
    "-n", "--dry-run", is_flag=True, help="Only print the number of texts and the estimated time."
)
@click.option(
    "--corpus",
    multiple=True,
    type=DataPath(exists=True, dir_okay=False, path_type=str),
    metavar="FILE",
    help="Take the negatives from these texts: lines, or JSONL, CSV, TSV, Parquet with `text` and "
    "perhaps `title`; repeatable.  [default: all positives and negatives of PAIRS]",
)
@ENCODING
@QUOTING
@click.option(
    "-k",
    "--negatives",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="How many a row gets, at most.",
)
@click.option(
    "--margin",
    type=click.FloatRange(0, 1),
    default=0.95,
    show_default=True,
    help="A negative's score, its cosine with the query, is at most this share of the positive's.",
)
@click.option(
    "--absolute-margin",
    type=click.FloatRange(0, 2),
    default=0.0,
    show_default=True,
    help="A negative's score is lower than the positive's by at least this.",
)
@click.option(
    "--max-score", type=click.FloatRange(-1, 1), metavar="X", help="A negative's highest score."
)
@click.option(
    "--max-likeness",
    type=click.FloatRange(-1, 1),
    default=1.0,
    show_default=True,
    help="A negative's highest cosine with the positive itself; less leaves out near copies.",
)
@click.option(
    "--range",
    "ranks",
    default="1-",
    show_default=True,
    metavar="A-B",
    help="Ranks to take from, among the candidates that the limits above leave: 10-100, 10-.",
)
@click.option(
    "--sample",
    type=click.IntRange(min=0),
    metavar="SEED",
    help="Choose at random from --range A-B, by this seed, and not the nearest.",
)
@click.option(
    "--task",
    type=click.Choice(get_args(Task)),
    default="retrieval",
    show_default=True,
    help="Which prompts queries and texts get, as `task` of a recipe's data.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Where vectors are kept for the next run.  [default: ~/.cache/gemb/teachers]",
)
@model_options
def mine(
    options: ModelOptions,
    pairs: Path,
    output: str | None,
    without: str,
    dry_run: bool,
    corpus: tuple[str, ...],
    encoding: str,
    quoting: str | None,
    negatives: int,
    margin: float,
    absolute_margin: float,
    max_score: float | None,
    max_likeness: float,
    ranks: str,
    sample: int | None,
    task: Task,
    cache: Path | None,
) -> None:
    """Find hard negatives: near a query, and not its answer.

    PAIRS is training data, as gemb train takes it: rows with a query and a positive, its answer,
    in JSONL, CSV, TSV (.gz too) or Parquet, FlagEmbedding's or Tevatron's; or a BEIR folder; - is
    JSONL on standard input. -m may name a file of vectors that gemb embed --keep text wrote. Out
    come JSON lines in the order of the rows, which gemb train takes in turn: query, positive,
    title, negatives (hardest first), positive_score, negative_scores.

    \b
    gemb mine pairs.jsonl -m embeddinggemma-300m -o triplets.jsonl
    gemb mine pairs.csv --corpus docs.jsonl -k 8 --range 10-100 --sample 0 -o triplets.jsonl
    gemb mine pairs.jsonl -n

    A negative's score is at most 0.95 of the positive's (NV-Retriever): what comes nearer is often
    an answer, too. The query's other positives, and copies of them, are never negatives.

    \b
    Exit codes: 0 done, 2 wrong usage or data, 4 something is absent, 5 the run failed,
    130/141/143 stopped by a signal.
    """
    from gemb.embedding.formats.table import FORMATS
    from gemb.embedding.output import Target
    from gemb.training.mining import NegativeRule

    first, last = _ranks(ranks)
    rule = NegativeRule(
        negatives=negatives,
        margin=margin,
        absolute_margin=absolute_margin,
        max_score=1.0 if max_score is None else max_score,
        max_likeness=max_likeness,
        first_rank=first,
        last_rank=last,
        seed=sample,
    )
    if sample is not None and last is None:
        raise click.UsageError("--sample chooses from a range with an end: --range 10-100")
    if last is not None and last - first + 1 < negatives:
        raise click.UsageError(f"--range {ranks} has {last - first + 1} ranks; -k is {negatives}")
    if output == "":
        raise click.UsageError("an empty name for -o")
    if str(pairs) == "-" and sys.stdin is not None and sys.stdin.isatty():
        raise click.UsageError("standard input is a terminal; name a file of pairs")
    target = Target.of(output, FORMATS["jsonl"])
    if not dry_run:
        target.check()
    target.check_inputs([str(pairs), *corpus])

    from gemb.training.mine_run import MineJob, run

    run(
        MineJob(
            pairs=pairs,
            corpus=corpus,
            encoding=encoding,
            quoting=quoting or "",
            task=task,
            rule=rule,
            without=without,
            output=target.path,
            dry_run=dry_run,
            model=options.model,
            backend=options.backend,
            runtime=options.runtime,
            cache=cache,
        )
    )


def _ranks(text: str) -> tuple[int, int | None]:
    """Return the first and the last rank, from 1; None: no last."""
    match = re.fullmatch(r"(\d+)-(\d*)", text)
    first, last = (int(match[1]), int(match[2]) if match[2] else None) if match else (0, None)
    if first < 1 or (last is not None and last < first):
        raise UsageError(f"--range {text}: ranks are counted from 1: 1-, 10-100")
    return first, last
