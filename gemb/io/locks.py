"""Locks that are files: the system releases one when its process ends, however it ends.

The holder of a lock writes its process number into the file. The file alone means nothing: a killed
process leaves it behind.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from gemb.errors import UsageError
from gemb.io.notes import note, warn
from gemb.io.text import visible

LOCK = "lock"  # in the folder of a run, an index or a store
# Called where another process has the lock, with what that process wrote into the file. It raises,
# or returns in order to wait.
Held = Callable[[str], None]

_OPENED = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of a network disk without locks
_said: set[Path] = set()  # folders on such a disk, which are named once


def lock_file(path: Path, on_held: Held) -> int:
    """Return a descriptor to read and write, which holds the lock until it is closed.

    The file is made where it is absent. It may be removed or renamed only by the holder, before the
    descriptor is closed: then it may be another's.

    Raises:
        FileNotFoundError: the folder is not there, or has got another name while this one waited.
        OSError: nothing can be written there.
    """
    while True:
        # What a link leads to would be written over.
        file = os.open(path, _OPENED, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise UsageError(
                    f"{visible(str(path))}: no regular file, where a lock is; remove it"
                )
            _lock(file, path, on_held)
            if _has_name(file, path):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its holder removed or renamed it between our opening and our lock


@contextmanager
def locked(path: Path, on_held: Held, *, removes: bool = False) -> Iterator[None]:
    """Hold the lock while the block runs; with `removes` its file is gone afterwards.

    Raises:
        OSError: nothing can be written there.
    """
    file = lock_file(path, on_held)
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()} on {os.uname().nodename}\n".encode(), 0)
        yield
    finally:
        if removes:
            path.unlink(missing_ok=True)
        os.close(file)


def try_lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock of a file or a folder which is there.

    None: another process holds it, or removed it.

    Raises:
        OSError: its disk has no locks, or it cannot be opened.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _has_name(file, path):
            return file
    except BlockingIOError:
        pass
    except BaseException:
        os.close(file)
        raise
    os.close(file)
    return None


def has_record_locks(folder: Path) -> bool:
    """Return whether the disk of a folder with a lock file has the locks that SQLite takes."""
    try:
        file = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _UNKNOWN
    finally:
        os.close(file)
    return True


def is_held(path: Path) -> bool:
    """Return whether another process may be writing this: it has the lock, or there are none."""
    try:
        lock = try_lock(path)
    except OSError:
        return True
    if lock is None:
        return True
    os.close(lock)
    return False


def waiting(work: str) -> Held:
    """Return a function that lets the lock wait, and prints a note about the holder's work."""

    def held(holder: str) -> None:
        who = f"process {holder}" if holder else "another process"
        note(f"{who} {work}; this one waits for it")

    return held


def locked_run(run: Path) -> AbstractContextManager[None]:
    """Let no second run write into the folder `run`, which is there, while the block runs.

    Raises:
        UsageError: another process is; the message has its number.
        OSError: nothing can be written there.
    """

    def held(holder: str) -> None:
        raise UsageError(
            f"{run} is being trained by process {holder or 'unknown'}: wait for it, stop it, or "
            "name another folder"
        )

    return locked(run / LOCK, held, removes=True)


def locked_index(folder: Path) -> AbstractContextManager[None]:
    """Be the only one who writes in the folder of an index; readers take no lock.

    Raises:
        FileNotFoundError: the folder is not there, or has got another name while this one waited.
        OSError: nothing can be written there.
    """
    return locked(folder / LOCK, waiting(f"is writing {visible(str(folder))}"))


def _lock(file: int, path: Path, on_held: Held) -> None:
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_held(os.pread(file, 200, 0).decode("utf-8", "replace").strip())
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        if path.parent not in _said:
            _said.add(path.parent)
            warn(f"{path.parent}: its disk has no locks; run no second gemb that writes there")


def _has_name(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False
