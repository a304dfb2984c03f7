"""Tell a Git LFS pointer from the file that it stands for.

A clone without Git LFS has a text of three lines in place of each large file.
Source: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

from gemb.errors import UsageError

LONGEST = 1024  # bytes of a pointer, by the specification
BEGINNINGS = (
    b"version https://git-lfs.github.com/spec/",
    b"version https://hawser.github.com/spec/",
)


def check_no_pointer(path: Path, file: IO[bytes] | None = None) -> None:
    """Refuse a Git LFS pointer; called where a file could not be read as what it should be.

    Args:
        path: of the file.
        file: it, where it is open and the path but names it.

    Raises:
        UsageError: the file is a pointer.
        OSError: it cannot be read.
    """
    if file is not None:
        file.seek(0)
        check_beginning(file.read(LONGEST), path)
    elif path.is_file():  # a pipe would be waited for
        with path.open("rb") as opened:
            check_beginning(opened.read(LONGEST), path)


def check_beginning(data: bytes, where: object) -> None:
    """Refuse what begins as a Git LFS pointer does.

    Args:
        data: the beginning of a file, or all of it.
        where: what holds it, for the message.

    Raises:
        UsageError: it is a pointer.
    """
    if data.startswith(BEGINNINGS):
        raise UsageError(
            f"{where}: a Git LFS pointer, not the file that it stands for; fetch that: git lfs pull"
        )
