"""The messages of gemb beside its results: lines on stderr, through the logger `gemb`.

The command line calls `speak` once. Without it, as in a program that imports gemb, the lines go
where that program's `logging` sends them. `logging` is imported at the first line, since `gemb
--help` prints none.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from typing import TYPE_CHECKING

import click

from gemb.io.text import visible, visible_lines

if TYPE_CHECKING:
    import logging

WARNING = 30  # as in `logging`; -q shows these alone
NOTE = 20
TABLE = 16  # lines that stand as they are
PROGRESS = 15
PREFIXES = {WARNING: "gemb: warning: ", NOTE: "gemb: note: ", TABLE: "", PROGRESS: "gemb: "}

# What makes room for a line above each bar that is drawn on stderr, the newest last.
bars: list[Callable[[], AbstractContextManager[None]]] = []
_noted: set[str] = set()  # notes that are printed once


def warn(line: str) -> None:
    """Print a warning: the run goes on, but its result may not be what the user expects."""
    _logger().log(WARNING, "%s", " ".join(line.split()))


def note(line: str, *, once: bool = False) -> None:
    """Print a note; with `once` only the first time in this process."""
    if once:
        if line in _noted:
            return
        _noted.add(line)
    _logger().log(NOTE, "%s", " ".join(line.split()))


def tell(line: str) -> None:
    """Print how far the run is."""
    _logger().log(PROGRESS, "%s", line)


def answer(text: str, *, nl: bool = True, errors: str = "backslashreplace") -> None:
    """Print text on standard output: what was asked for, which no level hides.

    On a terminal no character of it is obeyed; elsewhere it is written as it is.

    Args:
        text: of one line or several.
        nl: a line end follows.
        errors: what happens to characters that the encoding has not; surrogateescape for a path.
    """
    if sys.stdout.isatty():
        text = visible_lines(text)
    # As bytes: of words click would take the colours out, which a document may hold.
    click.echo(text.encode(sys.stdout.encoding or "utf-8", errors), nl=nl)


def show(text: str) -> None:
    """Print a table, or other lines that stand without a prefix."""
    _logger().log(TABLE, "%s", text)


def is_quiet() -> bool:
    """Return whether notes and progress are hidden."""
    return not _logger().isEnabledFor(NOTE)


def speak(*, quiet: bool = False, as_json: bool = False) -> None:
    """Print the messages on stderr from now on; with `quiet` only warnings.

    Args:
        quiet: hide notes and progress.
        as_json: each is an object of JSON, on one line: time, level, message.
    """
    _noted.clear()
    logger = _logger()
    logger.handlers = [_json() if as_json else _stderr()]
    logger.propagate = False
    logger.setLevel(WARNING if quiet else PROGRESS)


@contextmanager
def captured() -> Iterator[list[tuple[int, str]]]:
    """Collect the messages of all threads while the block runs: level and line, for `repeat`.

    For a process without a terminal, which hands them to the one that has it.
    """
    import logging

    lines: list[tuple[int, str]] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append((record.levelno, record.getMessage()))  # type: ignore[method-assign]
    logger = _logger()
    before = logger.handlers, logger.propagate, logger.level
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(NOTE)
    try:
        yield lines
    finally:
        logger.handlers, logger.propagate = before[:2]
        logger.setLevel(before[2])


def repeat(level: int, line: str) -> None:
    """Print a message that was collected elsewhere, once: other processes say the same."""
    if line not in _noted:
        _noted.add(line)
        _logger().log(level, "%s", line)


@contextmanager
def quieter() -> Iterator[None]:
    """Hide notes and progress of all threads while the block runs."""
    logger = _logger()
    before = logger.level
    logger.setLevel(max(before, WARNING))
    try:
        yield
    finally:
        logger.setLevel(before)


@cache
def _logger() -> logging.Logger:
    import logging

    return logging.getLogger("gemb")


@cache
def _stderr() -> logging.Handler:
    import logging

    class Stderr(logging.Handler):
        """Prints a line above the bar, if there is one."""

        def emit(self, record: logging.LogRecord) -> None:
            text, level = record.getMessage(), record.levelno
            shown = visible_lines(text) if level == TABLE else visible(text)
            try:
                with bars[-1]() if bars else nullcontext():
                    click.echo(PREFIXES.get(level, "gemb: ") + shown, err=True)
            except OSError as error:
                if error.errno != errno.EIO:  # a terminal that was closed: the run goes on
                    raise

    return Stderr()


@cache
def _json() -> logging.Handler:
    import json
    import logging

    class Json(logging.Handler):
        """Prints a line for programs; who reads them may have gone."""

        def emit(self, record: logging.LogRecord) -> None:
            level = "warning" if record.levelno >= WARNING else "note"
            text = record.getMessage()
            entry = {"time": round(record.created, 3), "level": level, "message": text}
            with suppress(OSError):
                click.echo(json.dumps(entry), err=True)

    return Json()
