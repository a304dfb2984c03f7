"""The database of an index: its tables, and how it is opened.

A row of the index is a slot: its place in the file of vectors and in that of codes, from 0. The
vectors and codes of a batch are on the disk before one transaction commits its rows and its
block; what lies behind the last block is what a kill tore off. A removed row is gone from `rows`,
and its slot stands in `removed` until the index is compacted.
"""

from __future__ import annotations

import os
import re
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from gemb.errors import GembError, UsageError
from gemb.index.drafts import DRAFTS, has_drafts
from gemb.index.words import OLD_WORDS, WORDS, remake_words, version_of_words
from gemb.io.foreign import LARGEST, check_database
from gemb.io.lfs import check_no_pointer
from gemb.io.locks import has_record_locks
from gemb.io.notes import note
from gemb.io.stamps import Stamp
from gemb.io.text import visible
from gemb.texts.records import Id, as_text, is_too_deep
from gemb.texts.words import VERSION

# In the order of `IndexRow.columns`.
COLUMNS = "id, path, line, last_line, title, text, kept, digest, crc"
Column = int | str | bytes | None
WHOLE_NUMBER = re.compile("0|-?[1-9][0-9]{0,18}")
_NONE = type(None)
_TYPES: tuple[set[Any], ...] = (  # of the values of `COLUMNS`
    *({int, str, _NONE}, {str, bytes, _NONE}, {int, _NONE}, {int, _NONE}, {str, _NONE}),
    *({str}, {str}, {bytes}, {int}),
)


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


def are_of_row(values: Sequence[object]) -> bool:
    """Return whether values of `COLUMNS` have their types: a checksum may be somebody else's."""
    return are_of_rows([(value,) for value in values])


def are_of_rows(columns: Sequence[Sequence[object]]) -> bool:
    """Return whether columns of values of `COLUMNS` have their types."""
    are_right = (
        types >= set(map(type, column)) for column, types in zip(columns, _TYPES, strict=True)
    )
    return all(are_right) and all(map(_is_object, set(columns[6])))


def _is_object(kept: Any) -> bool:  # noqa: ANN401
    try:
        fields = orjson.loads(kept)
    except ValueError:
        return False
    # orjson reads what it cannot write.
    return isinstance(fields, dict) and not any(map(is_too_deep, fields.values()))


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


def id_columns(row_id: Id) -> list[Column]:
    """Return the forms in which an id may be stored: 7 and "7" are one id, and "07" is another."""
    text = str(row_id)
    columns: list[Column] = [path_column(text)]  # bytes, which no id is: it is no UTF-8
    if WHOLE_NUMBER.fullmatch(text) and abs(int(text)) <= LARGEST:
        columns.append(int(text))
    return columns


def path_of(column: str | bytes | None) -> str | None:
    """Return the path that `path_column` stored."""
    return os.fsdecode(column) if isinstance(column, bytes) else column


def file_columns(path: str | bytes | None, stamp: Stamp, passages: int) -> tuple[Column, ...]:
    """Return the values of a row of `files`."""
    values = (path, *stamp, passages)
    return (*values, crc(values))


TO_READ_AGAIN = -1  # as time of change of a file
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
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,  -- -1: it is to be read again
    inode INTEGER NOT NULL,
    passages INTEGER NOT NULL,  -- 0: a binary or an empty file
    crc INTEGER NOT NULL        -- of all the columns above (`crc` here)
) WITHOUT ROWID;
{WORDS};
{DRAFTS};
"""
OF_COPIES = "length(text), substr(text, -16)"  # what few rows share but those of one text
# Made when the first rows are all there: so they cost a sort, not a search for each row.
LOOKUPS = {
    "id": "CREATE INDEX IF NOT EXISTS rows_id ON rows(id) WHERE id IS NOT NULL",
    "path": "CREATE INDEX IF NOT EXISTS rows_path ON rows(path) WHERE path IS NOT NULL",
    "digest": "CREATE INDEX IF NOT EXISTS rows_digest ON rows(digest)",
    "copies": f"CREATE INDEX IF NOT EXISTS rows_copies ON rows({OF_COPIES})",
}
# Version 0.1.0's table of files, whose inodes' times were not kept.
_FILES_0_1 = (
    "CREATE TABLE files( path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, "
    "inode INTEGER NOT NULL, passages INTEGER NOT NULL ) WITHOUT ROWID"
)
_MADE = re.compile(r"CREATE (?:VIRTUAL )?(TABLE|TRIGGER|INDEX) (\w+)")
_OF_WORDS = {  # what FTS5 makes for the table of words
    "words_data": "CREATE TABLE 'words_data'(id INTEGER PRIMARY KEY, block BLOB)",
    "words_idx": "CREATE TABLE 'words_idx'(segid, term, pgno, PRIMARY KEY(segid, term)) "
    "WITHOUT ROWID",
    "words_docsize": "CREATE TABLE 'words_docsize'(id INTEGER PRIMARY KEY, sz BLOB)",
    "words_config": "CREATE TABLE 'words_config'(k PRIMARY KEY, v) WITHOUT ROWID",
}
_STATISTICS = ("sqlite_stat1", "sqlite_stat4")  # what ANALYZE writes
CACHE_KIB = 128 << 10  # of pages, for a writer: random keys of millions of rows
BUSY_S = 60.0  # a checkpoint of another process is over by then


def open_to_read(path: Path) -> sqlite3.Connection:
    """Return a connection that writes no row, with a snapshot: what is committed later is not seen.

    On a read-only disk, too.

    Raises:
        GembError: it is no database of an index, or one that only a writer can bring in order.
    """
    with readable(path):
        # The last one who closes a write-ahead log removes it, if he may write.
        connection = _connected(path, "mode=rw")
        try:
            return _begun(connection, path)
        except sqlite3.OperationalError:
            # A log needs a file for its readers, which cannot be made here. Where there is no log
            # the database is all there is.
            log = path.with_name(path.name + "-wal")
            if os.access(path.parent, os.W_OK):
                raise
            if log.is_file() and log.stat().st_size:
                raise GembError(
                    f"{visible(str(path.parent))} was left by a run that was killed, and cannot be "
                    "written to; gemb index info, where it can, brings it in order"
                ) from None
            return _begun(_connected(path, "mode=ro&immutable=1"), path)


def open_to_write(path: Path) -> sqlite3.Connection:
    """Return a connection, in no transaction; the database is made where it is not there.

    One of version 0.1.0 gets the tables of this one.

    Raises:
        GembError: it is no database of an index, or the disk is full.
    """
    with readable(path), _closed_on_error(_connected(path, "mode=rwc")) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
        with transaction(connection):
            if not connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone():
                for statement in _statements(TABLES):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {VERSION}")
            _check_schema(connection, path)
            if _is_of_0_1(connection):
                _renew(connection)
            if not has_drafts(connection):
                connection.execute(_schema()["drafts"][-1])
            if version_of_words(connection) != VERSION:
                note(f"{visible(str(path.parent))}: its words are written anew, by today's rules")
                remake_words(connection)
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
        raise explained(path, error) from None
    except UnicodeDecodeError:  # in the words of SQLite about a damaged schema
        raise damaged(path, "a name in it is no UTF-8") from None


def explained(path: Path, error: sqlite3.Error) -> GembError:
    """Return what SQLite says of a database in words for the user.

    Raises:
        UsageError: it is no database, but a Git LFS pointer.
    """
    shown, folder = visible(str(path)), visible(str(path.parent))
    # Not by its words, which quote what the database holds. Python's own errors have no code: they
    # are of values that it cannot take.
    match getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF:
        case sqlite3.SQLITE_FULL:
            return GembError(f"{shown}: no space left; free some, or write elsewhere")
        case sqlite3.SQLITE_IOERR:  # also a limit on the size of files
            hint = "is the disk full, a limit (ulimit -f) reached, or the disk failing?"
            return GembError(f"{shown}: the system did not read or write it; {hint}")
        case sqlite3.SQLITE_READONLY:
            return GembError(f"{shown} cannot be written to; check its permissions")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return GembError(f"{shown} is locked by another process; try again")
        case sqlite3.SQLITE_CANTOPEN:
            return GembError(f"{shown} cannot be opened; check the permissions of {folder}")
    check_no_pointer(path)
    hint = f"gemb index verify {folder} says what is left" if path.is_file() else "build it anew"
    return GembError(f"{shown} is damaged ({visible(str(error))}); {hint}")


def check_has_drafts(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse an index that was built with drafts and has no table of them.

    Raises:
        GembError: there is none.
    """
    if not has_drafts(connection):
        raise damaged(path, "the table of drafts is not there")


def damaged(path: Path, reason: str) -> GembError:
    """Return the error of a database that no command can open."""
    return GembError(
        f"{visible(str(path))} is damaged ({visible(reason)}); copy it again, or build the index "
        "anew: gemb index build -f"
    )


def _connected(path: Path, how: str) -> sqlite3.Connection:
    try:
        check_database(path)
    except UsageError as error:
        raise damaged(path, str(error)) from None
    # `?`, `#` and `%` in a path would be read as the address' own.
    has_locks = has_record_locks(path.parent)
    address = f"{path.absolute().as_uri()}?{how}{'' if has_locks else '&nolock=1'}"
    connection = sqlite3.connect(address, BUSY_S, isolation_level=None, uri=True)
    connection.execute("PRAGMA temp_store=FILE")
    if not has_locks:  # else a write-ahead log needs them
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    return connection


@contextmanager
def _closed_on_error(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    try:
        yield connection
    except BaseException:
        connection.close()
        raise


def _begun(connection: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    with _closed_on_error(connection):
        connection.execute("PRAGMA query_only=ON")
        connection.execute("BEGIN")
        _check_schema(connection, path)
    return connection


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a database whose tables, triggers and so on are not those of an index.

    A view or a trigger of somebody else could run without end, or do what nobody asked for.

    Raises:
        GembError: they are others.
        UsageError: its words are of a newer gemb.
    """
    there: dict[str, tuple[str, str, str]] = {}
    for kind, name, table, sql in connection.execute(
        "SELECT type, name, tbl_name, sql FROM sqlite_schema"
    ):
        if kind == "table" and name in _STATISTICS:
            continue
        if name in there:  # a trigger may have the name of a table
            raise damaged(path, f"{name} stands there twice")
        there[str(name)] = (kind, table, _plain(str(sql)))
    right = _schema()
    words_version = version_of_words(connection)
    if words_version > VERSION:
        raise UsageError(
            f"{visible(str(path.parent))} was made by a newer gemb (words {words_version}; this "
            f"one reads {VERSION}): pip install -U gemb"
        )
    if words_version == 0:
        for name, sql in OLD_WORDS.items():
            kind, table = ("table", "words") if name == "words" else ("trigger", "rows")
            right[name] = (kind, table, sql)
    if there.get("files") == ("table", "files", _FILES_0_1):
        right["files"] = there["files"]
    others = {name for name in there if there[name] != right.get(name)}
    others |= right.keys() - there.keys() - {"drafts", *(f"rows_{name}" for name in LOOKUPS)}
    if others:
        raise damaged(path, f"{min(others)} is not as gemb made it")


def _schema() -> dict[str, tuple[str, str, str]]:
    """Return type, table and statement of all that `TABLES` and `LOOKUPS` make, by its name."""
    statements = [*_statements(TABLES), *map(_stored, LOOKUPS.values())]
    named = {name: ("table", name, sql) for name, sql in _OF_WORDS.items()}
    for sql in statements:
        kind, name = _MADE.match(sql).groups()  # type: ignore[union-attr]
        table = name if kind == "TABLE" else "rows"
        named[name] = (kind.lower(), table, sql)
    return named


def _is_of_0_1(connection: sqlite3.Connection) -> bool:
    columns = connection.execute("SELECT name FROM pragma_table_info('files')").fetchall()
    return ("ctime_ns",) not in columns


def _renew(connection: sqlite3.Connection) -> None:
    """Make the table of files of version 0.1.0 one of this version; each is read again once."""
    rows = list(stored_files(connection))
    connection.execute("DROP TABLE files")
    connection.execute(_schema()["files"][-1])
    values = (file_columns(*row) for row in rows)
    connection.executemany("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", values)


class StoredFile(NamedTuple):
    """A row of `files`."""

    path: str | bytes
    stamp: Stamp
    passages: int


def stored_files(
    connection: sqlite3.Connection, paths: Sequence[Column] = ()
) -> Iterator[StoredFile]:
    """Yield the files that were read for passages, or those of some paths; 0.1.0's, too.

    Raises:
        DatabaseError: a row is damaged.
    """
    where = f" WHERE path IN ({', '.join('?' * len(paths))})" if paths else ""
    is_old = _is_of_0_1(connection)
    columns = f"size, mtime_ns, {TO_READ_AGAIN}, inode, passages, 0" if is_old else "*"
    query = f"SELECT {'path, ' if is_old else ''}{columns} FROM files{where}"
    for path, *stamp, passages, written in connection.execute(query, paths):
        file = StoredFile(path, Stamp(*stamp), passages)
        are_numbers = all(isinstance(number, int) for number in (*stamp, passages))
        is_same = is_old or file_columns(*file)[-1] == written
        if not (isinstance(path, str | bytes) and are_numbers and is_same):
            raise sqlite3.DatabaseError("a row of files is not as it was written")
        yield file


def _statements(script: str) -> Iterator[str]:
    """Yield the statements as they are stored: without comments, on one line each.

    `executescript` would commit the transaction it is in.
    """
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield _plain(statement).removesuffix(";")
            statement = ""


def _plain(sql: str) -> str:
    """Return a statement without comments and with single spaces."""
    return " ".join(re.sub("--[^\n]*", "", sql).split())


def _stored(sql: str) -> str:
    """Return a statement as SQLite keeps it."""
    return sql.replace("IF NOT EXISTS ", "")
