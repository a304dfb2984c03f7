"""The database of an index: its tables, and how it is opened.

A row of the index is a slot: its place in the file of vectors and in that of codes, from 0. The
vectors and codes of a batch are on the disk before one transaction commits its rows and its
block; what lies behind the last block is what a kill tore off. A removed row is gone from `rows`,
and its slot stands in `removed` until the index is compacted.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from gemb.errors import GembError
from gemb.io.text import visible
from gemb.texts.records import Id, as_text

# In the order of `IndexRow.columns`.
COLUMNS = "id, path, line, last_line, title, text, kept, digest, crc"
Column = int | str | bytes | None
LARGEST = (1 << 63) - 1  # integer of SQLite; an id beyond it is kept as its digits


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRow:
    """What is known of a row beside its vector."""

    id: Id | None  # None: a passage of a file
    path: str | None  # None: it came from no file
    line: int | None
    last_line: int | None
    title: str | None
    text: str
    kept: str  # a JSON object, as `kept_json` writes it
    digest: bytes  # 16 bytes

    def columns(self) -> tuple[Column, ...]:
        """Return the values of `COLUMNS`."""
        values: tuple[Column, ...] = (
            str(self.id) if isinstance(self.id, int) and abs(self.id) > LARGEST else self.id,
            path_column(self.path),
            self.line,
            self.last_line,
            self.title,
            self.text,
            self.kept,
            self.digest,
        )
        return (*values, crc(values))


def crc(values: tuple[Column, ...]) -> int:
    """Return the CRC-32 of the columns before the last one, types and all."""
    return zlib.crc32(repr(values).encode("utf-8", "surrogatepass"))


def kept_json(kept: Mapping[str, object]) -> str:
    """Return kept fields as a JSON object; dates and the like become texts."""
    return orjson.dumps(kept, as_text, orjson.OPT_NON_STR_KEYS).decode() if kept else "{}"


def kept_fields(text: str) -> Mapping[str, object]:
    """Return what `kept_json` wrote."""
    fields: dict[str, Any] = orjson.loads(text)
    return fields


def path_column(path: str | None) -> str | bytes | None:
    """Return a path as the database takes it: bytes, where its name is no UTF-8."""
    if path is None or path.isascii():
        return path
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return path


def id_columns(reference: str) -> list[Column]:
    """Return the forms in which an id that is typed may be stored: its text, and its number."""
    columns: list[Column] = [path_column(reference)]  # bytes, which no id is: it is no UTF-8
    if reference.isascii() and reference.isdigit() and len(reference) < 19:
        columns.append(int(reference))
    return columns


def path_of(column: str | bytes | None) -> str | None:
    """Return the path that `path_column` stored."""
    return os.fsdecode(column) if isinstance(column, bytes) else column


TOKENIZER = 'tokenize="porter unicode61 remove_diacritics 2"'  # `gemb.index.bm25` says why
TABLES = f"""
CREATE TABLE rows(
    slot INTEGER PRIMARY KEY,
    id,                         -- integer or text; NULL of a passage of a file
    path TEXT,                  -- of its file, as it was typed when the index was built; a BLOB
                                -- where the name is no UTF-8; NULL of a row that came from no file
    line INTEGER,               -- of its first line, from 1
    last_line INTEGER,
    title TEXT,
    text TEXT NOT NULL,         -- without the prompt; empty where vectors came without their texts
    kept TEXT NOT NULL,         -- a JSON object: the row's further fields
    digest BLOB NOT NULL,       -- 16 bytes of what the model saw; of the vector a row came with
    crc INTEGER NOT NULL        -- of all the columns above but the slot (`crc` here)
);
CREATE TABLE removed(slot INTEGER PRIMARY KEY);
CREATE TABLE blocks(
    first INTEGER PRIMARY KEY,  -- slot
    count INTEGER NOT NULL,
    crc_vectors INTEGER NOT NULL,
    crc_codes INTEGER           -- NULL: its codes are not there yet
);
CREATE TABLE files(             -- that were read for passages, as they were then
    path TEXT PRIMARY KEY,      -- as in `rows`
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,  -- -1: it is to be read again
    inode INTEGER NOT NULL,
    passages INTEGER NOT NULL   -- 0: a binary or an empty file
) WITHOUT ROWID;
CREATE VIRTUAL TABLE words USING fts5(
    title, text, content='rows', content_rowid='slot', {TOKENIZER}
);
CREATE TRIGGER rows_in AFTER INSERT ON rows BEGIN
    INSERT INTO words(rowid, title, text) VALUES (new.slot, new.title, new.text);
END;
CREATE TRIGGER rows_out AFTER DELETE ON rows BEGIN
    INSERT INTO words(words, rowid, title, text) VALUES ('delete', old.slot, old.title, old.text);
END;
CREATE TRIGGER rows_other AFTER UPDATE OF title, text ON rows
WHEN old.title IS NOT new.title OR old.text IS NOT new.text BEGIN
    INSERT INTO words(words, rowid, title, text) VALUES ('delete', old.slot, old.title, old.text);
    INSERT INTO words(rowid, title, text) VALUES (new.slot, new.title, new.text);
END;
"""
# Made when the first rows are all there: so they cost a sort, not a search for each row.
LOOKUPS = {
    "id": "CREATE INDEX IF NOT EXISTS rows_id ON rows(id) WHERE id IS NOT NULL",
    "path": "CREATE INDEX IF NOT EXISTS rows_path ON rows(path) WHERE path IS NOT NULL",
    "digest": "CREATE INDEX IF NOT EXISTS rows_digest ON rows(digest)",
}
CACHE_KIB = 128 << 10  # of pages, for a writer: random keys of millions of rows
BUSY_S = 60.0  # a checkpoint of another process is over by then


def open_to_read(path: Path) -> sqlite3.Connection:
    """Return a connection that writes no row, with a snapshot: what is committed later is not seen.

    On a read-only disk, too.

    Raises:
        GembError: it is no database, or one that only a writer can bring in order.
    """
    with readable(path):
        # The last one who closes a write-ahead log removes it, if he may write.
        connection = _connected(path, "mode=rw")
        try:
            _begin(connection)
        except sqlite3.OperationalError:
            # A log needs a file for its readers, which cannot be made here. Where there is no log
            # the database is all there is.
            connection.close()
            log = path.with_name(path.name + "-wal")
            if os.access(path.parent, os.W_OK):
                raise
            if log.is_file() and log.stat().st_size:
                raise GembError(
                    f"{visible(str(path.parent))} was left by a run that was killed, and cannot be "
                    "written to; gemb index info, where it can, brings it in order"
                ) from None
            connection = _connected(path, "mode=ro&immutable=1")
            _begin(connection)
    return connection


def open_to_write(path: Path) -> sqlite3.Connection:
    """Return a connection, in no transaction; the database is made where it is not there.

    Raises:
        GembError: it is no database, or the disk is full.
    """
    with readable(path):
        connection = _connected(path, "mode=rwc")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
        with transaction(connection):
            if not connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
                for statement in _statements(TABLES):
                    connection.execute(statement)
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what the block does, or undo all of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours.

    Raises:
        GembError: the disk is full, or the database is damaged, locked, or none.
    """
    try:
        yield
    except sqlite3.Error as error:
        words = str(error)
        shown = visible(str(path))
        folder = visible(str(path.parent))
        if "full" in words:
            raise GembError(f"{shown}: no space left; free some, or write elsewhere") from None
        if "disk I/O" in words:  # also a limit on the size of files
            hint = "is the disk full, a limit (ulimit -f) reached, or the disk failing?"
            raise GembError(f"{shown}: the system did not read or write it; {hint}") from None
        if "readonly" in words:
            raise GembError(f"{shown} cannot be written to; check its permissions") from None
        if "locked" in words:
            raise GembError(f"{shown} is locked by another process; try again") from None
        if "unable to open" in words:
            raise GembError(
                f"{shown} cannot be opened; check the permissions of {folder}"
            ) from None
        hint = (
            f"gemb index verify {folder} says what is left" if path.is_file() else "build it anew"
        )
        raise GembError(f"{shown} is damaged ({words}); {hint}") from None


def _connected(path: Path, how: str) -> sqlite3.Connection:
    # `?`, `#` and `%` in a path would be read as the address' own.
    address = f"{path.absolute().as_uri()}?{how}"
    connection = sqlite3.connect(address, BUSY_S, isolation_level=None, uri=True)
    connection.execute("PRAGMA temp_store=FILE")
    return connection


def _begin(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA query_only=ON")
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM blocks").fetchone()


def _statements(script: str) -> Iterator[str]:
    """Yield the statements: `executescript` would commit the transaction it is in."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
