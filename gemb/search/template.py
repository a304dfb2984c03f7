r"""Hits in the user's own words: `{score:.2f}\t{path}:{line}\t{text}`.

    rank score query query_id              of the answer
    path line text                         of the line that answers best
    first_line last_line title passage     of its passage
    id, and any field that was kept        of a row

`{{` and `}}` are braces; \t \n \r \0 \e \\ are what C says. A field may have a width and a
precision, as Python's: {score:.2f}, {path:>30}. Nothing else is looked up: no attributes, no items.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import NamedTuple

from gemb.errors import UsageError
from gemb.io.text import visible
from gemb.search.excerpts import Excerpt
from gemb.search.forms import Write, encoded, shown_name
from gemb.search.queries import Query

FIELDS = (
    *("rank", "score", "query", "query_id", "path", "line", "text"),
    *("first_line", "last_line", "title", "passage", "id"),
)
_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "0": "\0", "e": "\x1b", "\\": "\\"}
_PART = re.compile(r"\{\{|\}\}|\\(.)|\{([^{}:!]*)(?::([^{}]*))?\}|[{}]", re.DOTALL)
_SPEC = re.compile(r"(?:(.)?([<>^]))?(\d{0,4})(,)?(?:\.(\d{1,3}))?([fdegs%]?)")


class Field(NamedTuple):
    """A field of a template."""

    name: str
    spec: str  # for Python's format()
    is_number: bool  # whether the spec asks for one


def parsed(template: str) -> list[str | Field]:
    """Return the parts of a template: plain text, and fields.

    Raises:
        UsageError: a brace is alone, or a width or precision is none.
    """
    parts: list[str | Field] = []
    done = 0
    for match in _PART.finditer(template):
        parts.append(template[done : match.start()])
        done = match.end()
        whole = match[0]
        if whole in ("{{", "}}"):
            parts.append(whole[0])
        elif whole.startswith("\\"):
            if match[1] not in _ESCAPES:
                raise UsageError(
                    f"--format: no escape {whole!r}; there are \\t \\n \\r \\0 \\e \\\\"
                )
            parts.append(_ESCAPES[match[1]])
        elif whole in ("{", "}"):
            raise UsageError(f"--format: a {whole!r} alone; write {whole * 2!r} for the character")
        else:
            parts.append(_field(match[2].strip(), match[3] or ""))
    parts.append(template[done:])
    return [part for part in parts if part != ""]


def _field(name: str, spec: str) -> Field:
    if not name:
        raise UsageError(f"--format: a field without a name; there are {', '.join(FIELDS)}")
    found = _SPEC.fullmatch(spec)
    if not found:
        raise UsageError(f"--format: {{{name}:{spec}}}: no width or precision; as in {{score:.2f}}")
    return Field(name, spec, is_number=bool(found[4]) or found[6] in tuple("fdeg%"))


class FormatLines:
    """One line for each hit, as a template says; with NUL in the place of the newline if asked."""

    needs_lines = True

    def __init__(self, write: Write, template: str, *, is_null: bool, is_terminal: bool) -> None:
        """Begin.

        Args:
            write: takes bytes.
            template: as above.
            is_null: each ends in NUL, not in a newline, and paths are written as they are.
            is_terminal: show no character that a terminal obeys, but for those of the template.

        Raises:
            UsageError: the template is none.
        """
        self._write = write
        self._parts = parsed(template)
        self._is_null = is_null
        self._is_terminal = is_terminal

    def show(self, query: Query, found: Sequence[Excerpt]) -> None:
        """Write the answers to one query, best first.

        Raises:
            UsageError: no hit has a field of the template, or it has no number where one is asked.
        """
        self._check_names(found)
        end = "\0" if self._is_null else "\n"
        for rank, excerpt in enumerate(found, 1):
            values = self._values(query, rank, excerpt)
            parts = [
                part if isinstance(part, str) else _formatted(part, values.get(part.name))
                for part in self._parts
            ]
            self._write(encoded("".join(parts) + end))

    def _check_names(self, found: Sequence[Excerpt]) -> None:
        known = list(dict.fromkeys((*FIELDS, *(name for one in found for name in one.hit.kept))))
        for part in self._parts:
            if found and isinstance(part, Field) and part.name not in known:
                near = difflib.get_close_matches(part.name, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
                raise UsageError(f"--format: no field {part.name!r}; {hint}")

    def _values(self, query: Query, rank: int, excerpt: Excerpt) -> dict[str, object]:
        hit = excerpt.hit
        if self._is_null and hit.path is not None:
            path = hit.path
        else:
            path = shown_name(hit, is_terminal=self._is_terminal)
        values: dict[str, object] = {
            **hit.kept,
            "rank": rank,
            "score": hit.score,
            "query": query.text,
            "query_id": query.id,
            "path": path,
            "line": excerpt.number(excerpt.best),
            "text": excerpt.lines[excerpt.best].rstrip("\r"),
            "first_line": hit.line,
            "last_line": hit.last_line,
            "title": hit.title,
            "passage": hit.text,
            "id": hit.id,
        }
        if self._is_terminal:
            clean = {name: one for name, one in values.items() if isinstance(one, str)}
            values |= {name: _clean(one) for name, one in clean.items()}
        return values


def _clean(text: str) -> str:
    return "\n".join(visible(line.expandtabs(4)) for line in text.split("\n"))


def _formatted(field: Field, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and not field.spec:
        return f"{value:.4f}"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if field.is_number and not is_number:
        raise UsageError(f"--format: {{{field.name}:{field.spec}}}: the field is no number")
    if not is_number:
        from gemb.texts.records import as_json

        value = value if isinstance(value, str) else as_json(value)
    try:
        return format(value, field.spec)
    except ValueError as error:
        raise UsageError(f"--format: {{{field.name}:{field.spec}}}: {error}") from None
