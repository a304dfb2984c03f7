"""What was written in YAML, as the dataclasses of `recipe.py`: every key known, every value fit."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from gemb.errors import UsageError
from gemb.recipe.keys import REQUIRED, ROOT, Key, Kind, every_key, keys
from gemb.recipe.yaml_text import Place, Value, read_text


class RecipeReader:
    """Reads a tree of values, and keeps where each came from for messages about the whole."""

    def __init__(self) -> None:
        self._places: dict[str, Place] = {}

    def place(self, path: str) -> Place:
        """Return where this path was given: the override that changed it, or the file's line."""
        for known, place in self._places.items():
            if place.key and f"{known}.".startswith(f"{path}."):
                return place
        while path not in self._places:
            path = path.rpartition(".")[0]
        return self._places[path]

    def read(self, value: Value, kind: Kind = ROOT, path: str = "") -> Any:  # noqa: ANN401
        """Return a value of this kind: a scalar, a tuple or a dataclass.

        Raises:
            UsageError: it does not fit.
        """
        self._places[path] = value.place
        if value.data is None and value.text and kind.optional:
            return None
        if kind.item and isinstance(value.data, tuple):
            item = kind.item
            return tuple(self.read(x, item, f"{path}.{i}") for i, x in enumerate(value.data))
        if kind.block and isinstance(value.data, dict):
            return self._block(kind.block, value, path)
        fits, found = _scalar(value, kind)
        if not fits:
            raise UsageError(_misfit(value, kind, path))
        return found

    def _block(self, block: type, value: Value, path: str) -> object:
        assert isinstance(value.data, dict), value
        known = {key.name: key for key in keys(block)}
        for name, given in value.data.items():
            if name not in known:
                raise UsageError(f"{given.place}: {unknown(name, block, path)}")
        fields = {}
        for name, key in known.items():
            below = join(path, name)
            if name in value.data:
                fields[key.attribute] = self.read(value.data[name], key.kind, below)
            elif key.default is REQUIRED:
                raise UsageError(f"{value.place}: {_lacks(key, path)}")
        return block(**fields)


def override(tree: Value, words: str, stage: str = "") -> Value:
    """Return the tree with `KEY=VALUE` in it: `optimizer.lr=2e-5`, `data.0.path=x.jsonl`.

    Args:
        tree: of a recipe.
        words: the override.
        stage: whose recipe it is, in messages; empty: no stage's.

    Raises:
        UsageError: there is no such key, or nothing behind it.
    """
    key, equals, text = words.partition("=")
    if not equals or not key:
        raise UsageError(f"{words!r} is no KEY=VALUE, such as optimizer.lr=2e-5")
    place = Place(f"{stage}.{words}" if stage else words, key=key)
    return _put(tree, ROOT, key.split("."), _override_value(text, place), "")


def _override_value(text: str, place: Place) -> Value:
    """Return what YAML says, and the words as they are for keys that take text."""
    try:
        value = read_text(text, place)
    except UsageError:
        return Value(text, place, text)  # `data.0.prompts.query=task: x | query: {text}`
    return Value(value.data, place, text)


def _put(tree: Value | None, kind: Kind, parts: Sequence[str], new: Value, path: str) -> Value:
    """Return `tree` with `new` below it; None stands for what is not there yet."""
    if not parts:
        return new
    here = tree.place if tree and tree.data is not None else new.place
    (name, *rest), below = parts, join(path, parts[0])
    if kind.block:
        block = tree.data if tree and isinstance(tree.data, dict) else {}
        key = next((key for key in keys(kind.block) if key.name == name), None)
        if key is None:
            raise UsageError(f"{new.place}: {unknown(name, kind.block, path)}")
        child = _put(block.get(name), key.kind, rest, new, below)
        return Value({**block, name: child}, here)
    if kind.item and kind.item.block:
        items = tree.data if tree and isinstance(tree.data, tuple) else ()
        index = int(name) if name.isascii() and name.isdecimal() and len(name) < 9 else -1
        if not 0 <= index <= len(items):
            known = f"{path}.0 to {path}.{len(items)}, which adds one" if items else f"{path}.0"
            raise UsageError(f"{new.place}: no {below}; there is {known}")
        child = _put(dict(enumerate(items)).get(index), kind.item, rest, new, below)
        return Value((*items[:index], child, *items[index + 1 :]), here)
    whole = f"; give the whole list, as in {path}=[768, 256]" if kind.item else ""
    raise UsageError(f"{new.place}: {path} has no keys below it{whole}")


def find_key(path: str) -> Key:
    """Return the key at a path, in which `data.0`, `data.N` and `data` are alike; "": all of it.

    Raises:
        UsageError: there is none.
    """
    found = Key(name="", attribute="", kind=ROOT, default=REQUIRED, words="a recipe")
    done = ""
    for name in path.split(".") if path else ():
        kind = found.kind.item or found.kind
        if kind.block and found.kind.item and (name.isdecimal() or name == "N"):
            done = join(done, name)
            continue
        known = keys(kind.block) if kind.block else ()
        if name not in [key.name for key in known]:
            none = f"{done} has no keys below it"
            raise UsageError(unknown(name, kind.block, done) if kind.block else none)
        found = next(key for key in known if key.name == name)
        done = join(done, name)
    return found


def join(path: str, name: str) -> str:
    """Return the path of a key below a path."""
    return f"{path}.{name}" if path else name


def unknown(name: str, block: type, path: str) -> str:
    """Return the message about a key that a block does not have."""
    names = [key.name for key in keys(block)]
    elsewhere = [known for known, key in every_key() if key.name == name]
    if near := difflib.get_close_matches(name, names, 1):
        hint = f"did you mean '{near[0]}'?"
    elif elsewhere:
        hint = f"did you mean '{elsewhere[0]}'?"
    else:
        hint = f"there are {', '.join(names)}"
    return f"unknown key '{join(path, name)}'; {hint}"


def _lacks(key: Key, path: str) -> str:
    meaning = f"{key.words}; it is {key.kind}" if not key.kind.block else key.words
    return f"{path or 'the recipe'} lacks '{key.name}': {meaning}"


def _scalar(value: Value, kind: Kind) -> tuple[bool, Any]:
    """Return whether the value is a scalar of this kind, and as what."""
    data = value.data
    if kind.choices:
        return value.text in kind.choices, value.text
    if kind.scalar is str:
        # `keep_layers: 5` and `name: 2024` are meant as text; null and nothing are not.
        given = data is not None or (value.place.key != "" and value.text == "")
        return (given and not isinstance(data, dict | tuple)) or _is_words(value), value.text
    if kind.scalar is bool or isinstance(data, bool):
        return kind.scalar is bool and isinstance(data, bool), data
    if kind.scalar is int:
        return isinstance(data, int) and data < 2**63 and kind.limits.hold(data), data
    if kind.scalar is float and isinstance(data, int | float):
        return kind.limits.hold(data), float(data)
    return False, None


def _is_words(value: Value) -> bool:
    """Return whether this is an override whose text YAML would take for a list or a block."""
    return value.place.key != "" and isinstance(value.data, dict | tuple)


def _misfit(value: Value, kind: Kind, path: str) -> str:
    message = f"{value.place.of(path)} wants {kind}, not {value}"
    for refused in kind.refused:
        if value.text == refused.value:
            return f"{message}: {refused.reason}"
    if value.data is None and not value.text and kind.optional and kind.block:
        return f"{value.place.of(path)} is empty: write {{}} for its defaults, null for none"
    if isinstance(value.data, str):
        near = difflib.get_close_matches(value.data, kind.choices, 1)
        return message + (f"; did you mean '{near[0]}'?" if near else "")
    return message
