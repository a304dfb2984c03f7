"""Chains: stages that make a model one after the other, each from what earlier ones made.

`stage:NAME` in a recipe or a command is what an earlier stage made, `stage:NAME/FILE` a file beside
it. `gemb.chain_file` has their notation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gemb.recipe import Recipe
from gemb.recipe_file import to_plain
from gemb.run_folder import flat

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
        loss = replace(loss, distill=replace(loss.distill, teacher=teacher))
    return replace(
        recipe,
        init=replace(recipe.init, model=resolved(recipe.init.model, place)),
        data=tuple(replace(each, path=resolved(each.path, place)) for each in recipe.data),
        held_out=tuple(resolved(each, place) for each in recipe.held_out),
        loss=loss,
        eval=replace(recipe.eval, data=resolved(recipe.eval.data, place)),
    )


def by_setting(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the settings that differ, in words."""
    return [
        f"{key} is {now.get(key)}, was {before.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
