"""SIGTERM, SIGUSR1 and Ctrl-C, while steps run: not now, but at the end of the step."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

from gemb.notes import note


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
