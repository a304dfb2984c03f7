"""What a search returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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
    stale: str | None = None  # its file is gone or changed since it was indexed; None: neither
    is_estimate: bool = False  # it has no vector yet: the score is what it would probably be
    is_named: bool = False  # it has the very names or words of the question, which come first
    copies: int = 1  # passages of the same text, of which only this one is shown
    ranks: Mapping[str, int | None] = field(default_factory=dict)  # by words, draft and vector


class Ranked(NamedTuple):
    """Rows, best first."""

    rows: NDArray[np.int64]  # [n]; slots of an index, or places in a list of passages
    scores: NDArray[np.float64]  # [n], higher is better
