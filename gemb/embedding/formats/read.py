"""Files of vectors, opened by their suffix and read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gemb.arrays import Vectors
from gemb.embedding.formats.base import VectorReader, readable
from gemb.embedding.formats.table import read_format_of, readable_suffixes
from gemb.embedding.vectors import VectorSpec
from gemb.errors import UsageError
from gemb.texts.records import Id


class VectorFile(NamedTuple):
    """Vectors that were read back."""

    vectors: Vectors  # [n, dim], as they were stored; NaN where a row failed
    ids: Sequence[Id]  # the row's number from 1 where the file holds none
    dtype: str  # one of DTYPES, in which they were stored; f32 where the file does not say
    spec: VectorSpec | None  # None where the file does not say


def holds_vectors(path: Path) -> bool:
    """Return whether a file holds vectors that `gemb embed` wrote. Reads little."""
    form = read_format_of(path)
    if not form or not form.reader or not path.is_file():
        return False
    with readable(path):
        return form.reader_class.recognizes(path)


def open_vectors(path: Path) -> VectorReader:
    """Return the open file.

    Raises:
        UsageError: the file is absent, damaged, or of no format that gemb reads.
        Missing: it is a Parquet file, and pyarrow is not installed.
    """
    form = read_format_of(path)
    if form is None or not form.reader:
        raise UsageError(f"{path}: vectors are read from {', '.join(readable_suffixes())} files")
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    with readable(path):
        return form.reader_class(path)


def read_vectors(path: Path) -> VectorFile:
    """Read all of a file that `gemb embed` wrote, or of a plain .npy.

    Raises:
        UsageError: the file is absent, damaged, or of no format that gemb reads.
        Missing: it is a Parquet file, and pyarrow is not installed.
    """
    reader = open_vectors(path)
    description = reader.description
    parts = [np.zeros((0, description.dim), np.float32)]
    ids: list[Id] = []
    for batch in reader.batches(("id",)):
        parts.append(batch.vectors(description))
        rows = zip(batch.numbers, batch.fields, strict=True)
        ids += [fields.get("id", number) for number, fields in rows]
    return VectorFile(np.concatenate(parts), ids, description.dtype, description.spec)
