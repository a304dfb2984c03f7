"""One run at a time in a folder: a second one would mix its lines and checkpoints in.

The system lets go of the lock when its process ends, however it ends; a file that a killed run
left says nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gemb.errors import UsageError
from gemb.notes import warn

NAME = "lock"
_UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of a network disk without locks


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Be the only one who trains in the folder `run`, which is there.

    Raises:
        UsageError: another process is; the message has its number.
        OSError: nothing can be written there.
    """
    path = run / NAME
    file = _lock(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is let go of: then it may be another's
        os.close(file)


def _lock(path: Path) -> int:
    """Return the open file that holds the lock."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 200, 0).decode("utf-8", "replace").strip()
            os.close(file)
            raise UsageError(
                f"{path.parent} is being trained by process {holder or 'unknown'}: "
                "wait for it, stop it, or name another folder"
            ) from None
        except OSError as error:
            if error.errno not in _UNKNOWN:
                os.close(file)
                raise
            warn(f"{path.parent}: its disk knows no locks; start no second run in it")
        if _has_name(file, path):
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()} on {platform.node()}\n".encode(), 0)
            return file
        os.close(file)  # its run ended, and removed it, between our opening and our lock


def _has_name(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False
