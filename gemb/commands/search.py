"""`gemb search`: a question in, the passages and rows that answer it out."""

from __future__ import annotations

import dataclasses
import os
import re
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gemb.commands.options import GroupedCommand, ModelOptions, model_options

if TYPE_CHECKING:
    from gemb.backend import Encoder
    from gemb.search.form import Form, Write
    from gemb.search.queries import Query
    from gemb.search.search_run import Job
    from gemb.search.tree_search import Sources

NO_QUERY = """
Nothing to look for. Ask:
  gemb search "how do I cancel an order" docs/
  git log --format=%s | gemb search "memory leak" -k 5
  gemb search "refund rules" wiki.gemb
More: gemb search --help"""
GROUPS = {
    "What is asked": ("queries_from", "like", "task"),
    "What is searched": (
        "globs",
        "hidden",
        "no_ignore",
        "follow",
        "max_size",
        "lines",
        "input_format",
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
        "names",
        "count",
        "quiet",
        "null",
        "as_json",
        "template",
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


class Score(click.ParamType[float | None]):
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


class Size(click.ParamType[int]):
    """A size in bytes: 500K, 20M, 2G; 0 is none."""

    name = "SIZE"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the bytes."""
        found = re.fullmatch(r"(\d{1,15})([KMG]?)", str(value).upper())
        if not found:
            self.fail(f"{value!r} is no size such as 500K, 20M, 2G, or 0: any", param, ctx)
        return int(found[1]) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[found[2]]


@click.command(cls=GroupedCommand, groups=GROUPS)
@click.argument("words", nargs=-1, metavar="QUERY [PATH]...")
@click.option(
    "-f",
    "--queries",
    "queries_from",
    metavar="FILE",
    help="Many queries: JSON lines with text and perhaps _id, or lines; - is standard input.",
)
@click.option(
    "--like", metavar="ID|FILE:LINE", help="Find what is like a row, or a passage of a file."
)
@click.option(
    "--task",
    type=click.Choice(TASKS),
    help="Words that the model was trained to see around a query.  [default: query]",
)
@click.option(
    "-g",
    "--glob",
    "globs",
    multiple=True,
    metavar="GLOB",
    help="Only files like '*.md'; '!*.min.js' leaves out; repeatable, the last one counts.",
)
@click.option("--hidden", is_flag=True, help="Also files and folders that begin with a dot.")
@click.option("--no-ignore", is_flag=True, help="Also what .gitignore and .ignore leave out.")
@click.option("-L", "--follow", is_flag=True, help="Follow links.")
@click.option(
    "--max-size",
    type=Size(),
    default="10M",
    show_default=True,
    help="Leave out longer files; 0: none.",
)
@click.option("--lines", is_flag=True, help="Each line is a passage of its own.")
@click.option(
    "-I",
    "--input-format",
    type=click.Choice(["auto", "lines", "jsonl", "csv", "tsv", "parquet"]),
    default="auto",
    help="FILEs are tables, whose rows are passages; auto (the default): only what is named so.",
)
@click.option(
    "--text-field",
    multiple=True,
    metavar="NAME",
    help="Field or column of a table's text; several are joined by a newline.",
)
@click.option("--title-field", metavar="NAME", help="Field of the title, for the document prompt.")
@click.option("--id-field", metavar="NAME", help="Field of the id; else rows are numbered.")
@click.option("--keep", metavar="A,B|all", help="Fields of a table to copy to --json and --format.")
@click.option(
    "-k",
    "--top-k",
    type=COUNT,
    metavar="N",
    help="How many hits at most; 0: all that are relevant.  [default: 10]",
)
@click.option(
    "--min-score",
    type=Score(),
    default="auto",
    show_default=True,
    help="The least cosine; auto: what chance does not explain, so that the answer may be nothing.",
)
@click.option("--weak", is_flag=True, help="Show what is under --min-score, too.")
@click.option(
    "--where",
    metavar="FILTER",
    help="Only rows of an index like \"lang='en' and year>=2024\".",
)
@click.option("--hybrid", is_flag=True, help="Rank by words (BM25), too: needs an index.")
@click.option(
    "--accuracy",
    type=click.Choice(["auto", "exact", "balanced", "fast"]),
    default="auto",
    show_default=True,
    help="How closely an index is looked at; auto: exact while that is quick.",
)
@click.option(
    "--check-recall",
    type=click.IntRange(min=1),
    metavar="N",
    help="Measure what the quick ranking of an INDEX misses, with N queries of -f or rows.",
)
@click.option("--dim", type=int, help="Width of the vectors: one that the model was trained for.")
@click.option(
    "--force", is_flag=True, help="Search an index with another model than it was built with."
)
@click.option("-B", "--before-context", "before", type=COUNT, metavar="N", help="Lines before.")
@click.option("-A", "--after-context", "after", type=COUNT, metavar="N", help="Lines after.")
@click.option("-C", "--context", type=COUNT, metavar="N", help="Lines before and after.")
@click.option("--full", is_flag=True, help="Whole passages, not their best lines.")
@click.option("-l", "--files-with-matches", "names", is_flag=True, help="Only names of files.")
@click.option("-c", "--count", is_flag=True, help="How many relevant passages each file has.")
@click.option(
    "-0", "--null", is_flag=True, help="Names end in NUL and are written as they are: xargs -0."
)
@click.option(
    "--json", "as_json", is_flag=True, help="JSON lines: rank, score, id, path, line, ..."
)
@click.option(
    "--format",
    "template",
    metavar="TEMPLATE",
    help=r"'{score:.2f}\t{path}:{line}\t{text}'; also rank, title, passage, id, first_line, "
    "last_line, query, query_id, kept fields.",
)
@click.option("--trec", is_flag=True, help="A run for trec_eval.")
@click.option(
    "--heading/--no-heading",
    default=None,
    help="In groups by file, or one line a hit.  [default: groups on a terminal]",
)
@click.option("-H", "--with-filename", is_flag=True, help="Name and line for standard input, too.")
@click.option(
    "--color",
    "--colour",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="auto: on a terminal, unless NO_COLOR is set.",
)
@click.option("-s", "--no-messages", is_flag=True, help="No progress and no notes.")
@model_options
def search(options: ModelOptions, words: tuple[str, ...], **values: object) -> None:
    """Find the passages that answer a question: by what they mean, not by their letters.

    PATHs are files and folders, - for the lines of standard input, or one INDEX that gemb index
    built. Without a PATH the lines of a pipe are searched, else this folder. Vectors are kept: the
    second search of a folder is quick.

    \b
    gemb search "how do I cancel an order" docs/
    git log --format=%s | gemb search "memory leak" -k 5
    gemb search -l0 "retry policy" src -g '*.py' | xargs -0 grep -n backoff
    gemb search "refund rules" wiki.gemb --where "lang='en' and year>=2024" --json
    gemb search --like README.md:12

    In a pipe a hit is path:line:text, with the line that answers best.

    \b
    Exit codes: 0 something was found, 1 nothing relevant, 2 wrong usage or a file could
    not be read, 4 something is absent, 5 the run failed, 130/141/143 stopped by a signal.
    """
    chosen = Chosen(**values)  # type: ignore[arg-type]
    queries, paths = _asked(words, chosen)
    _check(chosen)
    is_silent = options.quiet
    options = dataclasses.replace(options, quiet=options.quiet or chosen.no_messages)
    index = _index_of(paths)
    if index is None:
        _check_files(chosen)
    else:
        _check_index(chosen)
    write = _writer()
    form = _form(chosen, write, is_silent=is_silent)
    job = _job(chosen, queries, options)

    def open_model(reference: str) -> Encoder:
        return dataclasses.replace(options, model=reference or options.model).open().encoder

    from gemb.search import search_run

    if chosen.check_recall is not None:
        from gemb.search.recall_run import run_recall

        if index is None:
            raise click.UsageError("--check-recall measures an INDEX; name one")
        code = run_recall(
            job, index, open_model, chosen.check_recall, write, as_json=chosen.as_json
        )
    elif index is not None:
        code = search_run.run_index(job, index, open_model, form)
    else:
        sources = _sources(chosen, paths, quiet=options.quiet)
        code = search_run.run_files(job, sources, open_model, form, is_silent=is_silent)
    if code:
        raise click.exceptions.Exit(code)


next(
    param for param in search.params if param.name == "quiet"
).help = "Print nothing: the exit code tells."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
    """The options as they were given."""

    queries_from: str | None
    like: str | None
    task: str | None
    globs: tuple[str, ...]
    hidden: bool
    no_ignore: bool
    follow: bool
    max_size: int
    lines: bool
    input_format: str
    text_field: tuple[str, ...]
    title_field: str | None
    id_field: str | None
    keep: str | None
    top_k: int | None
    min_score: float | None
    weak: bool
    where: str | None
    hybrid: bool
    accuracy: str
    check_recall: int | None
    dim: int | None
    force: bool
    before: int | None
    after: int | None
    context: int | None
    full: bool
    names: bool
    count: bool
    null: bool
    as_json: bool
    template: str | None
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


def _asked(words: tuple[str, ...], chosen: Chosen) -> tuple[list[Query], tuple[str, ...]]:
    """Return the queries and the paths."""
    from gemb.search.queries import from_words, read_queries

    others = (chosen.queries_from is not None, chosen.like is not None)
    if all(others):
        raise click.UsageError("-f FILE and --like are both given; one at a time")
    if any(others) or chosen.check_recall is not None:
        paths = words
        queries = read_queries(chosen.queries_from) if chosen.queries_from is not None else []
    elif not words:
        click.echo(click.get_current_context().get_usage() + NO_QUERY, err=True)
        raise click.exceptions.Exit(2)
    else:
        queries, paths = [from_words(words[0])], words[1:]
    if "" in paths:
        raise click.UsageError("an empty name for a PATH")
    if paths.count("-") + (chosen.queries_from == "-") > 1:
        raise click.UsageError("standard input (-) is given twice; it can be read once")
    return queries, paths or (_default_path(stdin_taken=chosen.queries_from == "-"),)


def _default_path(*, stdin_taken: bool) -> str:
    """Return what is searched where no PATH is named: a pipe or a file that is given, else here."""
    if stdin_taken or sys.stdin is None:
        return "."
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return "."
    # What is neither (a terminal, /dev/null) has no lines to search.
    has_lines = stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
    return "-" if has_lines else "."


def _index_of(paths: tuple[str, ...]) -> Path | None:
    """Return the index that is named, None where files are."""
    from gemb.index.manifest import is_index

    found = [path for path in paths if is_index(Path(path))]
    if not found:
        return None
    if len(paths) > 1:
        raise click.UsageError(f"{found[0]} is an index; it is searched alone")
    return Path(found[0])


def _check(chosen: Chosen) -> None:
    """Refuse options that do not go together."""
    forms = {
        "-l": chosen.names,
        "-c": chosen.count,
        "--json": chosen.as_json,
        "--format": chosen.template is not None,
        "--trec": chosen.trec,
    }
    given = [name for name, is_given in forms.items() if is_given]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} are given; one form at a time")
    if chosen.queries_from is not None and (chosen.names or chosen.count):
        raise click.UsageError(f"{given[0]} is for one query; with -f: --json, --format or --trec")
    if chosen.null and (chosen.as_json or chosen.trec):
        raise click.UsageError(f"-0 is for names and lines, not for {given[0]}")
    if chosen.full and (chosen.before, chosen.after, chosen.context) != (None,) * 3:
        raise click.UsageError("--full shows whole passages; -A, -B, -C the lines around the best")
    if chosen.template is not None:
        from gemb.search.format_string import parsed

        parsed(chosen.template)


def _check_files(chosen: Chosen) -> None:
    names = {
        "--where": chosen.where is not None,
        "--hybrid": chosen.hybrid,
        "--accuracy": chosen.accuracy != "auto",
        "--force": chosen.force,
    }
    for name, is_given in names.items():
        if is_given:
            raise click.UsageError(
                f"{name} is for an index: gemb index build NAME PATH makes one, "
                "gemb search QUERY NAME searches it"
            )


def _check_index(chosen: Chosen) -> None:
    names = {
        "-g": bool(chosen.globs),
        "--hidden": chosen.hidden,
        "--no-ignore": chosen.no_ignore,
        "-L": chosen.follow,
        "--lines": chosen.lines,
        "-I": chosen.is_table,
    }
    for name, is_given in names.items():
        if is_given:
            raise click.UsageError(
                f"{name} is for files; what an index holds is chosen by gemb index build, "
                "and --where filters its rows"
            )


def _job(chosen: Chosen, queries: list[Query], options: ModelOptions) -> Job:
    from gemb.search.search_run import Job
    from gemb.search.wanted import Wanted

    k = chosen.top_k if chosen.top_k is not None else None if chosen.count else 10
    if chosen.names and k:
        k *= PASSAGES_A_FILE
    source = click.get_current_context().get_parameter_source("model")
    is_given = source is click.core.ParameterSource.COMMANDLINE
    return Job(
        queries=queries,
        like=chosen.like,
        wanted=Wanted(
            k=k or None,
            min_score=chosen.min_score,
            is_weak=chosen.weak,
            where=chosen.where,
            is_hybrid=chosen.hybrid,
            accuracy=chosen.accuracy,
        ),
        task=chosen.task,
        dim=chosen.dim,
        model=options.model if is_given else "",
        force=chosen.force,
        quiet=options.quiet,
    )


PASSAGES_A_FILE = 20  # are looked at for each name that is wanted: a long file has many


def _sources(chosen: Chosen, paths: tuple[str, ...], *, quiet: bool) -> Sources:
    from gemb.inputs import Reading
    from gemb.records import Fields
    from gemb.search.tree import Walk
    from gemb.search.tree_search import Sources

    keep_all = chosen.keep == "all"
    kept = () if keep_all or not chosen.keep else tuple(map(str.strip, chosen.keep.split(",")))
    fields = Fields(
        text=chosen.text_field,
        title=chosen.title_field,
        id=chosen.id_field,
        keep=kept,
        keep_all=keep_all,
    )
    reading = Reading(format=chosen.input_format, fields=fields, quiet=quiet)
    return Sources(
        paths=paths,
        walk=Walk(
            globs=chosen.globs,
            hidden=chosen.hidden,
            ignore=not chosen.no_ignore,
            follow=chosen.follow,
            most_bytes=chosen.max_size,
        ),
        kind="lines" if chosen.lines else "auto",
        stream=reading,
        rows=reading if chosen.is_table else None,
    )


def _writer() -> Write:
    from gemb.output import Stream

    return Stream(None).write


def _form(chosen: Chosen, write: Write, *, is_silent: bool) -> Form:
    """Return what writes the hits."""
    import shutil

    from gemb.search import colours
    from gemb.search.context import Context

    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    paint = colours.Paint(is_on=colours.wanted(chosen.color, sys.stdout))
    is_many = chosen.queries_from is not None
    if is_silent:
        from gemb.search.name_lists import Silent

        return Silent()
    if chosen.names or chosen.count:
        from gemb.search.name_lists import NameList

        most = None if chosen.count else (10 if chosen.top_k is None else chosen.top_k) or None
        return NameList(write, paint, is_null=chosen.null, counts=chosen.count, most=most)
    if chosen.trec:
        from gemb.search.trec_run import TrecRun

        return TrecRun(write, by_rank=chosen.hybrid)
    if chosen.template is not None:
        from gemb.search.format_string import FormatLines

        return FormatLines(write, chosen.template, is_null=chosen.null, is_terminal=is_terminal)
    is_grouped = is_terminal if chosen.heading is None else chosen.heading
    if chosen.as_json or (is_many and not is_grouped):
        from gemb.search.json_hits import JsonHits

        return JsonHits(write, with_query=is_many)
    before, after = _context(chosen, is_grouped=is_grouped)
    is_asked = (chosen.before, chosen.after, chosen.context) != (None,) * 3
    context = Context(before, after, is_inside=not is_asked)
    if is_grouped and not chosen.null:
        from gemb.search.terminal_hits import TerminalHits

        width = shutil.get_terminal_size().columns
        return TerminalHits(write, context, paint, width, is_whole=chosen.full, with_query=is_many)
    from gemb.search.grep_lines import GrepLines

    return GrepLines(
        write,
        context,
        paint,
        is_null=chosen.null,
        is_terminal=is_terminal,
        with_names=chosen.with_filename,
    )


def _context(chosen: Chosen, *, is_grouped: bool) -> tuple[int, int]:
    """Return how many lines are shown before and after the best one."""
    if chosen.full:
        return 1 << 30, 1 << 30
    given = chosen.before, chosen.after
    if chosen.context is not None or given != (None, None):
        both = chosen.context or 0
        return tuple(both if one is None else one for one in given)  # type: ignore[return-value]
    return (1, 2) if is_grouped else (0, 0)
