"""The words of passages that earlier searches of the same sources read.

A file `words-DIGEST` of the search cache is four bytes, the CRC-32 of the rest, and a database of
SQLite: the table that `gemb.index.bm25` searches, and which passage each of its rows is of. The
digest is that of the sources, so that of a tree that has changed only the new passages are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gemb.arrays import Ints
from gemb.errors import UsageError
from gemb.index.words import words_table
from gemb.io.atomic import new_file
from gemb.io.foreign import read_bytes
from gemb.search.corpus import Corpus
from gemb.texts.words import VERSION

LEAST = 1000  # passages; the words of fewer are read in no time
MOST_BYTES = 1 << 29  # of all trees' words; what was used longest ago goes first
MOST_DEAD = 2  # rows for each passage; with more the words are read anew
NEW = 0.02  # share of the rows that must be new for the file to be written again
CRC_BYTES = 4
KEY_BYTES = 16


class KnownWords:
    """A table of words, and the row of each passage in it; rows of passages that are gone stay."""

    def __init__(self, path: Path | None) -> None:
        """Open what is kept; a damaged file is as none.

        Args:
            path: of the file; None: nothing is kept.
        """
        self._path = path
        self._rows: dict[bytes, int] = {}
        self._saved = 0  # rows that the file has
        self.table = self._kept() or _new_table()

    def trim(self, count: int) -> None:
        """Begin anew where so many passages would be the lesser part of the rows."""
        if len(self._rows) > MOST_DEAD * count + LEAST:
            self._rows, self._saved = {}, 0
            self.table = _new_table()

    def find(self, keys: list[bytes]) -> Ints:
        """Return the row of each passage, by its `word_keys`; -1: it was not read."""
        return np.array([self._rows.get(key, -1) for key in keys], np.int64)

    def has(self, key: bytes) -> bool:
        """Return whether a passage was read."""
        return key in self._rows

    def __len__(self) -> int:
        """Return how many rows the table has."""
        return len(self._rows)

    def take(self, keys: list[bytes]) -> int:
        """Give new passages the next rows, and return the first of these."""
        first = len(self._rows)
        self._rows.update((key, first + number) for number, key in enumerate(keys))
        return first

    def save(self) -> None:
        """Keep the words, if many are new and it can be; drop the oldest of other sources."""
        new = len(self._rows) - self._saved
        if not self._path or new <= NEW * self._saved or len(self._rows) < LEAST:
            return
        with contextlib.suppress(OSError, UsageError, sqlite3.Error):
            self.table.execute("BEGIN")
            self.table.executemany(
                "INSERT INTO passages VALUES (?, ?)",
                ((row, key) for key, row in self._rows.items() if row >= self._saved),
            )
            self.table.execute("COMMIT")
            self._saved = len(self._rows)
            data = self.table.serialize()
            if len(data) <= MOST_BYTES:
                _write(data, self._path)

    def _kept(self) -> sqlite3.Connection | None:
        if not self._path:
            return None
        damage = (OSError, UsageError, sqlite3.Error, MemoryError, OverflowError)
        with contextlib.suppress(*damage):
            data = read_bytes(self._path, CRC_BYTES + MOST_BYTES)
            crc, data = data[:CRC_BYTES], data[CRC_BYTES:]
            if data and zlib.crc32(data).to_bytes(CRC_BYTES, "little") == crc:
                table = _new_table()
                table.deserialize(data)
                rows = table.execute("SELECT key, row FROM passages ORDER BY row").fetchall()
                table.execute("SELECT max(id) FROM words_docsize").fetchone()
                os.utime(self._path)
                self._rows = dict(rows)
                self._saved = len(self._rows)
                return table
        return None


def words_path(folder: Path | None, sources: str) -> Path | None:
    """Return where the words of sources are kept; None: they are not."""
    if folder is None or not sources:
        return None
    name = f"{VERSION}\0{sources}".encode("utf-8", "surrogateescape")
    return folder / f"words-{hashlib.blake2b(name, digest_size=12).hexdigest()}"


def word_keys(corpus: Corpus) -> list[bytes]:
    """Return what tells the words of each passage: its folder, title and text."""
    keys: list[bytes] = []
    for number, file in enumerate(corpus.files):
        folder = os.path.dirname(file.path)  # noqa: PTH120
        passages = corpus.passages_of(number)
        keys += word_keys_in(folder, corpus.keys[passages.start : passages.stop])
    return keys + word_keys_in("", corpus.keys[len(keys) :])


def word_keys_in(folder: str, keys: Sequence[bytes]) -> list[bytes]:
    """Return what tells the words of passages of one folder, by their keys."""
    start = hashlib.blake2b(os.fsencode(folder), digest_size=KEY_BYTES)
    all_keys = []
    for key in keys:
        own = start.copy()
        own.update(key)
        all_keys.append(own.digest())
    return all_keys


def _new_table() -> sqlite3.Connection:
    table = words_table()
    table.execute("CREATE TABLE passages(row INTEGER PRIMARY KEY, key BLOB NOT NULL)")
    return table


def _write(data: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as part:
        part.write_bytes(zlib.crc32(data).to_bytes(CRC_BYTES, "little") + data)
    kept = sorted(path.parent.glob("words-*"), key=lambda other: -other.stat().st_mtime)
    size = 0
    for other in kept:
        size += other.stat().st_size
        if size > MOST_BYTES and other != path:
            other.unlink(missing_ok=True)
