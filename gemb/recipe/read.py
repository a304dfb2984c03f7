"""Turn a tree of YAML values into a `Recipe`, and check every key and every limit."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from msgspec import inspect

from gemb.errors import UsageError
from gemb.io.text import did_you_mean
from gemb.recipe.keys import REQUIRED, ROOT, Key, every_key, join
from gemb.recipe.schema import Recipe
from gemb.recipe.yaml_text import Place, Value, read_text


class RecipeReader:
    """Reads one recipe; afterwards it knows the place of each value, for messages."""

    def __init__(self) -> None:
        self._given: dict[str, tuple[Value, Key]] = {}

    def read(self, tree: Value) -> Recipe:
        """Return the recipe.

        Raises:
            UsageError: a key is unknown or absent, or a value does not fit its key.
        """
        plain = self._plain(tree, ROOT, "")
        try:
            return msgspec.convert(plain, Recipe)
        except msgspec.ValidationError as error:
            _, _, path = str(error).partition(" - at `$")
            path = re.sub(r"\[(\d+)\]", r".\1", path.rstrip("`")).lstrip(".")
            raise UsageError(_problem(*self._given[path], path)) from None

    def place(self, path: str) -> Place:
        """Return where this path was given: the override that changed it, or the file's line."""
        for known_path, (value, _) in self._given.items():
            if value.place.key and f"{known_path}.".startswith(f"{path}."):
                return value.place
        while path not in self._given:
            path = path.rpartition(".")[0]
        return self._given[path][0].place

    def _plain(self, value: Value, key: Key, path: str) -> Any:  # noqa: ANN401
        """Return the value as msgspec converts it, and remember it."""
        self._given[path] = (value, key)
        data, known, item = value.data, key.keys, key.item
        if isinstance(data, dict) and known:
            return {
                name: self._plain(child, known[name], join(path, name)) if name in known else None
                for name, child in data.items()
            }
        if isinstance(data, tuple) and item:
            return tuple(self._plain(x, item, f"{path}.{i}") for i, x in enumerate(data))
        return _scalar(value, key)


def _scalar(value: Value, key: Key) -> str | float | bool | None:
    """Return a scalar for msgspec: what does not fit the type of the key is the text as written."""
    data, is_structure = value.data, isinstance(value.data, dict | tuple)
    is_override = value.place.key != ""
    if isinstance(key.type, inspect.StrType):
        # `keep_layers: 5` and `name: 2024` are meant as text; null and nothing are not.
        is_text = (data is not None or not value.text) if is_override else data is not None
        return value.text if is_text and (is_override or not is_structure) else None
    if isinstance(key.type, inspect.LiteralType):
        return value.text
    if data is None and value.text and key.optional:
        return None
    is_infinite = isinstance(data, float) and not math.isfinite(data)
    is_too_long = isinstance(data, int) and data >= 2**63 and isinstance(key.type, inspect.IntType)
    if data is None or is_structure or is_infinite or is_too_long:
        return value.text
    return data  # type: ignore[return-value]  # no structure


def override(tree: Value, assignment: str, stage: str = "") -> Value:
    """Return the tree with `KEY=VALUE` in it: `optimizer.lr=2e-5`, `data.0.path=x.jsonl`.

    Args:
        tree: of a recipe.
        assignment: the override.
        stage: whose recipe it is, in messages; empty: of no stage.

    Raises:
        UsageError: there is no such key, or nothing behind it.
    """
    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise UsageError(f"{assignment!r} is no KEY=VALUE, such as optimizer.lr=2e-5")
    place = Place(f"{stage}.{assignment}" if stage else assignment, key=path)
    try:
        data = read_text(text, place).data
    except UsageError:
        data = text  # `data.0.prompts.query=task: x | query: {text}`
    return _put(tree, ROOT, path.split("."), Value(data, place, text), "")


def changed(tree: Value, changes: Value) -> Value:
    """Return the tree with a block of changes in it: blocks key by key, lists by number or whole.

    Raises:
        UsageError: there is no such key.
    """
    for parts, value in _leaves(changes):
        tree = _put(tree, ROOT, parts, value, "")
    return tree


def _leaves(value: Value, parts: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Value]]:
    if isinstance(value.data, dict) and (value.data or not parts):
        for name, child in value.data.items():
            yield from _leaves(child, (*parts, name))
    else:
        yield parts, value


def _put(tree: Value | None, key: Key, parts: Sequence[str], new: Value, path: str) -> Value:
    """Return `tree` with `new` below it; None stands for what is not there yet."""
    if not parts:
        is_kept = tree and isinstance(tree.data, dict) and new.data == {} and not new.place.key
        return tree if tree and is_kept else new
    position = tree.place if tree and tree.data is not None else new.place
    (name, *rest), below = parts, join(path, parts[0])
    if key.keys:
        block = tree.data if tree and isinstance(tree.data, dict) else {}
        if name not in key.keys:
            raise UsageError(f"{new.place}: {_unknown(name, key, path)}")
        child = _put(block.get(name), key.keys[name], rest, new, below)
        return Value({**block, name: child}, position)
    if key.item and key.item.keys:
        items = tree.data if tree and isinstance(tree.data, tuple) else ()
        index = int(name) if is_index(name) else -1
        if not 0 <= index <= len(items):
            known = f"{path}.0 to {path}.{len(items)}, which adds one" if items else f"{path}.0"
            raise UsageError(f"{new.place}: no {below}; there is {known}")
        child = _put(dict(enumerate(items)).get(index), key.item, rest, new, below)
        return Value((*items[:index], child, *items[index + 1 :]), position)
    whole = f"; give the whole list, as in {path}=[768, 256]" if key.item else ""
    raise UsageError(f"{new.place}: {path} has no keys below it{whole}")


def is_index(name: str) -> bool:
    """Return whether a part of a path is the number of an item."""
    return name.isascii() and name.isdecimal() and len(name) < 9


def find_key(path: str) -> Key:
    """Return the key at a path, in which `data.0`, `data.N` and `data` are alike; "": all of it.

    Raises:
        UsageError: there is no such key.
    """
    key, parent = ROOT, ""
    for name in path.split(".") if path else ():
        block = key.item or key
        below = join(parent, name)
        if block.keys and key.item and (is_index(name) or name == "N"):
            parent = below
            continue
        if not block.keys:
            raise UsageError(f"{parent} has no keys below it")
        if name not in block.keys:
            raise UsageError(_unknown(name, block, parent))
        key, parent = block.keys[name], below
    return key


def _unknown(name: str, block: Key, path: str) -> str:
    """Return the message about a key that a block does not have."""
    elsewhere = [known for known, key in every_key() if key.name == name]
    names = ", ".join(block.keys)
    known = f"did you mean '{elsewhere[0]}'?" if elsewhere else f"there are {names}"
    hint = did_you_mean(name, block.keys, known)
    return f"unknown key '{join(path, name)}'; {hint}"


def _problem(value: Value, key: Key, path: str) -> str:
    """Return the message about the value that msgspec did not convert."""
    if key.keys and isinstance(value.data, dict):
        for name, child in value.data.items():
            if name not in key.keys:
                return f"{child.place}: {_unknown(name, key, path)}"
        absent = next(
            key
            for name, key in key.keys.items()
            if key.default is REQUIRED and name not in value.data
        )
        values = "" if absent.keys else f"; it is {absent.values}"
        owner = f"{value.place}: {path or 'the recipe'}"
        return f"{owner} lacks '{absent.name}': {absent.meaning}{values}"
    if value.data is None and not value.text and key.optional and key.keys:
        return f"{value.place.of(path)} is empty: write {{}} for its defaults, null for none"
    message = f"{value.place.of(path)} must be {key.values}, not {value}"
    if value.text in key.refused:
        return f"{message}: {key.refused[value.text]}"
    hint = did_you_mean(value.text, key.choices)
    return f"{message}; {hint}" if hint else message
