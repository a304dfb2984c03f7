"""A filter as a condition of PostgreSQL, its names of fields and constants as parameters.

By the collation "C" texts have the order of their bytes, and letters beyond ASCII no other case, as
in SQLite, whatever the database's own collation is.
"""

from __future__ import annotations

from gemb.targets.filters import All, AnyOf, Comparison, Condition, Field, Not

_NUMBER = r"^\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,3})?\s*$"


def sql_of(condition: Condition, values: list[object]) -> str:
    """Return an expression with %s for each value that is appended to `values`."""
    match condition:
        case All(conditions):
            return f"({' AND '.join(sql_of(part, values) for part in conditions)})"
        case AnyOf(conditions):
            return f"({' OR '.join(sql_of(part, values) for part in conditions)})"
        case Not(part):
            return f"(NOT {sql_of(part, values)})"
    return f"({_comparison(condition, values)})"


def _comparison(comparison: Comparison, values: list[object]) -> str:
    field, operator = comparison.field, comparison.operator
    if operator == "null":
        return f"{_text(field, values)} IS NULL"
    if operator == "has":
        return _has(comparison, values)
    if operator == "like":
        text, pattern = _text(field, values), _bound(comparison.values[0], values)
        return f"{text} COLLATE \"C\" ILIKE {pattern} ESCAPE ''"
    if comparison.type == "text":
        return f'{_text(field, values)} COLLATE "C" {_against(comparison, "text", values)}'
    taken, kind = (_truth, "boolean") if comparison.type == "truth" else (_number, "numeric")
    if operator not in ("=", "!=", "in"):
        return f"{taken(field, values)} {_against(comparison, kind, values)}"
    # What is no number, or not true or false, is another value, not an unknown one.
    test = f"CASE WHEN {_text(field, values)} IS NULL THEN NULL"
    compared = f"{taken(field, values)} {_against(comparison, kind, values)}"
    return f"{test} ELSE coalesce({compared}, {'true' if operator == '!=' else 'false'}) END"


def _truth(field: Field, values: list[object]) -> str:
    """Return a field as true or false; NULL where it is neither."""
    return (
        f"(CASE lower({_text(field, values)}) WHEN 'true' THEN true WHEN '1' THEN true "
        "WHEN 'false' THEN false WHEN '0' THEN false END)"
    )


def _number(field: Field, values: list[object]) -> str:
    """Return a field as a number; NULL where it is none."""
    test = f"{_text(field, values)} ~ '{_NUMBER}'"
    return f"(CASE WHEN {test} THEN ({_text(field, values)})::numeric END)"


def _against(comparison: Comparison, kind: str, values: list[object]) -> str:
    """Return an operator with its constants."""
    bound = [f"{_bound(value, values)}::{kind}" for value in comparison.values]
    match comparison.operator:
        case "between":
            return f"BETWEEN {bound[0]} AND {bound[1]}"
        case "in":
            return f"IN ({', '.join(bound)})"
    return f"{comparison.operator.replace('!=', '<>')} {bound[0]}"


def _has(comparison: Comparison, values: list[object]) -> str:
    member = comparison.values[0]
    text = str(member).lower() if isinstance(member, bool) else str(member)
    kept = _kept(comparison.field, values)
    return (
        "SELECT CASE WHEN jsonb_typeof(held) = 'array' THEN EXISTS (SELECT 1 FROM "
        "jsonb_array_elements_text(held) AS member WHERE member = wanted) "
        f"ELSE held #>> '{{}}' = wanted END FROM (SELECT {kept} AS held, "
        f"{_bound(text, values)}::text AS wanted) AS compared"
    )


def _text(field: Field, values: list[object]) -> str:
    """Return a field as text."""
    sql = f"({field.name}::text)" if field.is_column else f"({_kept(field, values)} #>> '{{}}')"
    return f'{field.function}({sql} COLLATE "C")::text' if field.function else sql


def _kept(field: Field, values: list[object]) -> str:
    """Return a field as JSON; `a.b` is the field of that name, else the field b inside of a."""
    if field.is_column:
        return f"to_jsonb({field.name})"
    named = f"(kept -> {_bound(field.name, values)}::text)"
    if "." not in field.name:
        return named
    return f"coalesce({named}, kept #> {_bound(field.name.split('.'), values)}::text[])"


def _bound(value: object, values: list[object]) -> str:
    values.append(value)
    return "%s"
