"""How far a search is, on stderr: on a terminal with the best hits so far."""

from __future__ import annotations

import os
import sys
import time

from gemb.index.hits import Hit
from gemb.io.notes import is_quiet, tell
from gemb.io.text import cut, duration, visible
from gemb.search.forms import shown_name
from gemb.search.passage_search import Answer

DELAY_S = 1.0  # what is done by then needs no report
EVERY_S = 0.2  # on a terminal
LINE_EVERY_S = 30.0  # off a terminal
MOST_HITS = 5


class LiveHits:
    """A few rows that are drawn again and again, and are gone at the end."""

    def __init__(self) -> None:
        """Begin; with -q it shows nothing."""
        self._quiet = is_quiet() or sys.stderr is None
        self._is_terminal = (
            not self._quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        )
        self._began = time.monotonic()
        self._shown_at = self._began
        self._first: tuple[Answer, float] | None = None  # and when it came
        self._rows = 0

    def looked(self, files: int) -> None:
        """Draw how many files were looked at; it may be called often, and in another thread."""
        now = time.monotonic()
        if self._is_terminal and now - self._began >= DELAY_S and now - self._shown_at >= EVERY_S:
            self._shown_at = now
            self._draw([f"{files:,} files"])

    def show(self, answer: Answer) -> None:
        """Draw how far it is."""
        now = time.monotonic()
        self._first = self._first or (answer, now)
        is_over = answer.is_last or answer.done >= answer.total
        if self._quiet or is_over or now - self._began < DELAY_S:
            return
        words = self._words(answer, now)
        if not self._is_terminal:
            if now - self._shown_at >= LINE_EVERY_S:
                self._shown_at = now
                tell(words)
            return
        rows = [words]
        best = answer.hits[0] if len(answer.hits) == 1 else []
        if best:
            rows[0] += "; best so far:"
            rows += [_row(hit) for hit in best[:MOST_HITS]]
        self._draw(rows)

    def _draw(self, rows: list[str]) -> None:
        width = _width()
        self.close()
        sys.stderr.write("".join(cut(row, width - 1) + "\n" for row in rows))
        sys.stderr.flush()
        self._rows = len(rows)

    def close(self) -> None:
        """Take away what was drawn."""
        if self._rows:
            sys.stderr.write(f"\x1b[{self._rows}F\x1b[J")
            sys.stderr.flush()
            self._rows = 0

    def _words(self, answer: Answer, now: float) -> str:
        words = f"{answer.done:,} of {answer.total:,} passages"
        first, since = self._first or (answer, now)
        seconds = max(1e-9, now - since)
        if answer.tokens > first.tokens:
            words += f", {(answer.tokens - first.tokens) / seconds:,.0f} tokens/s"
        done = answer.done - first.done
        if done:
            words += f", {duration((answer.total - answer.done) * seconds / done)} left"
        return words


def _row(hit: Hit) -> str:
    place = shown_name(hit) + (f":{hit.line}" if hit.line is not None else "")
    text = visible(" ".join(hit.text.split())[:200])
    return f"{hit.score:.2f}  {place}  {text}"


def _width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80
