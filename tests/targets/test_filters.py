"""`--where` of databases: what is parsed, and the conditions that are made of it."""

from __future__ import annotations

import pytest

from gemb.errors import UsageError
from gemb.targets.filters import All, AnyOf, Comparison, Condition, Field, Not, parsed
from gemb.targets.lance_filters import sql_of as lance_sql
from gemb.targets.postgres_filters import sql_of as postgres_sql

LANG = Field(name="lang")
NULL = Comparison(field=LANG, operator="null")
ENGLISH = Comparison(field=LANG, operator="=", values=("en",))


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("lang = 'en'", ENGLISH),
        ("lang is 'en'", All((Not(NULL), ENGLISH))),
        ("lang is not 'en'", AnyOf((NULL, Not(ENGLISH)))),
        ("lang is not null", Not(NULL)),
        ("not lang = 'en' and lang is null", All((Not(ENGLISH), NULL))),
        (
            "n < 9007199254740993",
            Comparison(field=Field(name="n"), operator="<", values=(2**53 + 1,)),
        ),
    ],
)
def test_conditions(text: str, condition: Condition) -> None:
    assert parsed(text) == condition


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("(" * 5000 + "a = 1" + ")" * 5000, "more than 100 parentheses or nots in each other"),
        ("not " * 5000 + "a = 1", "more than 100 parentheses or nots in each other"),
        ("a = 1e999", "the number 1e999 is too large"),
        ("a = " + "9" * 5000, "the number 999"),
    ],
)
def test_what_is_too_much_is_one_line(text: str, line: str) -> None:
    with pytest.raises(UsageError, match=r"^--where: ") as raised:
        parsed(text)
    assert line in str(raised.value)


def test_ninety_parentheses_are_translated() -> None:
    condition = parsed("(" * 90 + "a = 1" + ")" * 90)
    assert lance_sql(condition).startswith("(")
    assert postgres_sql(condition, []).startswith("(")


def test_names_and_constants_are_no_sql() -> None:
    condition = parsed("\"x'); drop\" = 'y'') or (1=1'")
    values: list[object] = []
    sql = postgres_sql(condition, values)
    assert "drop" not in sql
    assert values == ["x'); drop", "y') or (1=1"]
    sql = lance_sql(condition)
    assert "x''); drop" in sql
    assert "'y'') or (1=1'" in sql
    with pytest.raises(UsageError, match="such a name cannot be tested"):
        lance_sql(parsed('"a""b" = 1'))


def test_whole_numbers_are_not_rounded_in_lance() -> None:
    assert "IN ('9007199254740993')" in lance_sql(parsed("big = 9007199254740993"))
    assert "NOT IN ('9007199254740993')" in lance_sql(parsed("big != 9007199254740993"))
    assert "AS double" in lance_sql(parsed("n = 2024"))


def test_texts_in_lance_are_compared_as_json() -> None:
    sql = lance_sql(parsed("note = 'two\n\"lines\"'"))
    assert r"""IN ('"two\n\"lines\""', 'two""" in sql
    assert lance_sql(parsed("""note = '"x"'""")).endswith(r"""IN ('"\"x\""'))""")


def test_order_of_truths_in_lance() -> None:
    assert "IN ('true', '1', 'false', '0')" in lance_sql(parsed("paid in (true, false)"))
    with pytest.raises(UsageError, match="LanceDB has no order of true and false"):
        lance_sql(parsed("paid < true"))
