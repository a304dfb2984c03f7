"""Options of `gemb search`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from gemb.commands.options import ENCODING, QUOTING, WALK
from gemb.commands.params import Seconds
from gemb.texts import BUDGET_S, INPUT_FORMATS, PASSAGE_KINDS

F = TypeVar("F", bound=Callable[..., Any])

GROUPS = {
    "What is asked": ("queries_from", "like", "task"),
    "What is searched": (
        "table",
        "globs",
        "hidden",
        "no_ignore",
        "follow",
        "max_size",
        "lines",
        "passages",
        "input_format",
        "encoding",
        "quoting",
        "text_field",
        "title_field",
        "id_field",
        "keep",
    ),
    "What is found": (
        "top_k",
        "min_score",
        "weak",
        "where",
        "budget",
        "exact",
        "hybrid",
        "accuracy",
        "check_recall",
        "dim",
        "force",
    ),
    "Output": (
        "before",
        "after",
        "context",
        "full",
        "cite",
        "explain",
        "names",
        "count",
        "quiet",
        "null",
        "as_json",
        "trec",
        "heading",
        "with_filename",
        "color",
        "no_messages",
    ),
    "Model": ("model", "backend", "device", "precision", "threads", "verbose"),
}
TASKS = ("query", "code", "qa", "fact", "similarity", "clustering", "classification", "none")
COUNT = click.IntRange(min=0)


class MinScore(click.ParamType[float | None]):
    """A cosine, or auto, which is None."""

    name = "auto|X"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | None:
        """Return the cosine."""
        if value == "auto":
            return None
        try:
            score = float(str(value))
        except ValueError:
            score = 2.0
        if not -1 <= score <= 1:
            self.fail(f"{value!r} is neither auto nor a cosine from -1 to 1", param, ctx)
        return score


OPTIONS = (
    click.option(
        "-f",
        "--queries",
        "queries_from",
        type=click.Path(),
        metavar="FILE",
        help="Many queries: JSON lines, CSV, TSV or Parquet with text and perhaps _id, or lines; "
        "- is standard input.",
    ),
    click.option(
        "--like", metavar="ID|FILE:LINE", help="Find what is like a row, or a passage of a file."
    ),
    click.option(
        "--task",
        type=click.Choice(TASKS),
        help="Prompt that the model was trained with for queries.  [default: query]",
    ),
    click.option(
        "--table", metavar="NAME", help="Of a database.  [default: the only one gemb pushed]"
    ),
    *WALK,
    click.option("--lines", is_flag=True, help="Each line is a passage: --passages lines."),
    click.option(
        "--passages",
        type=click.Choice(PASSAGE_KINDS),
        help="How files become passages.  [default: auto]",
    ),
    click.option(
        "-I",
        "--input-format",
        type=click.Choice(INPUT_FORMATS),
        default="auto",
        help="FILEs are tables, whose rows are passages; auto (the default): they are texts.",
    ),
    ENCODING,
    QUOTING,
    click.option(
        "--text-field",
        multiple=True,
        metavar="NAME",
        help="Field or column of a table's text; several are joined by a newline.",
    ),
    click.option(
        "--title-field", metavar="NAME", help="Field of the title, for the document prompt."
    ),
    click.option("--id-field", metavar="NAME", help="Field of the id; else rows are numbered."),
    click.option("--keep", metavar="A,B|all", help="Fields of a table to copy to --json."),
    click.option(
        "-k",
        "--top-k",
        type=COUNT,
        metavar="N",
        help="How many hits at most; 0: all that are relevant.  [default: 10]",
    ),
    click.option(
        "--min-score",
        type=MinScore(),
        default="auto",
        show_default=True,
        help="The least cosine; auto: higher than chance explains, which may leave no hits.",
    ),
    click.option("--weak", is_flag=True, help="Also show hits below --min-score."),
    click.option(
        "--where",
        metavar="FILTER",
        help="Only rows of an index or database like \"lang='en' and year>=2024\".",
    ),
    click.option(
        "--budget",
        type=Seconds(),
        metavar="TIME",
        help="Of files: time for the search, at least a third of it for vectors of what words "
        f"and drafts rank first; 0: no new ones.  [default: {BUDGET_S:.0f}s]",
    ),
    click.option("--exact", is_flag=True, help="Of files: compare the vectors of all passages."),
    click.option("--hybrid", is_flag=True, help="Rank by words (BM25), too."),
    click.option(
        "--accuracy",
        type=click.Choice(["auto", "exact", "balanced", "fast"]),
        default="auto",
        show_default=True,
        help="How exactly an index is ranked; auto: exact if that is quick.",
    ),
    click.option(
        "--check-recall",
        type=click.IntRange(min=1),
        metavar="N",
        help="Measure what the quick ranking of an INDEX misses, with N queries of -f or rows.",
    ),
    click.option(
        "--dim", type=int, help="Width of the vectors: one that the model was trained for."
    ),
    click.option(
        "--force", is_flag=True, help="Search an index with another model than it was built with."
    ),
    click.option("-B", "--before-context", "before", type=COUNT, metavar="N", help="Lines before."),
    click.option("-A", "--after-context", "after", type=COUNT, metavar="N", help="Lines after."),
    click.option("-C", "--context", type=COUNT, metavar="N", help="Lines before and after."),
    click.option("--full", is_flag=True, help="Whole passages, not their best lines."),
    click.option(
        "--cite",
        type=click.IntRange(min=1),
        metavar="TOKENS",
        help="One block for a language model: the best passages, numbered, in so many tokens.",
    ),
    click.option(
        "--explain", is_flag=True, help="Of files: each hit's ranks by words, draft and vector."
    ),
    click.option("-l", "--files-with-matches", "names", is_flag=True, help="Only names of files."),
    click.option("-c", "--count", is_flag=True, help="How many relevant passages each file has."),
    click.option(
        "-0", "--null", is_flag=True, help="Names end in NUL and are written as they are: xargs -0."
    ),
    click.option(
        "--json", "as_json", is_flag=True, help="JSON lines: rank, score, id, path, line, ..."
    ),
    click.option("--trec", is_flag=True, help="A run for trec_eval."),
    click.option(
        "--heading/--no-heading",
        default=None,
        help="In groups by file, or one line a hit.  [default: groups on a terminal]",
    ),
    click.option(
        "-H", "--with-filename", is_flag=True, help="Name and line for standard input, too."
    ),
    click.option(
        "--color",
        "--colour",
        type=click.Choice(["auto", "always", "never"]),
        default="auto",
        show_default=True,
        help="auto: on a terminal, unless NO_COLOR is set.",
    ),
    click.option("-s", "--no-messages", is_flag=True, help="No progress and no notes."),
)


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """The options of `gemb search`."""

    queries_from: str | None
    like: str | None
    task: str | None
    table: str | None
    globs: tuple[str, ...]
    hidden: bool
    no_ignore: bool
    follow: bool
    max_size: int
    lines: bool
    passages: str | None
    input_format: str
    encoding: str
    quoting: str | None
    text_field: tuple[str, ...]
    title_field: str | None
    id_field: str | None
    keep: str | None
    top_k: int | None
    min_score: float | None
    weak: bool
    where: str | None
    budget: float | None
    exact: bool
    hybrid: bool
    accuracy: str
    check_recall: int | None
    dim: int | None
    force: bool
    before: int | None
    after: int | None
    context: int | None
    full: bool
    cite: int | None
    explain: bool
    names: bool
    count: bool
    null: bool
    as_json: bool
    trec: bool
    heading: bool | None
    with_filename: bool
    color: str
    no_messages: bool

    @property
    def is_table(self) -> bool:
        """Whether FILEs are tables."""
        fields = (*self.text_field, self.title_field, self.id_field, self.keep)
        return self.input_format != "auto" or any(fields)


def search_options(command: F) -> F:
    """Give a command the options; it gets them as `options: SearchOptions`."""

    @functools.wraps(command)
    def packed(*args: object, **values: Any) -> object:  # noqa: ANN401
        names = SearchOptions.__dataclass_fields__
        options = SearchOptions(**{name: values.pop(name) for name in names})
        return command(*args, options=options, **values)

    wrapped: Any = packed
    for option in reversed(OPTIONS):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]
