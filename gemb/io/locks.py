"""Locks that are files: the system lets go of one when its process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from gemb.errors import GembError, UsageError
from gemb.io.notes import note, warn
from gemb.io.text import visible

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


# One run at a time in a folder: a second one would mix its lines and checkpoints in.
#
# A file that a killed run left says nothing.


RUN_LOCK = "lock"


@contextmanager
def locked_run(run: Path) -> Iterator[None]:
    """Be the only one who trains in the folder `run`, which is there.

    Raises:
        UsageError: another process is; the message has its number.
        OSError: nothing can be written there.
    """
    path = run / RUN_LOCK
    file = lock_file(path, partial(_refusal, path), "start no second run in it")
    os.ftruncate(file, 0)
    os.pwrite(file, f"{os.getpid()} on {platform.node()}\n".encode(), 0)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is let go of: then it may be another's
        os.close(file)


def _refusal(path: Path, file: int) -> UsageError:
    holder = os.pread(file, 200, 0).decode("utf-8", "replace").strip()
    return UsageError(
        f"{path.parent} is being trained by process {holder or 'unknown'}: "
        "wait for it, stop it, or name another folder"
    )


# One writer at a time in an index folder; a second one waits, and says so.
#
# The system lets go of the lock when its process ends, however it ends. Readers take no lock.


NAME = "lock"


@contextmanager
def locked_index(folder: Path) -> Iterator[None]:
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
