"""The table of words, which `gemb.index.bm25` searches: one form for indexes and for files.

Titles and texts are `expanded`; the folder of a passage's file stands before its title. The table
holds no texts, so what is taken out of it must be given as it was put in.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence

from gemb.texts.words import VERSION, expanded

TOKENIZER = 'tokenize="porter unicode61 remove_diacritics 2"'  # `gemb.index.bm25` says why
WORDS = f"CREATE VIRTUAL TABLE words USING fts5(title, text, content='', {TOKENIZER})"
# What earlier versions made, with the words as they stand in the texts.
OLD_WORDS = {
    "words": "CREATE VIRTUAL TABLE words USING fts5( title, text, content='rows', "
    f"content_rowid='slot', {TOKENIZER} )",
    "rows_in": "CREATE TRIGGER rows_in AFTER INSERT ON rows BEGIN INSERT INTO words(rowid, title, "
    "text) VALUES (new.slot, new.title, new.text); END",
    "rows_out": "CREATE TRIGGER rows_out AFTER DELETE ON rows BEGIN INSERT INTO words(words, "
    "rowid, title, text) VALUES ('delete', old.slot, old.title, old.text); END",
    "rows_other": "CREATE TRIGGER rows_other AFTER UPDATE OF title, text ON rows WHEN old.title IS "
    "NOT new.title OR old.text IS NOT new.text BEGIN INSERT INTO words(words, rowid, title, text) "
    "VALUES ('delete', old.slot, old.title, old.text); INSERT INTO words(rowid, title, text) "
    "VALUES (new.slot, new.title, new.text); END",
}
_ADD_ROWS, _ROW = "INSERT INTO words(rowid, title, text) VALUES ", "(?, ?, ?)"
_ADD = _ADD_ROWS + _ROW
_DROP = "INSERT INTO words(words, rowid, title, text) VALUES ('delete', ?, ?, ?)"
TOGETHER = 256  # passages that a statement adds; SQLite may bind 999 values, in old versions
_OF_ROWS = "SELECT slot, id, path, title, text FROM rows"


def words_table() -> sqlite3.Connection:
    """Return an empty database in memory, which `add_words` fills."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.execute(WORDS)
    return connection


def add_words(
    connection: sqlite3.Connection, first: int, passages: Sequence[tuple[str | None, str]]
) -> None:
    """Add passages, titles and texts, as the rows `first`, `first` + 1 and so on.

    A statement adds many: so long Python's other threads run.
    """
    connection.execute("BEGIN")
    for start in range(0, len(passages), TOGETHER):
        some = passages[start : start + TOGETHER]
        values: list[int | str] = []
        for row, (title, text) in enumerate(some, first + start):
            values += row, expanded(_utf8(title or "")), expanded(text)
        connection.execute(_ADD_ROWS + ", ".join([_ROW] * len(some)), values)
    connection.execute("COMMIT")


def version_of_words(connection: sqlite3.Connection) -> int:
    """Return by which rules the words of an index were made: `gemb.texts.words.VERSION`."""
    (number,) = connection.execute("PRAGMA user_version").fetchone()
    return int(number)


def add_words_of(connection: sqlite3.Connection, slots: Iterable[int] | None = None) -> None:
    """Add the words of rows of an index, in the caller's transaction.

    Args:
        connection: to the database.
        slots: of the rows; None: all of them, to an empty table.
    """
    rows = connection.execute(f"{_OF_ROWS} ORDER BY slot") if slots is None else None
    connection.executemany(_ADD, map(_words, rows or _rows(connection, slots or ())))


def drop_words_of(connection: sqlite3.Connection, slots: Iterable[int]) -> None:
    """Take the words of rows out, before the rows change, in the caller's transaction."""
    connection.executemany(_DROP, map(_words, _rows(connection, slots)))


def remake_words(connection: sqlite3.Connection) -> None:
    """Make the words of an index anew by the rules of today, in the caller's transaction."""
    for name in OLD_WORDS.keys() - {"words"}:
        connection.execute(f"DROP TRIGGER IF EXISTS {name}")
    connection.execute("DROP TABLE words")
    connection.execute(WORDS)
    add_words_of(connection)
    connection.execute(f"PRAGMA user_version = {VERSION}")


def title_words(row_id: object, path: str | bytes | None, title: str | None) -> str:
    """Return the title of a row of an index as the table has it: of a passage, with its folder."""
    name = os.fsdecode(path) if row_id is None and isinstance(path, str | bytes) else ""
    return expanded(_utf8(f"{os.path.dirname(name)} {title or ''}"))  # noqa: PTH120


def _rows(
    connection: sqlite3.Connection, slots: Iterable[int]
) -> Iterable[tuple[int, object, str | bytes | None, str | None, str]]:
    for slot in slots:
        yield from connection.execute(f"{_OF_ROWS} WHERE slot = ?", (slot,)).fetchall()


def _words(row: tuple[int, object, str | bytes | None, str | None, str]) -> tuple[int, str, str]:
    slot, row_id, path, title, text = row
    if not (isinstance(text, str) and isinstance(title, str | None)):
        raise sqlite3.DatabaseError(f"row {slot} is not as it was written")
    return slot, title_words(row_id, path, title), expanded(text)


def _utf8(text: str) -> str:
    """Return a text without what stands for bytes of a name that is not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
