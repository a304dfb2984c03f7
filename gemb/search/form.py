"""What every form of output has in common: it is given the answers query by query, and writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from gemb.index.hits import Hit
from gemb.io.text import visible
from gemb.search.excerpts import Excerpt
from gemb.search.queries import Query

Write = Callable[[bytes], object]
STDIN = "(standard input)"  # as grep names it


class Form(Protocol):
    """Writes what was found."""

    needs_lines: bool  # whether it shows the line that answers best, so that it should be right

    def show(self, query: Query, found: Sequence[Excerpt]) -> None:
        """Write the answers to one query, best first."""


def encoded(text: str) -> bytes:
    """Return UTF-8; a name that is not UTF-8 keeps its bytes."""
    return text.encode(errors="surrogateescape")


def is_bare(hit: Hit) -> bool:
    """Return whether a hit is a line that has no name: of standard input."""
    return hit.path is None and (hit.id is None or hit.id == hit.line)


def shown_name(hit: Hit, *, is_terminal: bool = True) -> str:
    """Return where a hit is from, with nothing in it that a terminal obeys or that ends a line.

    Off a terminal bytes of a name that are no UTF-8 stay what they are, as with grep and ripgrep.
    """
    if hit.path is not None:
        if is_terminal or hit.path.isascii():
            return visible(hit.path)
        return "".join(one if _is_byte(one) else visible(one) for one in hit.path)
    return STDIN if is_bare(hit) else visible(str(hit.id))


def _is_byte(character: str) -> bool:
    """Return whether it stands for a byte that is no UTF-8 (the error handler surrogateescape)."""
    return "\udc80" <= character <= "\udcff"
