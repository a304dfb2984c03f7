"""The keys of a recipe as data: name, type, limits, default and meaning, read from the schema."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, get_args, get_origin

import msgspec
from msgspec import inspect

from gemb.recipe.schema import Recipe

REQUIRED = msgspec.NODEFAULT  # instead of a default
_LIMITS = {"gt": "above", "ge": "from", "lt": "to below", "le": "to"}


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a block, or an item of a list."""

    name: str = ""  # in YAML
    annotation: Any  # as the schema has it
    type: inspect.Type  # of its values, null apart
    optional: bool = False  # null is a value, too
    default: Any = REQUIRED
    meaning: str = ""  # with unit and source
    refused: Mapping[str, str] = field(default_factory=dict)  # reasons, by value

    @property
    def keys(self) -> Mapping[str, Key]:
        """The keys of the block that it holds, in the order of the schema; empty: no block."""
        return _keys(self.type.cls) if isinstance(self.type, inspect.StructType) else {}

    @property
    def item(self) -> Key | None:
        """The items of the list that it holds; None: no list."""
        if not isinstance(self.type, inspect.VarTupleType):
            return None
        return Key(annotation=get_args(self._bare)[0], type=self.type.item_type)

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts that it takes, in the order of the schema; empty: other values."""
        return get_args(self._bare) if isinstance(self.type, inspect.LiteralType) else ()

    @property
    def _bare(self) -> Any:  # noqa: ANN401
        is_annotated = get_origin(self.annotation) is Annotated
        return get_args(self.annotation)[0] if is_annotated else self.annotation

    @property
    def values(self) -> str:
        """The values that it takes, in words."""
        return self._values() + (", or null" if self.optional else "")

    def _values(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.item:
            return f"a list, each {self.item.values}"
        if self.keys:
            return f"a block with the keys {', '.join(self.keys)}"
        if isinstance(self.type, inspect.BoolType):
            return "true or false"
        if isinstance(self.type, inspect.StrType):
            return "text"
        whole = "whole " if isinstance(self.type, inspect.IntType) else ""
        limits = {word: getattr(self.type, name) for name, word in _LIMITS.items()}
        bounds = [f" {word} {limit:g}" for word, limit in limits.items() if limit is not None]
        return f"a {whole}number{''.join(bounds)}"


@functools.cache
def _keys(block: type[msgspec.Struct]) -> dict[str, Key]:
    return {entry.encode_name: _key(entry) for entry in msgspec.structs.fields(block)}


def _key(entry: msgspec.structs.FieldInfo) -> Key:
    """Return the key of a field; its annotation is `Annotated[TYPE, Meta(description=...)]`."""
    info = inspect.type_info(entry.type)
    assert isinstance(info, inspect.Metadata), f"{entry.name} has no description"
    assert info.extra_json_schema, entry.name
    kind = info.type
    types = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    (value_type,) = (member for member in types if not isinstance(member, inspect.NoneType))
    return Key(
        name=entry.encode_name,
        annotation=entry.type,
        type=value_type,
        optional=len(types) > 1,
        default=entry.default,
        meaning=info.extra_json_schema["description"],
        refused=(info.extra or {}).get("refused", {}),
    )


ROOT = Key(annotation=Recipe, type=inspect.type_info(Recipe), meaning="a recipe")


def every_key(key: Key = ROOT, path: str = "") -> Iterator[tuple[str, Key]]:
    """Yield each key below with its path; the items of a list of blocks are `data.N`."""
    if key.item:
        yield from every_key(key.item, f"{path}.N")
    for name, inner in key.keys.items():
        below = join(path, name)
        yield below, inner
        yield from every_key(inner, below)


def join(path: str, name: str) -> str:
    """Return the path of a key below a path."""
    return f"{path}.{name}" if path else name


def json_schema(key: Key = ROOT) -> dict[str, Any]:
    """Return the JSON Schema of a key's values, with which editors complete and check them."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return dialect | msgspec.json.schema(key.annotation)


def to_plain(block: msgspec.Struct) -> dict[str, Any]:
    """Return a block of a recipe as dicts by YAML's names, lists as tuples, and scalars."""
    plain: dict[str, Any] = msgspec.to_builtins(block)
    return plain
