"""The `gemb` command, and the one place where errors and signals become exit codes.

Nothing here, and nothing at the top of a file in `gemb/commands`, imports numpy, torch, yaml, gguf,
llama_cpp or importlib.metadata: `gemb --help`, completion and usage errors stay under 100 ms.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

import click

from gemb import __version__
from gemb.commands import COMMANDS
from gemb.commands.printing import Group
from gemb.errors import GembError
from gemb.io import notes
from gemb.io.text import visible
from gemb.training.outcome import hand_over

OUT_OF_MEMORY = "out of memory; a smaller model, fewer threads or shorter texts may fit"
HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class ReaderGone(BaseException):
    """A broken pipe, in a form that click lets pass: its own would be exit code 1."""


class Root(Group):
    """The command itself. It loads the subcommand that is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the subcommands."""
        return sorted({*COMMANDS, *self.commands})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a subcommand, loaded; None: there is none of this name."""
        entry = COMMANDS.get(cmd_name)
        return entry.load() if entry else super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of subcommands without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, f"{COMMANDS[name].summary}.") for name in sorted(COMMANDS)])

    def make_context(self, *args: Any, **extra: Any) -> click.Context:  # noqa: ANN401
        """Read the options; `--help` and `--version` print here."""
        with _past_click():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; gemb's messages go to stderr from here on."""
        notes.speak()
        with _past_click():
            return super().invoke(ctx)


@contextlib.contextmanager
def _past_click() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderGone from error


@click.group(cls=Root, context_settings=HELP)
@click.version_option(__version__, "-V", "--version", message="gemb %(version)s")
def gemb() -> None:
    """From a Gemma checkpoint to vectors in a shell pipeline.

    \b
    echo hello | gemb embed
    git log --format=%s | gemb embed -o vectors.npy
    gemb search "how do I cancel an order" docs/
    gemb train smoke -o runs/smoke
    gemb export-gguf runs/smoke/model -o model.gguf
    """


class Terminated(BaseException):
    """SIGTERM or SIGHUP came: unwind as Ctrl-C does, so that half-written files are removed."""


def main() -> NoReturn:
    """Run `gemb` and leave with the exit code of what happened."""
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # else nohup started it
        signal.signal(signal.SIGHUP, _terminate)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is to be ignored
        signal.signal(signal.SIGINT, _on_sigint)
    _hide_warnings()
    if None in (sys.stdin, sys.stdout, sys.stderr):  # one was closed before the start
        from gemb.io.streams import stand_in_for_closed

        stand_in_for_closed()
    try:
        # In this mode click returns the code of its own `Exit`, and what a command returns: None.
        code, line = gemb.main(prog_name="gemb", standalone_mode=False) or 0, ""
        sys.stdout.flush()
    except click.exceptions.Exit as done:
        code, line = done.exit_code, ""
    except SystemExit as done:  # click leaves so after it has completed a word for a shell
        code, line = int(done.code or 0), ""
    except BaseException as error:
        if os.environ.get("GEMB_DEBUG"):
            raise
        try:
            code, line = hand_over(*_outcome(error), error)
        except MemoryError:  # none is left for the words either
            code, line = 5, OUT_OF_MEMORY
    if line:
        with contextlib.suppress(OSError):  # stderr may be closed: the code is still returned
            click.echo(visible(f"gemb: {line}"), err=True)
    _leave(code)


def _hide_warnings() -> None:
    """Hide NumPy's warnings of numbers in damaged files; gemb looks at what is made of them."""
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"(gemb|numpy)")


def _outcome(error: BaseException) -> tuple[int, str]:
    """Return the exit code, and the line for stderr."""
    match error:
        case click.exceptions.NoArgsIsHelpError():
            error.show()  # the help, on stderr
            return 2, ""
        case click.UsageError():
            return 2, _usage_line(error)
        case click.ClickException():
            return 2, error.format_message()
        case GembError():
            return error.exit_code, " ".join(str(error).split())
        case click.Abort() | KeyboardInterrupt():
            return 130, "interrupted"
        case Terminated():
            return 128 + int(error.args[0]), "terminated"
        case BrokenPipeError() | ReaderGone():
            return 141, ""  # the reader has ended, as `head -1` does: no message
    return _of_system(error)


def _of_system(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the line for what gemb itself did not raise."""
    from gemb.io.machine import lacks_memory

    if lacks_memory(error):
        return 5, _memory_line(error)
    match error:
        case OSError():
            return 5, _os_line(error)
        case ImportError():
            return 4, f"a library does not load: {error}; pip install --force-reinstall gemb"
    kind = f"{type(error).__name__}: {error}".replace("\n", " ")
    return 5, f"a bug in gemb: {kind} (GEMB_DEBUG=1 shows where; please report it)"


def _leave(code: int) -> NoReturn:
    """Exit without waiting for native threads; flush first, quietly if the reader has gone."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 141
    if "gemb.io.atomic" in sys.modules:
        from gemb.io.atomic import remove_process_folders

        with contextlib.suppress(OSError):
            remove_process_folders()
    os._exit(code)


def _on_sigint(signum: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C is final
    raise KeyboardInterrupt


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal sends it, and then its shell
    raise Terminated(signum)


REMOVED = {  # options of version 0.1.0, and what stands in their place
    "--format": "write lines of your own with --json | jq -r: gemb help search has one",
    "--as-decoder": "gemb train adapt takes a real Gemma 3 text model, a folder or a GGUF file",
}


def _usage_line(error: click.UsageError) -> str:
    """Return click's message in one line, with where help is."""
    if isinstance(error, click.NoSuchOption) and error.option_name in REMOVED:
        return f"no option '{error.option_name}' any more: {REMOVED[error.option_name]}"
    message = " ".join(error.format_message().split()).rstrip(".")
    path = error.ctx.command_path if error.ctx else "gemb"
    return f"{message[:1].lower()}{message[1:]} (see {path} --help)"


def _memory_line(error: BaseException) -> str:
    """Return one line for a lack of memory, with the library that could not be loaded."""
    library = re.search(r"[\w.+-]+\.so[\w.]*", str(error))
    if library:
        return (
            f"out of memory: {library[0]} does not load; end other programs, or raise the limit "
            "(ulimit -v, the container's)"
        )
    return OUT_OF_MEMORY


def _os_line(error: OSError) -> str:
    """Return one line for what the operating system refused."""
    from gemb.io.paths import is_nowhere

    is_relative = not os.path.isabs(os.fsdecode(error.filename or ""))  # noqa: PTH117
    if isinstance(error, FileNotFoundError) and is_relative and is_nowhere():
        return "the current folder has been removed; cd to another one"
    where = f"{error.filename}: " if error.filename else ""
    reason = error.strerror or str(error)
    hint = {
        errno.ENOSPC: "; free some space, or write elsewhere",
        errno.EDQUOT: "; free some space, or write elsewhere",
        errno.EACCES: "; check its permissions",
    }.get(error.errno or 0, "")
    return f"{where}{reason.lower()}{hint}"
