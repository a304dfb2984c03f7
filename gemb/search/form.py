"""What every form of output has in common: it is given the answers query by query, and writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from gemb.search.excerpts import Excerpt
from gemb.search.hits import Hit
from gemb.search.queries import Query
from gemb.visible import visible

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


def shown_name(hit: Hit) -> str:
    """Return where a hit is from, with nothing in it that a terminal obeys or that ends a line."""
    if hit.path is not None:
        return visible(hit.path)
    return STDIN if is_bare(hit) else visible(str(hit.id))
