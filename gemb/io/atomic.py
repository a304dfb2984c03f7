"""Write a file or a folder so that its name only ever holds a whole one.

The work is done under another name beside it, and is renamed at the end. An error, a full disk,
Ctrl-C, SIGTERM or SIGHUP leaves nothing behind, and what had the name before stays as it was. A
link stays a link: what it leads to is written.

A part is locked while its run is alive. What a run left that was killed by SIGKILL, or with its
machine, has a free lock, and the next run with the same target removes it.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gemb.errors import UsageError
from gemb.io import locks

MODEL_FILES = ("config.json", "modules.json")  # a folder with one of these is a model's

# The ends of names of parts, and of folders on their way out: a process, and random digits, which
# version 0.1.0's index had not.
_PART, _OLD = r"\d+-[0-9a-f]{8}\.part", r"\d+(?:-[0-9a-f]{8})?\.old"
_SCRATCH = re.compile(r"\.gemb-[a-z]+-[0-9a-z_]{8}")  # as `tempfile` makes it
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_HERE = -100  # AT_FDCWD of Linux: a path begins at the current folder
_CANNOT_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)  # some disks, too


def check_file(target: Path, *, overwrite: bool) -> None:
    """Refuse the path of a file that cannot be written, or that must not be overwritten.

    Raises:
        UsageError: it exists, is no regular file, or its folder cannot take it.
    """
    from gemb.io.paths import check_folder_of, is_stream

    if target.is_dir():
        raise UsageError(f"{target} is a folder; name a file in it")
    if is_stream(target):
        raise UsageError(f"{target} is no regular file; name a file on a disk")
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists; -f overwrites it")
    check_folder_of(target)


def check_folder(target: Path, *, overwrite: bool, source: Path) -> None:
    """Refuse the path of a model folder that cannot be written, or that must not be replaced.

    Args:
        target: the folder to come.
        overwrite: a model folder, or an empty one, may be replaced.
        source: the model folder that is read.

    Raises:
        UsageError: it is a file; it exists and is no model folder, or is needed; or the folder
            around it cannot take it.
    """
    from gemb.io.paths import check_folder_of

    whole, model = Path(os.path.realpath(target)), Path(os.path.realpath(source))
    if target.exists():
        if not target.is_dir():
            raise UsageError(f"{target} is a file; name a folder")
        if whole == model:
            raise UsageError(f"{target} is the model itself; write elsewhere")
        if whole in model.parents or model in whole.parents:
            where = "holds" if whole in model.parents else "is a part of"
            raise UsageError(f"{target} {where} the model {source}; write elsewhere")
        if not overwrite:
            raise UsageError(f"{target} exists; -f overwrites it")
        is_model = any((target / name).is_file() for name in MODEL_FILES)
        if not is_model and any(target.iterdir()):
            raise UsageError(
                f"{target} is no model folder; -f replaces a model folder or an empty one alone"
            )
    check_folder_of(target)


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Yield the path to write to; it takes the name `target` if the block ends well.

    The file that it replaces leaves it its permissions. What killed runs left beside it is removed.

    Raises:
        UsageError: `target` is a folder.
        OSError: it is a pipe or a device, or a link to one, which other programs need as it is; or
            the disk refuses it.
    """
    from gemb.io.paths import is_stream

    if target.is_dir():
        raise UsageError(f"{target} is a folder; name a file in it")
    if is_stream(target):
        raise OSError(errno.EINVAL, "no regular file", str(target))
    target = Path(os.path.realpath(target))
    part = target
    try:
        remove_left_beside(target)
        with _held_part(target, lambda path: path.touch(exist_ok=False)) as part:
            yield part
            _to_disk(part)
            if target.exists():
                part.chmod(stat.S_IMODE(target.stat().st_mode))
            part.replace(target)
    except OSError as error:
        _name(error, part, target)
        raise


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it takes the name `target` if the block ends well.

    What killed runs left beside it is removed.

    Raises:
        UsageError: `target` is a file.
    """
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file; name a folder")
    target = Path(os.path.realpath(target))
    part = target
    try:
        remove_left_beside(target)
        with _held_part(target, Path.mkdir) as part:
            yield part
            for file in part.rglob("*"):
                if file.is_file():
                    _to_disk(file)
            _exchange(part, target)
    except OSError as error:
        _name(error, part, target)
        raise


def take_name(folder: Path, target: Path) -> None:
    """Give a whole folder the name `target`, and remove the folder that had it.

    A whole folder has the name at every moment where the system can exchange two names in one step;
    else what had it has it again after the next `remove_left_beside`.

    Raises:
        OSError: the disk refuses it.
    """
    remove_left_beside(target)
    if _took_free_name(folder, target):
        return
    # Killed between the two steps, the old one must not have the name of the new one.
    part = _beside(target, "part")
    folder.replace(part)
    with _held(part):
        try:
            _exchange(part, target)
        except BaseException:
            part.replace(folder)
            raise
        finally:
            _remove(part)


@contextmanager
def scratch_folder(purpose: str, near: Path | None = None) -> Iterator[Path]:
    """Yield an empty folder, which is removed when the block ends.

    What killed runs left of their own there is removed, too.

    Args:
        purpose: a word for its name.
        near: the folder around it; None: the system's for temporary files.
    """
    import tempfile

    near = near or Path(tempfile.gettempdir())
    _remove_left(near, _SCRATCH)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".gemb-{purpose}-", dir=near))
        with _held(folder) as is_held:
            if is_held:
                try:
                    yield folder
                finally:
                    _remove(folder)
                return


_of_process = contextlib.ExitStack()  # its temporary folders


def process_folder(purpose: str) -> Path:
    """Return a new empty folder, which goes with the process.

    Args:
        purpose: a word for its name.
    """
    atexit.register(remove_process_folders)  # a second time harms nothing
    return _of_process.enter_context(scratch_folder(purpose))


def remove_process_folders() -> None:
    """Remove all of `process_folder`; who ends the process without `atexit` calls this before."""
    _of_process.close()


def remove_left_beside(target: Path) -> None:
    """Remove what killed runs with this target left beside it.

    Where such a run was killed between two renames, what had the name gets it again.
    """
    name = re.escape(target.name)
    for old in _left(target.parent, re.compile(rf"\.{name}\.{_OLD}")):
        with _held(old) as is_held, contextlib.suppress(OSError):
            if is_held and not target.exists():
                old.replace(target)
    _remove_left(target.parent, re.compile(rf"\.{name}\.(?:{_PART}|{_OLD})"))


def leftovers(folder: Path) -> list[Path]:
    """Return what killed runs left in a folder, sorted by name; the next run may remove it."""
    return sorted(
        path
        for path in _left(folder, re.compile(rf"\..+\.(?:{_PART}|{_OLD})|{_SCRATCH.pattern}"))
        if not locks.is_held(path)
    )


def is_unused(folder: Path) -> bool:
    """Return whether a folder holds nothing but the lock and the parts of runs that were killed."""
    part = re.compile(rf"\..+\.{_PART}")
    return all(path.name == locks.LOCK or part.fullmatch(path.name) for path in folder.iterdir())


@contextmanager
def naming(file: Path | str) -> Iterator[None]:
    """Add the name of this file to system errors that the block raises."""
    try:
        yield
    except OSError as error:
        error.filename = str(file)
        raise


def copy_file(source: Path, target: Path) -> None:
    """Copy the bytes of a file. An error names the file that it is of: the new one on a full disk.

    Raises:
        OSError: one cannot be read, or the other cannot be written.
    """
    import shutil

    try:
        shutil.copyfile(source, target)
    except OSError as error:
        if error.errno in _OF_WRITING:
            error.filename = str(target)
        raise


def write_all(write: Callable[[memoryview], int], data: bytes | memoryview) -> None:
    """Write all of the data by a file's `write`, which may take a part of it at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[write(rest) :]


def pwrite_all(file: int, data: bytes | memoryview, start: int) -> None:
    """Write all of the data into an open file, from its byte `start` on."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file, rest, start)
        start += written
        rest = rest[written:]


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _exchange(part: Path, target: Path) -> None:
    """Give a whole folder its name; the folder that had it has that of the part, or is removed."""
    if _took_free_name(part, target) or exchanged(part, target):
        return
    old = _beside(target, "old")
    with _held(target):
        target.replace(old)
        try:
            part.replace(target)
        except BaseException:
            old.replace(target)
            raise
        _remove(old)


def _took_free_name(folder: Path, target: Path) -> bool:
    """Rename a folder; False: another one, which is not empty, has the name."""
    try:
        folder.replace(target)
    except OSError:
        if not target.is_dir():
            raise
        return False
    return True


def exchanged(first: Path, second: Path) -> bool:
    """Exchange the names of two files or folders in one step; False: the system cannot.

    Raises:
        OSError: one of them is not there, or may not be renamed.
    """
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    first_name, second_name = os.fsencode(first), os.fsencode(second)
    try:
        if sys.platform == "darwin":
            failed = library.renamex_np(first_name, second_name, 2)  # RENAME_SWAP
        else:
            failed = library.renameat2(_HERE, first_name, _HERE, second_name, 2)  # RENAME_EXCHANGE
    except AttributeError:  # an old C library
        return False
    if failed:
        number = ctypes.get_errno()
        if number in _CANNOT_EXCHANGE:
            return False
        raise OSError(number, os.strerror(number), str(second))
    return True


def _beside(target: Path, suffix: str) -> Path:
    # Two runs with one target must not write into each other's part, nor into anybody's file.
    return target.with_name(f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}.{suffix}")


@contextmanager
def _held_part(target: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """Yield a part that no other run takes for a leftover; what has its name later is removed."""
    while True:
        part = _beside(target, "part")
        try:
            make(part)
            with _held(part) as is_held:
                if is_held:
                    try:
                        yield part
                    finally:
                        _remove(part)
                    return
        except BaseException:  # a signal may come between its making and its lock
            _remove(part)
            raise


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Hold the lock of a file or folder; False: another process does, or has removed it.

    Without locks on the disk nobody holds it, and nobody removes it as a leftover either.
    """
    try:
        lock = locks.try_lock(path)
    except OSError:
        yield True
        return
    try:
        yield lock is not None
    finally:
        if lock is not None:
            os.close(lock)


def _left(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """Return what this user has in a folder under such a name."""
    try:
        with os.scandir(folder) as entries:
            return [
                Path(entry.path)
                for entry in entries
                if entry.name.startswith(".")
                and pattern.fullmatch(entry.name)
                and (entry.is_dir(follow_symlinks=False) or not entry.name.endswith(".old"))
                and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
            ]
    except OSError:  # it cannot be read, or something vanished: what is left is no error
        return []


def _remove_left(folder: Path, pattern: re.Pattern[str]) -> None:
    for path in _left(folder, pattern):
        with contextlib.suppress(OSError):  # no locks on its disk: a run may be writing it
            lock = locks.try_lock(path)
            if lock is not None:
                _remove(path)
                os.close(lock)


def _remove(path: Path) -> None:
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _name(error: OSError, part: Path, target: Path) -> None:
    """Let an error name the target, not nothing, nor the part that is removed."""
    named = str(error.filename or part)
    if part == target and Path(named).name.startswith(f".{target.name}."):
        named = str(target)  # the part could not be made
    error.filename = named.replace(str(part), str(target), 1)


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
