"""Chains: stages that make a model one after the other, each from what earlier ones made.

`stage:NAME` in a recipe or a command is what an earlier stage made, `stage:NAME/FILE` a file beside
it. `gemb.chain_file` has their notation.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from msgspec import structs

from gemb.errors import UsageError
from gemb.recipe.file import find, read_recipe, read_tree
from gemb.recipe.keys import ROOT, to_plain
from gemb.recipe.read import override
from gemb.recipe.run_folder import flat
from gemb.recipe.schema import Recipe
from gemb.recipe.yaml_text import Value, write_text

# The commands of stages, and what each writes into its stage's folder.
OUTPUTS = {
    "cut": "model",
    "soup": "model",
    "export-gguf": "model.gguf",
    "quantize": "model.gguf",
    "eval": "scores.json",
    "mine": "rows.jsonl",
    "verify": "",
}
# In a command a reference is a word, or stands behind a = or before soup's =WEIGHT.
_REFERENCE = re.compile(r"(?:(?<=\s)|(?<==)|^)stage:([^\s=/]*)((?:/[^\s=]*)?)")


@dataclass(frozen=True)
class Words:
    """A command's arguments, as its own options understand them."""

    models: tuple[str, ...] = ()  # references
    files: tuple[str, ...] = ()  # and folders that it reads
    others: tuple[str, ...] = ()  # whatever else may be the name of a file
    is_folder: bool = False  # it writes several files


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage; either `recipe` or `command` says what it does."""

    name: str
    recipe: Recipe | None = None
    command: tuple[str, ...] = ()
    words: Words = Words()
    goes_on_if_worse: bool = False  # exit code 1 does not end the chain

    @property
    def kind(self) -> str:
        """`finetune`, `qat`, `soup`, ..."""
        if self.recipe and self.recipe.qat:
            return "qat"
        return self.recipe.stage if self.recipe else self.command[0]

    @property
    def output(self) -> str:
        """What it makes, in its folder; empty: nothing that a later stage could take."""
        if self.recipe:
            return "model"
        return "" if self.words.is_folder else OUTPUTS[self.command[0]]

    def settings(self) -> dict[str, Any]:
        """Return what it does by key, references as written."""
        if self.recipe:
            return flat(to_plain(self.recipe))
        return {"run": " ".join(self.command)}

    def plain(self) -> dict[str, Any]:
        """Return what it does as dicts, lists and scalars."""
        return to_plain(self.recipe) if self.recipe else {"run": list(self.command)}

    def inputs(self) -> tuple[str, ...]:
        """Return the models and data that it reads, as written, each once."""
        if not self.recipe:
            return tuple(dict.fromkeys((*self.words.models, *self.words.files, *self.words.others)))
        recipe, distill = self.recipe, self.recipe.loss.distill
        data = (source.path for source in recipe.data)
        named = [recipe.init.model, *data, *recipe.held_out, recipe.eval.data]
        return tuple(dict.fromkeys(filter(None, [*named, distill.teacher if distill else ""])))

    def models(self) -> frozenset[str]:
        """Return those of the inputs that are models."""
        if not self.recipe:
            return frozenset(self.words.models)
        distill = self.recipe.loss.distill
        return frozenset([self.recipe.init.model, *([distill.teacher] if distill else ())])


@dataclass(frozen=True)
class Chain:
    """Its stages, in the order in which they are run."""

    stages: tuple[Stage, ...]

    def stage(self, name: str) -> Stage:
        """Return the stage of this name."""
        return next(stage for stage in self.stages if stage.name == name)


def references(text: str) -> list[tuple[str, str]]:
    """Return the stages that a text refers to, each with what follows its name: `/FILE`."""
    return [(found[1], found[2]) for found in _REFERENCE.finditer(text)]


def resolved(text: str, place: Callable[[str, str], str]) -> str:
    """Return the text with `place(NAME, /FILE)` instead of each reference."""
    return _REFERENCE.sub(lambda found: place(found[1], found[2]), text)


def resolved_recipe(recipe: Recipe, place: Callable[[str, str], str]) -> Recipe:
    """Return the recipe with paths instead of references."""
    loss = recipe.loss
    if loss.distill:
        teacher = resolved(loss.distill.teacher, place)
        loss = structs.replace(loss, distill=structs.replace(loss.distill, teacher=teacher))
    return structs.replace(
        recipe,
        init=structs.replace(recipe.init, model=resolved(recipe.init.model, place)),
        data=tuple(structs.replace(each, path=resolved(each.path, place)) for each in recipe.data),
        held_out=tuple(resolved(each, place) for each in recipe.held_out),
        loss=loss,
        eval=structs.replace(recipe.eval, data=resolved(recipe.eval.data, place)),
    )


def by_setting(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the settings that differ, in words."""
    return [
        f"{key} is {now.get(key)}, was {before.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


# Chains as files: YAML to a checked `Chain`, and back.
#
#     stages:
#       pretrain:
#         train: pretrain              a recipe: gemb's own, a file, or stage:NAME, another stage's
#         with:                        keys of it that are other here; of a list, by number
#           init: {from: stage:adapt}
#       soup:
#         run: soup stage:pretrain stage:finetune      a command of gemb, without its -o
#
# `stage:NAME` is what an earlier stage made, `stage:NAME/FILE` a file beside it. Everything is
# checked when a chain is read: recipes as `recipe_file` does, commands by their own options.


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
    if near := difflib.get_close_matches(key, KEYS, 1):
        return f"did you mean '{near[0]}'?"
    if key in ROOT.keys:
        return f"did you mean 'with.{key}'?"
    return f"there are {', '.join(KEYS)}"
