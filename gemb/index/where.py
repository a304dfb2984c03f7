"""`--where`: an expression of SQLite over the fields of an index's rows.

    lang = 'en' and year >= 2024 and lower(title) like '%refund%'

A field is id, path, line, last_line, title, text, or one that was kept with a row; `a.b` is the
field b inside the field a, and a name that is no word stands in double quotes. A row without a
field has NULL. `has(tags, 'x')` asks for a member of a list.

Fields have no types: all that a CSV file holds is text. So a field takes the type of the constant
that it is compared with. Compared with a number, a text that is a number counts as that number,
and another text is neither less nor greater; compared with a text, a number is its digits; compared
with true or false, so are 'True' and 'false'.

SQLite gets operators, numbers and allowed functions as they are written. Names of fields and texts
are bound to the statement, and an authorizer refuses all but reading the columns of `rows`.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import orjson

from gemb.errors import GembError, UsageError
from gemb.io.text import did_you_mean, visible

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COLUMNS = ("id", "path", "line", "last_line", "title", "text")
# They make no value much larger than what they get, and reach nothing outside of the statement.
_FUNCTIONS = """abs cast ceil ceiling coalesce date datetime floor glob has ifnull iif instr
    json_array_length json_extract json_type json_valid julianday length like lower ltrim max min
    nullif round rtrim sign strftime substr substring time trim trunc typeof unicode unixepoch
    upper"""
FUNCTIONS = frozenset(_FUNCTIONS.split())
_KEYWORDS = """and as between case collate else end escape false glob in is isnull like not notnull
    null or then true when"""
KEYWORDS = frozenset(_KEYWORDS.split())
INSTEAD = {  # of what is no expression of SQLite, or none that is allowed
    "~": "FIELD like '%part%'",
    "!~": "FIELD not like '%part%'",
    "has": "has(FIELD, VALUE)",
    "match": "FIELD like '%part%', or FIELD glob '*part*'",
    "regexp": "FIELD like '%part%', or FIELD glob '*part*'",
    "select": "one expression; for a member of a list: has(FIELD, VALUE)",
}
_TOO_DEEP = (
    "too many operators or parentheses for SQLite; FIELD in (A, B, ...) replaces FIELD=A or FIELD=B"
)
EXPLAINED = {  # part of what SQLite says -> what is said instead
    "Expression tree is too large": _TOO_DEEP,
    "parser stack overflow": _TOO_DEEP,
    "arguments to function has()": "has takes two arguments: has(FIELD, VALUE)",
}
SAMPLED_ROWS = 1000  # whose kept fields are listed before those of all rows are
LONGEST = 100_000  # characters of an expression
LARGEST = 64 << 20  # bytes of a value that an expression makes
MOST_S = 600.0  # each row is read once: ten million take about ten seconds
STEPS = 100_000  # of SQLite's machine between two looks at the clock: a millisecond

_TOKEN = re.compile(
    r"""(?P<space> \s+ )
    | (?P<text> '(?:[^']|'')*' )
    | (?P<quoted> "(?:[^"]|"")*" )
    | (?P<number> (?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?!\w) )
    | (?P<word> [^\W\d]\w*(?:\.\w+)* )
    | (?P<mark> ->>?|!=|==|<>|<=|>=|!~|\|\||[-+*/%&|~<>=(),] )
    """,
    re.VERBOSE,
)
_UNQUOTABLE = re.compile(r'["\\\x00-\x1f\x7f]')  # in a path of SQLite's JSON functions
_BY_ORDER = ("<", "<=", ">", ">=", "between")
_COMPARISONS = (*_BY_ORDER, "=", "==", "!=", "<>", "is", "in")


class WrongFilter(UsageError):
    """A filter is not what it should be; all else that a search raises is no fault of it."""


class Where(NamedTuple):
    """A filter, ready to be run."""

    sql: str  # a statement that gives the slots of the rows that pass, ascending
    values: tuple[str, ...]  # of its parameters: constant texts, then paths of kept fields
    reads_kept: bool  # it looks into the JSON of kept fields: 0.7 microseconds a row, not 0.1


def condition_for(connection: sqlite3.Connection, text: str) -> Where:
    """Return a filter as a statement on the table `rows` of this connection.

    Raises:
        UsageError: it names a field that is not there, uses what is not allowed, or is no
            expression that SQLite understands.
        GembError: the rows cannot be read.
    """
    tokens = tokens_of(text)
    with reading_rows():
        kept = _kept(connection, SAMPLED_ROWS)
        fields = {_field(tokens, number) for number in range(len(tokens))}
        if any(field is not None and _column(field, kept) is None for field in fields):
            kept = _kept(connection, -1)  # a field that few rows have
    where = _compiled(tokens, kept)
    try:
        with _guarded(connection, MOST_S):
            connection.execute(f"EXPLAIN {where.sql}", where.values).close()
    except sqlite3.Error as error:
        raise wrong(_complaint(text) or _explained(str(error))) from None
    return where


def matching(
    connection: sqlite3.Connection, where: Where, seconds: float | None = None
) -> NDArray[np.int64]:
    """Return the slots of the rows that pass, int64 [n], ascending.

    Args:
        connection: the one that the filter was made for.
        where: the filter.
        seconds: that it may take; None: `MOST_S`.

    Raises:
        UsageError: the expression cannot take the value of a row, or it takes too long.
        GembError: the rows cannot be read.
    """
    import numpy as np

    seconds = MOST_S if seconds is None else seconds
    with reading_rows(), _guarded(connection, seconds):
        try:
            rows = connection.execute(where.sql, where.values)
            return np.fromiter((slot for (slot,) in rows), np.int64)
        except sqlite3.Error as error:
            if error.sqlite_errorname == "SQLITE_INTERRUPT":
                raise wrong(f"it takes over {seconds:.0f} s") from None
            # Kept fields are JSON, if they are not damaged; other texts need not be.
            is_damage = "JSON" in str(error) and not _JSON.search(where.sql.replace(_EXTRACT, ""))
            if error.sqlite_errorname in ("SQLITE_ERROR", "SQLITE_TOOBIG") and not is_damage:
                raise wrong(f"it cannot take the value of a row: {error}") from None
            raise


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


@contextmanager
def _guarded(connection: sqlite3.Connection, seconds: float) -> Iterator[None]:
    """Let a statement read the columns of `rows` by the allowed functions, for a time."""
    readable = {*COLUMNS, "slot", "kept", ""}  # the last: of a statement that needs no column
    functions = FUNCTIONS | {"->", "->>"}

    def authorized(action: int, first: str | None, second: str | None, *_: str | None) -> int:
        is_allowed = (
            action == sqlite3.SQLITE_SELECT
            or (action == sqlite3.SQLITE_READ and first == "rows" and second in readable)
            or (action == sqlite3.SQLITE_FUNCTION and second in functions)
        )
        return sqlite3.SQLITE_OK if is_allowed else sqlite3.SQLITE_DENY

    deadline = time.monotonic() + seconds
    longest = connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST)
    connection.create_function("has", 2, _has, deterministic=True)
    connection.set_authorizer(authorized)
    connection.set_progress_handler(lambda: time.monotonic() > deadline, STEPS)
    try:
        yield
    finally:
        connection.set_progress_handler(None, 0)
        connection.set_authorizer(None)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, longest)


def _has(held: object, member: object) -> bool | None:
    """Return whether a list has a member; a value that is no list is its own only member."""
    if held is None:
        return None
    members = [held]
    if isinstance(held, str) and held.startswith("["):
        with contextlib.suppress(ValueError):
            members = orjson.loads(held)
    return member in members or str(member) in [str(m) for m in members if m is not None]


def _kept(connection: sqlite3.Connection, rows: int) -> set[str]:
    """Return the names of the kept fields of so many rows, -1 for all."""
    names = connection.execute(
        "SELECT DISTINCT key FROM (SELECT kept FROM rows LIMIT ?) AS r, json_each(r.kept)",
        (rows,),
    )
    return {str(name) for (name,) in names}


class Token(NamedTuple):
    """A piece of an expression."""

    kind: str  # text, quoted, number, word, mark; empty before the first and after the last
    text: str

    @property
    def word(self) -> str:
        """It in small letters."""
        return self.text.lower()

    @property
    def constant_type(self) -> str:
        """Number, text or truth; empty: it is no constant."""
        if self.kind == "word" and self.word in ("true", "false"):
            return "truth"
        return self.kind if self.kind in ("number", "text") else ""


def tokens_of(text: str) -> list[Token]:
    """Return the tokens of an expression, between two empty ones.

    Raises:
        UsageError: it is too long, or has what no expression has.
    """
    if len(text) > LONGEST:
        raise wrong(f"{len(text):,} characters; {LONGEST:,} are read")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise wrong(f"character {error.start + 1} is no valid UTF-8") from None
    tokens = [Token("", "")]
    position = depth = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        depth += text.startswith("(", position) - text.startswith(")", position)
        if match is None or depth < 0 or text.startswith(("--", "/*"), position):
            what = "has no end" if text[position] in "'\"" else "cannot stand here"
            rest = visible(text[position:], 30)
            raise wrong(f"at character {position + 1}, {rest} {what}")
        position = match.end()
        if match.lastgroup != "space":
            tokens.append(Token(str(match.lastgroup), match[0]))
    if len(tokens) == 1:
        raise wrong("it is empty; one filter is lang='en' and year>=2024")
    return [*tokens, Token("", "")]


def _field(tokens: Sequence[Token], number: int) -> str | None:
    """Return the name of the field that a token is; None: it can be none."""
    token = tokens[number]
    if token.kind == "quoted":
        return token.text[1:-1].replace('""', '"')
    is_type = tokens[number - 1].word in ("as", "collate")
    is_function = tokens[(number + 1) % len(tokens)].text == "("
    if token.kind != "word" or token.word in KEYWORDS or is_type or is_function:
        return None
    return token.text


def _compiled(tokens: Sequence[Token], kept: Collection[str]) -> Where:
    """Return the statement of an expression.

    Raises:
        UsageError: a name is no field, or a function is not allowed.
    """
    texts: list[str] = []
    columns: dict[str, str] = {}  # of `COLUMNS`, or JSON paths -> their names in the statement
    parts: list[str] = []
    for number, token in enumerate(tokens):
        field = _field(tokens, number)
        column = None if field is None else _column(field, kept)
        is_function = token.kind == "word" and field is None and tokens[number + 1].text == "("
        is_known = not is_function or token.word in KEYWORDS | FUNCTIONS
        if token.kind == "text":
            texts.append(token.text[1:-1].replace("''", "'"))
            parts.append(f"?{len(texts)}")
        elif column is not None:
            name = columns.setdefault(column, f"field{len(columns)}")
            parts.append(_typed(name, tokens, number))
        elif token.word in INSTEAD and (token.kind == "mark" or field or not is_known):
            raise wrong(f"instead of {token.word}: {INSTEAD[token.word]}")
        elif field is not None:
            raise _unknown(field, kept)
        elif not is_known:
            raise wrong(f"the function {visible(token.text, 40)} is not allowed")
        else:
            parts.append(token.text)
    paths = [column for column in columns if column not in COLUMNS]
    selected = ["slot"]
    for column, name in columns.items():
        # A path that is no UTF-8 is kept as bytes.
        sql = "CAST(path AS TEXT)" if column == "path" else column
        if column in paths:
            sql = f"{_EXTRACT}?{len(texts) + 1 + paths.index(column)})"
        selected.append(f"{sql} AS {name}")
    return Where(
        f"SELECT slot FROM (SELECT {', '.join(selected)} FROM rows) "
        f"WHERE ({' '.join(parts)}) ORDER BY slot",
        (*texts, *paths),
        bool(paths),
    )


_EXTRACT = "json_extract(kept, "
_JSON = re.compile("json_|->", re.IGNORECASE)


def _column(field: str, kept: Collection[str]) -> str | None:
    """Return the column of a field: its JSON path, or one of `COLUMNS`; None: it is unknown.

    Raises:
        UsageError: SQLite has no path to a field of this name.
    """
    if _UNQUOTABLE.search(field):
        raise wrong(f"a field with such a name cannot be tested: {visible(field, 40)}")
    if field in kept:
        return f'$."{field}"'
    if field in COLUMNS:
        return field
    parts = field.split(".")
    for count in range(len(parts) - 1, 0, -1):
        if (head := ".".join(parts[:count])) in kept and all(parts[count:]):
            return "$" + "".join(f'."{name}"' for name in (head, *parts[count:]))
    return None


def _typed(name: str, tokens: Sequence[Token], number: int) -> str:
    """Return a field in the type of the constant that it is compared with."""
    signs = ("not", "(", "-", "+")
    after = [token for token in tokens[number + 1 : number + 6] if token.word not in signs]
    operator, constant = after[0].word, after[min(1, len(after) - 1)]
    if tokens[number - 1].word in _COMPARISONS and tokens[number - 2].constant_type:
        operator, constant = tokens[number - 1].word, tokens[number - 2]  # as in 2024 <= year
    if operator not in _COMPARISONS:
        return name
    match constant.constant_type:
        case "text":
            return f"CAST({name} AS TEXT)"
        case "truth":
            return f"(CASE lower({name}) WHEN 'true' THEN 1 WHEN 'false' THEN 0 ELSE {name} END)"
        case "number":
            # Every text that is no number is above all numbers.
            other = "" if operator in _BY_ORDER else f"ELSE {name} "
            is_number = f"{name} <= CAST(9e999 AS NUMERIC)"
            return f"(CASE WHEN {is_number} THEN CAST({name} AS NUMERIC) {other}END)"
    return name


def _unknown(field: str, kept: Collection[str]) -> UsageError:
    names = [*sorted(kept), *COLUMNS]
    hint = visible(did_you_mean(field, names))
    shown = ", ".join(visible(name, 40) for name in names[:20]) + (", ..." if names[20:] else "")
    field = visible(field, 40)
    quoted = field.replace("'", "''")
    return wrong(
        f"no field {field}; {hint and hint + ' '}there are: {shown}; "
        f"if you mean the text, quote it: '{quoted}'"
    )


def _explained(message: str) -> str:
    """Return SQLite's message, or what to do about it."""
    explanations = (EXPLAINED[part] for part in EXPLAINED if part in message)
    return next(explanations, message)


def _complaint(text: str) -> str:
    """Return what SQLite says of the user's own words; empty: they are an expression."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.set_authorizer(lambda *_: sqlite3.SQLITE_DENY)
        try:
            connection.execute("EXPLAIN SELECT " + text.replace("\0", " "))
        except sqlite3.Error as error:
            words = str(error)
            return words if "syntax" in words or "incomplete" in words else ""
    return ""


def wrong(reason: str) -> WrongFilter:
    """Return the error of an expression."""
    return WrongFilter(f"--where: {visible(reason)}")
