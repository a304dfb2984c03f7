"""Which options of `gemb search` go together, and with what is searched."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from gemb.commands.search_options import SearchOptions
from gemb.io.text import visible


def check(options: SearchOptions) -> None:
    """Refuse options that do not go together.

    Raises:
        UsageError: two options do not go together.
    """
    if options.lines and options.passages not in (None, "lines"):
        raise click.UsageError(f"--lines and --passages {options.passages} are given; one of them")
    if options.hybrid and options.like is not None:
        raise click.UsageError("--hybrid ranks by the words of a query; --like has none")
    if options.exact and options.budget is not None:
        raise click.UsageError("--exact and --budget are given; one of them")
    _check_form(options)
    has_context = (options.before, options.after, options.context) != (None,) * 3
    if options.cite and (options.full or has_context):
        raise click.UsageError("--cite writes passages as they fit; leave --full, -A, -B, -C out")
    if options.full and has_context:
        raise click.UsageError("--full shows whole passages; -A, -B, -C the lines around the best")


def _check_form(options: SearchOptions) -> None:
    """Refuse two forms of output, and what a form has no place for.

    Raises:
        UsageError: there is one.
    """
    forms = {
        "-l": options.names,
        "-c": options.count,
        "--json": options.as_json,
        "--trec": options.trec,
        "--cite": options.cite is not None,
    }
    chosen = [name for name, is_given in forms.items() if is_given]
    if len(chosen) > 1:
        raise click.UsageError(f"{' and '.join(chosen)} are given; one form at a time")
    form = chosen[0] if chosen else ""
    if options.queries_from is not None and form in ("-l", "-c", "--cite"):
        raise click.UsageError(f"{form} is for one query; with -f: --json or --trec")
    if options.explain and form in ("-l", "-c", "--trec", "--cite"):
        raise click.UsageError(f"--explain is for hits that are shown, not for {form}")
    if options.null and form in ("--json", "--trec", "--cite"):
        raise click.UsageError(f"-0 is for names and lines, not for {form}")
    if options.null and sys.stdout.isatty():
        # A name may hold escape codes, which a terminal obeys.
        raise click.UsageError("-0 writes names as they are, for a program: | xargs -0 ...")


def check_files(options: SearchOptions, paths: Sequence[str]) -> None:
    """Refuse options that are only for an index.

    Raises:
        click.UsageError: such an option is given, or a path does not exist.
    """
    names = {
        "--where": options.where is not None,
        "--accuracy": options.accuracy != "auto",
        "--force": options.force,
    }
    if name := _given(names):
        _check_there(paths)
        raise click.UsageError(
            f"{name} is for an index: gemb index build NAME PATH makes one, "
            "gemb search QUERY NAME searches it"
        )


def check_index(options: SearchOptions) -> None:
    """Refuse options that are only for files.

    Raises:
        click.UsageError: such an option is given.
    """
    names = {
        "--budget": options.budget is not None,
        "--exact": options.exact,
        "--explain": options.explain,
        "-g": bool(options.globs),
        "--hidden": options.hidden,
        "--no-ignore": options.no_ignore,
        "-L": options.follow,
        "--lines": options.lines,
        "--passages": options.passages is not None,
        "-I": options.is_table,
        "--encoding": bool(options.encoding),
        "--quoting": options.quoting is not None,
    }
    if name := _given(names):
        raise click.UsageError(
            f"{name} is for files; what an index holds is chosen by gemb index build, "
            "and --where filters its rows"
        )


def _given(names: Mapping[str, bool]) -> str | None:
    """Return the first option that is given."""
    return next((name for name, is_given in names.items() if is_given), None)


def check_target(options: SearchOptions) -> None:
    """Refuse options that are not for a database.

    Raises:
        click.UsageError: such an option is given.
    """
    if options.hybrid or options.check_recall is not None:
        name = "--hybrid" if options.hybrid else "--check-recall"
        raise click.UsageError(
            f"{name} is for an INDEX; a database is ranked by meaning alone, and gemb index push "
            "measures its recall"
        )
    check_index(options)


def _check_there(paths: Sequence[str]) -> None:
    """Refuse a path that does not exist, and suggest an index with a similar name.

    Raises:
        click.UsageError: a path does not exist.
    """
    import difflib

    from gemb.index.manifest import is_index

    for path in map(Path, paths):
        if str(path) == "-" or path.exists():
            continue
        folder = path.parent
        beside = folder.iterdir() if folder.is_dir() else ()
        names = [path.name for path in beside if is_index(path)]
        near = difflib.get_close_matches(path.name, names, 1)
        hint = f"; did you mean {visible(str(folder / near[0]))}?" if near else ""
        raise click.UsageError(f"no index {visible(str(path))}{hint}")
