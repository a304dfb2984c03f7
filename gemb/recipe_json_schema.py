"""A recipe's keys as a JSON Schema, with which editors complete and check what is typed."""

from __future__ import annotations

from typing import Any

from gemb.recipe_file import to_plain
from gemb.recipe_limits import Limits
from gemb.recipe_schema import REQUIRED, ROOT, Key, Kind, keys

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
