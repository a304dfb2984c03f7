"""The lines around the best line of a passage: of the passage, and of its file beyond it."""

from __future__ import annotations

import os
from typing import NamedTuple

from gemb.search.excerpts import Excerpt
from gemb.texts.walk import Entry, Skipped, read_text


class Line(NamedTuple):
    """A line that is shown."""

    number: int | None
    text: str
    is_good: bool  # it answers the query


class Context:
    """Finds lines around; remembers the file that it read last."""

    def __init__(self, before: int, after: int, *, is_inside: bool = False) -> None:
        """Begin.

        Args:
            before: how many lines before the best one.
            after: and after it.
            is_inside: only lines of the passage itself.
        """
        self.before = before
        self.after = after
        self._is_inside = is_inside
        self._path = ""
        self._lines: list[str] = []

    def around(self, excerpt: Excerpt) -> list[Line]:
        """Return the best line and those around it, in the order of the file.

        Where the file cannot be read any more, or holds something else now, the passage alone
        gives its lines.
        """
        first, last = excerpt.best - self.before, excerpt.best + self.after
        lines, start = excerpt.lines, 0
        if not self._is_inside and (first < 0 or last >= len(lines)):
            file = self._file(excerpt)
            if file:
                start = (excerpt.hit.line or 1) - 1
                # Its own lines stay: the first and the last may be parts of very long ones.
                lines = (*file[:start], *lines, *file[start + len(lines) :])
        shown = range(max(0, first + start), min(len(lines), last + start + 1))
        return [
            Line(
                excerpt.number(at - start),
                lines[at],
                at - start in excerpt.good or at - start == excerpt.best,
            )
            for at in shown
        ]

    def _file(self, excerpt: Excerpt) -> list[str]:
        """Return the lines of the passage's file, none where the passage is not there."""
        path, line = excerpt.hit.path, excerpt.hit.line
        if path is None or line is None or not excerpt.is_numbered:
            return []
        if path != self._path:
            self._path, self._lines = path, _lines(path)
        there = self._lines[line - 1 : line - 1 + len(excerpt.lines)]
        pairs = zip(excerpt.lines, there, strict=False)
        is_there = len(there) == len(excerpt.lines) and all(one.strip() in it for one, it in pairs)
        return self._lines if is_there else []


def _lines(path: str) -> list[str]:
    try:
        found = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return []
    real = os.path.abspath(path)  # noqa: PTH100
    entry = Entry(path, real, found.st_size, found.st_mtime_ns, found.st_ino, is_named=False)
    try:
        text = read_text(entry, Skipped(quiet=True))
    except OSError:
        return []
    return text.removesuffix("\n").split("\n") if text else []
