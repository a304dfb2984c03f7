"""Options of `gemb search` that do not go together, or not with what is searched."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from gemb.commands.search_options import Chosen
from gemb.io.text import visible


def check(chosen: Chosen) -> None:
    """Refuse options that do not go together.

    Raises:
        UsageError: there are such.
    """
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
    if chosen.template is not None:
        from gemb.search.template import parsed

        parsed(chosen.template)


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
