"""SIGTERM, SIGUSR1 and Ctrl-C: while steps run, not now, but at the end of the step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from gemb.errors import Stopped
from gemb.notes import note


@contextmanager
def usr1_stops() -> Iterator[None]:
    """Let SIGUSR1 end the run at once, as one that a later run goes on with.

    Around a whole run, for what comes before the first step and after the last: a cluster signals
    so before the time is up, and to do nothing about it would kill the process. What these parts
    have on the disk is kept, as the teacher's vectors.

    Raises:
        Stopped: the signal came.
    """
    before = signal.signal(signal.SIGUSR1, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped("stopped by SIGUSR1; the same command with --resume auto goes on")


class StopRequest:
    """A context in which the three signals are remembered; a second Ctrl-C ends at once."""

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        """Begin without a request."""
        self.name = ""  # of the signal that came
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        """Take the signals over."""
        for number in self.SIGNALS:
            self._before[number] = signal.signal(number, self._come)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _come(self, number: int, frame: FrameType | None) -> None:
        if self.name and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.name:
            note("stopping: the step is finished and saved first; Ctrl-C again does not wait")
        self.name = signal.Signals(number).name
