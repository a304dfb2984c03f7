"""A small, strict YAML for recipes: every value with the place where it was given.

PyYAML reads YAML 1.1, where `1e-5` is text and `yes`, `on` and `12:30` are not. Here the scalars
are those of YAML 1.2's core schema: null, true, false, whole numbers, numbers; all else is text.
Duplicate keys fail, and so do anchors, aliases and tags, which no recipe needs and which can make
a small file huge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from gemb.errors import UsageError

MOST_BYTES = 256 * 1024
_DEEPEST = 20  # a recipe is 4 deep; Python's stack ends at some 100 of YAML's levels

_INTEGER = re.compile(r"[-+]?[0-9]{1,19}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, bool | float | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


@dataclass(frozen=True)
class Place:
    """Where a value was given: in a line of a file, or as an override of a key."""

    source: str  # the file, or key=value
    line: int = 0  # from 1
    key: str = ""  # that the override names

    def __str__(self) -> str:
        """Return `my.yaml:12` or `optimizer.lr=oops`."""
        return f"{self.source}:{self.line}" if self.line else self.source

    def of(self, path: str) -> str:
        """Return the beginning of a message about the key at this path."""
        return f"{self}: {path or 'the recipe'}"


@dataclass(frozen=True)
class Value:
    """A value as it was written, not yet checked."""

    data: Data
    place: Place
    text: str = ""  # of a scalar, as written

    def __str__(self) -> str:
        """Return the value as a message names it."""
        if isinstance(self.data, dict):
            return "a block"
        if isinstance(self.data, tuple):
            return "a list"
        if isinstance(self.data, str):
            return repr(self.data if len(self.data) <= 60 else self.data[:57] + "...")
        return self.text or "empty"


Data: TypeAlias = dict[str, Value] | tuple[Value, ...] | str | int | float | bool | None


def scalar(text: str) -> str | int | float | bool | None:
    """Return the value of a scalar without quotes."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def file_text(path: Path) -> str:
    """Return the text of a recipe's file.

    Raises:
        UsageError: it cannot be read, is too big, or is not UTF-8.
    """
    shown = str(path).replace("\0", "\\0")
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(f"{shown}: no such recipe file") from None
    except IsADirectoryError:
        raise UsageError(f"{shown} is a folder; name the recipe file in it") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{shown}: cannot be read: {reason.lower()}") from error
    if len(raw) > MOST_BYTES:
        raise UsageError(f"{shown}: more than {MOST_BYTES // 1024} KiB; a recipe is a short text")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{shown}:{line}: not UTF-8; save the recipe as UTF-8") from error


def read_text(text: str, place: Place) -> Value:
    """Return what a YAML text holds; lines are counted where `place` names no key.

    Raises:
        UsageError: it is not such YAML.
    """
    try:
        return _EventReader(place).read(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = place if place.key or not mark else Place(place.source, mark.line + 1)
        problem = ", ".join(filter(None, (error.context, error.problem)))
        raise UsageError(f"{where}: not YAML: {problem}") from error
    except yaml.reader.ReaderError as error:
        where = place if place.key else Place(place.source, text.count("\n", 0, error.position) + 1)
        raise UsageError(f"{where}: not YAML: there is a control character") from error
    except (OverflowError, ValueError) as error:  # PyYAML looks into no escape before it takes it
        raise UsageError(f"{place}: not YAML: an escape stands for no character") from error


class _EventReader:
    """YAML's events to values."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def read(self, text: str) -> Value:
        self._events = yaml.parse(text, Loader=yaml.SafeLoader)
        next(self._events)  # the stream begins
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            return Value(None, self._at(event))
        value = self._value(next(self._events), 0)
        next(self._events)  # the document ends
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise UsageError(f"{self._at(after)}: a second document; a recipe is one")
        return value

    def _value(self, event: yaml.Event, depth: int) -> Value:
        place = self._at(event)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise UsageError(f"{place}: anchors and aliases (& and *) are not taken; write it out")
        if getattr(event, "tag", None):
            raise UsageError(f"{place}: tags (!) are not taken; quote the text")
        if depth > _DEEPEST:
            raise UsageError(f"{place}: too deep; a recipe has four levels")
        if isinstance(event, yaml.MappingStartEvent):
            return Value(self._block(depth), place)
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
                items.append(self._value(event, depth + 1))
            return Value(tuple(items), place)
        assert isinstance(event, yaml.ScalarEvent), event
        text: str = event.value
        return Value(text if event.style else scalar(text), place, text)

    def _block(self, depth: int) -> dict[str, Value]:
        block: dict[str, Value] = {}
        lines: dict[str, Place] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._value(event, depth + 1)
            if isinstance(key.data, dict | tuple):
                raise UsageError(f"{key.place}: {key} cannot be a key")
            name = key.data if isinstance(key.data, str) else key.text
            if name in block:
                first = f", first in line {lines[name].line}" if lines[name].line else ""
                raise UsageError(f"{key.place}: key '{name}' is given twice{first}")
            value = self._value(next(self._events), depth + 1)
            lines[name] = key.place
            block[name] = Value(value.data, key.place, value.text)
        return block

    def _at(self, event: yaml.Event) -> Place:
        if self._place.key:
            return self._place
        assert event.start_mark, event
        return Place(self._place.source, event.start_mark.line + 1)


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes every text that `scalar` would read as a number."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Dumper.add_representer(
    float, lambda writer, number: writer.represent_scalar("tag:yaml.org,2002:float", repr(number))
)
# In other quotes PyYAML leaves some line breaks of Unicode bare, and reads them as spaces.
_Dumper.add_representer(
    str,
    lambda writer, text: writer.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"'
    ),
)
_Dumper.add_representer(
    tuple,
    lambda writer, items: writer.represent_sequence(
        "tag:yaml.org,2002:seq", items, flow_style=not any(isinstance(x, Mapping) for x in items)
    ),
)


def write_text(document: Mapping[str, Any]) -> str:
    """Return a document as YAML that `read_text` reads as the same values."""
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return text
