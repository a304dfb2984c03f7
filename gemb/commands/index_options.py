"""Options that several commands of `gemb index` have."""

from __future__ import annotations

import functools
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from gemb.commands.options import ENCODING, QUOTING, WALK
from gemb.errors import Missing, UsageError
from gemb.io.paths import current_folder
from gemb.io.text import visible
from gemb.models.prompts import TASKS
from gemb.texts import INPUT_FORMATS, PASSAGE_KINDS

if TYPE_CHECKING:
    from gemb.backend import Encoder
    from gemb.commands.options import ModelOptions
    from gemb.index.source import Source

F = TypeVar("F", bound=Callable[..., Any])

INDEX = click.argument(
    "folder",
    metavar="INDEX",
    type=click.Path(path_type=Path),
    callback=lambda context, parameter, folder: _named(folder),
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
YES = click.option("--yes", is_flag=True, help="Do not ask before more than half is removed.")

SOURCE = (
    click.option(
        "-I",
        "--input-format",
        type=click.Choice(INPUT_FORMATS),
        default="auto",
        help="auto (the default) goes by the suffix, then by the first line.",
    ),
    click.option("-0", "--null", is_flag=True, help="Texts end in NUL, not in a newline."),
    ENCODING,
    QUOTING,
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
        help="Field of the id, by which a sync identifies a row; else it does so by the text.",
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
VECTORS = (
    click.option(
        "--dim", type=int, help="Width of the vectors: one that the model was trained for."
    ),
    click.option(
        "--dtype",
        type=click.Choice(["f16", "int8", "f32"]),
        help="Type of the stored numbers.  [default: f16; of vectors of gemb embed, theirs]",
    ),
    click.option(
        "--task",
        type=click.Choice(list(TASKS)),
        default="document",
        show_default=True,
        help="Prompt that the model was trained with.",
    ),
    click.option("--prompt", metavar="TEMPLATE", help="Your own prompt: 'passage: {text}'."),
)


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """The values of `source_options`."""

    input_format: str
    null: bool
    encoding: str
    quoting: str | None
    text_field: tuple[str, ...]
    title_field: str | None
    id_field: str | None
    keep: str
    passages: str | None
    globs: tuple[str, ...]
    hidden: bool
    no_ignore: bool
    follow: bool
    max_size: int
    on_long: str

    def source(self, paths: tuple[str, ...]) -> Source:
        """Return the source that the options describe.

        Raises:
            UsageError: options of rows and of passages do not go together, or a path cannot be
                read.
        """
        from gemb.index.source import PassageSource, RowSource, chosen_source

        if "" in paths:
            raise click.UsageError("an empty name for a FILE")
        paths = paths or ("-",)
        base = current_folder(paths)
        is_list = self.keep not in ("all", "none")
        rows = RowSource(
            base=base,
            paths=paths,
            on_long=self.on_long,
            format=self.input_format,
            null=self.null,
            encoding=self.encoding,
            quoting=self.quoting or "",
            text=self.text_field,
            title=self.title_field,
            id=self.id_field,
            keep=tuple(name.strip() for name in self.keep.split(",")) if is_list else (),
            keep_all=self.keep == "all",
        )
        passages = PassageSource(
            base=base,
            paths=paths,
            on_long=self.on_long,
            globs=self.globs,
            hidden=self.hidden,
            ignore=not self.no_ignore,
            follow=self.follow,
            most_bytes=self.max_size,
            encoding=self.encoding,
            split=self.passages or "auto",
        )
        wants_passages = self.passages is not None or bool(self.globs)
        return chosen_source(rows, passages, wants_passages=wants_passages)


@dataclass(frozen=True, kw_only=True)
class VectorOptions:
    """The values of `vector_options`."""

    dim: int | None
    dtype: str | None
    task: str
    prompt: str | None


def source_options(command: F) -> F:
    """Give a command the options of a source; it gets them as `source: SourceOptions`."""
    return _with_options(command, SOURCE, source=SourceOptions)


def vector_options(command: F) -> F:
    """Give a command the options of new vectors; it gets them as `vectors: VectorOptions`."""
    return _with_options(command, VECTORS, vectors=VectorOptions)


def _with_options(command: F, options: tuple[Callable[[F], F], ...], **kinds: type[Any]) -> F:
    """Give a command options; it gets their values as a dataclass in the named argument."""
    ((name, kind),) = kinds.items()

    @functools.wraps(command)
    def packed(*args: object, **values: Any) -> object:  # noqa: ANN401
        chosen = {field.name: values.pop(field.name) for field in fields(kind)}
        return command(*args, **{name: kind(**chosen)}, **values)

    wrapped: Any = packed
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


def own_model(folder: Path, options: ModelOptions) -> Encoder:
    """Open the model of an index, or another one if -m is given.

    Raises:
        UsageError: the index does not say which model is its own.
        Missing: its model is not here.
        GembError: the model cannot be opened.
    """
    from gemb.index.manifest import read_manifest

    source = click.get_current_context().get_parameter_source("model")
    if source is not ParameterSource.COMMANDLINE:
        model = read_manifest(folder).model
        if not model:
            raise UsageError(f"{folder} does not say which model made its vectors; name it with -m")
        return open_named(str(folder), model, options)
    return options.open().encoder


def may_remove(yes: bool) -> Callable[[int, int], None]:
    """Return the check before rows are removed: it takes their number and that of all rows."""

    def check(count: int, of: int) -> None:
        if yes or 2 * count <= of:
            return
        message = f"{count:,} of {of:,} would be removed"
        if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
            raise UsageError(f"{message}, which is more than half; --yes allows it")
        click.confirm(f"{message}. Go on?", abort=True, err=True)

    return check


def open_named(keeper: str, model: str, options: ModelOptions, *, is_index: bool = True) -> Encoder:
    """Open the model that an index or a database names.

    It is not downloaded: the index may be somebody else's.

    Raises:
        Missing: it is not here.
        GembError: it cannot be opened.
    """
    from gemb.models.references import resolve

    try:
        resolve(model, download=False)
    except (Missing, UsageError) as error:
        shown = visible(keeper)
        keeping = f", and gemb index sync {shlex.quote(shown)} -m REF keeps it" if is_index else ""
        raise Missing(
            f"{shown} was built with the model {visible(model)}, which is not here "
            f"({visible(str(error))}); -m REF names its new place{keeping}"
        ) from None
    return replace(options, model=model).open(download=False).encoder


def _named(folder: Path) -> Path:
    """Return the path of an index with a name: a new index is written beside it."""
    if folder.name in ("", ".."):  # . too
        folder = Path(os.path.abspath(folder))  # noqa: PTH100
    if not folder.name:
        raise click.UsageError(f"{folder} is no name for an index")
    return folder
