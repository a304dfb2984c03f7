"""What each stage of a search did, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from gemb.io.notes import note


class Stages:
    """Seconds and counts of one search."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._began = time.perf_counter()
        self.seconds: dict[str, float] = {}  # by stage, in order
        self.drafts = 0  # passages that have a draft
        self.drafted = 0  # of these, made by this search
        self.known = 0  # passages whose vectors earlier searches made
        self.embedded = 0  # made by this one
        self.compared = 0  # passages by their vectors

    def elapsed(self) -> float:
        """Return the seconds since the search began."""
        return time.perf_counter() - self._began

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - began
            self.seconds[stage] = self.seconds.get(stage, 0.0) + took

    def say(self, passages: int, files: int) -> None:
        """Print it in one note."""
        drafts = f"; drafts: {self.drafts:,}, {self.drafted:,} of them new" if self.drafts else ""
        times = ", ".join(f"{stage} {took:.2f} s" for stage, took in self.seconds.items())
        note(
            f"passages: {passages:,}, files: {files:,}{drafts}; vectors: "
            f"{self.known + self.embedded:,}, {self.embedded:,} of them new; {times}"
        )
