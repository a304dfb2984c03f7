"""Where vectors are written: standard output, or a file that appears whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import sys
from io import FileIO, TextIOBase
from pathlib import Path
from typing import Protocol

from gemb.errors import UsageError
from gemb.io.atomic import naming, pwrite_all, sync_folder, write_all
from gemb.io.paths import descriptor, part_of, status_of
from gemb.io.text import visible_lines


class Output(Protocol):
    """Takes bytes in order."""

    def write(self, data: bytes) -> None:
        """Write all of the data."""

    def commit(self) -> None:
        """Say that everything was written."""

    def abandon(self) -> None:
        """Leave nothing half-written behind."""


class ClosedOutput(TextIOBase):
    """Standard output that was closed before the start: what is written there is an error."""

    def write(self, text: str) -> int:
        """Refuse it, as a full disk does.

        Raises:
            OSError: always.
        """
        raise OSError(errno.EBADF, "it is closed", "standard output")


def stand_in_for_closed() -> None:
    """Open what stands in for standard streams that were closed before the start.

    Else the next file that is opened would get their number, and what a library prints. Standard
    input and error stay None.
    """
    for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if stream is None and status_of(number) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
    if sys.stdout is None:
        sys.stdout = ClosedOutput()


class Stream:
    """Standard output, or what is not a regular file: each write is passed on at once.

    On a terminal, text is written with no character that a terminal obeys.
    """

    def __init__(self, path: Path | None, *, is_painted: bool = False) -> None:
        """Open the path; None is standard output.

        Args:
            path: what is there already.
            is_painted: what is written has colours, and is fit for a terminal.

        Raises:
            UsageError: standard output is closed.
            OSError: the path cannot be written.
        """
        if path is None and (sys.stdout is None or isinstance(sys.stdout, ClosedOutput)):
            hint = "send it to a file or a pipe" if is_painted else "write to a file with -o FILE"
            raise UsageError(f"standard output is closed; {hint}")
        self._name = str(path or "standard output")
        self._file = _opened(path) if path else sys.stdout.buffer
        self._is_shown = self._file.isatty() and not is_painted

    def write(self, data: bytes) -> None:
        """Write all of the data, and flush it."""
        if self._is_shown:
            data = visible_lines(data.decode("utf-8", "surrogateescape")).encode()
        with naming(self._name):
            write_all(self._file.write, data)
            self._file.flush()

    def commit(self) -> None:
        """Nothing is left to do."""

    def abandon(self) -> None:
        """What was written has gone to its reader."""


class AtomicFile:
    """`FILE.part`, which becomes `FILE` on commit. Errors of the system name the file."""

    def __init__(self, path: Path, *, replace_part: bool = False) -> None:
        """Make the part; it gets the permissions of the file that it will replace.

        Args:
            path: the file, no link.
            replace_part: a `FILE.part` that is there is ours, of a run that was killed.

        Raises:
            OSError: the part is there and not ours, or cannot be made.
        """
        self.path = path
        self._part = part_of(path)
        if replace_part:
            self._part.unlink(missing_ok=True)
        self._file = self._part.open("xb", buffering=0)
        if path.exists():
            os.fchmod(self._file.fileno(), stat.S_IMODE(path.stat().st_mode))

    def write(self, data: bytes) -> None:
        """Write all of the data."""
        with naming(self.path):
            write_all(self._file.write, data)

    def patch(self, start: int, data: bytes) -> None:
        """Overwrite the bytes from `start` on."""
        with naming(self.path):
            pwrite_all(self._file.fileno(), data, start)

    def commit(self) -> None:
        """Bring the data to the disk, then give it its name."""
        with naming(self.path):
            os.fsync(self._file.fileno())
        self._file.close()
        self._part.replace(self.path)
        sync_folder(self.path.parent)

    def abandon(self) -> None:
        """Remove what was written."""
        self._file.close()
        self._part.unlink(missing_ok=True)


class Sink:
    """An `Output` as a file that zipfile and pyarrow write to: no seeking."""

    closed = False

    def __init__(self, output: Output) -> None:
        self._output = output
        self._at = 0

    def write(self, data: bytes) -> int:
        """Write all of the data, and return its length."""
        data = bytes(data)
        self._output.write(data)
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        """Return how much was written."""
        return self._at

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """The output is closed by its owner."""

    def readable(self) -> bool:
        """Return False."""
        return False

    def writable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return False."""
        return False


def _opened(path: Path) -> FileIO:
    """Open what is there already; a descriptor goes on where it stands, as `>&3` of a shell."""
    number = descriptor(path)
    with naming(path):
        opened = os.open(path, os.O_WRONLY | os.O_APPEND) if number is None else os.dup(number)
    return FileIO(opened, "wb")
