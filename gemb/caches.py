"""The folders in which gemb keeps what it would else compute again, for all runs."""

from __future__ import annotations

import os
from pathlib import Path


def teachers_cache() -> Path:
    """Return the folder of all teachers' vectors: $XDG_CACHE_HOME/gemb/teachers."""
    return _cache() / "teachers"


def rows_cache() -> Path:
    """Return the folder of the indexes of all training data: $XDG_CACHE_HOME/gemb/rows."""
    return _cache() / "rows"


def scores_cache() -> Path:
    """Return the folder of the scores of soups and ingredients: $XDG_CACHE_HOME/gemb/scores."""
    return _cache() / "scores"


def tokens_cache() -> Path:
    """Return the folder of all texts of adaptation as tokens: $XDG_CACHE_HOME/gemb/tokens."""
    return _cache() / "tokens"


def search_cache() -> Path:
    """Return the folder of all passages that were searched: $XDG_CACHE_HOME/gemb/search."""
    return _cache() / "search"


def _cache() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(cache)) / "gemb"  # noqa: PTH111 - unknown user
