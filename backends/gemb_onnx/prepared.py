"""What is prepared from a model once, and kept: the graph, its weights, and the tokenizer.

    $XDG_CACHE_HOME/gemb/engines/MODEL-PRECISION-RUNTIME/
        tuned.onnx  tuned.bin  vector.npy  tokenizer.json  tokenizer.npz  made.json

The folder's name holds all that decides its contents; it may be removed at any time. `made.json` is
written last, and holds the size of each file and the checksum of those that are read whole. A
folder that differs from it is prepared again. What was used least lately goes where all of them are
larger than `MOST`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
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
_READ_WHOLE = 64 << 20  # bytes: the weights of a larger file are mapped, and only counted


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
        with contextlib.suppress(OSError):
            os.utime(folder / MADE)  # its last use
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock"), waiting("prepares this model"), removes=True):
            if not is_whole(folder):
                _make(folder, fill)
        _remove_unused(folder)
        return folder
    except OSError as error:
        warn(f"{error.filename or folder}: {error.strerror}; the model is prepared for this run")
    folder = process_folder("engine")
    fill(folder)
    return folder


def remove(folder: Path) -> None:
    """Remove a prepared folder that the runtime did not take."""
    shutil.rmtree(folder, ignore_errors=True)


def _remove_unused(made: Path) -> None:
    """Remove the folders that were used least lately, while all are too large; not the new one."""
    others = [
        (mark.stat().st_mtime, mark.parent)
        for mark in made.parent.glob(f"*/{MADE}")
        if mark.parent != made
    ]
    size = folder_size(made.parent)
    for _, folder in sorted(others):
        if size <= MOST:
            return
        size -= folder_size(folder)
        remove(folder)


def is_whole(folder: Path) -> bool:
    """Return whether all files of the folder are as `made.json` says."""
    try:
        made = read_json(folder / MADE)
        return all(_stamp(folder / name) == stamp for name, stamp in made.items())
    except (UsageError, OSError):
        return False


def _make(folder: Path, fill: Callable[[Path], None]) -> None:
    with new_folder(folder) as part:
        fill(part)
        files = sorted(path for path in part.iterdir() if path.is_file())
        write_json(part / MADE, {path.name: _stamp(path) for path in files})


def _stamp(path: Path) -> list[int]:
    """Return the size of a file, and the CRC-32 of one that is read whole."""
    size = path.stat().st_size
    return [size, zlib.crc32(path.read_bytes()) if size <= _READ_WHOLE else 0]
