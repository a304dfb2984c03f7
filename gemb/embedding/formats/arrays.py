"""Vectors as arrays: raw float32, .npy, .npz.

A failed row is NaN, or zeros in int8 and ubinary; it is read back as the same.
"""

from __future__ import annotations

import io
import math
import struct
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemb.arrays import Vectors
from gemb.embedding.formats.base import (
    BATCH,
    BATCH_BYTES,
    Description,
    FileLayout,
    RowBatch,
    VectorReader,
    description_beside,
    no_description,
    stored,
)
from gemb.embedding.pipeline import OutputRow
from gemb.embedding.vectors import NUMBERS, VectorSpec
from gemb.io.atomic import naming, write_all
from gemb.io.streams import AtomicFile, Output, Sink
from gemb.io.text import size_in_words
from gemb.texts.records import Id

META = "meta"  # of an archive's arrays: the JSON text that describes the others
MOST_BY_COLUMNS = 1 << 30  # bytes of such an array, which is read whole
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
NPY_HEADER = 128  # bytes; numpy pads its header to a multiple of 64
COPY = 1 << 20  # bytes at a time
EPOCH = (1980, 1, 1, 0, 0, 0)  # a zip's first moment: equal runs give equal bytes


class F32Writer:
    """The numbers alone, little-endian, row after row."""

    def __init__(self, output: Output, layout: FileLayout) -> None:
        self._output = output
        self._spec = layout.spec

    def write(self, rows: Sequence[OutputRow], vectors: Vectors) -> None:
        """Write the numbers of each row."""
        self._output.write(stored(vectors, self._spec).tobytes())

    def finish(self) -> None:
        """Nothing comes after the last row."""


class NpyWriter:
    """One array [rows, dim]. Its header needs the count: patched in a file, spooled for a pipe."""

    def __init__(self, output: Output, layout: FileLayout) -> None:
        self._spec = layout.spec
        self._count = 0
        self._output = output
        self._spool: Spool | None = None
        if isinstance(output, AtomicFile):
            output.write(bytes(NPY_HEADER))
        else:
            self._spool = Spool(None)

    def write(self, rows: Sequence[OutputRow], vectors: Vectors) -> None:
        """Write the numbers of each row."""
        data = stored(vectors, self._spec).tobytes()
        self._count += len(rows)
        (self._spool or self._output).write(data)

    def finish(self) -> None:
        """Write the header, now that the count is known."""
        header = npy_header(self._spec, self._count)
        if self._spool is None:
            assert isinstance(self._output, AtomicFile), "only a file can be patched"
            self._output.patch(0, header)
            return
        self._output.write(header)
        self._spool.copy(self._output.write)


class NpzWriter:
    """Arrays `vectors`, `ids`, `tokens`, `failed` and the JSON text `meta`; no objects."""

    def __init__(self, output: Output, layout: FileLayout) -> None:
        self._output = output
        self._layout = layout
        self._ids: list[Id] = []
        self._tokens: list[int] = []
        self._failed: list[bool] = []
        # Beside the output, which has room for it: /tmp is often small.
        folder = output.path.parent if isinstance(output, AtomicFile) else None
        self._vectors = Spool(folder)

    def write(self, rows: Sequence[OutputRow], vectors: Vectors) -> None:
        """Hold the rows; their numbers go to a temporary file."""
        self._vectors.write(stored(vectors, self._layout.spec).tobytes())
        self._ids += [row.record.id for row in rows]
        self._tokens += [row.tokens for row in rows]
        self._failed += [row.error is not None for row in rows]

    def finish(self) -> None:
        """Write the archive."""
        ids = [str(row_id) for row_id in self._ids] if self._layout.text_ids else self._ids
        meta = self._layout.spec.to_json(
            engine=self._layout.engine, rows=len(self._ids), failed=sum(self._failed)
        )
        with zipfile.ZipFile(Sink(self._output), "w") as archive:
            with archive.open(_member("vectors"), "w", force_zip64=True) as member:
                member.write(npy_header(self._layout.spec, len(self._ids)))
                self._vectors.copy(member.write)
            arrays = {
                "ids": np.array(ids, dtype=np.str_ if self._layout.text_ids else np.int64),
                "tokens": np.array(self._tokens, np.int32),
                "failed": np.array(self._failed, np.bool_),
                "meta": np.array(meta),
            }
            for name, array in arrays.items():
                buffer = io.BytesIO()
                np.save(buffer, array, allow_pickle=False)
                archive.writestr(_member(name), buffer.getvalue())


class Spool:
    """A temporary file without a name; errors of the system name its folder."""

    def __init__(self, folder: Path | None) -> None:
        """Make it in the folder; None is the system's."""
        self._folder = folder or Path(tempfile.gettempdir())
        with self._named():
            self._file = tempfile.TemporaryFile(buffering=0, dir=self._folder)  # noqa: SIM115

    def write(self, data: bytes) -> None:
        """Write all of the data."""
        with self._named():
            write_all(self._file.write, data)

    def copy(self, write: Callable[[bytes], object]) -> None:
        """Pass all of it on, and close it."""
        self._file.seek(0)
        while block := self._file.read(COPY):
            write(block)
        self._file.close()

    def _named(self) -> AbstractContextManager[None]:
        return naming(f"a temporary file in {self._folder}")


def npy_header(spec: VectorSpec, count: int) -> bytes:
    """Return the header of a .npy file, `NPY_HEADER` bytes, for `count` rows of a spec.

    Source: numpy.lib.format, version 1.0.
    """
    text = f"{{'descr': {np.dtype(NUMBERS[spec.dtype]).str!r}, 'fortran_order': False, "
    text += f"'shape': ({count}, {spec.width}), }}"
    room = NPY_HEADER - 10
    assert len(text) < room, "the header does not fit"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", room) + f"{text:<{room - 1}}\n".encode()


def _member(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(f"{name}.npy", EPOCH)


class ArrayReader(VectorReader):
    """Rows of one array.

    An array on the disk is mapped, so that a file of any size can be read.
    """

    _array: NDArray[Any]

    def _batches(self, fields: Collection[str] | None) -> Iterator[RowBatch]:
        yield from _batches(self._array)


class NpyReader(ArrayReader):
    """A .npy file; without a sidecar it is an array of plain float vectors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._array = np.lib.format.open_memmap(path, mode="r")
        self.description = description_beside(path) or _plain(self._array.shape)
        self.count = len(self._array)


class F32Reader(ArrayReader):
    """Raw float32; the sidecar has the width."""

    def __init__(self, path: Path) -> None:
        self.path = path
        description = description_beside(path)
        if description is None:
            raise no_description(path)
        self.description = description
        flat = np.memmap(path, "<f4", "r") if path.stat().st_size else np.zeros(0, np.float32)
        self._array = flat.reshape(-1, description.dim)
        self.count = len(self._array)


class NpzReader(VectorReader):
    """An archive of arrays, read a batch at a time: it may hold far more than it is long."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with zipfile.ZipFile(path) as archive:
            if f"{META}.npy" in archive.namelist():
                with _Member(archive, META) as meta:
                    self.description = Description.from_json(meta.text())
            else:
                with _Member(archive, "vectors") as vectors:
                    self.description = _plain(vectors.shape)

    def _batches(self, fields: Collection[str] | None) -> Iterator[RowBatch]:
        with zipfile.ZipFile(self.path) as archive, ExitStack() as stack:
            has_ids = "ids.npy" in archive.namelist()
            names = ("vectors", "ids") if has_ids else ("vectors",)
            members = [stack.enter_context(_Member(archive, name)) for name in names]
            count = members[0].count
            if any(member.count != count for member in members):
                raise ValueError("its arrays are of different lengths")
            step = min(member.most_rows for member in members)
            for first in range(0, count, step):
                rows, *ids = (member.rows(min(step, count - first)) for member in members)
                texts = ids[0].tolist() if ids else ()
                numbers = range(first + 1, first + 1 + len(rows))
                described = [{"id": row_id} for row_id in texts] if ids else [{}] * len(rows)
                yield RowBatch(numbers, described, rows, np.ones(len(rows), np.bool_))
            for member in members:
                member.check_end()


class _Member:
    """An array of an archive, whose numbers are read in their order, so many at a time."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self._name = name
        about = archive.getinfo(f"{name}.npy")
        if about.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # zipfile inflates what others have packed without a bound.
            raise ValueError(f"{name} is compressed by method {about.compress_type}")
        self._file = archive.open(about)
        version = np.lib.format.read_magic(self._file)
        if version not in _HEADERS:
            raise ValueError(f"{name} is a .npy of version {'.'.join(map(str, version))}")
        self.shape, self._is_by_columns, self._dtype = _HEADERS[version](self._file)
        if self._dtype.hasobject:
            raise ValueError(f"Python objects in {name}")
        if min(self.shape, default=0) < 0:
            raise ValueError(f"{name} has the shape {list(self.shape)}")
        self._row_bytes = math.prod(self.shape[1:]) * self._dtype.itemsize
        self._is_by_columns &= len(self.shape) > 1

    def __enter__(self) -> _Member:
        return self

    def __exit__(self, *reason: object) -> None:
        self._file.close()

    @property
    def count(self) -> int:
        """How many rows it has."""
        if not self.shape:
            raise ValueError(f"{self._name} is no list")
        return self.shape[0]

    @property
    def most_rows(self) -> int:
        """How many rows may be read at once."""
        if self._is_by_columns:
            return max(1, self.count)
        return max(1, min(BATCH, BATCH_BYTES // max(1, self._row_bytes)))

    def rows(self, count: int) -> NDArray[Any]:
        """Return the next rows; all of them, where they are stored by columns."""
        shape = (count, *self.shape[1:])
        most = MOST_BY_COLUMNS if self._is_by_columns else BATCH_BYTES
        if count * self._row_bytes > most:
            what = f"{count} rows stored by columns" if self._is_by_columns else "a row"
            raise ValueError(f"{self._name} has {what} of {size_in_words(count * self._row_bytes)}")
        flat = np.frombuffer(self._read(count * self._row_bytes), self._dtype)
        return flat.reshape(shape, order="F" if self._is_by_columns else "C")

    def text(self) -> str:
        """Return the one text that it holds."""
        if self.shape or self._dtype.kind != "U" or self._dtype.itemsize > BATCH_BYTES:
            raise ValueError(f"{self._name} is no text")
        data = np.frombuffer(self._read(self._dtype.itemsize), self._dtype)
        self.check_end()
        return str(data[0])

    def check_end(self) -> None:
        """Refuse more than the header says: only at its end the archive's checksum is compared."""
        if self._file.read(1):
            raise ValueError(f"{self._name} is longer than its header says")

    def _read(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise ValueError(f"{self._name} is shorter than its header says")
        return data


def _batches(array: NDArray[Any]) -> Iterator[RowBatch]:
    for first in range(0, len(array), BATCH):
        rows = np.array(array[first : first + BATCH])
        numbers = range(first + 1, first + 1 + len(rows))
        yield RowBatch(numbers, [{}] * len(rows), rows, np.ones(len(rows), np.bool_))


def _plain(shape: Sequence[int]) -> Description:
    """Return the description of an array that nothing describes."""
    if len(shape) != 2:
        raise ValueError(f"shape {list(shape)} is not [rows, dim]")
    return Description(dim=shape[1])
