"""The one who writes an index, batch by batch: vectors and codes first, then their rows."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemb.arrays import Ints, Vectors
from gemb.embedding.vectors import packed, unpacked
from gemb.index.codes import Coder
from gemb.index.drafts import NUMBERS as NUMBERS_OF_DRAFTS
from gemb.index.drafts import have_failed
from gemb.index.manifest import Manifest, codes_path, rows_path, vectors_path
from gemb.index.reader import NUMBERS, check_there, coder_of, mapped, read_slots
from gemb.index.schema import (
    COLUMNS,
    LOOKUPS,
    TO_READ_AGAIN,
    Column,
    IndexRow,
    StoredFile,
    crc,
    damaged,
    file_columns,
    open_to_write,
    readable,
    stored_files,
)
from gemb.index.words import add_words_of, drop_words_of
from gemb.io.atomic import naming, pwrite_all

COMMIT_S = 2.0  # a kill loses so much work, or so many bytes of vectors
COMMIT_BYTES = 64 << 20
MOST_PAGES = 4096  # of 4 kB, of words that are written anew: in a quarter of a second
SAMPLE = 20_000  # vectors that a coder is fitted to
CODED_BYTES = 64 << 20  # of vectors whose codes are made at once

_INSERT = f"INSERT INTO rows(slot, {COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_UPDATE = (
    "UPDATE rows SET id = ?, path = ?, line = ?, last_line = ?, title = ?, text = ?, kept = ?, "
    "digest = ?, crc = ? WHERE slot = ?"
)


class Writer:
    """Appends, removes and renames rows. The caller holds `gemb.io.locks.locked_index`.

    What was not committed when the process ends was never there.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Open the files; what a kill tore off is cut away.

        Raises:
            GembError: the database is damaged, or a file is missing or cut short.
            OSError: a file cannot be opened or written.
        """
        self.spec = manifest.spec
        self._rows_path = rows_path(folder, manifest.generation)
        self._coder = coder_of(folder, manifest)
        self._is_closed = False
        self._has_removed = False
        self._began = 0.0  # of the transaction
        self._unfinished = 0  # changes in the transaction that were begun
        self._pending: list[NDArray[Any]] = []  # rows that are not on the disk
        self._pending_bytes = 0
        self.connection = open_to_write(self._rows_path)
        try:
            self._open(folder, manifest)
        except BaseException:
            self.connection.close()
            raise

    def _open(self, folder: Path, manifest: Manifest) -> None:
        """Open the files beside the database."""
        slots = read_slots(self.connection, self._rows_path, least=manifest.slots)
        self.slots = slots.committed  # those to come in this transaction, too
        self.removed = slots.removed  # when it was opened
        self._committed = self.slots
        numbers = NUMBERS[self.spec.dtype]
        path = vectors_path(folder, manifest.generation, self.spec.dtype)
        if self.slots:
            check_there(path)
        self._vectors = _Appended(path, numbers, self.spec.dim, self.slots)
        self._codes: _Appended | None = None
        self._codes_path = codes_path(folder, manifest.generation)
        if self._coder:
            self._open_codes(self._coder)

    @property
    def committed(self) -> int:
        """How many slots are on the disk for good."""
        return self._committed

    @property
    def rows(self) -> int:
        """How many rows there are, this transaction's too."""
        with readable(self._rows_path):
            removed = self.connection.execute("SELECT count(*) FROM removed").fetchone()
        return self.slots - int(removed[0])

    @property
    def coder(self) -> Coder | None:
        """What the codes are made with; None: there are none yet."""
        return self._coder

    def add(self, row: IndexRow, vector: Vectors, *, is_draft: bool = False) -> None:
        """Append a row and its unit vector, float32 [dim]."""
        stored = packed(vector[None], self.spec.dtype, self.spec.dim)
        self.add_columns(row.columns(), stored, is_draft=is_draft)

    def add_stored(self, row: IndexRow, stored: NDArray[Any], *, is_draft: bool = False) -> None:
        """Append a row with the vector as it is stored, [1, dim]."""
        self.add_columns(row.columns(), stored, is_draft=is_draft)

    def add_columns(
        self,
        columns: tuple[Column, ...],
        stored: NDArray[Any],
        *,
        is_draft: bool = False,
        draft: bytes | None = None,
    ) -> None:
        """Append a row by its columns, with the vector as it is stored, [1, dim].

        Args:
            columns: of the row.
            stored: its vector.
            is_draft: the vector is a draft.
            draft: beside a real vector, as the table has it.
        """
        with self._change():
            self.connection.execute(_INSERT, (self.slots, *columns))
            add_words_of(self.connection, [self.slots])
            if is_draft or draft is not None:
                self.connection.execute("INSERT INTO drafts VALUES (?, ?)", (self.slots, draft))
            self.slots += 1
            self._pending.append(stored)
            self._pending_bytes += stored.nbytes

    def stored(self, slot: int) -> NDArray[Any]:
        """Return the vector of a committed slot as it is stored, [1, dim]."""
        return self._vectors.read(slot, 1)

    def refine(self, slot: int, vector: Vectors, width: int) -> None:
        """Give a committed row whose vector is a draft its real one, [dim], in a slot of its own.

        Args:
            slot: of the row; it is removed.
            vector: a unit vector.
            width: of the draft, which stays beside the vector, unless it failed.
        """
        with readable(self._rows_path):
            query = f"SELECT {COLUMNS} FROM rows WHERE slot = ?"
            columns = self.connection.execute(query, (slot,)).fetchone()
        if columns is None or crc(columns[:-1]) != columns[-1]:
            raise damaged(self._rows_path, f"row {slot} is not as it was written")
        stored = self.stored(slot)
        draft: bytes | None = None
        if not have_failed(stored)[0]:
            values = unpacked(stored, self.spec.dtype, self.spec.dim)[0, :width]
            values /= np.linalg.norm(values)  # int8 clips large components, as narrow vectors have
            draft = values.astype(NUMBERS_OF_DRAFTS).tobytes()
        with self._change():
            self.add_columns(
                columns, packed(vector[None], self.spec.dtype, self.spec.dim), draft=draft
            )
            self.remove([slot])

    def update(self, slot: int, row: IndexRow) -> None:
        """Give a slot other fields; its vector stays."""
        with self._change():
            drop_words_of(self.connection, [slot])
            self.connection.execute(_UPDATE, (*row.columns(), slot))
            add_words_of(self.connection, [slot])

    def remove(self, slots: Iterable[int]) -> None:
        """Remove rows."""
        self._has_removed = True
        for slot in slots:
            with self._change():
                drop_words_of(self.connection, [slot])
                self.connection.execute("DELETE FROM rows WHERE slot = ?", (slot,))
                self.connection.execute("DELETE FROM drafts WHERE slot = ?", (slot,))
                self.connection.execute("INSERT INTO removed VALUES (?)", (slot,))

    def run(self, statement: str, values: tuple[object, ...] = ()) -> None:
        """Run a statement of our own in the transaction."""
        self._begin()
        with readable(self._rows_path):
            self.connection.execute(statement, values)

    def put_file(self, file: StoredFile) -> None:
        """Say that a file was read for passages."""
        self.run("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", file_columns(*file))

    def read_again(self, paths: Sequence[Column] = ()) -> None:
        """Let the next sync read files again: all, or those of some paths."""
        self._begin()
        with readable(self._rows_path):
            files = list(stored_files(self.connection, paths))
        for file in files:
            self.put_file(file._replace(stamp=file.stamp._replace(ctime_ns=TO_READ_AGAIN)))

    def tick(self) -> None:
        """Commit, if the batch is old or big enough."""
        is_old = self._began and time.monotonic() - self._began > COMMIT_S
        if is_old or self._pending_bytes > COMMIT_BYTES:
            self.commit()

    def commit(self) -> None:
        """Bring the batch to the disk: vectors, codes, then the rows that make them count.

        After an exception in the middle of a change, as of Ctrl-C, the batch is undone.
        """
        if not self.connection.in_transaction:
            return
        if self._unfinished:
            with readable(self._rows_path):
                self.connection.execute("ROLLBACK")
            self.slots = self._committed
            self._clear()
            return
        if self._pending:
            stored = np.concatenate(self._pending)
            crc_vectors = self._vectors.append(stored)
            crc_codes = None
            if self._coder and self._codes:
                vectors = unpacked(stored, self.spec.dtype, self.spec.dim)
                crc_codes = self._codes.append(self._coder.codes(vectors))
            block = (self._committed, len(stored), crc_vectors, crc_codes)
            with readable(self._rows_path):
                self.connection.execute("INSERT INTO blocks VALUES (?, ?, ?, ?)", block)
        with readable(self._rows_path):
            self.connection.execute("COMMIT")
        self._committed = self.slots
        self._clear()

    def make_lookups(self, *names: str) -> None:
        """Make what finds rows by these columns, where it is not there; no name: all of them."""
        self.commit()
        with readable(self._rows_path):
            for name in names or LOOKUPS:
                self.connection.execute(LOOKUPS[name])

    def drop_dead_words(self) -> None:
        """Write the words anew where rows were removed: FTS5 only marks theirs, and they stay.

        Of a large index it would take long; they leave it as it grows.
        """
        with readable(self._rows_path):
            query = "SELECT count(*) FROM (SELECT 1 FROM words_data LIMIT ?)"
            (pages,) = self.connection.execute(query, (MOST_PAGES + 1,)).fetchone()
        if self._has_removed and pages <= MOST_PAGES:
            self.run("INSERT INTO words(words) VALUES ('optimize')")
            self.commit()

    def make_codes(self) -> None:
        """Make the codes that are not there yet, with a coder fitted to all the vectors."""
        self.commit()
        if self._coder is None:
            # A run that was killed here may have left some, of a coder that nobody kept.
            self.run("UPDATE blocks SET crc_codes = NULL")
            self.commit()
            self._coder = Coder.fit(self._sample())
            self._open_codes(self._coder)
        assert self._codes, "opened with the coder"
        with readable(self._rows_path):
            query = "SELECT first, count FROM blocks WHERE crc_codes IS NULL ORDER BY first"
            blocks = self.connection.execute(query).fetchall()
        for chunk in _chunks(blocks, CODED_BYTES // (self._vectors.width or 1)):
            crcs = []
            for first, count in chunk:
                stored = self._vectors.read(first, count)
                vectors = unpacked(stored, self.spec.dtype, self.spec.dim)
                crcs.append((self._codes.append(self._coder.codes(vectors), sync=False), first))
            self._codes.sync()
            with readable(self._rows_path):
                self.connection.execute("BEGIN IMMEDIATE")
                update = "UPDATE blocks SET crc_codes = ? WHERE first = ?"
                self.connection.executemany(update, crcs)
                self.connection.execute("COMMIT")

    def close(self) -> None:
        """Let go of the files; what was not committed is undone. A second time does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        with readable(self._rows_path):
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            self.connection.close()
        self._vectors.close()
        if self._codes:
            self._codes.close()

    def _clear(self) -> None:
        self._pending, self._pending_bytes = [], 0
        self._began, self._unfinished = 0.0, 0

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Make a change of several statements, which is never committed by half."""
        self._begin()
        self._unfinished += 1
        with readable(self._rows_path):
            yield
        self._unfinished -= 1  # not after an exception

    def _begin(self) -> None:
        if not self.connection.in_transaction:
            with readable(self._rows_path):
                self.connection.execute("BEGIN IMMEDIATE")
            self._began = time.monotonic()

    def _open_codes(self, coder: Coder) -> None:
        with readable(self._rows_path):
            query = "SELECT coalesce(sum(count), 0) FROM blocks WHERE crc_codes IS NOT NULL"
            coded = self.connection.execute(query).fetchone()[0]
        self._codes = _Appended(self._codes_path, np.dtype("u1"), coder.bytes, coded)

    def slots_with_vectors(self) -> Ints:
        """Return the slots of rows whose vectors are no drafts, ascending."""
        query = (
            "SELECT slot FROM rows WHERE slot NOT IN (SELECT slot FROM drafts WHERE vector IS NULL)"
            " ORDER BY slot"
        )
        with readable(self._rows_path):
            return np.fromiter((slot for (slot,) in self.connection.execute(query)), np.int64)

    def _sample(self) -> Vectors:
        """Return vectors from everywhere in the index, float32 [n, dim]."""
        if not self.slots:
            return np.zeros((0, self.spec.dim), np.float32)
        slots = np.unique(np.linspace(0, self.slots - 1, min(SAMPLE, self.slots)).astype(np.int64))
        stored = np.concatenate([self._vectors.read(slot, 1) for slot in slots.tolist()])
        return unpacked(stored, self.spec.dtype, self.spec.dim)


class _Appended:
    """A file of rows, [count, width], that only grows."""

    def __init__(self, path: Path, numbers: np.dtype[Any], columns: int, count: int) -> None:
        self._path = path
        self._numbers = numbers
        self._columns = columns
        self.width = columns * numbers.itemsize  # bytes
        self._end = count * self.width
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        size = os.fstat(self._file).st_size
        if size < self._end:
            os.close(self._file)
            mapped(path, numbers, count, columns)  # says so
        os.ftruncate(self._file, self._end)

    def append(self, rows: NDArray[Any], *, sync: bool = True) -> int:
        """Write rows behind the others, on the disk, and return their CRC-32."""
        data = memoryview(np.ascontiguousarray(rows, self._numbers).data).cast("B")
        crc = zlib.crc32(data)
        with naming(self._path):
            pwrite_all(self._file, data, self._end)
            self._end += len(data)
            if sync:
                os.fsync(self._file)
        return crc

    def sync(self) -> None:
        """Bring all of it to the disk."""
        os.fsync(self._file)

    def read(self, first: int, count: int) -> NDArray[Any]:
        """Return rows, [count, columns]."""
        data = os.pread(self._file, count * self.width, first * self.width)
        return np.frombuffer(data, self._numbers).reshape(count, self._columns)

    def close(self) -> None:
        os.close(self._file)


def _chunks(blocks: list[tuple[int, int]], most: int) -> Iterator[list[tuple[int, int]]]:
    """Yield blocks together, until they have so many rows."""
    chunk: list[tuple[int, int]] = []
    rows = 0
    for block in blocks:
        chunk.append(block)
        rows += block[1]
        if rows >= most:
            yield chunk
            chunk, rows = [], 0
    if chunk:
        yield chunk
