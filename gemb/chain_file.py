"""Chains as files: YAML to a checked `Chain`, and back.

    stages:
      pretrain:
        train: pretrain              a recipe: gemb's own, a file, or stage:NAME, another stage's
        with:                        keys of it that are other here; of a list, by number
          init: {from: stage:adapt}
      soup:
        run: soup stage:pretrain stage:finetune      a command of gemb, without its -o

`stage:NAME` is what an earlier stage made, `stage:NAME/FILE` a file beside it. Everything is
checked when a chain is read: recipes as `recipe_file` does, commands by their own options.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from gemb.chain import OUTPUTS, Chain, Stage, Words, references
from gemb.errors import UsageError
from gemb.recipe_file import find, read_recipe, read_tree, to_plain
from gemb.recipe_reading import override
from gemb.recipe_schema import ROOT, keys
from gemb.recipe_yaml import Value, write_text

KEYS = ("train", "with", "run", "if_worse")
Parse = Callable[[Sequence[str]], Words]  # of a command with its arguments; may raise UsageError
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_RESERVED = ("stages",)  # a folder of the chain's own


def is_chain(tree: Value) -> bool:
    """Return whether what a file says is a chain, and no recipe."""
    return isinstance(tree.data, dict) and "stages" in tree.data


def read_chain(tree: Value, overrides: Sequence[str], parse: Parse) -> Chain:
    """Return the chain of a file, with `STAGE.KEY=VALUE` overrides of its recipes in it.

    Raises:
        UsageError: something in it or in an override is not right.
        Missing: a command's own check.
    """
    assert isinstance(tree.data, dict), tree
    for name, value in tree.data.items():
        if name != "stages":
            raise UsageError(f"{value.place}: unknown key '{name}'; a chain has stages alone")
    given = tree.data["stages"]
    if not isinstance(given.data, dict) or not given.data:
        raise UsageError(f"{given.place}: stages wants a block of stages by name, not {given}")
    left = _by_stage(overrides, list(given.data))
    reader = _Reader(parse)
    return Chain(tuple(reader.stage(name, each, left[name]) for name, each in given.data.items()))


def dump_chain(chain: Chain) -> str:
    """Return the chain as YAML, every key of its recipes; `read_chain` reads it as an equal one."""
    stages: dict[str, dict[str, Any]] = {}
    for stage in chain.stages:
        if stage.recipe:
            stages[stage.name] = {"with": to_plain(stage.recipe)}
        else:
            stages[stage.name] = {"run": shlex.join(stage.command)}
        if stage.goes_on_if_worse:
            stages[stage.name]["if_worse"] = "go_on"
    return write_text({"stages": stages})


def _by_stage(overrides: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """Return each stage's overrides, without its name."""
    found: dict[str, list[str]] = {name: [] for name in names}
    for words in overrides:
        name, dot, rest = words.partition(".")
        if name not in found or not dot or "=" not in rest:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"its stages are {', '.join(names)}"
            raise UsageError(f"{words}: of a chain write STAGE.KEY=VALUE; {hint}")
        found[name].append(rest)
    return found


class _Reader:
    """Reads stages in their order, and knows those before."""

    def __init__(self, parse: Parse) -> None:
        self._parse = parse
        self._trees: dict[str, Value] = {}  # of the recipes
        self._stages: dict[str, Stage] = {}

    def stage(self, name: str, value: Value, overrides: Sequence[str]) -> Stage:
        where = f"{value.place}: {name}"
        if not _NAME.fullmatch(name) or name in _RESERVED:
            raise UsageError(f"{where} cannot be a stage's name: letters, digits, - and _")
        if not isinstance(value.data, dict):
            raise UsageError(f"{where} wants a block with the keys {', '.join(KEYS)}, not {value}")
        for key, each in value.data.items():
            if key not in KEYS:
                raise UsageError(f"{each.place}: unknown key '{name}.{key}'; {_hint(key)}")
        if "run" in value.data and ("train" in value.data or "with" in value.data):
            raise UsageError(f"{where} has both run and train or with; a stage is one of them")
        goes_on = _choice(value.data.get("if_worse"), name, "if_worse", ("stop", "go_on"))
        if "run" in value.data:
            stage = self._command(name, value.data["run"], overrides)
        elif "train" in value.data or "with" in value.data:
            stage = self._training(name, value, overrides)
        else:
            raise UsageError(f"{where} lacks train, a recipe, or run, a command")
        stage = replace(stage, goes_on_if_worse=goes_on == "go_on")
        self._stages[name] = stage
        return stage

    def _training(self, name: str, value: Value, overrides: Sequence[str]) -> Stage:
        assert isinstance(value.data, dict), value
        tree = Value({}, value.place)
        if "train" in value.data:
            tree = self._base(name, value.data["train"])
        if "with" in value.data:
            tree = _merged(tree, value.data["with"], f"{name}.with")
        for words in overrides:
            tree = override(tree, words, name)
        self._trees[name] = tree
        stage = Stage(name=name, recipe=read_recipe(tree))
        for text in stage.inputs():
            self._check(text, f"{value.place}: {name}")
        return stage

    def _base(self, name: str, value: Value) -> Value:
        """Return the recipe that a stage changes."""
        text = _text(value, f"{name}.train")
        if not text.startswith("stage:"):
            tree = read_tree(find(text))
            if is_chain(tree):
                raise UsageError(f"{value.place}: {name}.train: {text} is a chain; name a recipe")
            return tree
        self._check(text, f"{value.place}: {name}.train")
        other = text.removeprefix("stage:")
        if other not in self._trees:
            raise UsageError(f"{value.place}: {name}.train: {other} is a command, and no recipe")
        return self._trees[other]

    def _command(self, name: str, value: Value, overrides: Sequence[str]) -> Stage:
        text, where = _text(value, f"{name}.run"), f"{value.place}: {name}.run"
        for words in overrides:
            key, _, text = words.partition("=")
            if key != "run":
                raise UsageError(f"{name}.{words}: {name} is a command; its one key is run")
            where = f"{name}.{words}: {name}.run"
        try:
            command = tuple(shlex.split(text))
        except ValueError as error:
            raise UsageError(f"{where}: {str(error).lower()}: {text!r}") from error
        if not command or command[0] not in OUTPUTS:
            word = command[0] if command else ""
            near = difflib.get_close_matches(word, OUTPUTS, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(OUTPUTS)}"
            raise UsageError(f"{where} begins with {word!r}, no command of a stage; {hint}")
        for each in command[1:]:
            self._check(each, where)
        try:
            return Stage(name=name, command=command, words=self._parse(command))
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error

    def _check(self, text: str, where: str) -> None:
        """Refuse a reference to what is no earlier stage's."""
        for other, rest in references(text):
            if other not in self._stages:
                near = difflib.get_close_matches(other, self._stages, 1)
                known = ", ".join(self._stages) or "none"
                hint = f"did you mean '{near[0]}'?" if near else f"before it are {known}"
                raise UsageError(f"{where}: {text}: no stage '{other}' before this one; {hint}")
            if not self._stages[other].output and not rest:
                made = "several files: name one, as stage:NAME/FILE"
                none = "nothing that a stage can take"
                is_folder = self._stages[other].words.is_folder
                raise UsageError(f"{where}: {text}: {other} makes {made if is_folder else none}")
            if ".." in rest.split("/"):
                raise UsageError(f"{where}: {text}: a file of that stage has no .. in its name")


def _merged(tree: Value, changes: Value, path: str) -> Value:
    """Return the tree with the changes in it: blocks key by key, lists by number or whole."""
    if not isinstance(changes.data, dict):
        if path.endswith(".with"):
            raise UsageError(f"{changes.place}: {path} wants a block of a recipe's keys")
        return changes
    if isinstance(tree.data, tuple) and changes.data and all(map(_is_index, changes.data)):
        items = list(tree.data)
        for index, each in sorted(changes.data.items(), key=lambda item: int(item[0])):
            if int(index) > len(items):
                raise UsageError(f"{each.place}: no {path}.{index}; there are {len(items)} before")
            old = items[int(index)] if int(index) < len(items) else Value(None, each.place)
            items[int(index) : int(index) + 1] = [_merged(old, each, f"{path}.{index}")]
        return Value(tuple(items), tree.place)
    block = dict(tree.data) if isinstance(tree.data, dict) else {}
    for name, each in changes.data.items():
        old = block.get(name, Value(None, each.place))
        block[name] = _merged(old, each, f"{path}.{name}")
    return Value(block, changes.place)


def _is_index(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) < 9


def _text(value: Value, path: str) -> str:
    if isinstance(value.data, dict | tuple) or not value.text.strip():
        raise UsageError(f"{value.place}: {path} wants text, not {value}")
    return value.text


def _choice(value: Value | None, stage: str, key: str, choices: Sequence[str]) -> str:
    if value is None:
        return choices[0]
    if value.text not in choices:
        raise UsageError(
            f"{value.place}: {stage}.{key} wants one of {', '.join(choices)}, not {value}"
        )
    return value.text


def _hint(key: str) -> str:
    assert ROOT.block, "a recipe is a block"
    if near := difflib.get_close_matches(key, KEYS, 1):
        return f"did you mean '{near[0]}'?"
    if key in [each.name for each in keys(ROOT.block)]:
        return f"did you mean 'with.{key}'?"
    return f"there are {', '.join(KEYS)}"
