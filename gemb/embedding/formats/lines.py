"""Vectors as lines of text: JSON lines, CSV, base64, and a preview for a terminal."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from orjson import OPT_APPEND_NEWLINE, OPT_NON_STR_KEYS, OPT_SERIALIZE_NUMPY, dumps

from gemb.arrays import Vectors
from gemb.embedding import DTYPES
from gemb.embedding.formats.base import (
    BATCH,
    BATCH_BYTES,
    Description,
    FileLayout,
    RowBatch,
    VectorReader,
    stored,
)
from gemb.embedding.pipeline import OutputRow
from gemb.embedding.vectors import NUMBERS
from gemb.errors import UsageError
from gemb.io.streams import Output
from gemb.io.text import visible
from gemb.texts.lines import Line, file_lines
from gemb.texts.records import as_json, as_text
from gemb.texts.tables import json_value

FIRST_LINES = 1000  # among which there is a row with a vector, if a file holds any


class JsonLinesWriter:
    """One object a row."""

    def __init__(self, output: Output, layout: FileLayout) -> None:
        self._output = output
        self._layout = layout
        self._fingerprint = layout.spec.fingerprint

    def write(self, rows: Sequence[OutputRow], vectors: Vectors) -> None:
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
            lines.append(dumps(line, as_text, option))
        self._output.write(b"".join(lines))

    def finish(self) -> None:
        """Nothing comes after the last row."""


class JsonLinesReader(VectorReader):
    """Rows of JSON lines; blank lines are passed over. The first vector decides type and width."""

    unit = "line"

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Return whether the first vector, among the first lines, is one that gemb wrote."""
        try:
            for line in islice(file_lines(path), FIRST_LINES):
                if _is_blank(line):
                    continue
                row = json_value(line.data)[0]
                if not isinstance(row, dict) or not {"embedding", "error"} & row.keys():
                    return False
                if "embedding" in row:
                    is_ours = "fingerprint" in row and row.get("dtype", "f32") in DTYPES
                    return is_ours and isinstance(row["embedding"], list)
        except UsageError:  # it is no text: readers of texts say so
            return False
        return False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.description = Description(dim=0)
        for number, fields, _ in self._rows():
            embedding, dtype = fields.get("embedding"), fields.get("dtype", "f32")
            if embedding is None:
                continue
            if dtype not in DTYPES:
                raise UsageError(f"{self._place(number)}: no type {dtype!r} of vectors")
            vector = self._vector(embedding, dtype, number)
            if vector.ndim != 1:
                raise UsageError(f"{self._place(number)}: a vector of shape {list(vector.shape)}")
            self.description = Description(
                dim=len(vector) * (8 if dtype == "ubinary" else 1),
                dtype=dtype,
                task=str(fields.get("task", "")),
                fingerprint=str(fields.get("fingerprint", "")),
            )
            break

    def _batches(self, fields: Collection[str] | None) -> Iterator[RowBatch]:
        width = self.description.width
        blank = np.zeros(width, NUMBERS[self.description.dtype])
        numbers: list[int] = []
        rows: list[Mapping[str, Any]] = []
        vectors: list[NDArray[Any] | None] = []
        line_bytes = 0

        def batch() -> RowBatch:
            has_vector = np.array([vector is not None for vector in vectors], np.bool_)
            numbers_of = [blank if vector is None else vector for vector in vectors]
            return RowBatch(numbers, rows, np.stack(numbers_of), has_vector)

        for number, row, size in self._rows():
            embedding = row.pop("embedding", None)
            numbers.append(number)
            rows.append(row)
            vectors.append(None if embedding is None else self._checked(embedding, row, number))
            line_bytes += size
            if len(rows) == BATCH or line_bytes >= BATCH_BYTES:
                yield batch()
                numbers, rows, vectors, line_bytes = [], [], [], 0
        if rows:
            yield batch()

    def _rows(self) -> Iterator[tuple[int, dict[str, Any], int]]:
        """Yield the number of each line that is not blank, from 1, its fields, and its bytes."""
        for line in self._lines():
            if _is_blank(line):
                continue
            fields, error = (None, line.error) if line.error else json_value(line.data)
            if not isinstance(fields, dict):
                reason = f": {error.message}" if error and error.code != "bad_json" else ""
                raise UsageError(f"{self._place(line.number)}: no row of vectors{reason}")
            yield line.number, fields, line.size

    def _lines(self) -> Iterator[Line]:
        """Yield the lines of the file, from the first."""
        return file_lines(self.path)

    def _checked(self, embedding: object, row: Mapping[str, Any], number: int) -> NDArray[Any]:
        """Return a row's vector as it is stored, [width].

        Raises:
            UsageError: it is of another type or width than the first one.
        """
        dtype, width = self.description.dtype, self.description.width
        own_dtype = row.get("dtype", "f32")
        if own_dtype != dtype:
            raise UsageError(f"{self._place(number)}: {own_dtype} after rows of {dtype}")
        vector = self._vector(embedding, dtype, number)
        if vector.shape != (width,):
            shape = list(vector.shape)
            raise UsageError(
                f"{self._place(number)}: a vector of shape {shape}; the rows before: [{width}]"
            )
        return vector

    def _vector(self, embedding: object, dtype: str, number: int) -> NDArray[Any]:
        try:
            return np.array(embedding, NUMBERS[dtype])
        except (ValueError, TypeError, OverflowError):
            raise UsageError(f"{self._place(number)}: no row of vectors") from None

    def _place(self, number: int) -> str:
        return f"{visible(str(self.path))}, line {number}"


def _is_blank(line: Line) -> bool:
    return not (line.error or line.data.strip())


class PreviewWriter:
    """One short line a row, for a terminal."""

    def __init__(self, output: Output, layout: FileLayout) -> None:
        self._output = output
        self._dim = layout.spec.dim

    def write(self, rows: Sequence[OutputRow], vectors: Vectors) -> None:
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


class CsvWriter:
    """A header, then id, kept fields, error code, and one column for each component."""

    def __init__(self, output: Output, layout: FileLayout) -> None:
        self._output = output
        self._layout = layout
        width = layout.spec.width
        self._blank = "," * (width - 1)
        output.write(_csv_line(["id", *layout.kept, "error", *(f"v{i}" for i in range(width))]))

    def write(self, rows: Sequence[OutputRow], vectors: Vectors) -> None:
        """Write one line for each row."""
        numbers = stored(vectors, self._layout.spec)
        lines = []
        for row, vector in zip(rows, numbers, strict=True):
            fields = (_cell(row.record.kept.get(name)) for name in self._layout.kept)
            cells = [row.record.id, *fields]
            head = _csv_line([*cells, row.error.code if row.error else ""])[:-1]
            if row.error:
                body = self._blank.encode()
            else:  # a JSON list without its brackets
                body = orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
            lines.append(head + b"," + body + b"\n")
        self._output.write(b"".join(lines))

    def finish(self) -> None:
        """Nothing comes after the last row."""


class Base64Writer:
    """A line for each row: its little-endian numbers in base64; NaN where it failed."""

    def __init__(self, output: Output, layout: FileLayout) -> None:
        self._output = output
        self._spec = layout.spec

    def write(self, rows: Sequence[OutputRow], vectors: Vectors) -> None:
        """Write one line for each row."""
        lines = [base64.b64encode(row.tobytes()) + b"\n" for row in stored(vectors, self._spec)]
        self._output.write(b"".join(lines))

    def finish(self) -> None:
        """Nothing comes after the last row."""


def _cell(value: object) -> object:
    return as_json(value) if isinstance(value, bool | dict | list) else value


def _csv_line(cells: Sequence[object]) -> bytes:
    line = io.StringIO()
    # Only characters of the line end are quoted, and a reader takes \r for one.
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue().removesuffix("\r\n").encode() + b"\n"
