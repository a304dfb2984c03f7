"""Locks that are files: the system lets go of one when its process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from gemb.errors import GembError
from gemb.notes import warn

_UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of a network disk without locks


def lock_file(path: Path, refusal: Callable[[int], GembError], beware: str) -> int:
    """Return a file descriptor to read and write, which holds the lock; made where it is absent.

    Who ends removes the file before it is closed: then it may be another's.

    Args:
        path: the file.
        refusal: what to raise where another process holds it, of an open file descriptor.
        beware: what the user must not do where the disk knows no locks.

    Raises:
        GembError: another process holds it.
        OSError: nothing can be written there.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            error = refusal(file)
            os.close(file)
            raise error from None
        except OSError as error:
            if error.errno not in _UNKNOWN:
                os.close(file)
                raise
            warn(f"{path.parent}: its disk knows no locks; {beware}")
        if _has_name(file, path):
            return file
        os.close(file)  # its run ended, and removed it, between our opening and our lock


def _has_name(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False
