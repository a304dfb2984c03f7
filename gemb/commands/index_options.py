"""Options of `gemb index` that several of its commands have."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from gemb.commands.options import WALK
from gemb.errors import UsageError
from gemb.texts import INPUT_FORMATS, PASSAGE_KINDS

if TYPE_CHECKING:
    from gemb.backend import Encoder
    from gemb.commands.options import ModelOptions
    from gemb.index.source import Source

F = TypeVar("F", bound=Callable[..., Any])

INDEX = click.argument(
    "folder", metavar="INDEX", type=click.Path(path_type=Path), callback=lambda c, p, v: _named(v)
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
YES = click.option("--yes", is_flag=True, help="Do not ask before more than half is removed.")

OPTIONS = (
    click.option(
        "-I",
        "--input-format",
        type=click.Choice(INPUT_FORMATS),
        default="auto",
        help="auto (the default) goes by the suffix, then by the first line.",
    ),
    click.option("-0", "--null", is_flag=True, help="Texts end in NUL, not in a newline."),
    click.option(
        "--text-field",
        multiple=True,
        metavar="NAME",
        help="Field or column of the text ('text', or a table's only column); several are joined "
        "by a newline.",
    ),
    click.option("--title-field", metavar="NAME", help="Field of the title.  [default: title]"),
    click.option(
        "--id-field",
        metavar="NAME",
        help="Field of the id, by which a sync knows a row again; else it knows a row by its text.",
    ),
    click.option(
        "--keep",
        metavar="A,B|all|none",
        default="all",
        show_default=True,
        help="Further fields to keep, for --where and --json.",
    ),
    click.option(
        "--passages",
        type=click.Choice(PASSAGE_KINDS),
        help="How files become passages.  [default: auto for a DIR; a FILE becomes rows]",
    ),
    *WALK,
    click.option(
        "--on-long",
        type=click.Choice(["truncate", "error", "skip"]),
        default="truncate",
        show_default=True,
        help="A text longer than the model takes: cut it, fail it, leave it out.",
    ),
)


def source_options(command: F) -> F:
    """Give a command the options of a source; it gets `source`, which makes it of the paths."""

    @functools.wraps(command)
    def packed(*args: object, **values: Any) -> object:  # noqa: ANN401
        chosen = {name: values.pop(name) for name in _NAMES}
        make = functools.partial(_source, **chosen)
        return command(*args, source=make, **values)

    wrapped: Any = packed
    for option in reversed(OPTIONS):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


_NAMES = (
    "input_format",
    "null",
    "text_field",
    "title_field",
    "id_field",
    "keep",
    "passages",
    "globs",
    "hidden",
    "no_ignore",
    "follow",
    "max_size",
    "on_long",
)


def _source(
    paths: tuple[str, ...],
    *,
    input_format: str,
    null: bool,
    text_field: tuple[str, ...],
    title_field: str | None,
    id_field: str | None,
    keep: str,
    passages: str | None,
    globs: tuple[str, ...],
    hidden: bool,
    no_ignore: bool,
    follow: bool,
    max_size: int,
    on_long: str,
) -> Source:
    """Return the source that the options describe.

    Raises:
        UsageError: options of rows and of passages do not go together, or a path cannot be read.
    """
    from gemb.index.build import chosen_kind
    from gemb.index.source import Source

    if "" in paths:
        raise click.UsageError("an empty name for a FILE")
    all_or_none = keep in ("all", "none")
    source = Source(
        kind="",
        base=os.getcwd(),  # noqa: PTH109
        paths=paths or ("-",),
        on_long=on_long,
        format=input_format,
        null=null,
        text=text_field,
        title=title_field,
        id=id_field,
        keep=() if all_or_none else tuple(name.strip() for name in keep.split(",")),
        keep_all=keep == "all",
        globs=globs,
        hidden=hidden,
        ignore=not no_ignore,
        follow=follow,
        most_bytes=max_size,
        split=passages or "auto",
    )
    return chosen_kind(source, wants_passages=passages is not None or bool(globs))


def own_model(folder: Path, options: ModelOptions) -> Encoder:
    """Return the model of an index, opened as the options say; another one where -m is given.

    Raises:
        UsageError: the index does not say which model is its own.
        GembError: the model cannot be opened.
    """
    from gemb.index.manifest import read_manifest

    source = click.get_current_context().get_parameter_source("model")
    if source is not ParameterSource.COMMANDLINE:
        model = read_manifest(folder).model
        if not model:
            raise UsageError(f"{folder} does not say which model made its vectors; name it with -m")
        options = replace(options, model=model)
    return options.open().encoder


def _named(folder: Path) -> Path:
    """Return the path of an index with a name of its own: that of a new one stands beside it."""
    if folder.name in ("", ".."):  # . too
        folder = Path(os.path.abspath(folder))  # noqa: PTH100
    if not folder.name:
        raise click.UsageError(f"{folder} is no name for an index")
    return folder
