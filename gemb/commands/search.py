"""Which form the hits of `gemb search` take."""

from __future__ import annotations

import dataclasses
import os
import shlex
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gemb.commands.options import GroupedCommand, ModelOptions, model_options
from gemb.commands.search_options import GROUPS, Chosen, search_options
from gemb.io import notes
from gemb.io.text import visible

if TYPE_CHECKING:
    from gemb.backend import Encoder
    from gemb.search.corpus import Sources
    from gemb.search.forms import Form, Write
    from gemb.search.queries import Query, SearchJob


def form_of(chosen: Chosen, write: Write, *, is_silent: bool) -> Form:
    """Return what writes the hits."""
    import shutil

    from gemb.io import colours
    from gemb.search.excerpts import Context

    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    paint = colours.Paint(is_on=colours.wanted(chosen.color, sys.stdout))
    is_many = chosen.queries_from is not None
    if is_silent:
        from gemb.search.forms import Silent

        return Silent()
    if chosen.names or chosen.count:
        from gemb.search.forms import NameList

        most = None if chosen.count else (10 if chosen.top_k is None else chosen.top_k) or None
        return NameList(
            write,
            paint,
            is_null=chosen.null,
            counts=chosen.count,
            most=most,
            is_terminal=is_terminal,
        )
    if chosen.trec:
        from gemb.search.forms import TrecRun

        return TrecRun(write, by_rank=chosen.hybrid)
    is_grouped = is_terminal if chosen.heading is None else chosen.heading
    if chosen.as_json or (is_many and not is_grouped):
        from gemb.search.forms import JsonHits

        return JsonHits(write, with_query=is_many)
    before, after = _context(chosen, is_grouped=is_grouped)
    is_asked = (chosen.before, chosen.after, chosen.context) != (None,) * 3
    context = Context(before, after, is_inside=not is_asked)
    if is_grouped and not chosen.null:
        from gemb.search.terminal import TerminalHits

        width = shutil.get_terminal_size().columns
        return TerminalHits(write, context, paint, width, is_whole=chosen.full, with_query=is_many)
    from gemb.search.forms import GrepLines

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


# Options of `gemb search` that do not go together, or not with what is searched.


def check(chosen: Chosen) -> None:
    """Refuse options that do not go together.

    Raises:
        UsageError: there are such.
    """
    forms = {
        "-l": chosen.names,
        "-c": chosen.count,
        "--json": chosen.as_json,
        "--trec": chosen.trec,
    }
    given = [name for name, is_given in forms.items() if is_given]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} are given; one form at a time")
    if chosen.queries_from is not None and (chosen.names or chosen.count):
        raise click.UsageError(f"{given[0]} is for one query; with -f: --json or --trec")
    if chosen.lines and chosen.passages not in (None, "lines"):
        raise click.UsageError(f"--lines and --passages {chosen.passages} are given; one of them")
    if chosen.hybrid and chosen.like is not None:
        raise click.UsageError("--hybrid ranks by the words of a query; --like has none")
    if chosen.null and (chosen.as_json or chosen.trec):
        raise click.UsageError(f"-0 is for names and lines, not for {given[0]}")
    if chosen.null and sys.stdout is not None and sys.stdout.isatty():
        # A name may hold escape codes, which a terminal obeys.
        raise click.UsageError("-0 writes names as they are, for a program: | xargs -0 ...")
    if chosen.full and (chosen.before, chosen.after, chosen.context) != (None,) * 3:
        raise click.UsageError("--full shows whole passages; -A, -B, -C the lines around the best")


def check_files(chosen: Chosen, paths: Sequence[str]) -> None:
    """Refuse what is for an index alone.

    Raises:
        click.UsageError: such an option is given; where the path is not there, it is the mistake.
    """
    names = {
        "--where": chosen.where is not None,
        "--accuracy": chosen.accuracy != "auto",
        "--force": chosen.force,
    }
    for name, is_given in names.items():
        if is_given:
            _check_there(paths)
            raise click.UsageError(
                f"{name} is for an index: gemb index build NAME PATH makes one, "
                "gemb search QUERY NAME searches it"
            )


def check_index(chosen: Chosen) -> None:
    """Refuse what is for files alone.

    Raises:
        click.UsageError: such an option is given.
    """
    names = {
        "-g": bool(chosen.globs),
        "--hidden": chosen.hidden,
        "--no-ignore": chosen.no_ignore,
        "-L": chosen.follow,
        "--lines": chosen.lines,
        "--passages": chosen.passages is not None,
        "-I": chosen.is_table,
    }
    for name, is_given in names.items():
        if is_given:
            raise click.UsageError(
                f"{name} is for files; what an index holds is chosen by gemb index build, "
                "and --where filters its rows"
            )


def _check_there(paths: Sequence[str]) -> None:
    """Refuse a path that is not there, and name the index beside it that may be meant.

    Raises:
        click.UsageError: there is such a path.
    """
    import difflib

    from gemb.index.manifest import is_index

    for path in map(Path, paths):
        if str(path) == "-" or path.exists():
            continue
        folder = path.parent
        beside = folder.iterdir() if folder.is_dir() else ()
        names = [one.name for one in beside if is_index(one)]
        near = difflib.get_close_matches(path.name, names, 1)
        hint = f"; did you mean {visible(str(folder / near[0]))}?" if near else ""
        raise click.UsageError(f"no index {visible(str(path))}{hint}")


# `gemb search`: a question in, the passages and rows that answer it out.


NO_QUERY = """
Nothing to look for. Ask:
  gemb search "how do I cancel an order" docs/
  git log --format=%s | gemb search "memory leak" -k 5
  gemb search "refund rules" wiki.gemb
More: gemb search --help"""
WAIT_S = 2.0  # for the first line of standard input, before a word is said
PASSAGES_A_FILE = 20  # are looked at for each name that is wanted: a long file has many


@click.command(cls=GroupedCommand, groups=GROUPS)
@click.argument("words", nargs=-1, type=click.Path(readable=False), metavar="QUERY [PATH]...")
@search_options
@model_options
def search(options: ModelOptions, words: tuple[str, ...], chosen: Chosen) -> None:
    """Find passages that answer a question, by what they mean.

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
    queries, paths = _asked(words, chosen)
    check(chosen)
    is_silent = notes.is_quiet()
    if chosen.no_messages:
        notes.speak(quiet=True)
    _say_if_unlike(words, paths)
    index = _index_of(paths)
    if index is None:
        check_files(chosen, paths)
    else:
        check_index(chosen)
    write = _writer()
    form = form_of(chosen, write, is_silent=is_silent)
    job = _job(chosen, queries, options)

    def open_model(reference: str) -> Encoder:
        return dataclasses.replace(options, model=reference or options.model).open().encoder

    if chosen.check_recall is not None:
        from gemb.search.recall import run_recall

        if index is None:
            raise click.UsageError("--check-recall measures an INDEX; name one")
        code = run_recall(
            job, index, open_model, chosen.check_recall, write, as_json=chosen.as_json
        )
    elif index is not None:
        from gemb.search.index import run_index

        code = run_index(job, index, open_model, form)
    else:
        from gemb.io.signals import one_interrupt
        from gemb.search.files import run_files

        sources = _sources(chosen, paths)
        with one_interrupt():
            code = run_files(job, sources, open_model, form, is_silent=is_silent)
    if code:
        raise click.exceptions.Exit(code)


next(
    param for param in search.params if param.name == "quiet"
).help = "Print nothing: the exit code tells."


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


def _say_if_unlike(words: tuple[str, ...], paths: tuple[str, ...]) -> None:
    """Say what is done where the user may have meant something else."""
    import threading

    from gemb.io.notes import note

    if len(words) == 1 and paths == (".",) and Path(words[0]).exists():
        shown = shlex.quote(visible(words[0]))
        note(f"{shown} is taken for the question; to search in it: gemb search QUERY {shown}")

    def say() -> None:
        import select

        if not select.select([sys.stdin], [], [], 0)[0]:
            note("reading standard input; to search this folder instead: gemb search QUERY .")

    if "-" in words or paths != ("-",):
        return
    # A pipe that gives nothing may be one that a program left open.
    timer = threading.Timer(WAIT_S, say)
    timer.daemon = True
    timer.start()


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


def _job(chosen: Chosen, queries: list[Query], options: ModelOptions) -> SearchJob:
    from gemb.search.queries import Criteria, SearchJob

    k = chosen.top_k if chosen.top_k is not None else None if chosen.count else 10
    if chosen.names and k:
        k *= PASSAGES_A_FILE
    source = click.get_current_context().get_parameter_source("model")
    is_given = source is click.core.ParameterSource.COMMANDLINE
    return SearchJob(
        queries=queries,
        like=chosen.like,
        criteria=Criteria(
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
    )


def _sources(chosen: Chosen, paths: tuple[str, ...]) -> Sources:
    from gemb.search.corpus import Sources
    from gemb.texts.inputs import Reading
    from gemb.texts.records import Fields
    from gemb.texts.walk import Walk

    keep_all = chosen.keep == "all"
    kept = () if keep_all or not chosen.keep else tuple(map(str.strip, chosen.keep.split(",")))
    fields = Fields(
        text=chosen.text_field,
        title=chosen.title_field,
        id=chosen.id_field,
        keep=kept,
        keep_all=keep_all,
    )
    reading = Reading(format=chosen.input_format, fields=fields)
    return Sources(
        paths=paths,
        walk=Walk(
            globs=chosen.globs,
            hidden=chosen.hidden,
            ignore=not chosen.no_ignore,
            follow=chosen.follow,
            most_bytes=chosen.max_size,
        ),
        kind="lines" if chosen.lines else chosen.passages or "auto",
        stream=reading,
        rows=reading if chosen.is_table else None,
    )


def _writer() -> Write:
    if sys.stdout is None:
        raise click.UsageError("standard output is closed; send it to a file or a pipe")
    from gemb.io.streams import Stream

    return Stream(None).write
