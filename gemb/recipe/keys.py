"""The keys of a recipe as data, read from the dataclasses of `recipe.py`."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from gemb.recipe.schema import ANY, Limits, Named, Recipe, Refused

REQUIRED = dataclasses.MISSING


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What values a key takes: one of the first four, or None beside it."""

    scalar: type | None = None  # bool, int, float or str
    choices: tuple[str, ...] = ()
    block: type | None = None  # a dataclass
    item: Kind | None = None  # of a list
    optional: bool = False
    limits: Limits = ANY
    refused: tuple[Refused, ...] = ()

    def __str__(self) -> str:
        """Return what it wants, in words."""
        return self._words() + (", or null" if self.optional else "")

    def _words(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.item:
            return f"a list, each {self.item}"
        if self.block:
            return f"a block with the keys {', '.join(key.name for key in keys(self.block))}"
        assert self.scalar, self
        limits = str(self.limits)
        return _SCALARS[self.scalar] + (f" {limits}" if limits else "")


_SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a block."""

    name: str  # in YAML
    attribute: str  # in Python
    kind: Kind
    default: Any  # or REQUIRED
    words: str  # unit, meaning, source


@functools.cache
def keys(block: type) -> tuple[Key, ...]:
    """Return the keys of one of the dataclasses of `recipe.py`, in its order."""
    hints = get_type_hints(block, include_extras=True)
    return tuple(_key(field, hints[field.name]) for field in dataclasses.fields(block))


def _key(field: dataclasses.Field[Any], hint: object) -> Key:
    assert get_origin(hint) is Annotated, f"{field.name} has no words"
    type_, words, *more = get_args(hint)
    assert field.default_factory is dataclasses.MISSING, field.name
    return Key(
        name=next((mark.key for mark in more if isinstance(mark, Named)), field.name),
        attribute=field.name,
        kind=_kind(
            type_,
            next((mark for mark in more if isinstance(mark, Limits)), ANY),
            tuple(mark for mark in more if isinstance(mark, Refused)),
        ),
        default=field.default,
        words=words,
    )


def _kind(type_: Any, limits: Limits, refused: tuple[Refused, ...]) -> Kind:  # noqa: ANN401
    origin, arguments = get_origin(type_), get_args(type_)
    if origin in (types.UnionType, Union):
        (inner,) = (each for each in arguments if each is not types.NoneType)
        return dataclasses.replace(_kind(inner, limits, refused), optional=True)
    if origin is Literal:
        return Kind(choices=arguments, refused=refused)
    if origin is tuple:
        assert arguments[1:] == (...,), type_
        return Kind(item=_kind(arguments[0], limits, refused))
    if dataclasses.is_dataclass(type_):
        assert isinstance(type_, type)
        return Kind(block=type_)
    assert type_ in _SCALARS, type_
    return Kind(scalar=type_, limits=limits)


ROOT = Kind(block=Recipe)


def every_key(kind: Kind = ROOT, path: str = "") -> Iterator[tuple[str, Key]]:
    """Yield each key below with its path; the entries of a list are `data.N`."""
    if kind.item:
        yield from every_key(kind.item, f"{path}.N")
    for key in keys(kind.block) if kind.block else ():
        below = f"{path}.{key.name}" if path else key.name
        yield below, key
        yield from every_key(key.kind, below)


# A recipe's keys as a JSON Schema, with which editors complete and check what is typed.


_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}


def json_schema(kind: Kind = ROOT) -> dict[str, Any]:
    """Return the schema (draft 2020-12) of a recipe."""
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, "title": "gemb recipe", **_of(kind)}


def _of(kind: Kind) -> dict[str, Any]:
    if kind.optional:
        return {"anyOf": [_given(kind), {"type": "null"}]}
    return _given(kind)


def _given(kind: Kind) -> dict[str, Any]:
    """Return the schema of a value that is not null."""
    if kind.choices:
        return {"enum": list(kind.choices)}
    if kind.item:
        return {"type": "array", "items": _of(kind.item)}
    if kind.block:
        known = keys(kind.block)
        return {
            "type": "object",
            "additionalProperties": False,
            "required": [key.name for key in known if key.default is REQUIRED],
            "properties": {key.name: _property(key) for key in known},
        }
    assert kind.scalar, kind
    return {"type": _TYPES[kind.scalar], **_bounds(kind.limits)}


def _property(key: Key) -> dict[str, Any]:
    default = {} if key.default is REQUIRED else {"default": to_plain(key.default)}
    return {**_of(key.kind), "description": key.words, **default}


def _bounds(limits: Limits) -> dict[str, float]:
    bounds = {
        "exclusiveMinimum": limits.above,
        "minimum": limits.at_least,
        "exclusiveMaximum": limits.below,
        "maximum": limits.at_most,
    }
    return {name: limit for name, limit in bounds.items() if limit is not None}


def to_plain(block: Any) -> Any:  # noqa: ANN401
    """Return a block of a recipe as dicts by YAML's names, lists as tuples, and scalars."""
    if isinstance(block, tuple):
        return tuple(to_plain(item) for item in block)
    if not dataclasses.is_dataclass(block):
        return block
    return {key.name: to_plain(getattr(block, key.attribute)) for key in keys(type(block))}  # type: ignore[arg-type]
