"""Vectors that `gemb embed` wrote as JSON lines, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from gemb.errors import UsageError


class VectorRow(NamedTuple):
    """A line."""

    number: int  # from 1
    place: str  # `FILE, line N`, for messages
    fields: dict[str, Any]
    vector: NDArray[np.float32] | None  # as it was stored, [width]; None: its text failed


def read_rows(path: Path) -> Iterator[VectorRow]:
    """Yield the rows of a file; blank lines are passed over.

    Raises:
        UsageError: a line holds no row, or a vector of another shape than those before.
        OSError: the file cannot be read.
    """
    width = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            place = f"{path}, line {number}"
            try:
                fields = orjson.loads(line)
                embedding = fields.get("embedding")
                vector = None if embedding is None else np.array(embedding, np.float32)
            except (ValueError, AttributeError, TypeError):
                raise UsageError(f"{place}: no row of vectors") from None
            if vector is not None:
                if vector.ndim != 1 or (width and len(vector) != width):
                    before = f"; the rows before: [{width}]" if width else ""
                    raise UsageError(f"{place}: a vector of shape {list(vector.shape)}{before}")
                width = len(vector)
            yield VectorRow(number, place, fields, vector)
