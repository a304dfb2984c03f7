"""`gemb search`: a question in, the passages and rows that answer it out."""

from __future__ import annotations

import dataclasses
import os
import shlex
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gemb.commands.options import GroupedCommand, ModelOptions, model_options
from gemb.commands.search_checks import check, check_files, check_index
from gemb.commands.search_forms import form_of
from gemb.commands.search_options import GROUPS, Chosen, search_options
from gemb.io.text import visible

if TYPE_CHECKING:
    from gemb.backend import Encoder
    from gemb.search.forms import Write
    from gemb.search.gather import Sources
    from gemb.search.queries import Query
    from gemb.search.run import Job

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
    is_silent = options.quiet
    options = dataclasses.replace(options, quiet=options.quiet or chosen.no_messages)
    if not options.quiet:
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

    from gemb.search import run as search_run

    if chosen.check_recall is not None:
        from gemb.search.recall import run_recall

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


def _job(chosen: Chosen, queries: list[Query], options: ModelOptions) -> Job:
    from gemb.search.queries import Wanted
    from gemb.search.run import Job

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


def _sources(chosen: Chosen, paths: tuple[str, ...], *, quiet: bool) -> Sources:
    from gemb.search.gather import Sources
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
        kind="lines" if chosen.lines else chosen.passages or "auto",
        stream=reading,
        rows=reading if chosen.is_table else None,
    )


def _writer() -> Write:
    if sys.stdout is None:
        raise click.UsageError("standard output is closed; send it to a file or a pipe")
    from gemb.io.streams import Stream

    return Stream(None).write
