"""Write a file or a folder so that its name only ever holds a whole one.

The work is done under another name beside it, and is renamed at the end. An error, a full disk,
Ctrl-C or SIGTERM leaves nothing behind, and what had the name before stays as it was. A link stays
a link: what it leads to is written.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gemb.errors import UsageError

MODEL_FILES = ("config.json", "modules.json")  # a folder with one of these is a model's


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

    The file that it replaces leaves it its permissions.

    Raises:
        UsageError: `target` is a folder.
    """
    if target.is_dir():
        raise UsageError(f"{target} is a folder; name a file in it")
    target = Path(os.path.realpath(target))
    part = _beside(target, "part")
    try:
        yield part
        _to_disk(part)
        if target.exists():
            part.chmod(stat.S_IMODE(target.stat().st_mode))
        part.replace(target)
    except OSError as error:
        _name(error, part, target)
        raise
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it takes the name `target` if the block ends well.

    Raises:
        UsageError: `target` is a file.
    """
    import shutil

    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file; name a folder")
    target = Path(os.path.realpath(target))
    part, old = _beside(target, "part"), _beside(target, "old")
    try:
        part.mkdir()
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                _to_disk(file)
        if target.is_dir():
            target.replace(old)
        part.replace(target)
    except OSError as error:
        _name(error, part, target)
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if old.exists() and not target.exists():
            old.replace(target)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def naming(file: Path | str) -> Iterator[None]:
    """Add the name of this file to system errors that the block raises."""
    try:
        yield
    except OSError as error:
        error.filename = str(file)
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


def _beside(target: Path, suffix: str) -> Path:
    # Two runs with one target must not write into each other's part, nor into anybody's file.
    return target.with_name(f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}.{suffix}")


def _name(error: OSError, part: Path, target: Path) -> None:
    """Let an error name the target, not nothing, nor the part that is removed."""
    named = str(error.filename or part)
    error.filename = named.replace(str(part), str(target), 1)


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
