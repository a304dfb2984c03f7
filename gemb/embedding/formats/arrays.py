"""Vectors as arrays: raw float32, .npy, .npz.

A failed row is NaN, or zeros in int8 and ubinary; it is read back as the same.
"""

from __future__ import annotations

import io
import struct
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemb.arrays import Vectors
from gemb.embedding.formats.base import (
    BATCH,
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
from gemb.texts.records import Id

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
    """Rows of one array, and their ids where there are any.

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
        self.description = description_beside(path) or _plain(self._array)
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
    """An archive of arrays, whose vectors are in memory while they are read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with np.load(path, allow_pickle=False) as arrays:
            self.description = (
                Description.from_json(str(arrays["meta"]))
                if "meta" in arrays
                else _plain(arrays["vectors"])
            )

    def _batches(self, fields: Collection[str] | None) -> Iterator[RowBatch]:
        with np.load(self.path, allow_pickle=False) as arrays:
            vectors, ids = arrays["vectors"], arrays.get("ids", None)
        yield from _batches(vectors, ids)


def _batches(array: NDArray[Any], ids: NDArray[Any] | None = None) -> Iterator[RowBatch]:
    for first in range(0, len(array), BATCH):
        rows = np.array(array[first : first + BATCH])
        fields: list[dict[str, object]] = [{}] * len(rows)
        if ids is not None:
            fields = [{"id": row_id} for row_id in ids[first : first + BATCH].tolist()]
        numbers = range(first + 1, first + 1 + len(rows))
        yield RowBatch(numbers, fields, rows, np.ones(len(rows), np.bool_))


def _plain(array: NDArray[Any]) -> Description:
    """Return the description of an array that nothing describes."""
    if array.ndim != 2:
        raise ValueError(f"shape {list(array.shape)} is not [rows, dim]")
    return Description(dim=array.shape[1])
