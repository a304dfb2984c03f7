"""A filter of rows, as the user writes it: `lang='en' and year>=2024`.

A field is id, path, line, last_line, title, text, or one that was kept with a row; `a.b` is b
inside the field a. The value is a number, true, false, or a text, which needs quotes only where it
is not a single word. A number is compared with numbers, and with texts that are numbers: all that a
CSV file holds are texts. `like` is SQL's, with % and _; `~` finds a part of a text; `has` a member
of a list. These two pass over the case of ASCII letters; `=` does not. A row that lacks a field
passes no test of it, nor a negated one, but `is null`: so it is in SQL.

Names and values never become part of an SQL text: they are bound to it.
"""

from __future__ import annotations

import difflib
import json
import re
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from gemb.errors import GembError, UsageError
from gemb.index.where_syntax import ORDERED, Every, Filter, Not, Some, Test, Value, parse, tests
from gemb.io.text import visible

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


COLUMNS = ("id", "path", "line", "last_line", "title", "text")
LOOKED_AT = 1000  # rows whose kept fields are listed before all are

Bound = str | int | float
_NUMERIC = "CAST(? AS NUMERIC)"  # makes SQLite read a text that it is compared with as a number
_TEXTUAL = "CAST(? AS TEXT)"  # and this a number as a text
_IS_NUMBER = "<= CAST(9e999 AS NUMERIC)"  # every text that is no number is above all numbers
_LITERAL = re.compile(r"[\\%_]")
_NO_NAME = re.compile(r'["\\\x00-\x1f\x7f]')


class Where(NamedTuple):
    """A filter, as a condition of SQL on a table `rows`."""

    sql: str  # an expression with a `?` for each parameter, in brackets where it needs them
    parameters: tuple[Bound, ...]

    @property
    def reads_kept(self) -> bool:
        """Whether it looks into the JSON of kept fields: 0.7 microseconds a row, not 0.1."""
        return "rows.kept" in self.sql


def condition(text: str, kept: Collection[str]) -> Where:
    """Return a filter as a condition.

    Args:
        text: as the user wrote it.
        kept: the names of the fields that rows have beside `COLUMNS`.

    Raises:
        UsageError: it is no filter, or a field is not there.
    """
    return _compiled(parse(text), kept)


def condition_for(connection: sqlite3.Connection, text: str) -> Where:
    """Return a filter as a condition on the table `rows` of this connection.

    Raises:
        UsageError: it is no filter, or no row has one of its fields.
        GembError: the rows cannot be read.
    """
    found = parse(text)
    with reading_rows():
        kept = _kept(connection, LOOKED_AT)
        if any(_path(test.field, kept) is None for test in tests(found)):
            kept = _kept(connection, -1)  # a field that few rows have
    return _compiled(found, kept)


def matching(connection: sqlite3.Connection, where: Where) -> NDArray[np.int64]:
    """Return the slots of the rows that pass, int64 [n], ascending.

    Raises:
        GembError: the rows cannot be read.
    """
    import numpy as np

    query = f"SELECT slot FROM rows WHERE {where.sql} ORDER BY slot"
    with reading_rows():
        rows = connection.execute(query, where.parameters)
        return np.fromiter((slot for (slot,) in rows), np.int64)


@contextmanager
def reading_rows() -> Iterator[None]:
    """Turn what SQLite says of a damaged file into an error for the user.

    Raises:
        GembError: the rows cannot be read.
    """
    try:
        yield
    except sqlite3.Error as error:
        reason = visible(str(error), 200)
        raise GembError(
            f"the rows of the index cannot be read: {reason}; gemb index verify looks closer"
        ) from None


def _kept(connection: sqlite3.Connection, rows: int) -> set[str]:
    """Return the names of the kept fields of so many rows, -1 for all."""
    names = connection.execute(
        "SELECT DISTINCT key FROM (SELECT kept FROM rows LIMIT ?) AS some, json_each(some.kept)",
        (rows,),
    )
    return {str(name) for (name,) in names}


def _path(field: str, kept: Collection[str]) -> str | None:
    """Return the JSON path of a kept field, '' where it is a column, None where it is unknown."""
    if field in kept:
        return f'$."{field}"'
    if field in COLUMNS:
        return ""
    parts = field.split(".")
    for count in range(len(parts) - 1, 0, -1):
        if (head := ".".join(parts[:count])) in kept and all(parts[count:]):
            return "$" + "".join(f'."{name}"' for name in (head, *parts[count:]))
    return None


def _compiled(found: Filter, kept: Collection[str]) -> Where:
    for test in tests(found):
        _check(test, kept)
    return _sql(found, kept)


def _check(test: Test, kept: Collection[str]) -> None:
    name = visible(test.field, 40)
    if _NO_NAME.search(test.field):
        raise UsageError(f"--where: a field with such a name cannot be tested: {name}")
    if _path(test.field, kept) is None:
        names = [*sorted(kept), *COLUMNS]
        close = difflib.get_close_matches(test.field, names, 1, 0.6)
        shown = ", ".join(visible(one, 40) for one in names[:20])
        more = ", ..." if len(names) > 20 else ""
        hint = f"did you mean '{visible(close[0], 40)}'? " if close else ""
        raise UsageError(f"--where: no field '{name}'; {hint}there are: {shown}{more}")
    for word in test.bare:
        if word in COLUMNS or word in kept:
            word = visible(word, 40)
            raise UsageError(
                f"--where: {name} is compared with the field {word}; for the word: '{word}'"
            )


def _sql(part: Filter, kept: Collection[str]) -> Where:
    match part:
        case Test():
            return _tested(part, _path(part.field, kept) or "")
        case Not():
            inner = _sql(part.part, kept)
            return Where(f"(NOT {inner.sql})", inner.parameters)
        case Every():
            return _joined("AND", [_sql(one, kept) for one in part.parts])
        case Some():
            return _joined("OR", [_sql(one, kept) for one in part.parts])


def _joined(operator: str, parts: Sequence[Where]) -> Where:
    sql = f" {operator} ".join(part.sql for part in parts)
    return Where(f"({sql})", tuple(value for part in parts for value in part.parameters))


def _tested(test: Test, path: str) -> Where:
    # The plus takes a column's type away, so that a cast on the other side converts what it holds.
    column = f'+rows."{test.field}"'  # one of COLUMNS: nothing else has no path
    if test.field == "path" and not path:
        column = "CAST(rows.path AS TEXT)"  # one that is no UTF-8 is kept as bytes
    subject = Where("json_extract(rows.kept, ?)", (path,)) if path else Where(column, ())
    match test.operator:
        case "null":
            return Where(f"({subject.sql} IS NULL)", subject.parameters)
        case "in":
            return _one_of(subject, path, test.values)
        case "has" if path:
            return _member(subject, path, test.values[0])
        case "like" | "~":
            return _alike(subject, test.operator, str(test.values[0]))
        case "=" | "has":
            return _equal(subject, path, test.values[0])
        case "!=":
            equal = _equal(subject, path, test.values[0])
            return Where(f"(NOT {equal.sql})", equal.parameters)
    return _ordered(subject, test.operator, test.values[0])


def _equal(subject: Where, path: str, value: Value) -> Where:
    if isinstance(value, bool):
        word = "true" if value else "false"
        as_text = Where(f"(lower({subject.sql}) = ?)", (*subject.parameters, word))
        if not path:
            return as_text
        as_json = Where("(json_type(rows.kept, ?) = ?)", (path, word))
        return _joined("OR", [as_json, as_text])
    cast = _TEXTUAL if isinstance(value, str) else _NUMERIC
    return Where(f"({subject.sql} = {cast})", (*subject.parameters, value))


def _ordered(subject: Where, operator: str, value: Value) -> Where:
    assert operator in ORDERED, operator
    if isinstance(value, str):
        return Where(f"({subject.sql} {operator} {_TEXTUAL})", (*subject.parameters, value))
    compared = Where(f"({subject.sql} {operator} {_NUMERIC})", (*subject.parameters, value))
    if operator in ("<", "<="):
        return compared
    return _joined("AND", [compared, Where(f"({subject.sql} {_IS_NUMBER})", subject.parameters)])


def _alike(subject: Where, operator: str, value: str) -> Where:
    if operator == "like":
        return Where(f"({subject.sql} LIKE ?)", (*subject.parameters, value))
    literal = _LITERAL.sub(lambda match: "\\" + match[0], value)
    return Where(f"({subject.sql} LIKE ? ESCAPE '\\')", (*subject.parameters, f"%{literal}%"))


def _one_of(subject: Where, path: str, values: Sequence[Value]) -> Where:
    texts = [value for value in values if isinstance(value, str)]
    truths = {value for value in values if isinstance(value, bool)}
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    parts = [_equal(subject, path, value) for value in truths]
    among = "IN (SELECT value FROM json_each(?))"  # one parameter, however many values
    if texts:
        sql = f"(CAST({subject.sql} AS TEXT) {among})"
        parts.append(Where(sql, (*subject.parameters, json.dumps(texts, ensure_ascii=False))))
    if numbers:
        sql = f"({subject.sql} {_IS_NUMBER} AND CAST({subject.sql} AS NUMERIC) {among})"
        parts.append(Where(sql, (*subject.parameters, *subject.parameters, json.dumps(numbers))))
    return parts[0] if len(parts) == 1 else _joined("OR", parts)


def _member(subject: Where, path: str, value: Value) -> Where:
    """Return a test of a list's members; a field that is no list is its own only member."""
    if isinstance(value, bool):
        test, bound = "member.type = ?", "true" if value else "false"
        test_bound: tuple[Bound, ...] = (bound,)
    else:
        test = f"+member.value = {_TEXTUAL if isinstance(value, str) else _NUMERIC}"
        test_bound = (value,)
    sql = (
        f"(CASE WHEN {subject.sql} IS NULL THEN NULL ELSE EXISTS "
        f"(SELECT 1 FROM json_each(rows.kept, ?) AS member WHERE {test}) END)"
    )
    return Where(sql, (*subject.parameters, path, *test_bound))
