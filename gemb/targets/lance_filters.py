"""A filter as a condition in the SQL of Lance, which has no parameters: texts are quoted.

Kept fields are one JSON column. Its functions fail on values of another type, so that a field is
taken as JSON text, and unpacked by functions on text. There is no CASE. Its ILIKE, lower
and upper know the letters of all languages, SQLite's those of ASCII: `translate` is in their place.
"""

from __future__ import annotations

import json
from string import ascii_lowercase, ascii_uppercase

from gemb.errors import UsageError
from gemb.index.where import wrong
from gemb.targets.filters import (
    All,
    AnyOf,
    Comparison,
    Condition,
    Constant,
    Field,
    Not,
    is_long,
)

# Of a text in JSON, in the order in which they are replaced: a backslash, which may stand before
# one of the letters, is meanwhile a character that JSON never has as such. Other control
# characters, as ESC, stay escaped.
_ESCAPES = (
    *(("\\\\", "\x01"), ('\\"', '"'), ("\\n", "\n"), ("\\t", "\t"), ("\\r", "\r")),
    *(("\\b", "\b"), ("\\f", "\f"), ("\x01", "\\")),
)
NO_NUMBER = "-1.7e308"  # in the place of a text that is none: another number than any constant


def sql_of(condition: Condition) -> str:
    """Return an expression of Lance."""
    match condition:
        case All(conditions):
            return f"({' AND '.join(map(sql_of, conditions))})"
        case AnyOf(conditions):
            return f"({' OR '.join(map(sql_of, conditions))})"
        case Not(part):
            return f"(NOT {sql_of(part)})"
    return f"({_comparison(condition)})"


def literal(text: str) -> str:
    """Return a text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def _comparison(comparison: Comparison) -> str:
    field, operator, values = comparison.field, comparison.operator, comparison.values
    if operator == "null":
        return f"{_raw(field)} IS NULL"
    if operator == "has":
        return _has(field, values[0])
    if operator == "like":
        pattern = str(values[0]).replace("\\", "\\\\")  # Lance has an escape, SQLite none
        small = pattern.translate(str.maketrans(ascii_uppercase, ascii_lowercase))
        return f"{_in_case('lower', _text(field))} LIKE {literal(small)}"
    match comparison.type:
        case "truth":
            if operator not in ("=", "!=", "in"):
                raise wrong("LanceDB has no order of true and false; =, != and in")
            wanted = ", ".join("'true', '1'" if value else "'false', '0'" for value in values)
            word = f"lower(btrim({_raw(field)}, '\"')) IN ({wanted})"
            return f"NOT {word}" if operator == "!=" else word
        case "text" if operator in ("=", "!=", "in") and not (field.function or field.is_column):
            # The text as JSON: to take JSON apart, there is only the replacement of parts.
            forms = ", ".join(form for value in values for form in _forms(str(value)))
            return f"{_raw(field)} {'NOT ' if operator == '!=' else ''}IN ({forms})"
        case "text":
            return f"{_text(field)} {_against(operator, [literal(str(value)) for value in values])}"
    return _of_number(field, operator, values)


def _of_number(field: Field, operator: str, values: tuple[Constant, ...]) -> str:
    """Return a comparison with numbers, which are float64 but for long whole ones."""
    if not field.function and operator in ("=", "!=", "in") and any(map(is_long, values)):
        digits = ", ".join(literal(str(value)) for value in values)
        word = f"btrim({_raw(field)}, '\"')"
        return f"{word} {'NOT ' if operator == '!=' else ''}IN ({digits})"
    number = f"try_cast(btrim({_raw(field)}, '\"') AS double)"
    if field.function:
        number = f"try_cast({_text(field)} AS double)"
    if operator in ("=", "!=", "in"):
        number = f"coalesce({number}, length({_raw(field)}) * 0.0 + {NO_NUMBER})"
    return f"{number} {_against(operator, [repr(value) for value in values])}"


def _against(operator: str, values: list[str]) -> str:
    match operator:
        case "between":
            return f"BETWEEN {values[0]} AND {values[1]}"
        case "in":
            return f"IN ({', '.join(values)})"
    return f"{operator} {values[0]}"


def _has(field: Field, member: Constant) -> str:
    text = str(member).lower() if isinstance(member, bool) else str(member)
    raw = _raw(field)
    alone = f"{raw} IN ({', '.join(_forms(text))})"
    held = [
        f"coalesce(json_array_contains(kept, {path}, {literal(text)}), false)"
        for path in ([] if field.is_column else _paths(field))
    ]
    return " OR ".join([*held, alone, f"nullif({raw} IS NULL, true)"])


def _forms(text: str) -> list[str]:
    """Return the literals of JSON that stand for a text: itself, and a number or the like."""
    quoted = literal(json.dumps(text, ensure_ascii=False))
    return [quoted] if text.startswith('"') else [quoted, literal(text)]


def _raw(field: Field) -> str:
    """Return a field as JSON text, or a column as text."""
    if field.is_column:
        return f"cast({field.name} AS string)"
    values = [f"nullif(json_extract(kept, {path}), 'null')" for path in _paths(field)]
    return values[0] if len(values) == 1 else f"coalesce({', '.join(values)})"


def _text(field: Field) -> str:
    """Return a field as text."""
    text = _raw(field)
    if not field.is_column:
        text = f"regexp_replace({text}, '^\"(.*)\"$', '$1')"
        for escaped, char in _ESCAPES:
            text = f"replace({text}, {literal(escaped)}, {literal(char)})"
    return _in_case(field.function, text) if field.function else text


def _in_case(function: str, text: str) -> str:
    """Return a function of `filters.FUNCTIONS` of a text."""
    letters = {
        "lower": (ascii_uppercase, ascii_lowercase),
        "upper": (ascii_lowercase, ascii_uppercase),
    }
    if function not in letters:
        return f"{function}({text})"
    return f"translate({text}, {', '.join(map(literal, letters[function]))})"


def _paths(field: Field) -> list[str]:
    """Return where a field is: `a.b` is the field of that name, else the field b inside of a."""
    if any(char in field.name for char in '"\\\0'):
        raise UsageError(f"--where: a field with such a name cannot be tested: {field.name!r}")
    inner = ".".join(f'"{part}"' for part in field.name.split("."))
    return list(dict.fromkeys([literal(f'$."{field.name}"'), literal(f"$.{inner}")]))
