"""The text of a file, or why it has none."""

from __future__ import annotations

from gemb.search.skipped import Skipped
from gemb.search.tree import Entry


def read_text(entry: Entry, skipped: Skipped) -> str | None:
    """Return the file's text, None where it has none that can be read (counted in `skipped`).

    UTF-8, or UTF-16 where the file begins with its mark; what is no UTF-8 becomes U+FFFD. A binary
    file (a NUL in its first 8 KiB), a vanished one and one that may not be read have no text.
    """
    raise NotImplementedError
