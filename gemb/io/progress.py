"""How far a run is, on stderr: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from gemb.io import notes
from gemb.io.text import duration, visible


class ProgressBar:
    """A bar where stderr is a terminal; elsewhere a line every few seconds, or nothing.

    With -q it shows nothing. The subclasses say what is counted, and in which words.
    """

    line_every_s = 30.0  # off a terminal
    shows_lines = True  # off a terminal

    def __init__(self, total: int | None, *, shown: bool = True, **bar: Any) -> None:  # noqa: ANN401
        """Start the clock, and the bar on a terminal.

        Args:
            total: how much is to come, None where it is not known.
            shown: False shows nothing.
            bar: options of tqdm.
        """
        self.total = total
        self.began = self._shown_at = time.monotonic()
        shown = shown and not notes.is_quiet()
        self._bar: Any = _terminal_bar(total=total, **bar) if shown else None
        if self._bar is not None:
            notes.bars.append(self._above)
        self._has_lines = shown and self._bar is None and self.shows_lines
        self._pending = ""  # the last line, until it is shown

    def show(self, count: int, rates: str, line: str) -> None:
        """Show that `count` more are done: with the rates on the bar, or the line."""
        if self._bar is not None:
            self._bar.set_postfix_str(rates, refresh=False)
            self._bar.update(count)
        elif self._has_lines:
            self._pending = line
            if time.monotonic() - self._shown_at >= self.line_every_s:
                self._tell()

    def close(self) -> None:
        """Close the bar; its option `leave` says whether it stays on the screen."""
        if self._bar is not None:
            notes.bars.remove(self._above)
            self._bar.close()
            self._bar = None

    def _above(self) -> AbstractContextManager[None]:
        """Make room for a line above the bar, where it is drawn already."""
        bar = self._bar
        is_drawn = bar.last_print_t >= bar.start_t + bar.delay
        return bar.external_write_mode(sys.stderr) if is_drawn else nullcontext()

    def _tell(self) -> None:
        notes.tell(self._pending)
        self._pending = ""
        self._shown_at = time.monotonic()


class InputProgress(ProgressBar):
    """Bytes of an input whose rows get vectors; a bar alone."""

    shows_lines = False

    def __init__(self, total: int | None, *, shown: bool = True) -> None:
        """Start the clock; `total` is the sum of all `Record.size` to come, None: not known."""
        unit = "rows" if total is None else "B"
        super().__init__(total, shown=shown, unit=unit, unit_scale=True, leave=False)
        self._rows = self._tokens = 0

    def add(self, rows: int, *, tokens: int, size: int) -> None:
        """Count rows that are done; `size` is the sum of their `Record.size`."""
        self._rows += rows
        self._tokens += tokens
        rate = self._tokens / max(1e-9, time.monotonic() - self.began)
        rates = f"{self._rows} rows, {rate:.0f} tokens/s"
        self.show(rows if self.total is None else size, rates, "")


class CountProgress(ProgressBar):
    """Texts that get vectors, rows that get negatives: with the rate and the time left."""

    def __init__(
        self, total: int | None, label: str, unit: str, *, work: int = 0, shown: bool = True
    ) -> None:
        """Start the clock, and the bar on a terminal.

        Args:
            total: how many are to come, None where it is not known.
            label: what is counted, in words.
            unit: texts, rows.
            work: of all that are to come, in any unit, where they differ much in size; the time
                left is estimated from it.
            shown: False shows nothing.
        """
        label = visible(label)
        shape = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}" if total else "{n_fmt}"
        form = "{desc}" + shape + "{postfix}"
        super().__init__(total, shown=shown, bar_format=form, desc=f"{label}: ", leave=False)
        self._label = label
        self._unit = unit
        self._all_work = work or total or 0
        self._done = self._work = self._tokens = 0

    def add(self, count: int, tokens: int = 0, work: int = 0) -> None:
        """Count what is done."""
        self._done += count
        self._work += work or count
        self._tokens += tokens
        rates = self._rates()
        of = f" of {self.total:,}" if self.total is not None else ""
        self.show(count, rates, f"{self._label}: {self._done:,}{of} {self._unit}, {rates}")

    def _rates(self) -> str:
        seconds = max(1e-9, time.monotonic() - self.began)
        rates = f"{self._done / seconds:,.0f} {self._unit}/s"
        if self._tokens:
            rates += f", {self._tokens / seconds:,.0f} tokens/s"
        if self._all_work:
            seconds_left = max(0, self._all_work - self._work) * seconds / max(1, self._work)
            rates += f", {duration(seconds_left)} left"
        return rates


class StepProgress(ProgressBar):
    """Steps of a training run: loss, tokens a second and the time left; the bar stays."""

    window = 20  # steps that rates are averaged over
    line_every_s = 10.0

    def __init__(self, total: int, first_step: int) -> None:
        """Start the clock; `first_step` of the `total` steps were done before, in a resumed run."""
        form = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
        super().__init__(total, initial=first_step, bar_format=form)
        self._total = total
        self._step = first_step
        self._window: deque[tuple[float, int]] = deque(maxlen=self.window)  # seconds, tokens
        self._clock = self.began
        self._shown_at = -float("inf")  # the first step is shown

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
        seconds = max(1e-9, sum(passed for passed, _ in self._window))
        rate = sum(count for _, count in self._window) / seconds
        parts = [f"loss {loss:#.4g}", f"{rate:,.0f} tokens/s"]
        if step < self._total:
            seconds_left = (self._total - step) * seconds / len(self._window)
            parts.append(f"{duration(seconds_left)} left")
        rates = ", ".join(parts)
        self.show(step - self._step, rates, f"step {step}/{self._total}, {rates}")
        self._step = step

    def skip_pause(self) -> None:
        """Leave the time since the last step out of the rates: it was not spent on training."""
        self._clock = time.monotonic()

    def close(self) -> None:
        """Close the bar, or print the last step where it was not shown."""
        super().close()
        if self._pending:
            self._tell()


def _terminal_bar(**options: Any) -> Any:  # noqa: ANN401 - a tqdm, which is imported late
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
