"""Options that several commands share, and help in groups."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gemb.backend import PRECISIONS
from gemb.commands.params import FileSize, ModelReference
from gemb.io import notes
from gemb.models.references import DEFAULT

if TYPE_CHECKING:
    from gemb.backend import Runtime
    from gemb.embedding.model import OpenModel


F = TypeVar("F", bound=Callable[..., Any])
Quiet = Callable[[Any], Any]  # a decorator
RUNTIME_OPTIONS = ("backend", "device", "precision", "threads", "verbose")


def _be_quiet(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        notes.speak(quiet=True)


def quiet_option(command: F, *, help_text: str = "No progress and no notes.") -> F:
    """Give a command -q; its callback sets the notes level of the process."""
    return click.option(
        "-q", "--quiet", is_flag=True, expose_value=False, callback=_be_quiet, help=help_text
    )(command)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model and how to run it."""

    model: str  # a reference, as `gemb.models.references.resolve` takes it
    backend: str
    device: str
    precision: str
    threads: int
    verbose: bool

    @property
    def runtime(self) -> Runtime:
        """The options of the backend."""
        from gemb.backend import Runtime

        return Runtime(
            device=self.device,
            threads=self.threads,
            precision=self.precision,
            verbose=self.verbose,
        )

    def open(self, *, download: bool = True) -> OpenModel:
        """Open the model; one that is not here is downloaded only with `download`.

        Raises:
            UsageError: there is no such backend, or the files are no model.
            Missing: the model or a library is not installed.
        """
        from gemb.embedding.model import open_model

        return open_model(self.model, self.backend, self.runtime, download=download)


def model_options(
    command: F,
    *,
    name: str = "options",
    quiet: Quiet = quiet_option,
    verbose: str = "Show messages of native libraries.",
) -> F:
    """Give a command the options of a model.

    Args:
        command: it gets them as ModelOptions.
        name: of its argument.
        quiet: adds -q to the command.
        verbose: help of -v.
    """
    option = click.option(
        "-m",
        "--model",
        type=ModelReference(),
        metavar="REF",
        default=DEFAULT,
        envvar="GEMB_MODEL",
        show_envvar=True,
        show_default=True,
        help="mini, embeddinggemma-300m[:q4_0|q8_0|bf16], a folder, a .gguf file, or "
        "org/repo[:file].",
    )
    return option(runtime_options(command, name=name, quiet=quiet, verbose=verbose))


def runtime_options(
    command: F,
    *,
    name: str = "options",
    quiet: Quiet = quiet_option,
    verbose: str = "Show messages of native libraries.",
) -> F:
    """Give a command `model_options` without `-m`, for commands that name models otherwise."""

    @functools.wraps(command)
    def packed(*args: object, model: str = "", **values: Any) -> object:  # noqa: ANN401
        chosen = {key: values.pop(key) for key in RUNTIME_OPTIONS}
        values[name] = ModelOptions(model=model, **chosen)
        return command(*args, **values)

    decorators = (
        click.option(
            "--backend",
            metavar="NAME",
            default="auto",
            help="What runs the model: auto (the best one here) or a name that doctor lists. "
            "GEMB_BACKEND names it, too; GEMB_BACKEND=-NAME leaves one out.",
        ),
        click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1."),
        click.option(
            "--precision",
            type=click.Choice(PRECISIONS),
            default="auto",
            help="Arithmetic, where the backend has a choice.",
        ),
        click.option(
            "-j",
            "--threads",
            type=click.IntRange(min=0),
            default=0,
            help="CPU threads; 0 (the default): one for each core.",
        ),
        click.option("-v", "--verbose", is_flag=True, help=verbose),
        quiet,
    )
    wrapped: Any = packed
    for decorator in reversed(decorators):
        wrapped = decorator(wrapped)
    return wrapped  # type: ignore[no-any-return]


class GroupedCommand(click.Command):
    """A command whose help shows its options in groups: `groups` maps a title to option names."""

    def __init__(
        self,
        *args: Any,  # noqa: ANN401
        groups: Mapping[str, Sequence[str]],
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*args, **kwargs)
        self._groups = groups

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the groups; ungrouped options come last."""
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        ungrouped = {option.name: option for option in options}
        groups = [
            (title, [ungrouped.pop(name) for name in names])
            for title, names in self._groups.items()
        ]
        for title, params in [*groups, ("Options", list(ungrouped.values()))]:
            rows = [row for param in params if (row := param.get_help_record(ctx))]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def _encoding(_context: click.Context, _parameter: click.Parameter, name: str) -> str:
    if not name:
        return ""
    from gemb.texts.contents import checked_encoding

    return checked_encoding(name)


ENCODING = click.option(
    "--encoding",
    metavar="NAME",
    default="",
    callback=_encoding,
    help="Encoding of texts, if not UTF-8: cp1252, shift_jis, gb18030. A byte-order mark counts "
    "more.",
)
QUOTING = click.option(
    "--quoting",
    type=click.Choice(("csv", "none")),
    help="Whether quotes hold a table's cells together.  [default: csv for CSV, none for TSV]",
)
WALK = (
    click.option(
        "-g",
        "--glob",
        "globs",
        multiple=True,
        metavar="GLOB",
        help="Only files like '*.md'; '!*.min.js' leaves out; repeatable, the last one counts.",
    ),
    click.option("--hidden", is_flag=True, help="Also files and folders that begin with a dot."),
    click.option(
        "--no-ignore", is_flag=True, help="Also what .gitignore, .ignore and .rgignore leave out."
    ),
    click.option("-L", "--follow", is_flag=True, help="Follow links."),
    click.option(
        "--max-size",
        type=FileSize(may_be_zero=True),
        metavar="SIZE",
        default="10M",
        show_default=True,
        help="Leave out longer files, as 500K, 10M, 0.2G; 0: none.",
    ),
)
