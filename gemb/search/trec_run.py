"""Hits as a run that trec_eval reads: `query Q0 document rank score tag`."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from gemb.index.hits import Hit
from gemb.search.excerpts import Excerpt
from gemb.search.form import Write
from gemb.search.queries import Query

TAG = "gemb"


class TrecRun:
    """One line for each hit. White space in an id, and %, are written as %20 and %25."""

    needs_lines = False

    def __init__(self, write: Write, *, by_rank: bool = False) -> None:
        """Begin; `by_rank` writes 1 / rank for the score, where the order is not by the score."""
        self._write = write
        self._by_rank = by_rank

    def show(self, query: Query, found: Sequence[Excerpt]) -> None:
        """Write the answers to one query, best first."""
        for rank, excerpt in enumerate(found, 1):
            score = 1 / rank if self._by_rank else excerpt.hit.score
            document = _word(document_id(excerpt.hit))
            line = f"{_word(query.id)} Q0 {document} {rank} {score:.9g} {TAG}\n"
            self._write(line.encode())


def document_id(hit: Hit) -> str:
    """Return the id of a row, or path:line of a passage."""
    if hit.id is not None:
        return str(hit.id)
    return f"{hit.path or '-'}:{hit.line or 0}"


def _word(text: str) -> str:
    if text and not any(one.isspace() or one == "%" or not one.isprintable() for one in text):
        return text
    return quote(text, safe="/:@-._~#,;=+()[]!", errors="surrogateescape") or "-"
