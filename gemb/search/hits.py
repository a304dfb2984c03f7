"""What a search finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gemb.texts.records import Id


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One passage or row that answers a query."""

    score: float  # cosine of its vector and the query's
    text: str  # all of the passage, without its prompt
    path: str | None = None  # as the user would type it; None: the row came from no file
    line: int | None = None  # of the passage's first line, from 1; None where there are no lines
    last_line: int | None = None  # of its last line, itself included
    title: str | None = None
    id: Id | None = None  # of a row; None for a passage of a file
    kept: Mapping[str, object] = field(default_factory=dict)  # a row's further fields
