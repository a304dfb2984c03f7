"""Chains: stages that make a model one after the other, each from the output of earlier ones.

    stages:
      pretrain:
        train: pretrain              a recipe: gemb's own, a file, or stage:NAME, another stage's
        with:                        keys of it that differ here; of a list, by number
          init: {from: stage:adapt}
      soup:
        run: soup stage:pretrain stage:finetune      a command of gemb, without its -o
        if_worse: go_on              exit code 1 does not end the chain

`stage:NAME` is what an earlier stage made, `stage:NAME/FILE` a file beside it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import structs

from gemb.errors import UsageError
from gemb.io.text import did_you_mean
from gemb.recipe.file import find, read_recipe, read_tree
from gemb.recipe.keys import ROOT, to_plain
from gemb.recipe.read import changed, override
from gemb.recipe.run_folder import FREE, flat
from gemb.recipe.schema import Recipe
from gemb.recipe.yaml_text import Value, write_text

# The commands of stages, and what each writes into the folder of its stage: a name or a pattern.
OUTPUTS = {
    "cut": "model",
    "soup": "model",
    "export-gguf": "model.gguf",
    "quantize": "*.gguf",
    "eval": "scores.json",
    "mine": "rows.jsonl",
    "verify": "",
}
RUN_MODELS = ("soup", "quantize", "eval", "mine", "verify")  # those that take -j and -q
KEYS = ("train", "with", "run", "if_worse")
# Of a command with its arguments; may raise UsageError.
CommandCheck = Callable[[Sequence[str]], None]
_NAME = re.compile(r"(?!stages$)[A-Za-z0-9][A-Za-z0-9_-]*")  # RUN/stages is the chain's own
_ITS_OWN = re.compile(r"(-o|-n|-h|--output|--dry-run|--help)(=.*)?")  # no option of a stage
# In a command a reference is a word, or stands behind a = or before soup's =WEIGHT.
_REFERENCE = re.compile(r"(?:(?<=\s)|(?<==)|^)stage:([^\s=/]*)((?:/[^\s=]*)?)")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage; either `recipe` or `command` says what it does."""

    name: str
    recipe: Recipe | None = None
    command: tuple[str, ...] = ()
    goes_on_if_worse: bool = False  # exit code 1 does not end the chain

    @property
    def kind(self) -> str:
        """`finetune`, `qat`, `soup`, ..."""
        if self.recipe:
            return "qat" if self.recipe.qat else self.recipe.stage
        return self.command[0]

    @property
    def output(self) -> str:
        """Name or pattern of what it makes; empty: nothing that a later stage could take."""
        return "model" if self.recipe else OUTPUTS[self.command[0]]

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the stage differ from another one, by key; references as written."""
        if not self.recipe:
            return {"run": " ".join(self.command)}
        # A search of mixtures compares its trials by the evaluation.
        free = FREE - {"eval"} if self.recipe.mixtures else FREE
        return {
            key: value
            for key, value in flat(to_plain(self.recipe)).items()
            if key not in free and key.partition(".")[0] not in free
        }

    @property
    def models(self) -> tuple[str, ...]:
        """The models that a recipe reads, the one that it starts from first."""
        if not self.recipe:
            return ()
        distill = self.recipe.loss.distill
        return (self.recipe.init.model, *([distill.teacher] if distill else []))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The models and data that it reads, each once; of a command every argument."""
        if self.recipe:
            data = [source.path for source in self.recipe.data]
            data += [source.corpus for source in self.recipe.data]
            texts: Iterable[str] = (*data, *self.recipe.held_out, self.recipe.eval.data)
        else:  # `-m`, `--data=dev/`, `model=0.5`
            parts = (word.partition("=") for word in self.command[1:])
            texts = (after if before.startswith("-") else before for before, _, after in parts)
        return tuple(dict.fromkeys(filter(None, (*self.models, *texts))))

    def sources(self) -> set[str]:
        """Return the names of the stages from which it takes something."""
        return {name for text in self.inputs for name, _ in references(text)}

    def to_json(self) -> dict[str, Any]:
        """Return what it does as dicts, lists and scalars."""
        return to_plain(self.recipe) if self.recipe else {"run": list(self.command)}


Chain = Mapping[str, Stage]  # by name, in the order in which they are run


def references(text: str) -> list[tuple[str, str]]:
    """Return the stages that a text refers to, each with what follows its name: `/FILE`."""
    return [(match[1], match[2]) for match in _REFERENCE.finditer(text)]


def resolved(text: str, path: Callable[[str, str], Path]) -> str:
    """Return the text with `path(NAME, /FILE)` instead of each reference."""
    return _REFERENCE.sub(lambda match: str(path(match[1], match[2])), text)


def resolved_recipe(recipe: Recipe, path: Callable[[str, str], Path]) -> Recipe:
    """Return the recipe with paths instead of references."""
    replace = structs.replace
    loss = recipe.loss
    if loss.distill:
        teacher = resolved(loss.distill.teacher, path)
        loss = replace(loss, distill=replace(loss.distill, teacher=teacher))
    return replace(
        recipe,
        init=replace(recipe.init, model=resolved(recipe.init.model, path)),
        data=tuple(
            replace(
                source,
                path=resolved(source.path, path),
                corpus=resolved(source.corpus, path),
            )
            for source in recipe.data
        ),
        held_out=tuple(resolved(text, path) for text in recipe.held_out),
        loss=loss,
        eval=replace(recipe.eval, data=resolved(recipe.eval.data, path)),
    )


def is_chain(tree: Value) -> bool:
    """Return whether a file's tree is that of a chain, and of no recipe."""
    return isinstance(tree.data, dict) and "stages" in tree.data


def dump_chain(chain: Chain) -> str:
    """Return the chain as YAML, every key of its recipes; `read_chain` reads it as an equal one."""
    stages: dict[str, dict[str, Any]] = {}
    for stage in chain.values():
        does: dict[str, Any] = {"run": shlex.join(stage.command)}
        stages[stage.name] = {"with": to_plain(stage.recipe)} if stage.recipe else does
        if stage.goes_on_if_worse:
            stages[stage.name]["if_worse"] = "go_on"
    return write_text({"stages": stages})


def read_chain(tree: Value, overrides: Sequence[str], check: CommandCheck) -> Chain:
    """Return the chain of a file, with `STAGE.KEY=VALUE` overrides of its recipes in it.

    Raises:
        UsageError: something in it or in an override is not right.
    """
    assert isinstance(tree.data, dict), tree
    for name, value in tree.data.items():
        if name != "stages":
            raise UsageError(f"{value.place}: unknown key '{name}'; a chain has stages alone")
    stages = tree.data["stages"]
    if not isinstance(stages.data, dict) or not stages.data:
        raise UsageError(f"{stages.place}: stages must be a block of stages by name, not {stages}")
    by_stage: dict[str, list[str]] = {name: [] for name in stages.data}
    for assignment in overrides:
        name, dot, rest = assignment.partition(".")
        if name not in by_stage or not dot or "=" not in rest:
            hint = _hint(name, by_stage, "its stages are")
            raise UsageError(f"{assignment}: of a chain write STAGE.KEY=VALUE; {hint}")
        by_stage[name].append(rest)
    reader = _StageReader(check)
    for name, value in stages.data.items():
        reader.read(name, value, by_stage[name])
    return reader.stages


class _StageReader:
    """Reads stages in order, and checks references to earlier ones."""

    def __init__(self, check: CommandCheck) -> None:
        self.stages: dict[str, Stage] = {}
        self._check_command = check
        self._trees: dict[str, Value] = {}  # of the recipes

    def read(self, name: str, value: Value, overrides: Sequence[str]) -> None:
        where, keys = f"{value.place}: {name}", value.data
        if not _NAME.fullmatch(name):
            raise UsageError(f"{where} cannot be a stage's name: letters, digits, - and _")
        if not isinstance(keys, dict):
            known = ", ".join(KEYS)
            raise UsageError(f"{where} must be a block with the keys {known}, not {value}")
        for key, inner in keys.items():
            if key not in KEYS:
                hint = f"did you mean 'with.{key}'?" if key in ROOT.keys else ""
                hint = hint or _hint(key, KEYS, "there are")
                raise UsageError(f"{inner.place}: unknown key '{name}.{key}'; {hint}")
        if_worse = keys.get("if_worse")
        if if_worse and if_worse.text not in ("stop", "go_on"):
            where = f"{if_worse.place}: {name}.if_worse"
            raise UsageError(f"{where} must be one of stop, go_on, not {if_worse}")
        if "run" in keys and ("train" in keys or "with" in keys):
            raise UsageError(f"{where} has both run and train or with; a stage is one of them")
        if not keys.keys() & {"run", "train", "with"}:
            raise UsageError(f"{where} lacks train, a recipe, or run, a command")
        stage = Stage(
            name=name,
            recipe=None if "run" in keys else self._recipe(name, value, overrides),
            command=self._command(name, keys["run"], overrides) if "run" in keys else (),
            goes_on_if_worse=if_worse is not None and if_worse.text == "go_on",
        )
        if stage.recipe:
            self._check_references(stage.inputs, where)
        self.stages[name] = stage

    def _recipe(self, name: str, value: Value, overrides: Sequence[str]) -> Recipe:
        assert isinstance(value.data, dict), value
        tree = Value({}, value.place)
        if "train" in value.data:
            tree = self._base(value.data["train"], f"{name}.train")
        if "with" in value.data:
            if not isinstance(value.data["with"].data, dict):
                where = f"{value.data['with'].place}: {name}.with"
                raise UsageError(f"{where} must be a block of a recipe's keys")
            tree = changed(tree, value.data["with"])
        for assignment in overrides:
            tree = override(tree, assignment, name)
        self._trees[name] = tree
        return read_recipe(tree)

    def _base(self, value: Value, path: str) -> Value:
        """Return the tree of the recipe that a stage changes."""
        text, where = _text(value, path), f"{value.place}: {path}"
        if not text.startswith("stage:"):
            tree = read_tree(find(text))
            if is_chain(tree):
                raise UsageError(f"{where}: {text} is a chain; name a recipe")
            return tree
        self._check_references([text], where)
        name = text.removeprefix("stage:")
        if name not in self._trees:
            raise UsageError(f"{where}: {name} is a command, and no recipe")
        return self._trees[name]

    def _command(self, name: str, value: Value, overrides: Sequence[str]) -> tuple[str, ...]:
        text, where = _text(value, f"{name}.run"), f"{value.place}: {name}.run"
        for assignment in overrides:
            key, _, text = assignment.partition("=")
            if key != "run":
                raise UsageError(f"{name}.{assignment}: {name} is a command; its one key is run")
            where = f"{name}.{assignment}: {name}.run"
        try:
            command = tuple(shlex.split(text))
        except ValueError as error:
            raise UsageError(f"{where}: {str(error).lower()}: {text!r}") from error
        verb = command[0] if command else ""
        if verb not in OUTPUTS:
            hint = _hint(verb, OUTPUTS, "there are")
            raise UsageError(f"{where} begins with {verb!r}, no command of a stage; {hint}")
        self._check_references(command[1:], where)
        for word in command[1:]:
            if _ITS_OWN.fullmatch(word):
                is_output = word.startswith(("-o", "--output"))
                why = "the chain says where outputs go" if is_output else "a stage makes something"
                raise UsageError(f"{where}: leave {word} out: {why}")
        try:
            self._check_command(command)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error
        return command

    def _check_references(self, texts: Iterable[str], where: str) -> None:
        """Refuse a reference to what no earlier stage makes."""
        for text in texts:
            for name, rest in references(text):
                if name not in self.stages:
                    hint = _hint(name, self.stages, "before it are")
                    raise UsageError(f"{where}: {text}: no stage '{name}' before this one; {hint}")
                if not self.stages[name].output and not rest:
                    raise UsageError(f"{where}: {text}: {name} makes nothing that a stage can take")
                if ".." in rest.split("/"):
                    raise UsageError(f"{where}: {text}: a file of that stage has no .. in its name")


def _text(value: Value, path: str) -> str:
    if isinstance(value.data, dict | tuple) or not value.text.strip():
        raise UsageError(f"{value.place}: {path} must be text, not {value}")
    return value.text


def _hint(word: str, known: Iterable[str], otherwise: str) -> str:
    return did_you_mean(word, known, f"{otherwise} {', '.join(known) or 'none'}")
