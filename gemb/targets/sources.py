"""The rows that are pushed: those of an index, of a file of vectors, or of `gemb embed | ...`."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from gemb import plugins
from gemb.embedding.formats.base import VectorReader
from gemb.embedding.formats.lines import JsonLinesReader
from gemb.embedding.vectors import VectorSpec, are_units, unpacked
from gemb.errors import GembError, UsageError
from gemb.index.build import BuildJob, identity_of
from gemb.index.mapped import gathered
from gemb.index.reader import Index
from gemb.index.schema import (
    COLUMNS,
    are_of_row,
    are_of_rows,
    crc,
    kept_json,
    path_of,
    readable,
)
from gemb.index.sync import kept_reference
from gemb.index.vector_source import described_vectors, vector_record
from gemb.io.paths import current_folder
from gemb.io.text import visible
from gemb.models.profile import check_dims
from gemb.models.references import resolve
from gemb.targets.base import KIND_OF, Content, PushRow, Rows, storable, storable_json
from gemb.texts.lines import Line, file_lines
from gemb.texts.records import Fields, Id, as_id
from gemb.texts.tables import json_value

STDIN = "-"
PART_BYTES = 16 << 20  # of texts, titles and kept fields: a part of fewer rows ends there

T = TypeVar("T")


class Source(Protocol):
    """Rows with vectors."""

    name: str  # in messages
    content: Content  # with the source's own width
    count: int | None  # of rows; None: unknown until they are read
    is_pipe: bool  # its rows come as they are made; the first vector is there
    failed: int  # rows without a vector so far
    failed_ids: set[str]  # of these
    has_unique_ids: bool  # it is known that no id repeats

    def parts(self, size: int) -> Iterator[tuple[Rows, NDArray[Any]]]:
        """Yield all rows that have a vector, `size` or some `PART_BYTES` at most at a time.

        With them come their vectors, [n, D], of length one, in f16 or f32 numbers.

        Raises:
            UsageError: a row has no id, or the source is damaged.
            GembError: it cannot be read.
        """


class IndexSource:
    """The rows of an index; the id of a passage is path:line."""

    failed = 0
    has_unique_ids = True
    is_pipe = False

    def __init__(self, index: Index, kind: str | None) -> None:
        """Check that each row has an id of its own.

        Raises:
            UsageError: several rows have one, or vectors are drafts.
        """
        self._index = index
        self.name = visible(str(index.folder))
        self.failed_ids: set[str] = set()
        if len(index.drafts):
            raise UsageError(
                f"{len(index.drafts):,} rows of {self.name} have drafts of vectors: gemb index "
                f"refine {self.name} makes real ones"
            )
        self.count: int | None = index.count
        manifest = index.manifest
        kind = kind or KIND_OF[index.spec.dtype]
        self.content = Content(
            spec=_as_kind(index.spec, kind),
            kind=kind,
            model=index.model,
            task=manifest.task,
            query_task=manifest.query_task,
            ids=self._kind_of_ids(),
            base=str(manifest.source.get("base", os.sep)),
            background=manifest.background,
        )
        self._check_ids()
        query = (
            "SELECT path, line FROM rows WHERE id IS NULL GROUP BY path, line HAVING count(*) > 1"
        )
        self._shared = {_place(path_of(path), line) for path, line in self._read(query)}

    def parts(self, size: int) -> Iterator[tuple[Rows, NDArray[Any]]]:
        """Yield the rows in the order of their slots."""
        numbers: Counter[str] = Counter()  # of passages that begin in one line
        spec = self._index.spec
        is_float = spec.dtype in ("f16", "f32")
        with readable(Path(self._index.folder)):
            cursor = self._index.connection.execute(
                f"SELECT slot, {COLUMNS} FROM rows ORDER BY slot"
            )
            for part in _cut(cursor, size, lambda row: row[5:8]):
                slots, *columns = zip(*part, strict=True)
                stored = gathered(self._index.stored, np.array(slots, np.int64))
                self._check(part, columns, stored)
                ids, paths, lines, last_lines, titles, texts, kept, _, _ = columns
                names = [path_of(path) for path in paths]
                places = zip(ids, names, lines, strict=True)
                rows = Rows(
                    [storable(self._id(*place, numbers)) for place in places],
                    [name and storable(name) for name in names],
                    lines,
                    last_lines,
                    [title and storable(title) for title in titles],
                    [storable(text) for text in texts],
                    [storable_json(fields) for fields in kept],
                )
                yield rows, stored if is_float else unpacked(stored, spec.dtype, spec.dim)

    def _id(
        self, row_id: Id | None, path: str | None, line: int | None, numbers: Counter[str]
    ) -> str:
        """Return the id of a row as a text; passages that begin in one line are counted."""
        if row_id is not None:
            return str(row_id)
        place = _place(path, line)
        if place not in self._shared:
            return place
        numbers[place] += 1
        return f"{place}#{numbers[place]}"

    def _check(
        self,
        rows: Sequence[tuple[Any, ...]],
        columns: Sequence[Sequence[Any]],
        stored: NDArray[Any],
    ) -> None:
        """Refuse rows that are damaged.

        Args:
            rows: their slots, and their values of `COLUMNS`.
            columns: the latter by column.
            stored: their vectors.

        Raises:
            GembError: one is.
        """
        are_whole = are_units(stored, self._index.spec.dtype, self._index.spec.dim)
        are_whole &= [crc(row[1:-1]) == row[-1] for row in rows]
        if not are_of_rows(columns):
            are_whole &= [are_of_row(row[1:]) for row in rows]
        for row in np.flatnonzero(~are_whole).tolist():
            raise GembError(
                f"row {rows[row][0]} of {self.name} is damaged; gemb index verify {self.name} says "
                "more"
            )

    def _kind_of_ids(self) -> str:
        if self._index.manifest.source.get("kind") == "passages":
            return "place"
        kinds = {kind for (kind,) in self._read("SELECT DISTINCT typeof(id) FROM rows")}
        return "number" if kinds <= {"integer"} else "place" if kinds == {"null"} else "text"

    def _check_ids(self) -> None:
        query = (
            "SELECT CAST(id AS TEXT), count(*) AS n FROM rows WHERE id IS NOT NULL "
            "GROUP BY CAST(id AS TEXT) HAVING n > 1 LIMIT 1"
        )
        for row_id, count in self._read(query):
            raise UsageError(
                f"{count} rows of {self.name} have the id "
                f"'{visible(str(row_id), 80)}', and a table has each once; build the index with "
                "--id-field"
            )

    def _read(self, query: str) -> list[tuple[Any, ...]]:
        with readable(Path(self._index.folder)):
            rows: list[tuple[Any, ...]] = self._index.connection.execute(query).fetchall()
        return rows


_FIELDS = Fields(title="title", title_may_lack=True, keep_all=True)


class VectorFileSource:
    """The rows of what `gemb embed` wrote, into a file or into this process."""

    has_unique_ids = False

    def __init__(self, reader: VectorReader, name: str, job: BuildJob, kind: str | None) -> None:
        """Find out what the vectors are.

        Raises:
            UsageError: they are of another model than the one that is named, or of none.
        """
        self._reader = reader
        self.name = name
        self.count = reader.count
        self.is_pipe = isinstance(reader, _StdinReader)
        self.failed = 0
        self.failed_ids: set[str] = set()
        identity = identity_of(reader.description, job)
        kind = kind or KIND_OF[identity.spec.dtype]
        if identity.spec.dtype == "ubinary" and kind != "bit":
            raise UsageError(f"{name} has sign bits alone: --type bit")
        self.content = Content(
            spec=_as_kind(identity.spec, kind),
            kind=kind,
            model=kept_reference(identity.model),
            task=identity.task,
            ids="number" if isinstance(_first_id(reader), int) else "text",
            base=current_folder(),
        )

    def parts(self, size: int) -> Iterator[tuple[Rows, NDArray[Any]]]:
        """Yield the rows in their order."""
        described = self._reader.description
        for batch in self._reader.batches():
            self._check_fingerprints(batch.fields)
            vectors = batch.vectors(described)
            has_failed = np.isnan(vectors).any(axis=1)
            good = np.flatnonzero(~has_failed)
            self.failed += len(vectors) - len(good)
            failed = (batch.fields[n].get("id") for n in np.flatnonzero(has_failed).tolist())
            self.failed_ids.update(
                storable(str(as_id(row_id))) for row_id in failed if row_id is not None
            )
            rows = (self._row(batch.fields[n], batch.numbers[n]) for n in good.tolist())
            first = 0
            for part in _cut(rows, size, lambda row: (row.title, row.text, row.kept)):
                chosen = good[first : first + len(part)]
                yield Rows.of(part), vectors[chosen]
                first += len(part)

    def _row(self, fields: Mapping[str, Any], number: int) -> PushRow:
        row_id = fields.get("id")
        place = f"{self.name}, {self._reader.unit} {number}"
        if row_id is None or row_id == "":
            raise UsageError(f"{place}: no id, by which a table knows a row; gemb embed --id-field")
        record = vector_record(fields, _FIELDS, number, place)
        if record.error:
            raise UsageError(f"{place}: {record.error.message}")
        return PushRow(
            storable(str(record.id)),
            None,
            None,
            None,
            storable(record.title) if record.title else None,
            storable(record.text),
            storable_json(kept_json(record.kept)),
        )

    def _check_fingerprints(self, rows: Sequence[Mapping[str, Any]]) -> None:
        ours = self._reader.description.fingerprint
        if any(fields.get("fingerprint", ours) != ours for fields in rows):
            raise UsageError(f"{self.name} has vectors of several models or prompts")


def _cut(rows: Iterable[T], size: int, texts: Callable[[T], Iterable[object]]) -> Iterator[list[T]]:
    """Yield rows by the part: `size` of them, or fewer whose texts have `PART_BYTES` in memory."""
    part: list[T] = []
    part_bytes = 0
    for row in rows:
        part.append(row)
        part_bytes += sum(map(sys.getsizeof, texts(row)))
        if len(part) == size or part_bytes >= PART_BYTES:
            yield part
            part, part_bytes = [], 0
    if part:
        yield part


def _first_id(reader: VectorReader) -> object:
    """Return the id of the first row; None: it has none, or there is no row."""
    if isinstance(reader, _StdinReader):
        return reader.first.get("id")
    for batch in reader.batches(("id",)):
        return batch.fields[0].get("id")
    return None


class _StdinReader(JsonLinesReader):
    """JSON lines of standard input, each read once; the lines before the first vector wait."""

    def __init__(self) -> None:
        self._input = file_lines(STDIN)
        self._waiting: list[Line] | None = []
        super().__init__(Path("standard input"))
        self._first, self._waiting = self._waiting, None
        fields = (json_value(line.data)[0] for line in self._first if line.data.strip())
        self.first: Mapping[str, Any] = next(fields, {})

    def _lines(self) -> Iterator[Line]:
        if self._waiting is None:
            yield from self._first
            yield from self._input
            return
        for line in self._input:
            self._waiting.append(line)
            yield line


def file_source(path: str, job: BuildJob, kind: str | None) -> VectorFileSource:
    """Return the rows of a file of vectors; - is standard input, as JSON lines.

    Raises:
        UsageError: it is none, or its vectors are not of the model that is named.
    """
    if path != STDIN:
        reader = described_vectors(path)
        return VectorFileSource(reader, visible(path), job, kind)
    stdin = _StdinReader()
    if not stdin.description.fingerprint:
        raise UsageError(
            "standard input has no vectors; gemb embed FILE --id-field id --keep all | gemb index "
            "push - TARGET"
        )
    return VectorFileSource(stdin, "standard input", job, kind)


def narrowed(content: Content, dim: int) -> Content:
    """Return a content of narrower vectors, whose background is unknown: their scores are others.

    Raises:
        UsageError: the model was not trained for this width, or the vectors are not so wide.
        Missing: the model is not here, which tells its widths.
    """
    if dim == content.spec.dim:
        return content
    if dim > content.spec.dim:
        raise UsageError(f"--dim {dim}: the vectors have {content.spec.dim} components")
    if not content.model:
        raise UsageError("--dim: nobody says which model made the vectors; name it with -m")
    profile = plugins.describe(resolve(content.model, download=False))
    check_dims([dim], profile.matryoshka_dims)
    spec = dataclasses.replace(content.spec, dim=dim)
    return dataclasses.replace(content, spec=spec, background=None)


def _as_kind(spec: VectorSpec, kind: str) -> VectorSpec:
    """Return the spec of vectors in a type of the target: f32 and signs leave no trace of f32."""
    dtype = "ubinary" if kind == "bit" else "f16" if kind == "halfvec" else spec.dtype
    is_finer = spec.dtype == "f32" or kind == "bit"
    return dataclasses.replace(spec, dtype=dtype) if is_finer else spec


def _place(path: str | None, line: int | None) -> str:
    return f"{path or '-'}:{line or 0}"
