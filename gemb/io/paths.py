"""Paths of outputs: links, streams and descriptors, and folders that can take a file."""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from gemb.errors import UsageError

MOST_NAME = 255  # bytes of a name in a folder that disks take
MOST_PATH = 4095  # bytes of a path that the system takes
LINKS = 40  # that Linux follows in one path
EFFECTIVE_IDS = os.access in os.supports_effective_ids


def is_stream(path: Path | None) -> bool:
    """Return whether this cannot be replaced atomically: standard output, a pipe, a device.

    So is all of /dev and /proc, and what leads there: renaming over /dev/stdout would replace the
    link for every program. /dev/shm alone holds plain files.
    """
    if path is None or any(map(_is_system, _hops(path))):
        return True
    return path.exists() and not stat.S_ISREG(path.stat().st_mode)


def descriptor(path: Path) -> int | None:
    """Return the number of the open file that a path such as /dev/fd/3 names, or None."""
    for hop in _hops(path):
        match = re.fullmatch(rf"/proc/(?:self|{os.getpid()})(?:/task/\d+)?/fd/(\d+)", str(hop))
        match = match or re.fullmatch(r"/dev/fd/(\d+)", str(hop))
        if match:
            return int(match[1])
    return None


def followed(path: Path) -> Path:
    """Return the path that a link leads to, whether or not it exists; a stream as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() and not is_stream(path) else path


def part_of(path: Path) -> Path:
    """Return the name that an output has until it is complete."""
    return path.with_name(path.name + ".part")


def check_folder_of(path: Path) -> None:
    """Refuse a path in a folder that cannot take it.

    Raises:
        UsageError: the folder is not there, or cannot be written to; or the path is a circle.
    """
    if path.is_symlink() and Path(os.path.realpath(path)).is_symlink():
        raise UsageError(f"{path}: a link that leads back to itself")
    folder = followed(path).parent
    if not folder.is_dir():
        raise UsageError(
            f"no such folder: {folder}; make it first: mkdir -p {shlex.quote(str(folder))}"
        )
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=EFFECTIVE_IDS):
        raise UsageError(f"{folder}: nothing can be written to this folder; check its permissions")


def current_folder(paths: Iterable[str] = ()) -> str:
    """Return the current folder, where relative paths begin; / where it has been removed.

    Args:
        paths: that are to begin there, or are absolute; - is none.

    Raises:
        FileNotFoundError: it has been removed, and a path is relative.
    """
    try:
        return os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        if all(path == "-" or os.path.isabs(path) for path in paths):  # noqa: PTH117
            return "/"
        raise


def is_nowhere() -> bool:
    """Return whether the current folder has been removed: no path begins there any more."""
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        return True
    return False


def status_of(path: Path | int) -> os.stat_result | None:
    """Return the status of a path or a descriptor, None where there is nothing."""
    try:
        return os.stat(path)  # noqa: PTH116  a descriptor, too
    except (OSError, ValueError):
        return None


def _is_system(path: Path) -> bool:
    return path.parts[:2] in (("/", "dev"), ("/", "proc")) and path.parts[:3] != ("/", "dev", "shm")


def _hops(path: Path) -> Iterator[Path]:
    """Yield the path, then each that a link leads to, their folders resolved."""
    for _ in range(LINKS):
        path = Path(os.path.realpath(path.parent or "."), path.name)
        yield path
        try:
            path = path.parent / path.readlink()
        except OSError:
            return


def is_inside(name: object) -> bool:
    """Return whether a name that a file or a user gives can be in its folder, and not outside."""
    if not isinstance(name, str) or not name or "\0" in name or name.startswith("/"):
        return False
    parts = name.encode("utf-8", "surrogatepass").split(b"/")
    is_short = sum(map(len, parts), len(parts) - 1) <= MOST_PATH
    return is_short and all(part != b".." and len(part) <= MOST_NAME for part in parts)
