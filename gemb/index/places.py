"""Paths in an index: kept as they were typed when it was built, shown as one would type them here.

A path that was relative is relative to the folder in which the index was built, its base.
"""

from __future__ import annotations

import os


def shown(path: str, base: str) -> str:
    """Return a kept path as one would type it in the current folder."""
    here = os.getcwd()  # noqa: PTH109
    if here == base or os.path.isabs(path):  # noqa: PTH117
        return path
    absolute = os.path.normpath(os.path.join(base, path))  # noqa: PTH118
    if absolute.startswith(here.rstrip("/") + "/"):
        return os.path.relpath(absolute, here)
    return absolute


def kept(path: str, base: str) -> tuple[str, str]:
    """Return the two forms in which a path that is typed here may be kept."""
    absolute = os.path.abspath(path)  # noqa: PTH100
    return os.path.relpath(absolute, base), absolute


def real(path: str, base: str) -> str:
    """Return where a kept path is now."""
    return os.path.normpath(os.path.join(base, path))  # noqa: PTH118
