"""What the writers and readers of vector files have in common.

A writer gets the rows of each window in order, then `finish`. What describes the numbers is in
every row (JSON lines), in the file (npz, Parquet), or in a sidecar that the caller writes (others).
A reader describes the numbers, then gives the rows a batch at a time, as they are stored.
"""

from __future__ import annotations

import errno
import json
import lzma
import struct
import tokenize
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from gemb.arrays import Vectors
from gemb.embedding.vectors import (
    VectorSpec,
    are_units,
    packed,
    sidecar,
    stored_width,
    unpacked,
)
from gemb.errors import UsageError
from gemb.io.foreign import read_bytes
from gemb.io.lfs import check_beginning, check_no_pointer
from gemb.io.text import visible

if TYPE_CHECKING:
    from gemb.embedding.pipeline import OutputRow

BATCH = 8192  # rows that a reader gives at a time
BATCH_BYTES = 32 << 20  # of a file: with these a reader gives fewer rows


@dataclass(frozen=True, kw_only=True)
class FileLayout:
    """What a writer is told beside the rows and their vectors."""

    spec: VectorSpec
    task: str  # name of the prompt, for people
    engine: str = ""  # what computed the vectors, for people
    text_ids: bool = False  # ids are texts, not row numbers
    kept: Sequence[str] = ()  # names of kept fields; in the order of the columns
    described: Mapping[str, object] = field(default_factory=dict)  # more of the file, in JSON


class VectorWriter(Protocol):
    """Writes rows with their vectors."""

    def write(self, rows: Sequence[OutputRow], vectors: Vectors) -> None:
        """Write rows; vectors are float32 [len(rows), dim], NaN where a row has an error."""

    def finish(self) -> None:
        """Write what comes after the last row."""


def stored(vectors: Vectors, spec: VectorSpec) -> NDArray[Any]:
    """Return [n, dim] as it is stored: packed, contiguous and little-endian, [n, spec.width]."""
    numbers = packed(vectors, spec.dtype, spec.dim)
    return np.ascontiguousarray(numbers, dtype=numbers.dtype.newbyteorder("<"))


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a file says of its vectors."""

    dim: int  # components of a vector; 0: there is no vector in the file
    dtype: str = "f32"  # one of DTYPES
    task: str = ""  # name of the prompt; empty: the file does not say
    fingerprint: str = ""  # of the spec; empty: the file does not say
    spec: VectorSpec | None = None  # None: the file holds its fingerprint at most

    @property
    def width(self) -> int:
        """How many numbers a stored row has."""
        return stored_width(self.dtype, self.dim)

    @staticmethod
    def from_json(text: str | bytes) -> Description:
        """Return the description that `VectorSpec.to_json` wrote.

        Raises:
            UsageError: gemb did not write the text.
        """
        spec = VectorSpec.from_json(text)
        return Description(
            dim=spec.dim,
            dtype=spec.dtype,
            task=str(json.loads(text).get("task", "")),
            fingerprint=spec.fingerprint,
            spec=spec,
        )


class RowBatch(NamedTuple):
    """Rows of a file."""

    numbers: Sequence[int]  # of the rows, or of the lines of a text file, from 1
    fields: Sequence[Mapping[str, Any]]  # what the file holds of each row beside its vector
    stored: NDArray[Any]  # [rows, width]; anything where a row has no vector
    has_vector: NDArray[np.bool_]  # [rows]; False where the text failed

    def vectors(self, description: Description) -> Vectors:
        """Return float32 [rows, dim], NaN where a row has no vector, or none of length one."""
        with np.errstate(over="ignore", invalid="ignore"):
            vectors = unpacked(self.stored, description.dtype, description.dim)
        is_unit = are_units(self.stored, description.dtype, description.dim)
        vectors[~(self.has_vector & is_unit)] = np.nan
        return vectors


class VectorReader(ABC):
    """Reads the rows of a file of vectors. A subclass opens the file, and describes it."""

    path: Path
    description: Description
    count: int | None = None  # of rows; None: unknown until they are read
    unit = "row"  # what `RowBatch.numbers` count

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Return whether a file with the format's suffix holds vectors of gemb. Reads little."""
        return True

    @abstractmethod
    def __init__(self, path: Path) -> None: ...

    def batches(self, fields: Collection[str] | None = None) -> Iterator[RowBatch]:
        """Yield all rows.

        Args:
            fields: names of those that the caller uses, the others may be absent; None: all.

        Raises:
            UsageError: the file is damaged, or its rows are of different types or widths.
        """
        width = self.description.width
        with readable(self.path):
            for batch in self._batches(fields):
                shape, kind = batch.stored.shape, batch.stored.dtype.kind
                if shape[1:] != (width,):
                    raise ValueError(f"shape {list(shape)} is not [rows, {width}]")
                if kind not in "fiu":
                    raise TypeError(f"{batch.stored.dtype} is no type of real numbers")
                yield batch

    @abstractmethod
    def _batches(self, fields: Collection[str] | None) -> Iterator[RowBatch]:
        """Yield all rows; errors become those of `readable`."""


# What numpy, zipfile, tokenize (of an array's header), json and pyarrow raise of broken files.
DAMAGE = (
    ArithmeticError,
    EOFError,
    LookupError,
    RuntimeError,  # of a file that is encrypted, of a method that is not there, of deep JSON
    SyntaxError,
    TypeError,
    ValueError,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn errors of reading a file into the message that it is damaged.

    Raises:
        UsageError: the file holds no vectors, or is damaged.
    """
    try:
        yield
    except DAMAGE as error:
        raise _unreadable(path, str(error)) from None
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):
            raise
        # A place before the beginning, or beyond the end, of an archive that is damaged.
        raise _unreadable(path, error.strerror or str(error)) from None


def _unreadable(path: Path, reason: str) -> UsageError:
    check_no_pointer(path)
    line = visible(reason.split("\n", 1)[0])
    return UsageError(f"{visible(str(path))}: no vectors can be read from it: {line}")


def description_beside(path: Path) -> Description | None:
    """Return what the sidecar of a file says, None where there is no sidecar.

    Raises:
        UsageError: gemb did not write the sidecar.
    """
    beside = sidecar(path)
    if not beside.exists():
        return None
    data = read_bytes(beside)
    check_beginning(data, beside)
    return Description.from_json(data)


def no_description(path: Path) -> UsageError:
    """Return the error of a file whose sidecar is needed and absent.

    Raises:
        UsageError: the file is a Git LFS pointer.
    """
    check_no_pointer(path)
    return UsageError(
        f"{visible(str(path))}: its sidecar {visible(sidecar(path).name)}, which describes the "
        "vectors, is missing; gemb embed -o writes both"
    )
