"""Where vectors are written: standard output, or a file that appears whole or not at all."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Protocol

from gemb.errors import UsageError


class Output(Protocol):
    """Takes bytes in order."""

    def write(self, data: bytes) -> None:
        """Write all of the data."""

    def commit(self) -> None:
        """Say that everything was written."""

    def abandon(self) -> None:
        """Leave nothing half-written behind."""


class Stream:
    """Standard output, or what is not a regular file: each write is passed on at once."""

    def __init__(self, path: Path | None) -> None:
        """Open the path; None is standard output.

        Raises:
            UsageError: standard output is closed.
        """
        if path is None and sys.stdout is None:
            raise UsageError("standard output is closed; write to a file with -o FILE")
        self._file = path.open("wb", buffering=0) if path else sys.stdout.buffer

    def write(self, data: bytes) -> None:
        """Write all of the data, and flush it."""
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._file.flush()

    def commit(self) -> None:
        """Nothing is left to do."""

    def abandon(self) -> None:
        """What was written has gone to its reader."""


class AtomicFile:
    """`FILE.part`, which becomes `FILE` on commit. Errors of the system name the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part = path.with_name(path.name + ".part")
        self._file = self._part.open("wb", buffering=0)

    def write(self, data: bytes) -> None:
        """Write all of the data."""
        try:
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            error.filename = str(self.path)
            raise

    def patch(self, start: int, data: bytes) -> None:
        """Overwrite the bytes from `start` on."""
        os.pwrite(self._file.fileno(), data, start)

    def commit(self) -> None:
        """Bring the data to the disk, then give it its name."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            error.filename = str(self.path)
            raise
        self._file.close()
        self._part.replace(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

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
        """Return that it is not."""
        return False

    def writable(self) -> bool:
        """Return that it is."""
        return True

    def seekable(self) -> bool:
        """Return that it is not."""
        return False


def is_stream(path: Path | None) -> bool:
    """Return whether this cannot be replaced atomically: standard output, a pipe, a device."""
    return path is None or (path.exists() and not stat.S_ISREG(path.stat().st_mode))


def check(path: Path) -> None:
    """Refuse what cannot be written, before a model is loaded.

    Raises:
        UsageError: it is a folder, or would lie in a folder that is not there.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder; -o names a file in it: -o {path / 'vectors.npy'}")
    if not path.parent.is_dir():
        raise UsageError(f"no such folder: {path.parent}; make it first: mkdir -p {path.parent}")
