"""How far a teacher is with the texts that have no vector yet, on stderr."""

from __future__ import annotations

import time
from typing import Any

import click

from gemb.progress import terminal_bar
from gemb.training_progress import duration

LINE_EVERY_S = 30.0  # off a terminal


class FillProgress:
    """A bar on a terminal, else a line now and then, with texts a second and the time left."""

    def __init__(self, total: int | None, name: str, *, quiet: bool) -> None:
        """Begin; `total` is the number of texts to come, None where it is not known."""
        self._total = total
        self._name = name
        self._quiet = quiet
        self._began = self._shown_at = time.monotonic()
        self._done = self._tokens = 0
        self._bar: Any = None
        if not quiet:
            self._bar = terminal_bar(
                total=total,
                bar_format="{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
                if total
                else "{desc}{n_fmt}{postfix}",
                desc=f"vectors of {name}: ",
                leave=False,
            )

    def add(self, texts: int, tokens: int) -> None:
        """Count texts that are done and on the disk."""
        self._done += texts
        self._tokens += tokens
        now = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(self._rates(now), refresh=False)
            self._bar.update(texts)
        elif not self._quiet and now - self._shown_at >= LINE_EVERY_S:
            self._shown_at = now
            of = f" of {self._total:,}" if self._total is not None else ""
            click.echo(
                f"gemb: vectors of {self._name}: {self._done:,}{of} texts, {self._rates(now)}",
                err=True,
            )

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _rates(self, now: float) -> str:
        seconds = max(1e-9, now - self._began)
        words = f"{self._done / seconds:,.0f} texts/s, {self._tokens / seconds:,.0f} tokens/s"
        if self._total:
            left = max(0, self._total - self._done) * seconds / max(1, self._done)
            words += f", {duration(left)} left"
        return words
