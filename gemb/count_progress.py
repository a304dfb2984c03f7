"""How far a long count is, on stderr: texts that get vectors, rows that get negatives."""

from __future__ import annotations

import time
from typing import Any

import click

from gemb.durations import duration
from gemb.progress import terminal_bar

LINE_EVERY_S = 30.0  # off a terminal


class CountProgress:
    """A bar on a terminal, else a line now and then, with the rate and the time left."""

    def __init__(
        self, total: int | None, what: str, unit: str, *, quiet: bool, work: int = 0
    ) -> None:
        """Begin.

        Args:
            total: how many are to come, None where it is not known.
            what: is counted, in words.
            unit: one of them: texts, rows.
            quiet: show nothing.
            work: of all that are to come, in any unit, where they differ much; by it the time left
                is told.
        """
        self._total = total
        self._what = what
        self._unit = unit
        self._quiet = quiet
        self._all_work = work or total or 0
        self._work = 0
        self._began = self._shown_at = time.monotonic()
        self._done = self._tokens = 0
        self._bar: Any = None
        if not quiet:
            shape = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}" if total else "{n_fmt}"
            self._bar = terminal_bar(
                total=total,
                bar_format="{desc}" + shape + "{postfix}",
                desc=f"{what}: ",
                leave=False,
            )

    def add(self, count: int, tokens: int = 0, work: int = 0) -> None:
        """Count what is done."""
        self._done += count
        self._work += work or count
        self._tokens += tokens
        now = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(self._rates(now), refresh=False)
            self._bar.update(count)
        elif not self._quiet and now - self._shown_at >= LINE_EVERY_S:
            self._shown_at = now
            of = f" of {self._total:,}" if self._total is not None else ""
            line = f"{self._what}: {self._done:,}{of} {self._unit}, {self._rates(now)}"
            click.echo(f"gemb: {line}", err=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _rates(self, now: float) -> str:
        seconds = max(1e-9, now - self._began)
        words = f"{self._done / seconds:,.0f} {self._unit}/s"
        if self._tokens:
            words += f", {self._tokens / seconds:,.0f} tokens/s"
        if self._all_work:
            left = max(0, self._all_work - self._work) * seconds / max(1, self._work)
            words += f", {duration(left)} left"
        return words
