"""Tell a Git LFS pointer from the file that it stands for.

A clone without Git LFS has a text of three lines in place of each large file.
Source: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
"""

from __future__ import annotations

from pathlib import Path

from gemb.errors import UsageError

_BEGINNINGS = (
    b"version https://git-lfs.github.com/spec/",
    b"version https://hawser.github.com/spec/",
)
_LONGEST = 1024  # bytes of a pointer, by the specification


def check_no_pointer(path: Path) -> None:
    """Refuse a Git LFS pointer; called where a file could not be read as what it should be.

    Raises:
        UsageError: the file is a pointer.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        beginning = file.read(_LONGEST)
    if beginning.startswith(_BEGINNINGS):
        raise UsageError(
            f"{path}: a Git LFS pointer, not the file that it stands for; fetch that: git lfs pull"
        )
