"""Hits as grep prints them: `path:line:text`, with the line of the passage that answers best."""

from __future__ import annotations

from collections.abc import Sequence

from gemb.io.colours import Paint
from gemb.io.text import visible
from gemb.search.context import Context, Line
from gemb.search.excerpts import Excerpt
from gemb.search.form import Write, encoded, is_bare, shown_name
from gemb.search.painted_words import painted
from gemb.search.queries import Query
from gemb.texts.words import wanted_stems


class GrepLines:
    """One line for each hit; with lines around it `path-line-text`, and `--` between hits."""

    needs_lines = True

    def __init__(
        self,
        write: Write,
        context: Context,
        paint: Paint,
        *,
        is_null: bool = False,
        is_terminal: bool = False,
        with_names: bool = False,
    ) -> None:
        """Begin.

        Args:
            write: takes bytes.
            context: how many lines around.
            paint: colours.
            is_null: a path ends in NUL, not in a colon, and is written as it is.
            is_terminal: show no character that a terminal obeys.
            with_names: write the name and the number of lines of standard input, too.
        """
        self._write = write
        self._context = context
        self._paint = paint
        self._is_null = is_null
        self._is_terminal = is_terminal
        self._with_names = with_names
        self._is_first = True

    def show(self, query: Query, found: Sequence[Excerpt]) -> None:
        """Write the answers to one query, best first."""
        stems = wanted_stems(query.text) if self._paint.is_on else frozenset()
        has_context = self._context.before or self._context.after
        for excerpt in found:
            if has_context and not self._is_first:
                self._write(encoded(self._paint.mark("--") + "\n"))
            self._is_first = False
            for line in self._context.around(excerpt):
                is_best = line.number == excerpt.number(excerpt.best) or not excerpt.is_numbered
                self._write(self._line(excerpt, line, stems, is_best=is_best))

    def _line(self, excerpt: Excerpt, line: Line, stems: frozenset[str], *, is_best: bool) -> bytes:
        paint, hit = self._paint, excerpt.hit
        mark = paint.mark(":" if is_best else "-")
        text = line.text.rstrip("\r")
        if self._is_terminal:
            text = visible(text.expandtabs(4))
        if is_best:
            text = painted(text, stems, paint)
        start = b""
        if self._with_names or not is_bare(hit):
            name = shown_name(hit, is_terminal=self._is_terminal)
            if self._is_null and hit.path is not None:
                start = encoded(paint.path(hit.path)) + b"\0"
            else:
                start = encoded(paint.path(name) + mark)
            if line.number is not None and (hit.path is not None or self._with_names):
                start += encoded(paint.number(str(line.number)) + mark)
        return start + encoded(text) + b"\n"
