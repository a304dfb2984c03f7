"""The files that have hits: their names alone, or with the number of hits."""

from __future__ import annotations

from collections.abc import Sequence

from gemb.io.colours import Paint
from gemb.search.excerpts import Excerpt
from gemb.search.form import Write, encoded, is_bare, shown_name
from gemb.search.queries import Query
from gemb.texts.records import Id


class NameList:
    """The name of each file, the one with the best hit first; rows of no file by their ids."""

    needs_lines = False

    def __init__(
        self,
        write: Write,
        paint: Paint,
        *,
        is_null: bool,
        counts: bool,
        most: int | None,
        is_terminal: bool = False,
    ) -> None:
        """Begin.

        Args:
            write: takes bytes.
            paint: colours.
            is_null: names are written as they are, and end in NUL: for xargs -0.
            counts: write how many hits each file has.
            most: so many names at most; None: all.
            is_terminal: show no character that a terminal obeys.
        """
        self._write = write
        self._paint = paint
        self._is_null = is_null
        self._counts = counts
        self._most = most
        self._is_terminal = is_terminal

    def show(self, query: Query, found: Sequence[Excerpt]) -> None:
        """Write the files that answer a query."""
        counts: dict[tuple[str | None, Id | None], int] = {}
        first: dict[tuple[str | None, Id | None], Excerpt] = {}
        for excerpt in found:
            hit = excerpt.hit
            key = (hit.path, None if hit.path is not None or is_bare(hit) else hit.id)
            counts[key] = counts.get(key, 0) + 1
            first.setdefault(key, excerpt)
        for key in list(first)[: self._most]:
            hit = first[key].hit
            if self._is_null and hit.path is not None:
                name = hit.path
            else:
                name = shown_name(hit, is_terminal=self._is_terminal)
            line = encoded(self._paint.path(name))
            line += b"\0" if self._is_null else b"" if self._counts else b"\n"
            if self._counts:
                mark = "" if self._is_null else self._paint.mark(":")
                line += encoded(f"{mark}{counts[key]}\n")
            self._write(line)


class Silent:
    """Writes nothing: the exit code tells."""

    needs_lines = False

    def show(self, query: Query, found: Sequence[Excerpt]) -> None:
        """Write nothing."""
