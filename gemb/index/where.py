"""A filter of rows, as the user writes it: `lang='en' and year>=2024`.

    filter      = and-part { "or" and-part }
    and-part    = not-part { "and" not-part }
    not-part    = "not" not-part | "(" filter ")" | test
    test        = field ( = | != | < | <= | > | >= ) value
                | field [ "not" ] "in" "(" value { "," value } ")"
                | field [ "not" ] ( "like" | "~" | "has" ) value
                | field "is" [ "not" ] "null"
    field       = a word, or any name in double quotes; a.b is b inside a
    value       = a number, true, false, 'text', "text" or a single word

A field is id, path, line, last_line, title, text, or one of the fields that were kept with a row.
`like` is SQL's, with % and _; `~` finds a part of a text; `has` a member of a list. Both pass over
case, of ASCII letters. A row that lacks a field passes no test of it but `is null`, as in SQL.
Nothing of the filter becomes part of an SQL text: names and values are bound.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COLUMNS = ("id", "path", "line", "last_line", "title", "text")


class Where(NamedTuple):
    """A filter, as a condition of SQL on a table `rows`."""

    sql: str  # an expression with a `?` for each parameter; it needs no more brackets
    parameters: tuple[str | int | float, ...]


def condition(text: str, kept: Collection[str]) -> Where:
    """Return a filter as a condition.

    Args:
        text: as the user wrote it.
        kept: the names of the fields that rows have beside `COLUMNS`.

    Raises:
        UsageError: it is no filter, or a field is not there.
    """
    raise NotImplementedError


def condition_for(connection: sqlite3.Connection, text: str) -> Where:
    """Return a filter as a condition on the table `rows` of this connection.

    Raises:
        UsageError: it is no filter, or no row has one of its fields.
        GembError: the rows cannot be read.
    """
    raise NotImplementedError


def matching(connection: sqlite3.Connection, where: Where) -> NDArray[np.int64]:
    """Return the slots of the rows that pass, int64 [n], ascending.

    Raises:
        GembError: the rows cannot be read.
    """
    raise NotImplementedError
