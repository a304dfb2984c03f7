"""Write a file or a folder so that its name only ever holds a whole one.

The work is done under another name beside it, and is renamed at the end. An error, a full disk,
Ctrl-C or SIGTERM leaves nothing behind, and what had the name before stays as it was.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gemb.errors import UsageError


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse a path that cannot be written, or that exists and must not be overwritten.

    Raises:
        UsageError: it exists, or its folder does not.
    """
    if (target.exists() or target.is_symlink()) and not overwrite:
        raise UsageError(f"{target} exists; -f overwrites it")
    if not target.resolve().parent.is_dir():
        raise UsageError(
            f"{target.parent}: no such folder; make it first: mkdir -p {target.parent}"
        )


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Yield the path to write to; it takes the name `target` if the block ends well.

    Raises:
        UsageError: `target` is a folder.
    """
    if target.is_dir():
        raise UsageError(f"{target} is a folder; name a file in it")
    part = _beside(target, "part")
    try:
        yield part
        _to_disk(part)
        part.replace(target)
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
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if old.exists() and not target.exists():
            old.replace(target)
        shutil.rmtree(old, ignore_errors=True)


def _beside(target: Path, suffix: str) -> Path:
    # Two runs with one target must not write into each other's part.
    return target.with_name(f".{target.name}.{os.getpid()}.{suffix}")


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
