"""The bar on stderr: how far the input is, rows and tokens a second, and the time left."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import click

from gemb.io.text import duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gemb.embedding.pipeline import Row


def terminal_bar(**options: Any) -> Any:  # noqa: ANN401 - a tqdm, which is imported late
    """Return a tqdm bar with these options, or None where stderr is no terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    from tqdm import tqdm

    size = os.get_terminal_size(sys.stderr.fileno())
    is_sized = size.columns > 0 and size.lines > 0
    return tqdm(
        miniters=1,  # each update is seen; tqdm would guess from their sizes
        delay=1,  # seconds: what is done by then needs no bar
        # Some terminals say that they are 0 wide or high, and tqdm would believe it.
        dynamic_ncols=is_sized,
        ncols=None if is_sized else size.columns or 80,
        nrows=None if is_sized else size.lines or 24,
        **options,
    )


class Progress:
    """A bar where stderr is a terminal that shows nothing else; else nothing."""

    def __init__(self, total: int | None, *, wanted: bool) -> None:
        """Begin. `total` is the sum of all `Record.size` to come, None where it is not known."""
        self._bar: Any = None
        self._total = total
        self._rows = 0
        self._tokens = 0
        self._began = time.monotonic()
        if wanted:
            self._bar = terminal_bar(
                total=total,
                unit="rows" if total is None else "B",
                unit_scale=True,
                leave=False,
            )

    def add(self, rows: Sequence[Row]) -> None:
        """Count rows that are done."""
        if self._bar is None:
            return
        self._rows += len(rows)
        self._tokens += sum(row.tokens for row in rows)
        rate = self._tokens / max(1e-9, time.monotonic() - self._began)
        self._bar.set_postfix_str(f"{self._rows} rows, {rate:.0f} tokens/s", refresh=False)
        known = sum(row.record.size for row in rows)
        self._bar.update(len(rows) if self._total is None else known)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


# How far a long count is, on stderr: texts that get vectors, rows that get negatives.


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


# How far a training run is: a bar on a terminal, plain lines elsewhere, all on stderr.


WINDOW = 20  # steps that rates are averaged over
TRAINING_LINE_EVERY_S = 10.0  # off a terminal


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
        if now - self._shown_at >= TRAINING_LINE_EVERY_S:
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
