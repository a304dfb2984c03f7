"""One writer at a time in an index folder; a second one waits, and says so.

The system lets go of the lock when its process ends, however it ends. Readers take no lock.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gemb.notes import note
from gemb.visible import visible

NAME = "lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only one who writes in a folder.

    Raises:
        FileNotFoundError: the folder is not there, or has got another name while this one waited.
        OSError: nothing can be written there.
    """
    path = folder / NAME
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _wait(file, folder)
            if _is(file, path):
                os.ftruncate(file, 0)
                os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
                yield
                return
        finally:
            os.close(file)


def _wait(file: int, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(file, 20, 0).decode("ascii", "replace").strip()
        who = f"process {holder}" if holder.isdigit() else "another process"
        note(f"{who} is writing {visible(str(folder))}; this one waits for it")
        fcntl.flock(file, fcntl.LOCK_EX)


def _is(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False
