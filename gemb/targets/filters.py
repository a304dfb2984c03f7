"""`--where` for a database: the part of its language that all targets understand, as a tree.

    lang = 'en' and (year >= 2024 or has(tags, 'x')) and not lower(title) like '%draft%'

A comparison has a field on one side and constants on the other. As in `gemb.index.where` a field
takes the type of the constant: compared with a number, a text that is a number counts as it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from gemb.errors import UsageError
from gemb.index.where import COLUMNS, KEYWORDS, Token, tokens_of, wrong
from gemb.io.text import visible

Constant = str | float | bool
FUNCTIONS = ("lower", "upper", "length")
ORDERED = ("<", "<=", ">", ">=")
DEEPEST = 100  # parentheses and nots in each other
_SAME = {"==": "=", "<>": "!="}
_TURNED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_SHAPE = (
    "a database takes FIELD = VALUE, <, <=, >, >=, !=, between, in, like, is null, has(FIELD, "
    "VALUE), lower, upper, length, and, or, not and parentheses"
)


@dataclass(frozen=True, kw_only=True)
class Field:
    """What is compared."""

    name: str
    function: str = ""  # of `FUNCTIONS`, applied to it
    is_kept: bool = False  # although a column has its name

    @property
    def is_column(self) -> bool:
        """Whether it is one of a row's own, not a kept one."""
        return self.name in COLUMNS and not self.is_kept


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A field against constants, all of one type."""

    field: Field
    operator: str  # = != < <= > >= between in like null has
    values: tuple[Constant, ...] = ()

    @property
    def type(self) -> Literal["text", "number", "truth"]:
        """The type of the constants, which the field takes."""
        if not self.values or isinstance(self.values[0], str):
            return "text"
        return "truth" if isinstance(self.values[0], bool) else "number"


@dataclass(frozen=True)
class Not:
    """The opposite; unknown where the condition is."""

    condition: Condition


@dataclass(frozen=True)
class All:
    """Several conditions at once."""

    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class AnyOf:
    """At least one of several conditions."""

    conditions: tuple[Condition, ...]


Condition = Comparison | Not | All | AnyOf


def parsed(text: str) -> Condition:
    """Return the condition that a filter is.

    Raises:
        UsageError: it is none, or one that only an index takes.
    """
    parser = _Parser(tokens_of(text)[1:-1])
    condition = parser.either()
    if parser.rest:
        raise parser.unexpected()
    return condition


def with_kept(condition: Condition, kept: Collection[str]) -> Condition:
    """Return a condition whose fields are those of these names that rows keep, if they do.

    As in an index, a kept field hides the column of its name.
    """
    match condition:
        case All(conditions) | AnyOf(conditions):
            return type(condition)(tuple(with_kept(part, kept) for part in conditions))
        case Not(part):
            return Not(with_kept(part, kept))
    field = replace(condition.field, is_kept=condition.field.name in kept)
    return replace(condition, field=field)


def is_long(value: Constant) -> bool:
    """Return whether a constant is a whole number that float64 rounds."""
    return isinstance(value, int) and abs(value) > 2**53


class _Parser:
    """Reads tokens from the first to the last."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.rest = list(tokens)
        self._depth = 0

    def either(self) -> Condition:
        conditions = [self._both()]
        while self._take("or"):
            conditions.append(self._both())
        return conditions[0] if len(conditions) == 1 else AnyOf(tuple(conditions))

    def unexpected(self) -> UsageError:
        what = visible(self.rest[0].text, 40) if self.rest else "the end"
        return wrong(f"at {what}: {_SHAPE}; an index takes any expression of SQLite")

    def _both(self) -> Condition:
        conditions = [self._negated()]
        while self._take("and"):
            conditions.append(self._negated())
        return conditions[0] if len(conditions) == 1 else All(tuple(conditions))

    def _negated(self) -> Condition:
        self._depth += 1
        if self._depth > DEEPEST:
            raise wrong(f"more than {DEEPEST} parentheses or nots in each other")
        condition: Condition
        if self._take("not"):
            condition = Not(self._negated())
        elif self._take("("):
            condition = self.either()
            self._need(")")
        else:
            condition = self._comparison()
        self._depth -= 1
        return condition

    def _comparison(self) -> Condition:
        if self._is("has", "("):
            self._take("has")
            self._need("(")
            field = self._field()
            self._need(",")
            value = self._constant()
            self._need(")")
            return Comparison(field=field, operator="has", values=(value,))
        if self._starts_constant():
            value = self._constant()
            operator = self._operator()
            return Comparison(
                field=self._field(), operator=_TURNED.get(operator, operator), values=(value,)
            )
        field = self._field()
        is_not = self._take("not")
        condition = self._after(field)
        return Not(condition) if is_not else condition

    def _after(self, field: Field) -> Condition:
        if self._take("isnull"):
            return Comparison(field=field, operator="null")
        if self._take("notnull") or self._take("null"):  # after not
            condition = Comparison(field=field, operator="null")
            return Not(condition)
        if self._take("is"):
            is_not = self._take("not")
            null = Comparison(field=field, operator="null")
            if self._take("null"):
                return Not(null) if is_not else null
            # Unlike = it is never unknown: what is absent is not the constant.
            equal = Comparison(field=field, operator="=", values=(self._constant(),))
            return AnyOf((null, Not(equal))) if is_not else All((Not(null), equal))
        if self._take("between"):
            low = self._constant()
            self._need("and")
            return self._of_one_type(field, "between", [low, self._constant()])
        if self._take("in"):
            self._need("(")
            values = [self._constant()]
            while self._take(","):
                values.append(self._constant())
            self._need(")")
            return self._of_one_type(field, "in", values)
        if self._take("like"):
            value = self._constant()
            if not isinstance(value, str):
                raise wrong("like takes a text: FIELD like '%part%'")
            return Comparison(field=field, operator="like", values=(value,))
        return Comparison(field=field, operator=self._operator(), values=(self._constant(),))

    def _of_one_type(self, field: Field, operator: str, values: list[Constant]) -> Condition:
        if len({type(value) for value in values}) > 1:
            raise wrong(f"{operator} takes constants of one type in a database")
        return Comparison(field=field, operator=operator, values=tuple(values))

    def _operator(self) -> str:
        if self.rest and self.rest[0].text in ("=", "==", "!=", "<>", *ORDERED):
            operator = self.rest.pop(0).text
            return _SAME.get(operator, operator)
        raise self.unexpected()

    def _field(self) -> Field:
        for function in FUNCTIONS:
            if self._is(function, "("):
                self._take(function)
                self._need("(")
                field = self._field()
                self._need(")")
                if field.function:
                    raise wrong("a database takes one function around a field")
                return Field(name=field.name, function=function)
        token = self.rest[0] if self.rest else Token("", "")
        is_call = len(self.rest) > 1 and self.rest[1].text == "("
        if token.kind == "quoted":
            self.rest.pop(0)
            return Field(name=token.text[1:-1].replace('""', '"'))
        if token.kind != "word" or token.word in KEYWORDS or is_call:
            raise self.unexpected()
        self.rest.pop(0)
        return Field(name=token.text)

    def _starts_constant(self) -> bool:
        token = self.rest[0] if self.rest else Token("", "")
        return bool(token.constant_type) or token.text in ("-", "+")

    def _constant(self) -> Constant:
        sign = -1 if self._take("-") else 1
        self._take("+")
        token = self.rest[0] if self.rest else Token("", "")
        match token.constant_type:
            case "number":
                if math.isinf(float(token.text)):
                    raise wrong(f"the number {visible(token.text, 40)} is too large")
                self.rest.pop(0)
                return sign * (int(token.text) if token.text.isdigit() else float(token.text))
            case "text" if sign == 1:
                self.rest.pop(0)
                return token.text[1:-1].replace("''", "'")
            case "truth" if sign == 1:
                self.rest.pop(0)
                return token.word == "true"
        raise self.unexpected()

    def _is(self, *words: str) -> bool:
        return [token.word for token in self.rest[: len(words)]] == list(words)

    def _take(self, word: str) -> bool:
        if not self._is(word):
            return False
        self.rest.pop(0)
        return True

    def _need(self, word: str) -> None:
        if not self._take(word):
            raise self.unexpected()
