"""Hits as JSON lines."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import orjson

from gemb.search.excerpts import Excerpt
from gemb.search.form import Write
from gemb.search.queries import Query

NAMES = ("rank", "score", "id", "path", "line", "last_line", "best_line", "title", "text")


class JsonHits:
    """`{"rank": 1, "score": 0.71, "id": null, "path": "a.md", "line": 3, ...}` for each hit.

    Fields that were kept with a row follow; one with a name of ours is in the object `kept`. A
    path that is not UTF-8 has U+FFFD in it, and its bytes in `path_base64`.
    """

    needs_lines = True

    def __init__(self, write: Write, *, with_query: bool = False) -> None:
        """Begin; `with_query` writes the query's id first, for there are several."""
        self._write = write
        self._with_query = with_query

    def show(self, query: Query, found: Sequence[Excerpt]) -> None:
        """Write the answers to one query, best first."""
        for rank, excerpt in enumerate(found, 1):
            entries: dict[str, object] = {"query": query.id} if self._with_query else {}
            entries |= _entries(rank, excerpt)
            options = orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS
            self._write(orjson.dumps(entries, str, options))


def _entries(rank: int, excerpt: Excerpt) -> dict[str, object]:
    hit = excerpt.hit
    path = raw = None
    if hit.path is not None:
        raw = hit.path.encode(errors="surrogateescape")
        path = raw.decode(errors="replace")
    entries: dict[str, object] = {
        "rank": rank,
        "score": round(hit.score, 6),
        "id": hit.id,
        "path": path,
        "line": hit.line,
        "last_line": hit.last_line,
        "best_line": excerpt.number(excerpt.best),
        "title": hit.title,
        "text": hit.text,
    }
    if raw is not None and path != hit.path:
        entries["path_base64"] = base64.b64encode(raw).decode()
    taken = {name: value for name, value in hit.kept.items() if name in (*entries, "query")}
    entries |= {name: value for name, value in hit.kept.items() if name not in taken}
    return entries | ({"kept": taken} if taken else {})
