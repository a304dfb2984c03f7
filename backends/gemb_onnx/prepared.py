"""What is prepared from a model once, and kept: the graph, its weights, and the tokenizer.

    $XDG_CACHE_HOME/gemb/engines/MODEL-PRECISION-RUNTIME/
        tuned.onnx  tuned.bin  vector.npy  tokenizer.json  tokenizer.npz  made.json

The folder's name holds all that decides its contents; it may be removed at any time. `made.json` is
written last, and holds size and checksum of each file. A folder that differs from it is prepared
again: small files are looked at each time, all of them once in `PERIOD_S`. What was used least
lately goes where all of them are larger than `MOST`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from gemb.errors import UsageError
from gemb.io.atomic import new_folder, process_folder
from gemb.io.caches import engines_cache, folder_size
from gemb.io.locks import locked, waiting
from gemb.io.notes import warn
from gemb.models.config import read_json, write_json

MADE = "made.json"
MOST = 3 << 30  # bytes
PERIOD_S = 24 * 3600.0
_SMALL = 8 << 20  # bytes of a file that is read whole each time; a larger one is mapped


def prepared(name: str, fill: Callable[[Path], None]) -> Path:
    """Return the folder of this name, made where it is absent or damaged.

    Many processes may call this at once: one makes the folder, the others wait. Where the cache
    cannot be written, the folder goes with the process.

    Args:
        name: holds all that decides the contents.
        fill: writes the files into an empty folder.

    Raises:
        UsageError: of `fill`.
        OSError: nothing can be written anywhere.
    """
    folder = engines_cache() / name
    if is_whole(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f"{name}.lock"), waiting("prepares this model"), removes=True):
            if folder.is_file():
                folder.unlink()
            if not is_whole(folder):
                _make(folder, fill)
    except OSError as error:
        warn(f"{error.filename or folder}: {error.strerror}; the model is prepared for this run")
        return of_process(fill)
    _remove_unused(folder)
    return folder


def of_process(fill: Callable[[Path], None]) -> Path:
    """Return a prepared folder that goes with the process."""
    folder = process_folder("engine")
    fill(folder)
    return folder


def can_keep() -> bool:
    """Return whether the cache holds something, or can be written to."""
    folder = engines_cache()
    if any(folder.glob(f"*/{MADE}")):
        return True
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK)


def remove(folder: Path) -> None:
    """Remove a prepared folder that the runtime did not take."""
    shutil.rmtree(folder, ignore_errors=True)


def _remove_unused(made: Path) -> None:
    """Remove the folders that were used least lately, while all are too large; not the new one."""
    used = {}
    for mark in made.parent.glob(f"*/{MADE}"):
        with contextlib.suppress(OSError):  # another process removes it, too
            used[mark.parent] = mark.stat().st_mtime
    size = folder_size(made.parent)
    for folder in sorted(used.keys() - {made}, key=used.__getitem__):
        if size <= MOST:
            return
        size -= folder_size(folder)
        remove(folder)


def is_whole(folder: Path) -> bool:
    """Return whether the files of the folder are as `made.json` says."""
    mark = folder / MADE
    try:
        made = read_json(mark)
        is_due = not 0 <= time.time() - mark.stat().st_mtime < PERIOD_S
        if not made or not all(
            _fits(folder / name, size, checksum, wholly=is_due)
            for name, (size, checksum) in made.items()
        ):
            return False
        if is_due:
            with contextlib.suppress(OSError):  # it cannot be written: looked at each time
                os.utime(mark)
    except (UsageError, OSError, TypeError, ValueError):
        return False
    return True


def _fits(path: Path, size: int, checksum: int, *, wholly: bool) -> bool:
    if path.stat().st_size != size:
        return False
    return (size > _SMALL and not wholly) or _checksum(path) == checksum


def _make(folder: Path, fill: Callable[[Path], None]) -> None:
    with new_folder(folder) as part:
        fill(part)
        files = sorted(path for path in part.iterdir() if path.is_file())
        stamps = {path.name: [path.stat().st_size, _checksum(path)] for path in files}
        write_json(part / MADE, stamps)


def _checksum(path: Path) -> int:
    """Return the CRC-32 of a file."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
    return checksum
