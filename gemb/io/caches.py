"""The folders of gemb's caches, which all runs share."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


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
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(cache)) / "gemb"  # noqa: PTH111 - unknown user


def cache_sizes() -> dict[str, int]:
    """Return the bytes of each folder that is there, by its name; none where it cannot be read."""
    folder = caches_folder()
    _, names, _ = next(os.walk(folder), ("", [], []))
    return {name: _size(folder / name) for name in sorted(names)}


def _size(folder: Path) -> int:
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # it has vanished
                size += os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118
    return size
