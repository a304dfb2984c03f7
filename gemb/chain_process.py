"""The process of a stage: its output passed through and kept, signals handed on to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from gemb.errors import Stopped
from gemb.io.signals import SignalContext


def run_process(command: Sequence[str], kept: Path, signals: Signals) -> int:
    """Return the exit code of a process; negative: the signal that killed it.

    Args:
        command: program and arguments.
        kept: the file to which its standard output goes, beside ours.
        signals: what hands signals on to it.

    Raises:
        OSError: it cannot be started, or its output goes nowhere.
    """
    with kept.open("wb") as printed:
        # A group of its own: Ctrl-C comes to it once, from here.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            process_group=0,
        )
        try:
            signals.follow(process)
            assert process.stdout, "it is a pipe"
            while part := process.stdout.read1():  # type: ignore[attr-defined]
                printed.write(part)
                sys.stdout.buffer.write(part)
                sys.stdout.buffer.flush()
            return process.wait()
        finally:
            signals.child = None
            if process.poll() is None:
                process.terminate()
                process.wait()


class Signals(SignalContext):
    """A context that hands signals on to the stage's process, and remembers the first."""

    def __init__(self) -> None:
        """Begin without a process."""
        super().__init__()
        self.child: subprocess.Popen[bytes] | None = None
        self._name = ""

    def follow(self, child: subprocess.Popen[bytes]) -> None:
        """Hand on to this process what comes, and what has come while it was started."""
        self.child = child
        if self._name:
            self._hand_on(signal.Signals[self._name])

    def check(self, stage: str) -> None:
        """Raise Stopped if a signal came."""
        if self._name:
            raise Stopped(
                f"stopped by {self._name} at stage {stage}; the same command goes on there"
            )

    def _come(self, number: int, frame: FrameType | None) -> None:
        self._name = self._name or signal.Signals(number).name
        self._hand_on(number)

    def _hand_on(self, number: int) -> None:
        if self.child is not None and self.child.poll() is None:
            os.kill(self.child.pid, number)
