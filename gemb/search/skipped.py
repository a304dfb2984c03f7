"""What a walk or a reading left out, and why: counted, and said on stderr."""

from __future__ import annotations

from gemb.notes import note, warn
from gemb.visible import visible

FEW = 5  # failures that are named one by one; the others are counted


class Skipped:
    """What was left out. As with grep, `failed` > 0 means exit code 2, whatever was found."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.failed = 0  # could not be read: no permission, no such file, an I/O error
        self.binary = 0  # a NUL in their first 8 KiB
        self.undecodable = 0  # read all the same, with U+FFFD for what is no UTF-8
        self.too_big: list[tuple[int, str]] = []  # size and path
        self._quiet = quiet

    def failure(self, path: str, message: str) -> None:
        """Count what should have been read and could not, and name it (the first few)."""
        self.failed += 1
        if self.failed <= FEW:
            warn(f"{visible(path)}: {message}")

    def say(self) -> None:
        """Say at the end, in a line for each kind, what was left out."""
        raise NotImplementedError
