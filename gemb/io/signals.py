"""Contexts in which signals are handled in another way; afterwards as before."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self


@contextmanager
def one_interrupt() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt once while the block runs; the next one ends at once.

    For a command that saves what it has when it is stopped, with threads that may not end soon.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # the parent process ignores it
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, before)


SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)


class SignalContext(ABC):
    """Takes over those of `SIGNALS` that the parent process does not ignore."""

    def __init__(self) -> None:
        """Take over nothing yet."""
        self._before: dict[int, Any] = {}  # signal -> its handler outside of the context

    def __enter__(self) -> Self:
        """Take the signals over."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:  # a closing terminal sends it, and then its shell
            signal.signal(number, signal.SIG_IGN)
        self._come(number, frame)

    @abstractmethod
    def _come(self, number: int, frame: FrameType | None) -> None:
        """Do what a signal asks for; called in the main thread, between any two steps of it."""
