"""What `gemb embed` wrote as the source of an index: its vectors are taken as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemb.embedding.formats.base import Description, RowBatch, VectorReader, no_description
from gemb.embedding.formats.read import holds_vectors, open_vectors
from gemb.embedding.vectors import VectorSpec, are_units, packed, unpacked
from gemb.errors import UsageError
from gemb.index.source import SourceRow, VectorSource
from gemb.io.text import visible
from gemb.texts.records import RESERVED, Id, Record, RowError

NO_VECTOR = RowError("no_vector", "the row has no vector")
NOT_UNIT = RowError("not_unit", "its vector is not of length 1: the file is damaged")


def described_vectors(path: str) -> VectorReader:
    """Return an open file of vectors that says which model, prompt and width they have.

    Raises:
        UsageError: it is not there, is damaged, or says too little.
    """
    if not holds_vectors(Path(path)):
        raise UsageError(f"{visible(path)} is not there, or holds no vectors of gemb embed")
    reader = open_vectors(Path(path))
    if not reader.description.fingerprint:
        raise no_description(Path(path))
    return reader


def vector_rows(source: VectorSource, spec: VectorSpec) -> Iterator[SourceRow]:
    """Yield the rows of all files, their vectors packed as the index stores them.

    Args:
        source: the files.
        spec: of the index.

    Raises:
        UsageError: a file is not there, is damaged, or has vectors of another kind.
    """
    several = len(source.paths) > 1
    for path, real in zip(source.paths, source.real(), strict=True):
        reader = described_vectors(real)
        description = reader.description
        same = VectorSpec(**{**vars(spec), "dtype": description.dtype})
        other = UsageError(
            f"{visible(real)} has vectors of another model, prompt or width than the others; "
            "build an index of its own of it"
        )
        if description.fingerprint != same.fingerprint:
            raise other
        label = path if several else ""
        for batch in reader.batches():
            for fields in batch.fields:
                if fields.get("fingerprint", same.fingerprint) != same.fingerprint:
                    raise other
            yield from _batch_rows(batch, description, label, source, spec)


def count(paths: Sequence[str]) -> int | None:
    """Return how many rows the files have, None where only reading them tells."""
    counts = [open_vectors(Path(path)).count for path in paths]
    known = [rows for rows in counts if rows is not None]
    return sum(known) if len(known) == len(counts) else None


def _batch_rows(
    batch: RowBatch, description: Description, label: str, source: VectorSource, spec: VectorSpec
) -> Iterator[SourceRow]:
    with np.errstate(over="ignore", invalid="ignore"):
        vectors = unpacked(batch.stored, description.dtype, description.dim)
    is_finite = batch.has_vector & np.isfinite(vectors).all(axis=1)
    is_there: NDArray[np.bool_] = np.asarray(is_finite & vectors.any(axis=1))
    are_whole = are_units(batch.stored, description.dtype, description.dim)
    is_unit: NDArray[np.bool_] = np.asarray(batch.has_vector & are_whole)
    vectors[~is_unit] = np.nan  # what is no vector may not fit the other type
    is_same = description.dtype == spec.dtype
    stored = batch.stored if is_same else packed(vectors, spec.dtype, spec.dim)
    for row, (number, fields) in enumerate(zip(batch.numbers, batch.fields, strict=True)):
        row_id: Id = fields.get("id", number)
        place = f"{label}:{number}" if label else f"row {number}"
        if label and isinstance(row_id, int):
            row_id = f"{label}:{row_id}"
        error = None if is_unit[row] else NOT_UNIT if is_there[row] else NO_VECTOR
        record = _record(fields, row_id, place, source, error)
        yield SourceRow(record, row_id, stored=stored[row : row + 1])


def _record(
    fields: Mapping[str, object],
    row_id: Id,
    place: str,
    source: VectorSource,
    error: RowError | None,
) -> Record:
    if error:
        return Record(row_id, place, error=error)
    names = source.fields
    texts = [str(fields[name]) for name in names.text or ("text",) if fields.get(name) is not None]
    title = fields.get(names.title) if names.title else None
    taken = {*RESERVED, *(names.text or ("text",)), names.title}
    kept = {name: value for name, value in fields.items() if name not in taken}
    if not names.keep_all:
        kept = {name: fields.get(name) for name in names.keep}
    return Record(row_id, place, "\n".join(texts), str(title) if title else None, kept)
