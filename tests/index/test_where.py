"""The filter of rows, against an interpreter of its own and hostile input."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemb.errors import GembError, UsageError
from gemb.index.schema import TABLES
from gemb.index.where import condition, condition_for, matching
from gemb.io.text import visible

ROWS: list[dict[str, Any]] = [
    {"id": 1, "path": "docs/a.md", "line": 3, "title": "Refunds", "text": "How to get money back",
     "kept": {"lang": "en", "year": 2024, "stars": 4.5, "paid": True, "tags": ["x", "y", 3]}},
    {"id": "b-2", "path": "docs/b.md", "line": 30, "title": None, "text": "50% off",
     "kept": {"lang": "de", "year": 2019, "paid": False, "tags": [], "deep": {"er": {"est": 7}}}},
    {"id": "17", "path": "src/c.py", "line": 300, "title": "C", "text": "under_score",
     "kept": {"lang": "EN", "year": "2023", "stars": None, "paid": "True", "tags": "x"}},
    {"id": 4, "path": None, "line": None, "title": "x", "text": "été à l'ombre",
     "kept": {"année": 1, "a.b": "dot", "year": "unknown", "in": "word", "two words": "w"}},
    {"id": 5, "path": "x", "line": 1, "title": "", "text": "nothing kept", "kept": {}},
]  # fmt: skip


def connect(rows: Sequence[Mapping[str, Any]]) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.executescript(TABLES)
    names = ("id", "path", "line", "line", "title", "text")
    for slot, row in enumerate(rows):
        kept = json.dumps(row["kept"], ensure_ascii=False)
        values = (slot, *(row[name] for name in names), kept, b"", 0)
        connection.execute("INSERT INTO rows VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    return connection


def passing(text: str, rows: Sequence[Mapping[str, Any]] = ROWS) -> list[int]:
    connection = connect(rows)
    return matching(connection, condition_for(connection, text)).tolist()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("lang='en'", [0]),
        ("lang = en", [0]),
        ('lang == "en"', [0]),
        ("lang != 'en'", [1, 2]),
        ("not lang = 'en'", [1, 2]),
        ("lang <> en AND year>=2020", [2]),  # "2023" is a text, as in a CSV file
        ("year>=2024", [0]),
        ("year > 2018.5", [0, 1, 2]),  # "unknown" is no number, though SQLite sorts it above all
        ("year < 2024", [1, 2]),
        ("year != 2024", [1, 2, 3]),
        ("year = '2024'", [0]),
        ("year = unknown", [3]),
        ("year in (2019, 2023, unknown)", [1, 2, 3]),
        ("year not in (2019, 2023)", [0, 3]),
        ("lang in ('en', de)", [0, 1]),
        ("paid = true", [0, 2]),
        ("paid=false", [1]),
        ("paid != true", [1]),
        ("paid in (true, 'True')", [0, 2]),
        ("stars is null", [1, 2, 3, 4]),
        ("stars is not null", [0]),
        ("not stars is null", [0]),
        ("title is null", [1]),
        ("tags has x", [0, 2]),
        ("tags has 3", [0]),
        ("tags has '3'", [0]),
        ("tags not has x", [1]),
        ("deep.er.est = 7", [1]),
        ("a.b = dot", [3]),
        ("année = 1", [3]),
        ('"two words" = w', [3]),
        ('"in" = word', [3]),
        ("id = 17", [2]),
        ("id = '1'", [0]),
        ("id in (1, b-2)", [0, 1]),
        ("path like docs/%", [0, 1]),
        ("path ~ DOCS", [0, 1]),
        ("path !~ docs", [2, 4]),
        ("path not like 'docs/%'", [2, 4]),
        ("text ~ '50%'", [1]),
        ("text ~ '%'", [1]),
        ("text ~ under_score", [2]),
        ("text ~ '_'", [2]),
        ("text like 'under_score'", [2]),
        ("text ~ 'l''ombre'", [3]),
        ("line > 3 and line < 300", [1]),
        ("line >= 3 or path = x", [0, 1, 2, 4]),
        ("lang=en or lang=de and year=2024", [0]),  # and binds first
        ("(lang=en or lang=de) and not year=2024", [1]),
        ("not (lang=en or lang=de)", [2]),
        ("year > -1e3 and stars > .5", [0]),
        ("path <= docs/a.md", [0]),
        ("stars ~ 4.50", []),
        ("stars ~ 4.5", [0]),
    ],
)
def test_a_filter_passes_these_rows(text, rows):
    assert passing(text) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty; one filter is lang='en' and year>=2024"),
        ("lang", "one of = != < <= > >= like ~ has in is should stand at the end"),
        ("lang not = 1", "one of like ~ has in should stand at character 10, not ="),
        ("lang = ", "a value should stand at the end"),
        ("lang = and", "a value should stand at character 8, not and"),
        ("lang = 'en", "at character 8, 'en has no end"),
        ("= 'en'", "a field should stand at character 1, not ="),
        ("(lang = en", ") should stand at the end"),
        ("lang = en)", "'and', 'or' or the end should stand at character 10, not )"),
        ("lang = en && year = 1", "'and', 'or' or the end should stand at character 11, not &&"),
        ("lang = en; drop table rows", "'and', 'or' or the end should stand at character 12"),
        ("lang in en", "( should stand at character 9, not en"),
        ("lang in (en", ", or ) should stand at the end"),
        ("lang in ()", "a value should stand at character 10, not )"),
        ("lang = null", "nothing equals null: FIELD is null, or FIELD is not null"),
        ("lang is en", "'null' should stand at character 9, not en"),
        ("paid > true", "true and false are compared with = and !=, not with >"),
        ("year = 1e999", "1e999 is too large for a number; quotes make it a text"),
        ("year = " + "9" * 400, "is too large for a number"),
        ("lang = !", "at character 8, ! is not understood"),
        ("lan = en", "no field 'lan'; did you mean 'lang'? there are: a.b, année, deep, in, lang"),
        ("zzz = en", "no field 'zzz'; there are: a.b"),
        ("deep.. = en", "no field 'deep..'"),
        ("year = line", "year is compared with the field line; for the word: 'line'"),
        ("(" * 60 + "lang=en" + ")" * 60, "'not' and brackets are nested over 20 deep"),
        ("not " * 60 + "lang=en", "'not' and brackets are nested over 20 deep"),
        (" or ".join(["lang=en"] * 201), "over 200 tests; one 'in' takes any number of values"),
        ("lang = '" + "x" * 100_000, "100,008 characters; 100,000 are read"),
        ("lang = '\udcff'", "character 9 is no valid UTF-8"),
        ("'a\"b' = 1", "a field with such a name cannot be tested: a\"b"),
        ("\"a\x1b[31m\" = 1", "a field with such a name cannot be tested: a\\x1b[31m"),
        ("lang = en \x1b[31m", "not \\x1b[31m"),
    ],
)  # fmt: skip
def test_what_is_no_filter_is_refused_in_one_line(text, message):
    with pytest.raises(UsageError, match="^--where: .*" + re.escape(message)) as error:
        passing(text)
    assert "\n" not in str(error.value)


def test_the_longest_filter_is_not_too_deep_for_sqlite():
    inner = " or ".join(["not (year > 2023 and lang = en)"] * 100)
    assert passing("(" * 18 + inner + ")" * 18) == [1, 2, 3]
    assert passing("not " * 20 + "lang = en") == [0]
    inner = "tags has x or year in (1, a, true)"
    assert passing("lang = en and (lang = de or (" * 10 + inner + "))" * 10) == [0]
    assert passing("lang = en and not (" * 10 + "tags has x and year > 1" + ")" * 10) == [0]
    assert passing(f"year in ({', '.join(map(str, range(15_000)))})") == [0, 1, 2]


def test_a_field_that_only_the_last_of_many_rows_has_is_found():
    rows = [{**ROWS[4], "kept": {"n": 1}}] * 1500 + [{**ROWS[4], "kept": {"rare": 1}}]
    assert passing("rare = 1", rows) == [1500]


def test_a_kept_field_hides_the_column_of_its_name():
    assert passing("path = mine", [{**ROWS[0], "kept": {"path": "mine"}}]) == [0]


def test_a_condition_can_be_made_without_rows():
    where = condition("year >= 2024", ["year"])
    assert where.parameters == ('$."year"', 2024, '$."year"')
    assert where.sql.count("?") == 3


def test_damaged_rows_are_one_line():
    connection = connect(ROWS)
    where = condition_for(connection, "lang = en")
    connection.execute("UPDATE rows SET kept = '{' WHERE slot = 3")
    message = (
        "^the rows of the index cannot be read: malformed JSON; gemb index verify looks closer$"
    )
    with pytest.raises(GembError, match=message):
        matching(connection, where)


# The same filters by an interpreter: what a filter means, said a second time.

NAMES = ["a", "b", "year", "or", "x y", "ü", "it's"]
words = st.sampled_from(["", "en", "EN", "1", "2", "1.5", "true", "x%", "é", "it's", "-1", "a b"])
numbers = st.one_of(st.integers(-3, 3), st.sampled_from([1.5, -0.5, 2.0, 1e30]))
scalars = st.one_of(words, numbers, st.booleans(), st.none())
kepts = st.dictionaries(st.sampled_from(NAMES), st.one_of(scalars, st.lists(scalars, max_size=3)))


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def written(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return quoted(value) if isinstance(value, str) else repr(value)


fields = st.sampled_from(NAMES)
values = st.one_of(words, numbers, st.booleans())
plain = st.one_of(words, numbers)
singles = st.one_of(
    st.tuples(st.just("test"), fields, st.sampled_from(["=", "!=", "has"]), values),
    st.tuples(st.just("test"), fields, st.sampled_from(["<", "<=", ">", ">=", "~"]), plain),
    st.tuples(st.just("in"), fields, st.lists(values, min_size=1, max_size=4)),
    st.tuples(st.just("null"), fields),
)
filters = st.recursive(
    singles,
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner),
        st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3)),
    ),
    max_leaves=6,
)


def spelled(part: Any) -> str:
    match part:
        case ("test", field, operator, value):
            return f'"{field}" {operator} {written(value)}'
        case ("in", field, many):
            return f'"{field}" in ({", ".join(map(written, many))})'
        case ("null", field):
            return f'"{field}" is null'
        case ("not", inner):
            return f"not ({spelled(inner)})"
        case (word, parts):
            return "(" + f" {word} ".join(map(spelled, parts)) + ")"
    raise AssertionError(part)


def number(value: Any) -> float | None:
    """A JSON value as a number, if it is one or spells one."""
    if isinstance(value, str):
        return float(value) if re.fullmatch(r"-?\d+(\.\d+)?", value) else None
    return float(value) if isinstance(value, int | float) else None


def spelling(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return "1.0e+30" if value == 1e30 else str(value)


def same(held: Any, value: Any) -> bool:
    if isinstance(value, bool):
        return held is value or (isinstance(held, str) and held.lower() == str(value).lower())
    if isinstance(value, str):
        return spelling(held) == value
    return number(held) == value


def holds(part: Any, kept: Mapping[str, Any]) -> bool | None:
    """Whether a row passes: None is SQL's unknown."""
    match part:
        case ("not", inner):
            found = holds(inner, kept)
            return None if found is None else not found
        case ("and" | "or" as word, parts):
            found_all = [holds(one, kept) for one in parts]
            decisive = word == "or"
            if decisive in found_all:
                return decisive
            return None if None in found_all else not decisive
    held = kept.get(part[1])
    if part[0] == "null":
        return held is None
    return None if held is None else passes(part, held)


def passes(part: Any, held: Any) -> bool:
    """Whether a value that is there passes a test."""
    match part:
        case ("in", _, many):
            return any(same(held, value) for value in many)
        case (_, _, "has", value):
            members = held if isinstance(held, list) else [held]
            if isinstance(value, bool):
                return any(one is value for one in members)
            return any(one is not None and same(one, value) for one in members)
        case (_, _, "=" | "!=" as operator, value):
            return same(held, value) == (operator == "=")
        case (_, _, "~", value):
            return lower(value if isinstance(value, str) else repr(value)) in lower(spelling(held))
        case (_, _, operator, value):
            return ordered(operator, held, value)
    raise AssertionError(part)


def ordered(operator: str, held: Any, value: Any) -> bool:
    left: Any = spelling(held) if isinstance(value, str) else number(held)
    if left is None:
        return False
    return {"<": left < value, "<=": left <= value, ">": left > value, ">=": left >= value}[
        operator
    ]


def lower(text: str) -> str:
    return "".join(one.lower() if one.isascii() else one for one in text)


@given(filters, st.lists(kepts, min_size=1, max_size=6))
@settings(max_examples=400, deadline=None)
def test_a_filter_means_what_an_interpreter_of_its_own_says(part, all_kept):
    rows = [{**ROWS[4], "kept": kept} for kept in all_kept]
    where = condition(spelled(part), NAMES)
    expected = [place for place, kept in enumerate(all_kept) if holds(part, kept) is True]
    assert matching(connect(rows), where).tolist() == expected, (spelled(part), where)


pieces = st.sampled_from(
    ["and", "or", "not", "in", "(", ")", ",", "=", ">=", "~", "like", "has", "is", "null", "true",
     "lang", "year", "'", '"', "''", "--", ";", "/*", "1", "-1e9", "%", "\\", "\x00", "x'00'", "?1",
     "rows", "SELECT", "||", "[0]", "$", ".", "\u202e", "\ud800", "année"]
)  # fmt: skip


@given(st.one_of(st.text(max_size=60), st.lists(pieces, max_size=14).map(" ".join)))
@settings(max_examples=600, deadline=None)
def test_hostile_text_is_a_filter_or_one_line(text):
    connection = connect(ROWS)
    message = ""
    try:
        where = condition_for(connection, text)
    except UsageError as error:
        message = str(error)
    if message:
        assert message.startswith("--where: ")
        assert message == visible(message)
        return
    assert set(where.sql) <= set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789 .,()?\"'\\<>=+"
    )
    assert set(matching(connection, where).tolist()) <= set(range(len(ROWS)))
    assert connection.execute("SELECT count(*) FROM rows").fetchone() == (len(ROWS),)
