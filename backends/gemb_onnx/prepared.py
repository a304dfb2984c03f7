"""What is prepared from a model once, and kept: the graph, its weights, and the tokenizer.

    $XDG_CACHE_HOME/gemb/engines/MODEL-PRECISION-RUNTIME/
        tuned.onnx  tuned.bin  vector.npy  tokenizer.json  made.json

The folder's name holds all that decides its contents; it may be removed at any time. `made.json` is
written last, and holds the size of each file and the checksum of those that are read whole. A
folder that differs from it is prepared again.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

from gemb.errors import UsageError
from gemb.io.atomic import new_folder, process_folder
from gemb.io.caches import engines_cache
from gemb.io.locks import locked, waiting
from gemb.io.notes import warn
from gemb.models.config import read_json, write_json

MADE = "made.json"
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
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock"), waiting("prepares this model"), removes=True):
            if not is_whole(folder):
                _make(folder, fill)
        return folder
    except OSError as error:
        warn(f"{error.filename or folder}: {error.strerror}; the model is prepared for this run")
    folder = process_folder("engine")
    fill(folder)
    return folder


def remove(folder: Path) -> None:
    """Remove a prepared folder that the runtime did not take."""
    shutil.rmtree(folder, ignore_errors=True)


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
