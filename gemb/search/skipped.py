"""What a walk or a reading left out, and why: counted, and said on stderr."""

from __future__ import annotations

from pathlib import Path

from gemb.io.notes import note, warn
from gemb.io.text import visible

FEW = 5  # failures that are named one by one; the others are counted


class Skipped:
    """What was left out. As with grep, `failed` > 0 means exit code 2, whatever was found."""

    def __init__(self, *, quiet: bool = False, silent: bool = False) -> None:
        """Begin with nothing.

        Args:
            quiet: no notes.
            silent: failures are not named, either, only kept for `adopt`.
        """
        self.failed = 0  # could not be read: no permission, no such file, an I/O error
        self.binary = 0  # a NUL in their first 8 KiB
        self.undecodable: list[str] = []  # read all the same, with U+FFFD for what is no UTF-8
        self.too_big: list[tuple[int, str]] = []  # size and path
        self.cut = 0  # passages that are longer than the model takes: their beginning counts
        self.changed = 0  # passages that are no longer where they were found
        self.named_binary = 0  # of the binary ones, those that the user named
        self._quiet = quiet
        self._silent = silent
        self._failures: list[tuple[str, str]] = []
        self._rules: set[str] = set()  # files of them that cannot be read

    def failure(self, path: str, message: str) -> None:
        """Count what should have been read and could not, and name it (the first few)."""
        self.failed += 1
        if self.failed > FEW:
            return
        self._failures.append((path, message))
        if not self._silent:
            warn(f"{visible(path)}: {message}")

    def rules(self, path: str, message: str) -> None:
        """Name a file of rules that cannot be read, once; nothing is left out by it, or lost."""
        if path not in self._rules and not self._silent:
            warn(f"{visible(path)}: {message}; what it leaves out is taken")
        self._rules.add(path)

    def adopt(self, other: Skipped) -> None:
        """Count the failures of another one, a silent one's."""
        for path, message in other._failures:
            self.failure(path, message)

    def binary_file(self, path: str, *, is_named: bool) -> None:
        """Count a binary file."""
        self.binary += 1
        self.named_binary += is_named

    def big(self, path: str, real: str, size: int, *, is_named: bool) -> None:
        """Count a file that is over the bound, or as binary where it is no text."""
        from gemb.search.reading import LOOKED_AT, is_binary

        try:
            with Path(real).open("rb") as file:
                if is_binary(file.read(LOOKED_AT)):
                    self.binary_file(path, is_named=is_named)
                    return
        except OSError:
            pass  # it would have been left out anyhow
        if is_named:
            larger = shown_size(size, up=True)
            self.failure(
                path,
                f"{shown_size(size)} is long for a text; --max-size {larger} takes it",
            )
        else:
            self.too_big.append((size, path))

    def say(self) -> None:
        """Say at the end, in a line for each kind, what was left out. Failures are always said."""
        if self.failed > FEW:
            warn(f"{self.failed - FEW:,} more files or passages failed in such ways")
        if self._quiet:
            return
        if self.too_big:
            size, path = max(self.too_big)
            count = len(self.too_big)
            note(
                f"{count:,} {'file was' if count == 1 else 'files were'} left out for "
                f"{'its' if count == 1 else 'their'} size (the largest: {visible(path)}, "
                f"{shown_size(size)}); --max-size {shown_size(size, up=True)} takes them"
            )
        if self.named_binary:
            count = self.named_binary
            note(f"{count:,} binary {'file was' if count == 1 else 'files were'} left out")
        if self.undecodable:
            count = len(self.undecodable)
            note(
                f"{count:,} {'file is' if count == 1 else 'files are'} not all UTF-8 (first: "
                f"{visible(self.undecodable[0])}); what is none was read as U+FFFD"
            )
        if self.cut:
            count = self.cut
            are, their = ("passage is", "its") if count == 1 else ("passages are", "their")
            note(f"{count:,} {are} longer than the model takes; {their} beginning counts")
        if self.changed:
            count = self.changed
            have, are = ("passage has", "is") if count == 1 else ("passages have", "are")
            note(f"{count:,} {have} changed during the search and {are} left out")


def shown_size(size: int, *, up: bool = False) -> str:
    """Return bytes as 2.1G or 75M; with `up`, a whole number that is no less."""
    for letter, unit in (("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if size >= unit:
            return f"{-(-size // unit)}{letter}" if up else f"{size / unit:.1f}{letter}"
    return str(size)
