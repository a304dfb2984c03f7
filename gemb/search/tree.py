"""The files under what a user named, in a steady order: as ripgrep walks.

Hidden files, what .gitignore, .ignore and .git/info/exclude name, and links are left out; a file
that is named itself never is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gemb.search.skipped import Skipped

MOST_BYTES = 10_000_000  # a longer file is a log or a dump


@dataclass(frozen=True, kw_only=True)
class Walk:
    """Which files of a folder are read."""

    globs: tuple[str, ...] = ()  # as .gitignore writes them; !GLOB leaves out; the last one counts
    hidden: bool = False  # also names that begin with a dot
    ignore: bool = True  # obey .gitignore, .ignore and .git/info/exclude
    follow: bool = False  # follow links to files and folders
    most_bytes: int = MOST_BYTES  # of a file; 0: no bound


class Entry(NamedTuple):
    """A file that was found."""

    path: str  # as the user would type it
    real: str  # absolute; links in it are not resolved
    size: int
    mtime_ns: int
    inode: int
    is_named: bool  # by the user, not found in a folder


def walk(roots: Sequence[str], how: Walk, skipped: Skipped) -> Iterator[Entry]:
    """Yield the regular files, each once: folder by folder, names in byte order.

    What is named and is neither a folder nor a regular file (a pipe, a terminal) is left to the
    caller: see `is_stream`. Nothing is raised: what cannot be read is counted in `skipped`.
    """
    raise NotImplementedError


def is_stream(path: str) -> bool:
    """Return whether a path is `-` or a pipe, as `<(command)` is: read once, not walked."""
    raise NotImplementedError
