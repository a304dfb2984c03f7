"""Vectors that `gemb embed` wrote as JSON lines, row by row."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray
from orjson import OPT_APPEND_NEWLINE, OPT_NON_STR_KEYS, OPT_SERIALIZE_NUMPY, dumps

from gemb.arrays import Vectors
from gemb.embedding.formats.base import Layout, stored
from gemb.embedding.pipeline import Row
from gemb.errors import UsageError
from gemb.io.streams import Output
from gemb.texts.records import as_json


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


# Vectors as lines of text: JSON lines, CSV, base64, and a preview for a terminal.


class JsonLines:
    """One object a row."""

    def __init__(self, output: Output, layout: Layout) -> None:
        self._output = output
        self._layout = layout
        self._fingerprint = layout.spec.fingerprint

    def write(self, rows: Sequence[Row], vectors: Vectors) -> None:
        """Write one line for each row."""
        option = OPT_APPEND_NEWLINE | OPT_NON_STR_KEYS | OPT_SERIALIZE_NUMPY
        numbers = stored(vectors, self._layout.spec)
        lines = []
        for row, vector in zip(rows, numbers, strict=True):
            line: dict[str, object] = {"id": row.record.id, **row.record.kept}
            if row.error:
                line["error"] = {"code": row.error.code, "message": row.error.message}
            else:
                line["embedding"] = vector
                line["tokens"] = row.tokens
                if row.is_cut:
                    line["truncated"] = True
                if self._layout.spec.dtype != "f32":
                    line["dtype"] = self._layout.spec.dtype
                line["task"] = self._layout.task
                line["fingerprint"] = self._fingerprint
            lines.append(dumps(line, str, option))
        self._output.write(b"".join(lines))

    def finish(self) -> None:
        """Nothing comes after the last row."""


class Preview:
    """One short line a row, for a terminal."""

    def __init__(self, output: Output, layout: Layout) -> None:
        self._output = output
        self._dim = layout.spec.dim

    def write(self, rows: Sequence[Row], vectors: Vectors) -> None:
        """Write one line for each row."""
        lines = []
        for row, vector in zip(rows, vectors, strict=True):
            if row.error:
                shown = f"error: {row.error.message}"
            else:
                first = " ".join(f"{number:+.4f}" for number in vector[:4])
                shown = f"[{first} ...]  {self._dim} dims, {row.tokens} tokens"
            lines.append(f"{row.record.id}  {shown}{', cut' if row.is_cut else ''}\n")
        self._output.write("".join(lines).encode())

    def finish(self) -> None:
        """Nothing comes after the last row."""


class Csv:
    """A header, then id, kept fields, error code, and one column for each component."""

    def __init__(self, output: Output, layout: Layout) -> None:
        self._output = output
        self._layout = layout
        width = stored(np.zeros((1, layout.spec.dim), np.float32), layout.spec).shape[1]
        self._blank = "," * (width - 1)
        output.write(_csv_line(["id", *layout.kept, "error", *(f"v{i}" for i in range(width))]))

    def write(self, rows: Sequence[Row], vectors: Vectors) -> None:
        """Write one line for each row."""
        numbers = stored(vectors, self._layout.spec)
        lines = []
        for row, vector in zip(rows, numbers, strict=True):
            kept = (_cell(row.record.kept.get(name)) for name in self._layout.kept)
            cells = [row.record.id, *kept]
            head = _csv_line([*cells, row.error.code if row.error else ""])[:-1]
            if row.error:
                body = self._blank.encode()
            else:  # a JSON list without its brackets
                body = orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
            lines.append(head + b"," + body + b"\n")
        self._output.write(b"".join(lines))

    def finish(self) -> None:
        """Nothing comes after the last row."""


class Base64:
    """A line for each row: its little-endian numbers in base64; NaN where it failed."""

    def __init__(self, output: Output, layout: Layout) -> None:
        self._output = output
        self._spec = layout.spec

    def write(self, rows: Sequence[Row], vectors: Vectors) -> None:
        """Write one line for each row."""
        lines = [base64.b64encode(row.tobytes()) + b"\n" for row in stored(vectors, self._spec)]
        self._output.write(b"".join(lines))

    def finish(self) -> None:
        """Nothing comes after the last row."""


def _cell(value: object) -> object:
    return as_json(value) if isinstance(value, bool | dict | list) else value


def _csv_line(cells: Sequence[object]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue().encode()
