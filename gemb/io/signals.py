"""A context in which signals come to an object of ours, and afterwards to whoever had them."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class SignalContext(ABC):
    """Takes over those of `SIGNALS` that are not ignored: who started us wants them so."""

    def __init__(self) -> None:
        """Take over nothing yet."""
        self._before: dict[int, Any] = {}  # signal -> its handler outside of the context

    def __enter__(self) -> Self:
        """Take the signals over."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._come)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @abstractmethod
    def _come(self, number: int, frame: FrameType | None) -> None:
        """Do what a signal asks for; called in the main thread, between any two steps of it."""
