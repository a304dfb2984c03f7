"""Which passages a file has, kept between searches: an unchanged file is not even opened again.

A row stands for a file as it was: path, size, time and inode. What the vectors are is kept
elsewhere, by the passages' keys. SQLite keeps the table whole through kills and full disks, and
lets other searches read and write meanwhile.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemb.io.notes import note
from gemb.texts.passages import VERSION

SCHEMA = 2
BUSY_S = 10.0  # another search writes for milliseconds
# A file that is written twice within one tick of the disk's clock looks the same (FAT: 2 s).
RACY_NS = 2_000_000_000

# One passage. Characters and lines fit: a file of 4 GB is no text.
FIELDS = np.dtype(
    [
        ("start", "<u4"),
        ("end", "<u4"),
        ("line", "<u4"),
        ("last_line", "<u4"),
        ("title", "<u4"),  # its number among the file's titles
        ("key", "V16"),  # of title and text: `gemb.vector_store.key_of`
    ]
)
BINARY, UNDECODABLE = 1, 2  # flags


class Row(NamedTuple):
    """A file of the table."""

    real: bytes  # absolute path
    size: int
    mtime_ns: int
    inode: int
    flags: int
    passages: bytes  # of FIELDS
    titles: str = "[]"  # JSON


class PassageTable:
    """The table of one cache folder; used by one thread at a time."""

    def __init__(self, folder: Path, kind: str) -> None:
        """Open or make it. Where that fails it is as if it were empty, and a note says why.

        Args:
            folder: of the cache.
            kind: how files are split, one of `gemb.search.passages.KINDS`.
        """
        self._path = folder / "passages.sqlite"
        self._rules = f"{VERSION} {kind}"
        self._database: sqlite3.Connection | None = None
        self._may_write = True
        self.has_failed = False  # and a note has said so
        try:
            self._open(folder)
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def _open(self, folder: Path) -> None:
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
                " inode INTEGER, flags INTEGER, passages BLOB, titles TEXT, crc INTEGER,"
                " PRIMARY KEY (rules, real)) WITHOUT ROWID"
            )
            run(f"PRAGMA user_version = {SCHEMA}")
        run("COMMIT")

    def _give_up(self, error: Exception) -> None:
        """Go on without the table."""
        words = getattr(error, "strerror", None) or str(error)
        note(f"the cache {self._path} cannot be used ({words.lower()}); this search does without")
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

    def under(self, real: str) -> dict[bytes, Row]:
        """Return what is known of a file, or of all files under a folder, by their paths."""
        if not self._database:
            return {}
        path = os.fsencode(real)
        inside = path.rstrip(b"/") + b"/"
        with self._failing():
            found = self._database.execute(
                "SELECT real, size, mtime_ns, inode, flags, passages, crc FROM files"
                " WHERE rules = ?1 AND (real = ?2 OR (real > ?3 AND real < ?4))",
                (self._rules, path, inside, inside[:-1] + b"0"),  # 0 follows the slash
            )
            return {row[0]: Row(*row[:-1]) for row in found if zlib.crc32(row[5]) == row[6]}
        return {}

    def titles(self, real: str) -> list[str]:
        """Return the titles of a file's passages."""
        if self._database:
            with self._failing():
                found = self._database.execute(
                    "SELECT titles FROM files WHERE rules = ? AND real = ?",
                    (self._rules, os.fsencode(real)),
                ).fetchone()
                return list(json.loads(found[0])) if found else []
        return []

    def put(self, rows: Sequence[Row]) -> None:
        """Keep files, but those that may change once more without a sign of it."""
        now = time.time_ns()
        kept = [row for row in rows if row.mtime_ns < now - RACY_NS]
        self._change(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(self._rules, *row, zlib.crc32(row.passages)) for row in kept],
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
            note(f"the cache {self._path} takes no more ({error}); the next search looks again")


def unpacked(passages: bytes) -> NDArray[Any]:
    """Return passages as an array of FIELDS, [n]."""
    return np.frombuffer(passages, FIELDS)
