"""Hits for people: by file, each with its score, its title and the lines that answer best."""

from __future__ import annotations

import os
from bisect import bisect_left

from gemb.index.hits import Hit
from gemb.io.colours import Paint
from gemb.io.text import ELLIPSIS, cut, visible, width_of, wrapped
from gemb.search.excerpts import Excerpt, LineContext, ShownLine
from gemb.search.forms import (
    STDIN,
    ShownAnswer,
    Write,
    encoded,
    is_bare,
    painted,
    shown_name,
    shown_score,
)
from gemb.search.queries import Unsure
from gemb.texts.words import wanted_stems, words_of

SEARCHED = 200_000  # characters of a line, for the part to show
LONG = 8  # times as long as a row
ROWS = 3  # of the terminal that one line of a text may take
STALE = {"gone": "the file is gone", "changed": "the file has changed since"}
NOTHING: dict[Unsure | None, str] = {
    None: "nothing relevant",
    "time": "too little time to tell",
    "failed": "the model failed",
}
BETWEEN = " › "  # in titles: between a file's name and the headings around a passage


class TerminalHits:
    """The hits in groups: files by their best hit, hits by their scores."""

    needs_lines = True

    def __init__(
        self,
        write: Write,
        context: LineContext,
        paint: Paint,
        width: int,
        *,
        is_whole: bool = False,
        with_query: bool = False,
    ) -> None:
        """Set how hits are shown.

        Args:
            write: takes bytes.
            context: which lines are shown.
            paint: colours.
            width: of the terminal, in columns.
            is_whole: long lines are shown to their end.
            with_query: write the query above its hits, for there are several.
        """
        self._write = write
        self._context = context
        self._paint = paint
        self._width = max(width, 30)
        self._rows = 0 if is_whole else ROWS
        self._with_query = with_query
        self._is_first = True

    def show(self, answer: ShownAnswer) -> None:
        """Write the answer to one query."""
        query = answer.query
        stems = wanted_stems(query.text)
        lines: list[str] = []
        if self._with_query:
            if not self._is_first:
                lines.append("")
            self._is_first = True  # the first file stands right below
            shown = visible(f"[{query.id}] {query.text}")
            lines.append(self._paint.best(cut(shown, self._width)))
            if not answer.excerpts:
                self._is_first = False
                lines.append(self._paint.faint(NOTHING[answer.unsure]))
        groups: dict[str | None, list[Excerpt]] = {}
        for excerpt in answer.excerpts:
            groups.setdefault(_file(excerpt.hit), []).append(excerpt)
        for name, group in groups.items():
            if not self._is_first:
                lines.append("")
            self._is_first = False
            if name is not None:
                stale = group[0].hit.stale
                mark = self._paint.faint(f"  ({STALE[stale]})") if stale else ""
                lines.append(self._paint.heading(name) + mark)
            for excerpt in group:
                lines += self._hit(excerpt, stems)
        self._write(encoded("".join(line + "\n" for line in lines)))

    def _hit(self, excerpt: Excerpt, stems: frozenset[str]) -> list[str]:
        paint = self._paint
        shown = self._context.around(excerpt)
        widest = max(len(str(line.number or "")) for line in shown)
        if is_bare(excerpt.hit) and len(shown) == 1 and not excerpt.hit.title:
            # A line of standard input: on one row with its score.
            start = f"{shown_score(excerpt.hit)}  "
            return self._line(shown[0], stems, widest, (paint.score(start), len(start)))
        title = cut(_title(excerpt.hit), self._width - 6)
        head = paint.score(shown_score(excerpt.hit)) + ("  " + paint.faint(title) if title else "")
        return [head, *(row for line in shown for row in self._line(line, stems, widest))]

    def _line(
        self, line: ShownLine, stems: frozenset[str], widest: int, start: tuple[str, int] = ("", 0)
    ) -> list[str]:
        """Return the rows of a line; `start` is what stands before it, and its width."""
        paint = self._paint
        gutter = f"{line.number:>{widest}}" if line.number is not None else ""
        mark = ":" if line.is_good else "-"
        used = start[1] + len(gutter) + (2 if gutter else 0)
        room = self._width - used
        text = line.text.rstrip()
        if self._rows and len(text) > room * LONG:
            # Of megabytes in one line only a part is looked at, for speed.
            text = part_with(text, stems, room * LONG) if line.is_good else text[: room * LONG]
        text = visible(text.expandtabs(4))
        rows = self._fitted(text, room, stems, is_good=line.is_good)
        if line.is_good:
            rows = [painted(row, stems, paint, rest=paint.best) for row in rows]
        before = start[0] + (paint.number(gutter) + paint.mark(mark) + " " if gutter else "")
        return [(" " * used if number else before) + row for number, row in enumerate(rows)]

    def _fitted(self, text: str, room: int, stems: frozenset[str], *, is_good: bool) -> list[str]:
        """Return the text in rows; of a long one the part that answers, or its beginning."""
        if width_of(text) <= room:
            return [text]
        if not self._rows:
            return wrapped(text, room)
        if not is_good:
            return [cut(text, room)]
        # Wide characters need room for half as many; words leave a part of each row empty.
        narrow = room * len(text) // max(1, width_of(text))
        return wrapped(part_with(text, stems, narrow * self._rows * 9 // 10), room)[: self._rows]


def part_with(text: str, stems: frozenset[str], most: int) -> str:
    """Return at most so many characters of a text: those around most words of the query."""
    if len(text) <= most:
        return text
    positions = [word.start for word in words_of(text[:SEARCHED]) if word.stem in stems]
    best = 0, 0
    for position in positions:
        start = max(0, min(position - most // 4, len(text) - most))
        inside = bisect_left(positions, start + most) - bisect_left(positions, start)
        best = max(best, (inside, -start))
    start = -best[1]
    if start:
        space = text.find(" ", start, start + 20)
        start = space + 1 if space >= 0 else start
    end = start + most
    if end < len(text):
        space = text.rfind(" ", end - 20, end)
        end = space if space > 0 else end
    head = ELLIPSIS if start else ""
    return head + text[start:end].strip() + (ELLIPSIS if end < len(text) else "")


def _file(hit: Hit) -> str | None:
    """Return the heading of a hit's group, None for rows that come from no file."""
    return None if hit.path is None else shown_name(hit)


def _title(hit: Hit) -> str:
    """Return what stands beside the score: the headings around a passage, or a row's id and title.

    The file's name, which begins the title of a passage, stands above already.
    """
    title = hit.title or ""
    if hit.path is not None:
        name = os.path.basename(hit.path)  # noqa: PTH119
        title = "" if title == name else title.removeprefix(name + BETWEEN)
    parts = [visible(title)] if title else []
    if hit.id is not None and hit.id != hit.line:
        parts.insert(0, visible(str(hit.id)))
    elif hit.path is None and not parts:
        parts = [STDIN]
    if hit.copies > 1:
        parts.insert(0, f"({hit.copies:,} copies)")
    if hit.ranks:
        parts.insert(0, ", ".join(f"{name} {rank or '-'}" for name, rank in hit.ranks.items()))
    return "  ".join(parts)
