"""Colours on a terminal: grep's colours where grep shows the same element."""

from __future__ import annotations

import os
from typing import IO


def enabled(when: str, stream: IO[str] | None) -> bool:
    """Return whether colours are shown.

    Args:
        when: always, never, or auto: on a terminal, as NO_COLOR, FORCE_COLOR and TERM allow.
        stream: to which they go.
    """
    if when != "auto":
        return when == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"


class Paint:
    """Adds colours to texts, or returns them unchanged."""

    def __init__(self, *, is_on: bool) -> None:
        """Switch colours on or off; off, each method returns its text unchanged."""
        self.is_on = is_on

    def path(self, text: str) -> str:
        """Paint the name of a file."""
        return self._with("35", text)

    def heading(self, text: str) -> str:
        """Paint the name of a file that stands alone on its line."""
        return self._with("1;35", text)

    def number(self, text: str) -> str:
        """Paint the number of a line."""
        return self._with("32", text)

    def mark(self, text: str) -> str:
        """Paint what separates."""
        return self._with("36", text)

    def score(self, text: str) -> str:
        """Paint a score."""
        return self._with("33", text)

    def word(self, text: str) -> str:
        """Paint a word of the query."""
        return self._with("1;31", text)

    def best(self, text: str) -> str:
        """Paint what answers best."""
        return self._with("1", text)

    def faint(self, text: str) -> str:
        """Paint text of less importance."""
        return self._with("2", text)

    def _with(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[m" if self.is_on and text else text
