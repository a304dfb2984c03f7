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
from gemb.index import where as where_module
from gemb.index.schema import TABLES
from gemb.index.where import Where, condition_for, matching
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


TOO_DEEP = (
    "too many operators or parentheses for SQLite; FIELD in (A, B, ...) replaces FIELD=A or FIELD=B"
)


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
        ("lang == 'en'", [0]),
        ("'en' = lang", [0]),
        ("lang != 'en'", [1, 2]),
        ("not lang = 'en'", [1, 2]),
        ("lang <> 'en' AND year>=2020", [2]),  # "2023" is a text, as in a CSV file
        ("lang = 'en' collate nocase", [0, 2]),
        ("lower(lang) = 'en'", [0, 2]),
        ("year>=2024", [0]),
        ("2024 <= year", [0]),
        ("year > 2018.5", [0, 1, 2]),  # "unknown" is no number, though SQLite sorts it above all
        ("year < 2024", [1, 2]),
        ("year between 2020 and 2030", [0, 2]),
        ("year not between 2020 and 2030", [1]),
        ("year + 1 = 2024", [2]),
        ("year - line < 2000 and year > 0", [1, 2]),
        ("year != 2024", [1, 2, 3]),
        ("year = '2024'", [0]),
        ("year = 'unknown'", [3]),
        ("year in (2019, 2023, 'unknown')", [1, 2, 3]),
        ("year in ('2019', 2023)", [1, 2]),
        ("year not in (2019, 2023)", [0, 3]),
        ("year is not 2019", [0, 2, 3, 4]),
        ("lang in ('en', 'de')", [0, 1]),
        ("paid", [0]),
        ("paid = true", [0, 2]),
        ("paid=false", [1]),
        ("paid != true", [1]),
        ("paid in (true, 'True')", [0, 2]),
        ("stars is null", [1, 2, 3, 4]),
        ("stars is not null", [0]),
        ("not stars is null", [0]),
        ("title is null", [1]),
        ("has(tags, 'x')", [0, 2]),
        ("has(tags, 3)", [0]),
        ("has(tags, '3')", [0]),
        ("not has(tags, 'x')", [1]),
        ("case when json_valid(tags) then json_array_length(tags) = 3 end", [0]),
        ("deep.er.est = 7", [1]),
        ("deep ->> '$.er.est' = 7", [1]),
        ("json_extract(deep, '$.er.est') = 7", [1]),
        ("a.b = 'dot'", [3]),
        ("année = 1", [3]),
        ("\"two words\" = 'w'", [3]),
        ("\"in\" = 'word'", [3]),
        ("id = 17", [2]),
        ("id = '1'", [0]),
        ("id in (1, 'b-2')", [0, 1]),
        ("path like 'docs/%'", [0, 1]),
        ("path like '%DOCS%'", [0, 1]),
        ("path not like '%docs%'", [2, 4]),
        ("path glob 'docs/*'", [0, 1]),
        ("text like '%50!%%' escape '!'", [1]),
        ("instr(text, '%')", [1]),
        ("text like 'under_score'", [2]),
        ("instr(text, 'l''ombre')", [3]),
        ("line > 3 and line < 300", [1]),
        ("line >= 3 or path = 'x'", [0, 1, 2, 4]),
        ("lang='en' or lang='de' and year=2024", [0]),  # and binds first
        ("(lang='en' or lang='de') and not year=2024", [1]),
        ("not (lang='en' or lang='de')", [2]),
        ("year > -1e3 and stars > .5", [0]),
        ("path <= 'docs/a.md'", [0]),
        ("year = line", []),
        ("length(text) > 14", [0]),
        ("case when lang = 'de' then line > 3 else line = 1 end", [1, 4]),
        ("cast(line as text) = '30'", [1]),
        ("text = 'a\0b'", []),
        ("1", [0, 1, 2, 3, 4]),
    ],
)
def test_a_filter_passes_these_rows(text, rows):
    assert passing(text) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty; one filter is lang='en' and year>=2024"),
        ("lang = ", "incomplete input"),
        ("lang = and", 'near "and": syntax error'),
        ("lang = 'en", "at character 8, 'en has no end"),
        ("= 'en'", 'near "=": syntax error'),
        ("(lang = 'en'", "incomplete input"),
        ("lang = 'en')", "at character 12, ) cannot stand here"),
        ("lang = 'en') or (1", "at character 12, ) or (1 cannot stand here"),
        ("lang = 'en' && year = 1", 'near "&": syntax error'),
        ("lang = 'en'; drop table rows", "at character 12, ; drop table rows cannot stand here"),
        ("lang = 'en' -- x", "at character 13, -- x cannot stand here"),
        ("lang = 'en' /* x */", "at character 13, /* x */ cannot stand here"),
        ("lang = ?1", "at character 8, ?1 cannot stand here"),
        ("lang = :name", "at character 8, :name cannot stand here"),
        ("lang = [x]", "at character 8, [x] cannot stand here"),
        ("lang = `x`", "at character 8, `x` cannot stand here"),
        ("lang = x'00'", "no field x; there are"),
        ("lang = !", "at character 8, ! cannot stand here"),
        ("year = 1_000", "at character 8, 1_000 cannot stand here"),
        ("lan = 'en'", "no field lan; did you mean 'lang'? there are: a.b, année, deep, in, lang"),
        ("lang = en", "no field en; there are: a.b, année"),
        ("lang = en", "; if you mean the text, quote it: 'en'"),
        ('lang = "en"', "; if you mean the text, quote it: 'en'"),
        ('lang = "it\'s"', "; if you mean the text, quote it: 'it''s'"),
        ("zzz = 'en'", "no field zzz; there are: a.b"),
        ("Lang = 'en'", "no field Lang; did you mean 'lang'?"),
        ("deep.. = 'en'", "at character 5, .. = 'en' cannot stand here"),
        ("digest = ''", "no field digest"),
        ("rows.digest = ''", "no field rows.digest"),
        ("slot = 1", "no field slot"),
        ("field0 = 1", "no field field0"),
        ("tags has 'x'", "instead of has: has(FIELD, VALUE)"),
        ("path ~ 'docs'", "instead of ~: FIELD like '%part%'"),
        ("path !~ 'docs'", "instead of !~: FIELD not like '%part%'"),
        ("path regexp 'docs'", "instead of regexp: FIELD like '%part%', or FIELD glob '*part*'"),
        ("(" * 200 + "lang='en'" + ")" * 200, TOO_DEEP),
        ("not " * 2000 + "lang='en'", TOO_DEEP),
        ("lang='en'" + " or lang='en'" * 2000, TOO_DEEP),
        ("lang = '" + "x" * 100_000, "100,008 characters; 100,000 are read"),
        ("1 or " * 250_000, "1,250,000 characters; 100,000 are read"),
        ("lang = '\udcff'", "character 9 is no valid UTF-8"),
        ('"a""b" = 1', 'a field with such a name cannot be tested: a"b'),
        ('"a\x1b[31m" = 1', "a field with such a name cannot be tested: a\\x1b[31m"),
        ("lang = \x1b[31m", "at character 8, \\x1b[31m cannot stand here"),
        ("lang = \0", "at character 8, \\x00 cannot stand here"),
        ("max(year)", "misuse of aggregate"),
        ("substr(year)", "wrong number of arguments to function substr()"),
        ("text match 'en'", "instead of match: FIELD like '%part%', or FIELD glob '*part*'"),
        ("text match 1", "instead of match: FIELD like '%part%', or FIELD glob '*part*'"),
        ("has(lang)", "has takes two arguments: has(FIELD, VALUE)"),
        ("has(lang, 'a', 'b')", "has takes two arguments: has(FIELD, VALUE)"),
        ("raise(abort, 'x')", "the function raise is not allowed"),
    ],
)  # fmt: skip
def test_what_is_no_filter_is_refused_in_one_line(text, message):
    with pytest.raises(UsageError, match="^--where: .*" + re.escape(message)) as error:
        passing(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("load_extension('x')", "the function load_extension is not allowed"),
        ("writefile('x', 'y')", "the function writefile is not allowed"),
        ("readfile('/etc/passwd') = ''", "the function readfile is not allowed"),
        ("fts5(1)", "the function fts5 is not allowed"),
        ("zeroblob(1000000000)", "the function zeroblob is not allowed"),
        ("randomblob(1000000000)", "the function randomblob is not allowed"),
        ("printf('%.*c', 1000000000, 'x')", "the function printf is not allowed"),
        ("format('%1000000000d', 1)", "the function format is not allowed"),
        ("replace(text, '', text)", "the function replace is not allowed"),
        ("hex(text)", "the function hex is not allowed"),
        ("group_concat(text)", "the function group_concat is not allowed"),
        ("row_number() over ()", "the function row_number is not allowed"),
        ("sqlite_version()", "the function sqlite_version is not allowed"),
        ("pragma_table_info('rows')", "the function pragma_table_info is not allowed"),
        ("(select 1)", "instead of select: one expression"),
        ("id in (select id from rows)", "instead of select: one expression"),
        ("exists (select(1))", "the function exists is not allowed"),
        ("(select(1))", "instead of select: one expression"),
        ("1 union select 1", "no field union"),
        ("(with recursive t(n) as (values(1) union all select n+1 from t) select max(n) from t)",
         "no field with"),
        ("(values(1))", "the function values is not allowed"),
        ("id in json_each", "no field json_each"),
        ("id in json_each('[1]')", "the function json_each is not allowed"),
        ("id in rows", "no field rows"),
        ("attach", "no field attach"),
        ("pragma writable_schema = 1", "no field pragma"),
        ("1 limit 1", "no field limit"),
        ("1 order by 1", "no field order"),
        ("1 group by digest", "no field group"),
    ],
)  # fmt: skip
def test_what_reaches_out_of_an_expression_is_refused_by_name(text, message):
    with pytest.raises(UsageError, match="^--where: .*" + re.escape(message)):
        passing(text)


@pytest.mark.parametrize(
    "condition",
    [
        "(SELECT count(*) FROM sqlite_master)",
        "(SELECT digest FROM rows LIMIT 1) = ''",
        "slot IN (SELECT count FROM blocks)",
        "slot IN (WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT n FROM t)",
        "load_extension('x')",
        "zeroblob(1000000000)",
        "slot IN (SELECT value FROM json_each('[1]'))",
        "slot IN (SELECT name FROM pragma_table_info('rows'))",
        "1) UNION SELECT count FROM blocks WHERE (1",
    ],
)
def test_the_authorizer_refuses_what_the_tokens_would_let_through(condition):
    connection = connect(ROWS)
    where = condition_for(connection, "lang = 'en'")
    where = where._replace(sql=where.sql.replace(" WHERE (", f" WHERE ({condition} AND "))
    with pytest.raises(GembError, match=r"not authorized|prohibited"):
        matching(connection, where)
    connection.execute("SELECT digest FROM rows")  # nothing of it stays


def test_statements_that_write_are_refused():
    connection = connect(ROWS)
    for sql in ("DELETE FROM rows", "DROP TABLE rows", "ATTACH 'x' AS y", "PRAGMA query_only"):
        with pytest.raises(GembError, match="not authorized"):
            matching(connection, Where(sql, (), reads_kept=False))
    assert passing("1") == [0, 1, 2, 3, 4]


def test_a_filter_ends_after_its_time(monkeypatch):
    connection = connect(ROWS * 50)
    where = condition_for(connection, "year > 1")
    monkeypatch.setattr(where_module, "MOST_S", 0.0)
    monkeypatch.setattr(where_module, "STEPS", 10)
    with pytest.raises(UsageError, match=r"^--where: it takes over 0 s$"):
        matching(connection, where)
    assert len(matching(connection, where, 60.0)) > 0


def test_a_value_that_grows_ends_the_filter(monkeypatch):
    monkeypatch.setattr(where_module, "LARGEST", 10_000)
    row = {**ROWS[4], "text": "x" * 2000}
    with pytest.raises(UsageError, match="cannot take the value of a row: string or blob too big"):
        passing("length(" + " || ".join(["text"] * 20) + ") > 1", [row])


def test_a_text_that_is_no_json_is_the_mistake_of_the_filter():
    message = "^--where: it cannot take the value of a row: malformed JSON"
    for text in ("json_extract(title, '$.a') = 1", "title -> 'a' = 1"):
        with pytest.raises(UsageError, match=message):
            passing(text)
    assert passing("case when json_valid(title) then json_extract(title, '$.a') end = 1") == []


def test_the_longest_filter_is_not_too_deep_for_sqlite():
    inner = " or ".join(["not (year > 2023 and lang = 'en')"] * 100)
    assert passing("(" * 18 + inner + ")" * 18) == [1, 2]
    assert passing("not " * 20 + "lang = 'en'") == [0]
    inner = "has(tags, 'x') or year in (1, 'a', true)"
    assert passing("lang = 'en' and (lang = 'de' or (" * 10 + inner + "))" * 10) == [0]
    inner = "has(tags, 'x') and year > 1"
    assert passing("lang = 'en' and not (" * 10 + inner + ")" * 10) == [0]
    assert passing(f"year in ({', '.join(map(str, range(15_000)))})") == [0, 1, 2]
    texts = ", ".join(f"'{number}'" for number in range(8_000))
    assert passing(f"year in ({texts})") == [0, 1, 2]


def test_a_field_that_only_the_last_of_many_rows_has_is_found():
    rows = [{**ROWS[4], "kept": {"n": 1}}] * 1500 + [{**ROWS[4], "kept": {"rare": 1}}]
    assert passing("rare = 1", rows) == [1500]


def test_a_kept_field_hides_the_column_of_its_name():
    assert passing("path = 'mine'", [{**ROWS[0], "kept": {"path": "mine"}}]) == [0]


def test_names_and_texts_are_bound_to_the_statement():
    connection = connect(ROWS)
    where = condition_for(connection, "year >= 2024 and title = 'it''s' and path > ''")
    assert where.values == ("it's", "", '$."year"')
    assert "year" not in where.sql
    assert where.reads_kept
    assert not condition_for(connection, "line = 1").reads_kept


def test_damaged_rows_are_one_line():
    connection = connect(ROWS)
    where = condition_for(connection, "lang = 'en'")
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
        case ("test", field, "has", value):
            return f'has("{field}", {written(value)})'
        case ("test", field, "~", value):
            part_of = value if isinstance(value, str) else repr(value)
            return f'instr(lower("{field}"), lower({quoted(part_of)}))'
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


def same(held: Any, value: Any, like: Any = None) -> bool:
    """Whether a held value is equal to a constant, in the type of the constant `like`."""
    like = value if like is None else like
    if isinstance(like, bool) and isinstance(held, str) and held.lower() in ("true", "false"):
        held = held.lower() == "true"
    if isinstance(like, str):
        return spelling(held) == (value if isinstance(value, str) else spelling(value))
    if not isinstance(like, bool) and number(held) is not None:
        held = number(held)
    if isinstance(value, str) or isinstance(held, str | list):
        return isinstance(value, str) and isinstance(held, str | list) and spelling(held) == value
    return float(held) == float(value)


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


def passes(part: Any, held: Any) -> bool | None:
    """Whether a value that is there passes a test."""
    match part:
        case ("in", _, many):
            return any(same(held, value, many[0]) for value in many)
        case (_, _, "has", value):
            members = held if isinstance(held, list) else [held]
            shown = spelling(value) if isinstance(value, bool) else str(value)
            return any(
                m is not None and (m == value or one_text(m, held) == shown) for m in members
            )
        case (_, _, "=" | "!=" as operator, value):
            return same(held, value) == (operator == "=")
        case (_, _, "~", value):
            return lower(value if isinstance(value, str) else repr(value)) in lower(spelling(held))
        case (_, _, operator, value):
            return ordered(operator, held, value)
    raise AssertionError(part)


def one_text(member: Any, held: Any) -> str:
    return spelling(member) if isinstance(member, bool) and member is held else str(member)


def ordered(operator: str, held: Any, value: Any) -> bool | None:
    left: Any = spelling(held) if isinstance(value, str) else number(held)
    if left is None:
        return None
    return {"<": left < value, "<=": left <= value, ">": left > value, ">=": left >= value}[
        operator
    ]


def lower(text: str) -> str:
    return "".join(one.lower() if one.isascii() else one for one in text)


@given(filters, st.lists(kepts, min_size=1, max_size=6))
@settings(max_examples=400, deadline=None)
def test_a_filter_means_what_an_interpreter_of_its_own_says(part, all_kept):
    names = dict.fromkeys(NAMES)  # of the last row, which has every field
    connection = connect([{**ROWS[4], "kept": kept} for kept in (*all_kept, names)])
    where = condition_for(connection, spelled(part))
    expected = [place for place, kept in enumerate(all_kept) if holds(part, kept) is True]
    slots = [slot for slot in matching(connection, where).tolist() if slot < len(all_kept)]
    assert slots == expected, (spelled(part), where)


pieces = st.sampled_from(
    ["and", "or", "not", "in", "(", ")", ",", "=", ">=", "~", "like", "has", "is", "null", "true",
     "lang", "year", "'", '"', "''", "--", ";", "/*", "1", "-1e9", "%", "\\", "\x00", "x'00'", "?1",
     "rows", "SELECT", "||", "[0]", "$", ".", "\u202e", "\ud800", "année", "case", "when", "then",
     "end", "cast", "as", "collate", "between", "escape", "->>", "lower(", "has(", "zeroblob(",
     "'x'", "json_extract(", "'$.a'", "max(", "digest", "<<", "length(", "*"]
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
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789 .,()?'<>=+-*/%&|!"
    )
    try:
        slots = matching(connection, where).tolist()
    except UsageError as error:
        message = str(error)
    if message:
        assert message.startswith("--where: it cannot take the value of a row: ")
        return
    assert set(slots) <= set(range(len(ROWS)))
    assert connection.execute("SELECT count(*) FROM rows").fetchone() == (len(ROWS),)
