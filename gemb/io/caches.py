"""The folders of gemb's caches, which all runs share."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from gemb.io.notes import note, warn
from gemb.io.paths import EFFECTIVE_IDS

_stand_ins: dict[Path, Path] = {}  # for folders that cannot be written to


def teachers_cache() -> Path:
    """Return the folder of all teachers' vectors: $XDG_CACHE_HOME/gemb/teachers."""
    return caches_folder() / "teachers"


def rows_cache() -> Path:
    """Return the folder of the indexes of all training data: $XDG_CACHE_HOME/gemb/rows."""
    return caches_folder() / "rows"


def scores_cache() -> Path:
    """Return the folder of the scores of soups and ingredients: $XDG_CACHE_HOME/gemb/scores."""
    return caches_folder() / "scores"


def tokens_cache() -> Path:
    """Return the folder of all texts of adaptation as tokens: $XDG_CACHE_HOME/gemb/tokens."""
    return caches_folder() / "tokens"


def engines_cache() -> Path:
    """Return the folder of what is prepared from models: $XDG_CACHE_HOME/gemb/engines."""
    return caches_folder() / "engines"


def search_cache() -> Path:
    """Return the folder of all passages that were searched: $XDG_CACHE_HOME/gemb/search."""
    return caches_folder() / "search"


def caches_folder() -> Path:
    """Return the folder of all of them: $XDG_CACHE_HOME/gemb."""
    return user_folder("XDG_CACHE_HOME", "~/.cache") / "gemb"


def user_folder(variable: str, default: str) -> Path:
    """Return the folder that an environment variable names, else the default.

    A path that is not absolute is ignored, with a note. Source: XDG Base Directory Specification,
    "All paths set in these environment variables must be absolute."

    Args:
        variable: as XDG_CACHE_HOME.
        default: a path below ~.
    """
    named = os.environ.get(variable)
    if named:
        folder = os.path.expanduser(named)  # noqa: PTH111 - of an unknown user, as it is
        if os.path.isabs(folder):  # noqa: PTH117
            return Path(folder)
        note(f"{variable} is '{named}', no absolute path: it is ignored", once=True)
    folder = os.path.expanduser(default)  # noqa: PTH111 - without a home, as it is
    return Path(folder if os.path.isabs(folder) else default.replace("~", "", 1))  # noqa: PTH117


def writable(folder: Path, *, with_content: bool = False) -> Path:
    """Return a folder of a cache, made where it is absent, or a temporary one in its place.

    The temporary one is used, with a warning, where the other cannot be written to. It is removed
    when the process ends.

    Args:
        folder: of the cache.
        with_content: the temporary one holds a copy of what the other holds.
    """
    from gemb.io.atomic import process_folder

    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK, effective_ids=EFFECTIVE_IDS):
            return folder
        reason = "permission denied"
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    if folder not in _stand_ins:
        warn(f"{folder}: {reason}: nothing is kept there; the next run computes it again")
        stand_in = process_folder("cache") / folder.name
        if with_content and os.access(folder, os.R_OK | os.X_OK):
            import shutil

            shutil.copytree(folder, stand_in, ignore=shutil.ignore_patterns("lock", "*.lock"))
            for path in (stand_in, *stand_in.rglob("*")):
                path.chmod(0o700 if path.is_dir() else 0o600)
        stand_in.mkdir(exist_ok=True)
        _stand_ins[folder] = stand_in
    return _stand_ins[folder]


def cache_sizes() -> dict[str, int]:
    """Return the bytes of each folder that is there, by its name; none where it cannot be read."""
    folder = caches_folder()
    _, names, _ = next(os.walk(folder), ("", [], []))
    return {name: folder_size(folder / name) for name in sorted(names)}


def folder_size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    with contextlib.suppress(OSError):
        if not path.is_dir():
            return path.lstat().st_size
    size = 0
    for parent, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):  # it has vanished
                size += os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118
    return size
