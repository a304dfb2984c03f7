"""How far a training run is: a bar on a terminal, plain lines elsewhere, all on stderr."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import click

from gemb.durations import duration
from gemb.progress import terminal_bar

WINDOW = 20  # steps that rates are averaged over
LINE_EVERY_S = 10.0  # off a terminal


class TrainingProgress:
    """Loss, tokens a second and the time left, as steps end."""

    def __init__(self, total_steps: int, first_step: int, *, quiet: bool) -> None:
        """Begin.

        Args:
            total_steps: of the whole run.
            first_step: how many of them were done before; 0 but in a resumed run.
            quiet: show nothing, notes neither.
        """
        self._total = total_steps
        self._quiet = quiet
        self._window: deque[tuple[float, int]] = deque(maxlen=WINDOW)  # seconds, tokens
        self._clock = time.monotonic()
        self._shown_at = -float("inf")
        self._pending = ""  # the line of the last step, until it is shown
        self._bar: Any = None
        if not quiet:
            self._bar = terminal_bar(
                total=total_steps,
                initial=first_step,
                bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
            )

    def step(self, step: int, loss: float, tokens: int) -> None:
        """Count a step that has ended.

        Args:
            step: its number, from 1.
            loss: of this step.
            tokens: of this step alone.
        """
        now = time.monotonic()
        self._window.append((now - self._clock, tokens))
        self._clock = now
        if self._quiet:
            return
        seconds = max(1e-9, sum(each for each, _ in self._window))
        rate = sum(count for _, count in self._window) / seconds
        words = [f"loss {loss:#.4g}", f"{rate:,.0f} tokens/s"]
        if step < self._total:
            left = (self._total - step) * seconds / len(self._window)
            words.append(f"{duration(left)} left")
        said = ", ".join(words)
        if self._bar is not None:
            self._bar.set_postfix_str(said, refresh=False)
            self._bar.update(step - self._bar.n)
            return
        self._pending = f"gemb: step {step}/{self._total}, {said}"
        if now - self._shown_at >= LINE_EVERY_S:
            self._show(now)

    def skip_pause(self) -> None:
        """Leave out of the rates what passed since the last step: it was no training."""
        self._clock = time.monotonic()

    def note(self, line: str) -> None:
        """Print a line that stays, above the bar."""
        if self._quiet:
            return
        if self._bar is None:
            click.echo(f"gemb: {line}", err=True)
        else:
            with self._bar.external_write_mode():
                click.echo(f"gemb: {line}", err=True)

    def close(self) -> None:
        """Say how far it came, where the last step was not shown, and leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._pending:
            self._show(time.monotonic())

    def _show(self, now: float) -> None:
        click.echo(self._pending, err=True)
        self._pending = ""
        self._shown_at = now
