"""SIGTERM, SIGHUP, SIGUSR1, Ctrl-C: while steps run, at the step's end; before and after, now."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from gemb.errors import Stopped
from gemb.io.notes import note
from gemb.io.signals import SignalContext
from gemb.recipe.run_folder import RunFolder
from gemb.training.outcome import StoppedAlone, hand_over


class EarlyStop(SignalContext):
    """A context around a whole run, for what comes before the first step and after the last.

    A signal ends it at once. What these parts have on the disk is kept, as the teacher's vectors.
    Where a later run finds a checkpoint it is `Stopped`; else it ends as any program that the
    signal meets. SIGUSR1 is always `Stopped`: a cluster sends it before the time is up, to see the
    run in the queue again.
    """

    def __init__(self, run: RunFolder | None) -> None:
        """Begin without a signal.

        Args:
            run: where checkpoints may be; None: nothing is to go on, as after a look at the data.
        """
        super().__init__()
        self._run = run
        self._number = 0  # of the signal that came first
        self._leaves = False

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """Leave the process without unwinding: around imports, which may swallow an exception.

        Nothing may be half-written meanwhile.
        """
        self._leaves = True
        try:
            yield
        finally:
            self._leaves = False

    def check(self) -> None:
        """End, if a signal came: some library may have swallowed its exception.

        Raises:
            Stopped: and what the signal raised before this context.
        """
        if self._number:
            self._end(self._number, None)

    def _come(self, number: int, frame: FrameType | None) -> None:
        self._number = self._number or number
        if self._leaves:
            self._leave(number)
        self._end(number, frame)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self._is_stop(number):
            raise _stopped(number)
        before = self._before[number]
        if callable(before):
            before(number, frame)
        else:
            signal.signal(number, before)
            signal.raise_signal(number)

    def _leave(self, number: int) -> NoReturn:
        # As `gemb.cli.main` ends, which the signal would reach by an exception.
        error: BaseException = KeyboardInterrupt()
        code, line = 128 + number, "interrupted" if number == signal.SIGINT else "terminated"
        if self._is_stop(number):
            error = stopped = _stopped(number)
            code, line = stopped.exit_code, str(stopped)
        code, line = hand_over(code, line, error)
        if line and sys.stderr is not None:
            with suppress(OSError):  # the terminal may have been closed
                os.write(sys.stderr.fileno(), f"gemb: {line}\n".encode())
        os._exit(code)

    def _is_stop(self, number: int) -> bool:
        if self._run is None:
            return False
        return number == signal.SIGUSR1 or self._run.has_checkpoint


def _stopped(number: int) -> Stopped:
    name = signal.Signals(number).name
    return StoppedAlone(f"stopped by {name}; the same command with --resume auto goes on")


class StopRequest(SignalContext):
    """A context in which the signals are remembered; a second Ctrl-C ends at once."""

    def __init__(self) -> None:
        """Begin without a request."""
        super().__init__()
        self.name = ""  # of the signal that came

    def _come(self, number: int, frame: FrameType | None) -> None:
        if self.name and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.name:
            note("stopping: the step is finished and saved first; Ctrl-C again does not wait")
        self.name = signal.Signals(number).name
