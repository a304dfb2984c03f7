"""`gemb search`: find the passages and rows that answer a question."""

from __future__ import annotations

import dataclasses
import functools
import os
import shlex
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gemb.commands.options import GroupedCommand, ModelOptions, model_options, quiet_option
from gemb.commands.search_checks import check, check_files, check_index, check_target
from gemb.commands.search_options import GROUPS, SearchOptions, search_options
from gemb.commands.search_output import output_form, standard_output
from gemb.io import notes
from gemb.io.text import visible

if TYPE_CHECKING:
    from gemb.backend import Encoder
    from gemb.search.corpus import Sources
    from gemb.search.forms import OutputForm
    from gemb.search.queries import Query, SearchJob
    from gemb.targets.addresses import Address


NO_QUERY = """
Nothing to look for. Ask:
  gemb search "how do I cancel an order" docs/
  git log --format=%s | gemb search "memory leak" -k 5
  gemb search "refund rules" wiki.gemb
More: gemb search --help"""
WAIT_S = 2.0  # for the first line of standard input, before a note is printed
CITED = 50  # passages that may be cited; the tokens bound them
PASSAGES_PER_FILE = 20  # ranked for each name of a file that is listed: a long file has many


@click.command(cls=GroupedCommand, groups=GROUPS)
@click.argument("arguments", nargs=-1, type=click.Path(readable=False), metavar="QUERY [PATH]...")
@search_options
@functools.partial(
    model_options,
    name="model",
    quiet=functools.partial(quiet_option, help_text="Print nothing: the exit code tells."),
    verbose="Say what each stage did and took; show messages of native libraries.",
)
def search(options: SearchOptions, model: ModelOptions, arguments: tuple[str, ...]) -> None:
    """Find passages that answer a question, by what they mean.

    PATHs are files and folders, - for the lines of standard input, one INDEX that gemb index built,
    or one database that gemb index push filled (postgres://..., lance:..., qdrant:...). Without a
    PATH the lines of a pipe are searched, else this folder. Of a new folder the passages that words
    rank first get vectors, for some seconds; these are kept for later searches.

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
    queries, paths = _queries_and_paths(arguments, options)
    check(options)
    is_silent = notes.is_quiet()
    if options.no_messages:
        notes.speak(quiet=True)
    _say_if_unlike(arguments, paths)
    address = _address_of(paths, options)
    index = None if address else _index_of(paths)
    if address is not None:
        check_target(options)
    elif index is None:
        check_files(options, paths)
    else:
        check_index(options)
    write = standard_output()
    form = output_form(options, write, is_silent=is_silent)
    job = _job(options, queries, model)

    open_model = functools.partial(_encoder, model, job, form, address, index)
    if options.check_recall is not None:
        from gemb.search.recall import run_recall

        if index is None:
            raise click.UsageError("--check-recall measures an INDEX; name one")
        code = run_recall(
            job, index, open_model, options.check_recall, write, as_json=options.as_json
        )
    elif address is not None:
        from gemb.targets.search import run_target

        code = run_target(job, address, open_model, form)
    elif index is not None:
        from gemb.search.index import run_index

        code = run_index(job, index, open_model, form)
    else:
        from gemb.io.signals import one_interrupt
        from gemb.search.files import run_files

        sources = _sources(options, paths)
        with one_interrupt():
            code = run_files(job, sources, open_model, form, is_silent=is_silent)
    if code:
        raise click.exceptions.Exit(code)


def _encoder(
    model: ModelOptions,
    job: SearchJob,
    form: OutputForm,
    address: Address | None,
    index: Path | None,
    reference: str,
) -> Encoder:
    """Open the model of a search: the one that an index or a database names, or the user's."""
    if (address or index) and reference and not job.model:
        from gemb.commands.index_options import open_named

        keeper = address.shown if address else str(index)
        encoder = open_named(keeper, reference, model, is_index=index is not None)
    else:
        encoder = dataclasses.replace(model, model=reference or model.model).open().encoder
    _count_with(encoder, form)
    return encoder


def _count_with(encoder: Encoder, form: OutputForm) -> None:
    """Let a form that is bounded in tokens count them as the model does."""
    if hasattr(form, "count_tokens"):
        form.count_tokens = lambda text: len(encoder.tokenize([text])[0])


def _queries_and_paths(
    arguments: tuple[str, ...], options: SearchOptions
) -> tuple[list[Query], tuple[str, ...]]:
    """Return the queries and the paths."""
    from gemb.search.queries import from_words, read_queries

    query_sources = (options.queries_from is not None, options.like is not None)
    if all(query_sources):
        raise click.UsageError("-f FILE and --like are both given; one at a time")
    if any(query_sources) or options.check_recall is not None:
        paths = arguments
        asked = options.queries_from
        queries = [] if asked is None else read_queries(asked, options.encoding)
    elif not arguments:
        click.echo(click.get_current_context().get_usage() + NO_QUERY, err=True)
        raise click.exceptions.Exit(2)
    else:
        queries, paths = [from_words(arguments[0])], arguments[1:]
    if "" in paths:
        raise click.UsageError("an empty name for a PATH")
    if paths.count("-") + (options.queries_from == "-") > 1:
        raise click.UsageError("standard input (-) is given twice; it can be read once")
    return queries, paths or (_default_path(stdin_taken=options.queries_from == "-"),)


def _say_if_unlike(arguments: tuple[str, ...], paths: tuple[str, ...]) -> None:
    """Print a note where the user may have meant something else."""
    import threading

    from gemb.io.notes import note

    if len(arguments) == 1 and paths == (".",) and Path(arguments[0]).exists():
        shown = shlex.quote(visible(arguments[0]))
        note(f"{shown} is taken for the question; to search in it: gemb search QUERY {shown}")

    def say() -> None:
        import select

        if not select.select([sys.stdin], [], [], 0)[0]:
            note("reading standard input; to search this folder instead: gemb search QUERY .")

    if "-" in arguments or paths != ("-",):
        return
    # A pipe that gives nothing may be one that a program left open.
    timer = threading.Timer(WAIT_S, say)
    timer.daemon = True
    timer.start()


def _default_path(*, stdin_taken: bool) -> str:
    """Return the path to search if none is named: standard input if it has lines, else `.`."""
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
    """Return the index among the paths; None if they are files."""
    from gemb.index.manifest import is_index

    indexes = [path for path in paths if is_index(Path(path))]
    if not indexes:
        return None
    if len(paths) > 1:
        raise click.UsageError(f"{indexes[0]} is an index; it is searched alone")
    return Path(indexes[0])


def _address_of(paths: tuple[str, ...], options: SearchOptions) -> Address | None:
    """Return the database among the paths; None if they are files or an index."""
    from gemb.targets.addresses import address_of, is_target

    targets = [path for path in paths if is_target(path)]
    if not targets:
        if options.table is not None:
            raise click.UsageError("--table is for a database; name one: postgres://HOST/DATABASE")
        return None
    address = address_of(targets[0], options.table or "")
    if len(paths) > 1:
        raise click.UsageError(f"{address.shown} is a database; it is searched alone")
    return address


def _job(options: SearchOptions, queries: list[Query], model: ModelOptions) -> SearchJob:
    from gemb.search.queries import Criteria, SearchJob
    from gemb.texts import BUDGET_S

    k = options.top_k
    if k is None:
        k = 0 if options.count else CITED if options.cite else 10
    if options.names and k:
        k *= PASSAGES_PER_FILE
    source = click.get_current_context().get_parameter_source("model")
    budget = options.budget
    is_given = source is click.core.ParameterSource.COMMANDLINE
    return SearchJob(
        queries=queries,
        like=options.like,
        criteria=Criteria(
            k=k or None,
            min_score=options.min_score,
            is_weak=options.weak,
            where=options.where,
            is_hybrid=options.hybrid,
            accuracy=options.accuracy,
            seconds=None if options.exact else BUDGET_S if budget is None else budget,
            is_once=not (options.names or options.count or options.trec),
            explains=options.explain,
        ),
        task=options.task,
        dim=options.dim,
        model=model.model if is_given else "",
        force=options.force,
        is_verbose=model.verbose,
    )


def _sources(options: SearchOptions, paths: tuple[str, ...]) -> Sources:
    from gemb.search.corpus import Sources
    from gemb.texts.inputs import Reading
    from gemb.texts.records import Fields
    from gemb.texts.walk import Walk

    keep_all = options.keep == "all"
    copied = () if keep_all or not options.keep else tuple(map(str.strip, options.keep.split(",")))
    fields = Fields(
        text=options.text_field,
        title=options.title_field,
        id=options.id_field,
        keep=copied,
        keep_all=keep_all,
    )
    reading = Reading(
        format=options.input_format,
        fields=fields,
        encoding=options.encoding,
        quoting=options.quoting or "",
    )
    return Sources(
        paths=paths,
        walk=Walk(
            globs=options.globs,
            hidden=options.hidden,
            ignore=not options.no_ignore,
            follow=options.follow,
            most_bytes=options.max_size,
            encoding=options.encoding,
        ),
        kind="lines" if options.lines else options.passages or "auto",
        stream=reading,
        rows=reading if options.is_table else None,
    )
