"""What a search of files keeps for later ones: passages of files, and vectors of passages.

`PassageTable`: an unchanged file is not even opened again. A row describes one version of a file:
path and `Stamp`. SQLite keeps the table whole through kills and full disks, and lets
other searches read and write meanwhile. `VectorCache` has the vectors by the passages' keys.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemb.arrays import Rows, Vectors
from gemb.embedding.store import VectorStore
from gemb.embedding.vectors import VectorSpec
from gemb.errors import GembError, UsageError
from gemb.io.foreign import check_database
from gemb.io.machine import cores
from gemb.io.notes import note
from gemb.io.stamps import Stamp
from gemb.texts.contents import DECODING
from gemb.texts.passages import VERSION

IN_MEMORY = 1 << 48  # rows from here on are in memory
BLOCK = 1 << 18  # numbers that are widened to float32 at once: 1 MB stays in a core's cache
FEW = 8  # queries that are multiplied one by one
HIGHEST = 1.01  # what no cosine of float16 vectors reaches
SCHEMA = 5
_COLUMNS = "real, size, mtime_ns, ctime_ns, inode, flags, passages"
BUSY_S = 10.0  # another search writes for milliseconds

# One passage. Characters and lines fit: a file of 4 GB is no text.
FIELDS = np.dtype(
    [
        ("start", "<u4"),
        ("end", "<u4"),
        ("line", "<u4"),
        ("last_line", "<u4"),
        ("title", "<u4"),  # its number among the file's titles
        ("key", "V16"),  # of title and text: `gemb.search.corpus.passage_key`
        ("same", "<u8"),  # of the text: `gemb.search.corpus.text_number`
    ]
)
BINARY, UNDECODABLE, DOCUMENT = 1, 2, 4  # flags


class FileRow(NamedTuple):
    """A file of the table."""

    real: bytes  # absolute path
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    flags: int
    passages: bytes  # of FIELDS
    titles: str = "[]"  # JSON

    @property
    def stamp(self) -> Stamp:
        """The file's, as it was read."""
        return Stamp(self.size, self.mtime_ns, self.ctime_ns, self.inode)


class PassageTable:
    """The table of one cache folder; used by one thread at a time."""

    def __init__(self, folder: Path | None, kind: str) -> None:
        """Open or make it. Where that fails, it behaves as if it were empty, and a note says why.

        Args:
            folder: of the cache; None: nothing is kept.
            kind: how files are split, one of `gemb.texts.PASSAGE_KINDS`.
        """
        self._path = (folder or Path()) / "passages.sqlite"
        self._rules = f"{VERSION} {DECODING} {kind}"
        self._database: sqlite3.Connection | None = None
        self._may_write = True
        self.has_failed = False  # a note has said so
        if folder is None:
            return
        try:
            self._open(folder)
        except (OSError, UsageError, sqlite3.Error) as error:
            self._give_up(error)

    def _open(self, folder: Path) -> None:
        check_database(self._path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            writable = [path for path in (folder, self._path) if path.exists()]
            may = {"effective_ids": os.access in os.supports_effective_ids}
            self._may_write = all(os.access(path, os.W_OK, **may) for path in writable)
        except OSError:
            self._may_write = False
        if not self._may_write:
            if not self._path.exists():
                raise PermissionError(13, "it may not be written", str(folder))
            # As nothing beside it can be made, neither can a lock.
            name = f"{self._path.absolute().as_uri()}?immutable=1"
            self._database = sqlite3.connect(name, uri=True, check_same_thread=False)
            if self._version() != SCHEMA:
                self._database = None
            return
        self._database = self._connected()
        try:
            self._prepare()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # locked, full: it is not damaged
                raise
            note(f"{self._path} is damaged; it is made anew")
            self._database.close()
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self._path}{suffix}").unlink(missing_ok=True)
            self._database = self._connected()
            self._prepare()

    def _connected(self) -> sqlite3.Connection:
        return sqlite3.connect(
            self._path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
        )

    def _version(self) -> int:
        assert self._database, "an open table"
        return int(self._database.execute("PRAGMA user_version").fetchone()[0])

    def _prepare(self) -> None:
        assert self._database, "an open table"
        if self._version() == SCHEMA:
            return
        run = self._database.execute
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = NORMAL")
        run("BEGIN IMMEDIATE")
        if self._version() != SCHEMA:  # another search may have made it meanwhile
            run("DROP TABLE IF EXISTS files")
            run(
                "CREATE TABLE files(rules TEXT, real BLOB, size INTEGER, mtime_ns INTEGER,"
                " ctime_ns INTEGER, inode INTEGER, flags INTEGER, passages BLOB, titles TEXT,"
                " crc INTEGER, PRIMARY KEY (rules, real)) WITHOUT ROWID"
            )
            run(f"PRAGMA user_version = {SCHEMA}")
        run("COMMIT")

    def _give_up(self, error: Exception) -> None:
        """Go on without the table."""
        reason = str(error) if isinstance(error, UsageError) else _reason(error)
        note(f"the cache {self._path} cannot be used ({reason}); this search does without")
        self.has_failed = True
        self.close()

    def close(self) -> None:
        """Close it; from then on it is as if it were empty."""
        if self._database:
            self._database.close()
        self._database = None

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            self._give_up(error)

    def under(self, real: str) -> dict[bytes, FileRow]:
        """Return the rows of a file, or of all files under a folder, by their paths."""
        if not self._database:
            return {}
        path = os.fsencode(real)
        inside = path.rstrip(b"/") + b"/"
        return {
            file.real: file._replace(titles="[]")  # of all files they would take much room
            for file in self._whole_rows(
                "(real = ?2 OR (real > ?3 AND real < ?4))",
                (path, inside, inside[:-1] + b"0"),  # 0 follows the slash
            )
        }

    def titles(self, real: str) -> list[str]:
        """Return the titles of a file's passages."""
        for file in self._whole_rows("real = ?2", (os.fsencode(real),)):
            return list(json.loads(file.titles))
        return []

    def _whole_rows(self, condition: str, values: tuple[bytes, ...]) -> Iterator[FileRow]:
        """Yield the rows that a condition chooses, without those that are damaged."""
        if not self._database:
            return
        with self._failing():
            # As bytes, since SQLite refuses all rows for one that is no UTF-8.
            rows = self._database.execute(
                f"SELECT {_COLUMNS}, CAST(titles AS BLOB), crc FROM files"
                f" WHERE rules = ?1 AND {condition}",
                (self._rules, *values),
            )
            for *others, passages, titles, crc in rows:
                if _crc(others, passages, titles) == crc:
                    yield FileRow._make((*others, passages, titles.decode()))

    def put(self, rows: Sequence[FileRow]) -> None:
        """Store files, except those that may change again with the same size and time."""
        now = time.time_ns()
        settled = [row for row in rows if row.stamp.is_settled(now)]
        self._change(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (self._rules, *row, _crc(row[:-2], row.passages, row.titles.encode()))
                for row in settled
            ],
        )

    def forget(self, paths: Iterable[bytes]) -> None:
        """Drop files."""
        self._change(
            "DELETE FROM files WHERE rules = ? AND real = ?",
            [(self._rules, path) for path in paths],
        )

    def _change(self, command: str, values: list[tuple[Any, ...]]) -> None:
        if not self._database or not self._may_write or not values:
            return
        try:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._database.executemany(command, values)
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:  # full, locked for long: it can still be read
            self._may_write = False
            self.has_failed = True
            note(
                f"the cache {self._path} cannot be written ({error}); "
                "the next search reads the files again"
            )


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).lower()


def _crc(others: Sequence[object], passages: object, titles: object) -> int | None:
    """Return the CRC-32 of a row's columns, types and all; None: one is not of its type."""
    if not isinstance(passages, bytes) or not isinstance(titles, bytes):
        return None
    if len(passages) % FIELDS.itemsize:
        return None
    return zlib.crc32(passages, zlib.crc32(titles, zlib.crc32(repr(tuple(others)).encode())))


def unpacked(passages: bytes) -> NDArray[Any]:
    """Return passages as an array of FIELDS, [n]."""
    return np.frombuffer(passages, FIELDS)


class VectorCache:
    """Vectors of one `VectorSpec` by key: on the disk, else in memory; one thread at a time."""

    def __init__(self, folder: Path | None, spec: VectorSpec, *, is_said: bool = False) -> None:
        """Open what the folder holds.

        Args:
            folder: of all specs' vectors; None: nothing is kept.
            spec: whose vectors are meant; its fingerprint is the name of their folder.
            is_said: a note has already said that nothing can be kept.

        Raises:
            UsageError: the folder holds something else.
        """
        self.spec = spec
        self._is_said = is_said
        self._store = (
            VectorStore(folder / spec.fingerprint, spec.dim) if folder else None
        )  # its length may be 0
        self.is_kept = self._may_write = self._store is not None
        self._rows: dict[bytes, int] = {}  # of those in memory
        self._blocks: list[NDArray[np.float16]] = []
        self._memory: NDArray[np.float16] = np.zeros((0, spec.dim), np.float16)

    def find(self, keys: Sequence[bytes]) -> Rows:
        """Return the row of each key, int64 [len(keys)], -1 where it is not here."""
        rows = (
            self._store.find(keys) if self._store is not None else np.full(len(keys), -1, np.int64)
        )
        if self._rows:
            for index in np.flatnonzero(rows < 0).tolist():
                rows[index] = self._rows.get(keys[index], -1)
        return rows

    def gather(self, rows: Rows) -> Vectors:
        """Return the vectors of these rows, float32 [n, dim], of length one.

        Raises:
            GembError: the file of vectors is damaged.
        """
        if not self._rows:
            assert self._store is not None, "rows of a store"
            return self._store.gather(rows)
        vectors = np.empty((len(rows), self.spec.dim), np.float32)
        in_memory = rows >= IN_MEMORY
        vectors[in_memory] = self._in_memory()[rows[in_memory] - IN_MEMORY]
        if self._store is not None and not in_memory.all():
            vectors[~in_memory] = self._store.gather(rows[~in_memory])
        return vectors

    def check(self, keys: Sequence[bytes]) -> None:
        """Look at vectors on the disk, of those keys that have one.

        Raises:
            GembError: one is not of length 1: the file of vectors is damaged.
        """
        if self._store is not None:
            rows = self._store.find(keys)
            self._store.gather(rows[rows >= 0])

    def scores(self, rows: Rows, queries: Vectors) -> Vectors:
        """Return the cosines of these rows with unit queries [Q, dim], float32 [n, Q].

        Raises:
            GembError: the file of vectors is damaged.
        """
        scores = np.empty((len(rows), len(queries)), np.float32)
        on_disk = rows < IN_MEMORY
        if self._store is not None and on_disk.any():
            scores[on_disk] = _scores(self._store.stored, rows[on_disk], queries)
            if not (np.abs(scores[on_disk]) < HIGHEST).all():
                raise GembError(
                    f"{self._store.folder / 'vectors.f16'} is damaged; "
                    f"remove the folder {self._store.folder}"
                )
        if not on_disk.all():
            scores[~on_disk] = _scores(self._in_memory(), rows[~on_disk] - IN_MEMORY, queries)
        return scores

    def _in_memory(self) -> NDArray[np.float16]:
        if self._blocks:
            self._memory = np.concatenate([self._memory, *self._blocks])
            self._blocks = []
        return self._memory

    def add(self, keys: Sequence[bytes], vectors: Vectors) -> None:
        """Keep vectors, [len(keys), dim], of distinct keys; what is here already stays."""
        if self._store is not None and self._may_write:
            try:
                self._append(self._store, keys, vectors)
                return
            except OSError as error:
                self._may_write = False
                if not self._is_said:
                    reason = (error.strerror or str(error)).lower()
                    note(
                        f"vectors cannot be kept in {self._store.folder} ({reason}); "
                        "the next search computes them again"
                    )
        first = len(self._rows)
        new = np.flatnonzero(self.find(keys) < 0)
        self._rows.update(
            (keys[index], IN_MEMORY + first + row) for row, index in enumerate(new.tolist())
        )
        self._blocks.append(vectors[new].astype(np.float16))

    def _append(self, store: VectorStore, keys: Sequence[bytes], vectors: Vectors) -> None:
        with store.locked():
            if store.is_shorter():  # what was read may be another's by now
                raise FileNotFoundError(2, "it was removed meanwhile", str(store.folder))
            if not store.describes():
                store.describe(spec=self.spec.to_json())
            new = np.flatnonzero(store.find(keys) < 0)  # another search may have been here
            if len(new):
                store.append([keys[index] for index in new.tolist()], vectors[new])


def scores_of(vectors: NDArray[np.float16], queries: Vectors) -> Vectors:
    """Return the cosines of vectors as they are stored, [n, dim], with queries: float32 [n, Q]."""
    wide = vectors.astype(np.float32)
    if len(queries) <= FEW:
        # The threads of a matrix library take ten times as long over so little, and its sums
        # differ with the number of rows.
        return np.stack([np.einsum("nd,d->n", wide, query) for query in queries], axis=1)
    scores: Vectors = np.round(wide @ queries.T, 6)  # a second search would swap equals
    return scores


def _scores(stored: NDArray[np.float16], rows: Rows, queries: Vectors) -> Vectors:
    """Return `scores_of` these rows, on all cores: numpy leaves Python's lock while it computes."""
    step = max(1, BLOCK // stored.shape[1])
    share = max(step, -(-len(rows) // cores()))

    def part(start: int) -> Vectors:
        end = min(start + share, len(rows))
        firsts = range(start, end, step)
        return np.concatenate(
            [scores_of(stored[rows[at : min(at + step, end)]], queries) for at in firsts]
        )

    starts = range(0, len(rows), share)
    with ThreadPoolExecutor(len(starts)) as pool:
        return np.concatenate(list(pool.map(part, starts)))
