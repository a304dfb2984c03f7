"""What `gemb embed` wrote as the source of an index: its vectors are taken as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemb.embedding.formats.base import Description, RowBatch, VectorReader, no_description
from gemb.embedding.formats.read import holds_vectors, open_vectors
from gemb.embedding.vectors import VectorSpec, are_units, packed, unpacked
from gemb.errors import UsageError
from gemb.index.source import SourceRow, VectorSource
from gemb.io.lfs import check_no_pointer
from gemb.io.text import visible
from gemb.texts.records import (
    RESERVED,
    TEXT_NAMES,
    Fields,
    Id,
    Record,
    RowError,
    from_fields,
)

NO_VECTOR = RowError("no_vector", "the row has no vector")
NOT_UNIT = RowError("not_unit", "its vector is not of length 1: the file is damaged")


def described_vectors(path: str) -> VectorReader:
    """Return an open file of vectors that says which model, prompt and width they have.

    Raises:
        UsageError: it is not there, is damaged, or says too little.
    """
    if not holds_vectors(Path(path)):
        check_no_pointer(Path(path))
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
        place = f"{label}:{number}" if label else f"row {number}"
        record = vector_record(fields, source.fields, number, place)
        row_id: Id = record.id
        if label and isinstance(row_id, int):
            row_id = f"{label}:{row_id}"
        error = None if is_unit[row] else NOT_UNIT if is_there[row] else NO_VECTOR
        record = replace(record, id=row_id, error=error or record.error)
        yield SourceRow(record, row_id, stored=stored[row : row + 1])


def vector_record(fields: Mapping[str, object], names: Fields, number: int, place: str) -> Record:
    """Return the record of a row that has a vector, by the rules of rows that have none.

    Args:
        fields: what the file holds of the row beside its vector.
        names: which of them to take; the id is the field `id`.
        number: of the row: its id where the file holds none.
        place: for messages.
    """
    own = {
        name: value
        for name, value in fields.items()
        if name == "id" or name not in (*RESERVED, *(TEXT_NAMES if value is None else ()))
    }
    text = [name for name in TEXT_NAMES if name in own][:1]
    taken = replace(
        names, text=names.text or text, text_may_lack=True, id="id" if "id" in own else None
    )
    return from_fields(own, taken, number, place, 1)
