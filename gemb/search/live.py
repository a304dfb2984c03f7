"""How far a search is, on stderr: on a terminal with the best hits so far."""

from __future__ import annotations

import os
import sys
import time
from typing import Protocol

from gemb.index.hits import Hit
from gemb.io.notes import is_quiet, tell
from gemb.io.text import cut, duration, visible
from gemb.search.forms import shown_name, shown_score
from gemb.search.scoring import SearchProgress

DELAY_S = 1.0  # what is done by then needs no report
EVERY_S = 0.2  # on a terminal
HITS_EVERY_S = 0.5  # on a terminal, with the best hits
LINE_EVERY_S = 30.0  # off a terminal
MOST_HITS = 10
FEW = 16  # passages without a vector, for which no first answer is drawn


class BestHits(Protocol):
    """A search under way."""

    def best(self, progress: SearchProgress, k: int) -> list[Hit]:
        """Return its best hits so far."""


class LiveHits:
    """A few rows that are drawn again and again, and are gone at the end."""

    def __init__(self) -> None:
        """Draw nothing yet; with -q nothing is ever drawn."""
        self._quiet = is_quiet() or sys.stderr is None
        self._is_terminal = (
            not self._quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        )
        self._began = time.monotonic()
        self._shown_at = self._began
        self.last: SearchProgress | None = None
        self._first: tuple[int, int, float] | None = None  # done, tokens, and when it was
        self._rows = 0

    def looked(self, files: int) -> None:
        """Draw how many files were looked at; it may be called often, and in another thread."""
        self._draw_soon(f"{files:,} files")

    def read(self, passages: int, total: int) -> None:
        """Draw how many passages were read for the first ranking; it may be called often."""
        self._draw_soon(f"{passages:,} of {total:,} passages read")

    def _draw_soon(self, line: str) -> None:
        now = time.monotonic()
        if self._is_terminal and now - self._began >= DELAY_S and now - self._shown_at >= EVERY_S:
            self._shown_at = now
            self._draw([line])

    def show(self, progress: SearchProgress, search: BestHits) -> None:
        """Draw how far it is, and the best hits so far; the first ones at once."""
        now = time.monotonic()
        is_first = self.last is None
        ranked = progress.ranking.count
        self.last = progress
        if ranked:
            self._first = self._first or (ranked, progress.tokens, now)
        is_drawn = self._is_terminal and sys.stdout.isatty()
        every = HITS_EVERY_S if self._is_terminal else LINE_EVERY_S
        is_due = now - self._began >= DELAY_S and now - self._shown_at >= every
        is_done = ranked >= progress.total or progress.left_s == 0
        is_first &= is_drawn and progress.total - ranked > FEW
        if self._quiet or is_done or not (is_due or is_first):
            return
        self._shown_at = now
        line = self._line(progress, now)
        if not self._is_terminal:
            tell(line)
            return
        ranking = progress.ranking
        hits = []
        if is_drawn and ranking.k is not None and ranking.queries == 1:
            hits = search.best(progress, min(ranking.k, MOST_HITS))
        rows = [f"{line}; best so far:", *map(_row, hits)] if hits else [line]
        self._draw(rows)

    def _draw(self, rows: list[str]) -> None:
        width = _width()
        self.close()
        sys.stderr.write("".join(cut(row, width - 1) + "\n" for row in rows))
        sys.stderr.flush()
        self._rows = len(rows)

    def close(self) -> None:
        """Erase what was drawn."""
        if self._rows:
            sys.stderr.write(f"\x1b[{self._rows}F\x1b[J")
            sys.stderr.flush()
            self._rows = 0

    def _line(self, progress: SearchProgress, now: float) -> str:
        ranked = progress.ranking.count
        line = f"{ranked:,} of {progress.total:,} passages"
        first_ranked, first_tokens, since = self._first or (ranked, progress.tokens, now)
        seconds = max(1e-9, now - since)
        if progress.tokens > first_tokens:
            line += f", {(progress.tokens - first_tokens) / seconds:,.0f} tokens/s"
        if progress.left_s is not None:
            line += f", {duration(progress.left_s)} left"
        elif ranked > first_ranked:
            seconds_left = (progress.total - ranked) * seconds / (ranked - first_ranked)
            line += f", {duration(seconds_left)} left"
        return line


def _row(hit: Hit) -> str:
    location = shown_name(hit) + (f":{hit.line}" if hit.line is not None else "")
    text = visible(" ".join(hit.text.split())[:200])
    return f"{shown_score(hit)}  {location}  {text}"


def _width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80
