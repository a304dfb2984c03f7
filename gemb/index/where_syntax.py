"""The language of `--where`, read into a tree.

filter   = part { "or" part }
part     = piece { "and" piece }
piece    = "not" piece | "(" filter ")" | field test
test     = ( = | != | < | <= | > | >= ) value
         | [ "not" ] "in" "(" value { "," value } ")"
         | [ "not" ] ( "like" | "~" | "has" ) value
         | "is" [ "not" ] "null"
field    = a word, or any name in double quotes
value    = a number, true, false, 'text', "text", or a word
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from gemb.errors import UsageError
from gemb.io.text import visible

# What SQLite bears: an expression may be 1,000 levels deep (SQLITE_MAX_EXPR_DEPTH), and a chain of
# tests is as deep as it is long; its parser's stack has 100 places, a bracket takes up to 3.
MOST_TESTS = 200
DEEPEST = 20
LONGEST = 100_000  # characters

Value = str | int | float | bool
RESERVED = ("and", "or", "not", "in", "like", "has", "is", "null", "true", "false")
ORDERED = ("<", "<=", ">", ">=")
_SAME = {"==": "=", "<>": "!="}

_TOKEN = re.compile(
    r"""\s+
    | (?P<text> '(?:[^']|'')*' | "(?:[^"]|"")*" )
    | (?P<mark> !=|==|<>|<=|>=|!~|[()=<>~,] )
    | (?P<word> [^\s()=!<>~,'"]+ )
    """,
    re.VERBOSE,
)
_WHOLE = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Test:
    """A field against values."""

    field: str
    operator: str  # =, !=, <, <=, >, >=, in, like, ~, has, null
    values: tuple[Value, ...]  # none for null, one or more for in, else one
    bare: tuple[str, ...] = ()  # which of them are words without quotes, and so might be fields


@dataclass(frozen=True)
class Not:
    """What does not pass a filter."""

    part: Filter


@dataclass(frozen=True)
class Every:
    """What passes each of several filters."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class Some:
    """What passes one of several filters."""

    parts: tuple[Filter, ...]


Filter = Test | Not | Every | Some


def parse(text: str) -> Filter:
    """Return a filter as a tree.

    Raises:
        UsageError: it is no filter.
    """
    parser = _Parser(text)
    found = parser.some_of(0)
    if parser.token.kind:
        parser.fail("'and', 'or' or the end")
    return found


def tests(part: Filter) -> Iterator[Test]:
    """Yield every test in a filter, from left to right."""
    match part:
        case Test():
            yield part
        case Not():
            yield from tests(part.part)
        case _:
            for one in part.parts:
                yield from tests(one)


class _Token(NamedTuple):
    kind: str  # text, mark, word, or empty at the end
    text: str  # a quoted text without its quotes
    place: int  # of its first character, from 1

    @property
    def keyword(self) -> str:
        """The word in lower case where it is one of the language's own, else empty."""
        lower = self.text.lower()
        return lower if self.kind == "word" and lower in RESERVED else ""

    def is_mark(self, *marks: str) -> bool:
        return self.kind == "mark" and self.text in marks


def _tokens(text: str) -> Iterator[_Token]:
    place = 0
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            what = "has no end" if text[place] in "'\"" else "is not understood"
            raise _wrong(f"at character {place + 1}, {visible(text[place:], 30)} {what}")
        kind, token = found.lastgroup, found[0]
        if kind == "text":
            quote = token[0]
            yield _Token(kind, token[1:-1].replace(quote * 2, quote), place + 1)
        elif kind:
            yield _Token(kind, token, place + 1)
        place = found.end()
    yield _Token("", "", len(text) + 1)


class _Parser:
    """Reads tokens from left to right, one ahead."""

    def __init__(self, text: str) -> None:
        if len(text) > LONGEST:
            raise _wrong(f"{len(text):,} characters; {LONGEST:,} are read")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise _wrong(f"character {error.start + 1} is no valid UTF-8") from None
        self._tokens = _tokens(text)
        self._tests = 0
        self.token = next(self._tokens)
        if not self.token.kind:
            raise _wrong("it is empty; one filter is lang='en' and year>=2024")

    def fail(self, wanted: str) -> NoReturn:
        """Say what should stand where the token stands."""
        token = self.token
        found = visible(token.text, 30) if token.kind != "text" else f"'{visible(token.text, 30)}'"
        where = f"at character {token.place}, not {found}" if token.kind else "at the end"
        raise _wrong(f"{wanted} should stand {where}")

    def _take(self) -> _Token:
        taken = self.token
        self.token = next(self._tokens)
        return taken

    def _takes(self, keyword: str) -> bool:
        if self.token.keyword != keyword:
            return False
        self._take()
        return True

    def _expect(self, mark: str) -> None:
        if not self.token.is_mark(mark):
            self.fail(mark)
        self._take()

    def some_of(self, depth: int) -> Filter:
        parts = [self._every_of(depth)]
        while self._takes("or"):
            parts.append(self._every_of(depth))
        return parts[0] if len(parts) == 1 else Some(tuple(parts))

    def _every_of(self, depth: int) -> Filter:
        parts = [self._piece(depth)]
        while self._takes("and"):
            parts.append(self._piece(depth))
        return parts[0] if len(parts) == 1 else Every(tuple(parts))

    def _piece(self, depth: int) -> Filter:
        if depth > DEEPEST:
            raise _wrong(f"'not' and brackets are nested over {DEEPEST} deep")
        if self._takes("not"):
            return Not(self._piece(depth + 1))
        if self.token.is_mark("("):
            self._take()
            inner = self.some_of(depth + 1)
            self._expect(")")
            return inner
        return self._test()

    def _test(self) -> Filter:
        self._tests += 1
        if self._tests > MOST_TESTS:
            raise _wrong(f"over {MOST_TESTS} tests; one 'in' takes any number of values")
        if self.token.kind not in ("text", "word") or self.token.keyword:
            self.fail("a field")
        field = self._take().text
        if self._takes("is"):
            negated = self._takes("not")
            if not self._takes("null"):
                self.fail("'null'")
            return _negated(Test(field, "null", ()), negated)
        negated = self._takes("not")
        if self._takes("in"):
            return _negated(self._in(field), negated)
        return _negated(self._compared(field, after_not=negated), negated)

    def _compared(self, field: str, *, after_not: bool) -> Filter:
        token = self.token
        name = token.keyword
        if token.kind == "mark":
            name = _SAME.get(token.text, token.text)
        if name == "!~":
            self._take()
            return Not(self._single(field, "~"))
        allowed = ["like", "~", "has"] if after_not else ["=", "!=", *ORDERED, "like", "~", "has"]
        if name not in allowed:
            self.fail(f"one of {' '.join(allowed)} in" + ("" if after_not else " is"))
        self._take()
        return self._single(field, name)

    def _single(self, field: str, operator: str) -> Test:
        token = self.token
        bare = token.kind == "word"
        value = self._value()
        if operator in ("like", "~") and not isinstance(value, bool):
            value = token.text  # 1.50 is the text that the user wrote
        if isinstance(value, bool) and operator not in ("=", "!=", "has"):
            raise _wrong(f"true and false are compared with = and !=, not with {operator}")
        return Test(field, operator, (value,), _bare(value, bare))

    def _in(self, field: str) -> Test:
        values: list[Value] = []
        bare: tuple[str, ...] = ()
        self._expect("(")
        while True:
            is_word = self.token.kind == "word"
            values.append(self._value())
            bare += _bare(values[-1], is_word)
            if not self.token.is_mark(","):
                break
            self._take()
        if not self.token.is_mark(")"):
            self.fail(", or )")
        self._take()
        return Test(field, "in", tuple(values), bare)

    def _value(self) -> Value:
        token = self.token
        if token.kind == "text":
            return self._take().text
        if token.keyword == "null":
            raise _wrong("nothing equals null: FIELD is null, or FIELD is not null")
        if token.keyword in ("true", "false"):
            return self._take().keyword == "true"
        if token.kind != "word" or token.keyword:
            self.fail("a value")
        word = self._take().text
        return _number(word) if _NUMBER.fullmatch(word) else word


def _number(word: str) -> int | float:
    if _WHOLE.fullmatch(word) and len(word) < 19:  # an integer of SQLite has 64 bits
        return int(word)
    if math.isinf(number := float(word)):
        raise _wrong(f"{visible(word, 30)} is too large for a number; quotes make it a text")
    return number


def _bare(value: Value, is_word: bool) -> tuple[str, ...]:
    return (value,) if is_word and isinstance(value, str) else ()


def _negated(test: Filter, negated: bool) -> Filter:
    return Not(test) if negated else test


def _wrong(reason: str) -> UsageError:
    return UsageError(f"--where: {reason}")
