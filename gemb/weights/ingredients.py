"""The ingredients of a soup: model folders and their weights, and whether they can be averaged.

Models can be averaged if they differ only in the values of their tensors. Only headers and small
files are read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from gemb.errors import UsageError
from gemb.models.checkpoint import Checkpoint, looks_like_checkpoint, open_checkpoint
from gemb.models.config import read_optional_json
from gemb.models.references import resolve
from gemb.models.safetensors import StoredTensor
from gemb.recipe.run_folder import RunFolder
from gemb.weights.token_ids import in_words, tokenizer_parts

MOST_TENSORS = 5  # differing tensors that `table` lists
ABSENT = "-"
UNSTATED = "not stated"  # a setting that sentence-transformers leaves out when it saves a model


class IngredientSpec(NamedTuple):
    """An ingredient as the user wrote it: `MODEL` or `MODEL=WEIGHT`."""

    reference: str
    weight: float | None  # None: none was given


@dataclass(frozen=True, kw_only=True)
class Ingredient:
    """A model of a soup."""

    name: str  # as the user named it
    weight: float  # above 0, relative to those of the others
    checkpoint: Checkpoint
    fingerprint: str  # as `Checkpoint.fingerprint`


class Mismatch(NamedTuple):
    """A setting or a tensor in which models differ."""

    setting: str
    values: tuple[str, ...]  # one for each model, in the order of the ingredients


def ingredient_spec(text: str) -> IngredientSpec:
    """Return the reference and the weight of `MODEL=0.3`; a path that exists has no weight.

    Raises:
        UsageError: the weight is no number above 0.
    """
    reference, sign, tail = text.rpartition("=")
    if not sign or Path(os.path.expanduser(text)).exists():  # noqa: PTH111 - of an unknown user
        return IngredientSpec(text, None)
    try:
        weight = float(tail)
    except ValueError:
        if reference and Path(os.path.expanduser(reference)).exists():  # noqa: PTH111
            raise UsageError(
                f"{text}: {tail!r} is no weight: a number, as {reference}=0.3"
            ) from None
        return IngredientSpec(text, None)
    if not reference:
        raise UsageError(f"{text}: a weight without a model; write MODEL={tail}")
    if not 0 < weight < math.inf:
        raise UsageError(f"{text}: a weight must be a number above 0; leave out what has none")
    return IngredientSpec(reference, weight)


def last_checkpoints(run: Path, count: int) -> list[Path]:
    """Return the model folders of the last `count` checkpoints of a run, the oldest first.

    Raises:
        UsageError: the folder is no run, or has fewer checkpoints.
    """
    if not RunFolder(run).recipe.is_file():
        raise UsageError(f"{run} is no run: --last takes the folders that gemb train -o wrote")
    steps = [path for path in run.glob("checkpoints/step-*") if path.name[5:].isdecimal()]
    steps.sort(key=lambda path: int(path.name[5:]))
    models = [step / "model" for step in steps if (step / "model").is_dir()]
    if len(models) < count:
        raise UsageError(
            f"{run} has {len(models)} checkpoints, not {count}; checkpoint.keep of its recipe "
            "says how many are kept"
        )
    return models[-count:]


def open_ingredients(models: Sequence[IngredientSpec]) -> tuple[Ingredient, ...]:
    """Open and check each model.

    Raises:
        UsageError: some have a weight and others have none, or a path is no model folder.
        Missing: a model is not here.
    """
    check_weights(models)
    return tuple(_opened(model) for model in models)


def check_weights(models: Sequence[IngredientSpec]) -> None:
    """Refuse models of which some have a weight and others have none.

    Raises:
        UsageError: some have a weight and others have none.
    """
    have_weight = [model.weight is not None for model in models]
    if any(have_weight) and not all(have_weight):
        raise UsageError(
            f"{models[have_weight.index(False)].reference} has no weight, and others have; "
            "give all or none one"
        )


def _opened(model: IngredientSpec) -> Ingredient:
    path = resolve(model.reference)
    if not path.is_dir():
        raise UsageError(f"{path} is a file; soup takes model folders")
    run = RunFolder(path)
    if not looks_like_checkpoint(path) and run.recipe.is_file():
        raise UsageError(
            f"{path} is a run; name {run.best}, {run.model}, or give --last N for its checkpoints"
        )
    checkpoint = open_checkpoint(path)
    return Ingredient(
        name=model.reference,
        weight=1.0 if model.weight is None else model.weight,
        checkpoint=checkpoint,
        fingerprint=checkpoint.fingerprint(),
    )


def in_order(ingredients: Sequence[Ingredient]) -> tuple[Ingredient, ...]:
    """Return the ingredients in the order in which they are summed, however they were named."""
    return tuple(
        sorted(
            ingredients,
            key=lambda ingredient: (
                ingredient.fingerprint,
                ingredient.weight,
                ingredient.checkpoint.folder.resolve(),
            ),
        )
    )


def mismatches(ingredients: Sequence[Ingredient]) -> list[Mismatch]:
    """Return the settings, the files and all tensors in which the models differ."""
    return list(_mismatches([ingredient.checkpoint for ingredient in ingredients]))


def _mismatches(checkpoints: Sequence[Checkpoint]) -> Iterator[Mismatch]:
    for aspect, value_of in _aspects(checkpoints).items():
        values = tuple(value_of(checkpoint) for checkpoint in checkpoints)
        if len(set(values) - {UNSTATED}) > 1:
            yield Mismatch(aspect, values)
    names = dict.fromkeys(name for checkpoint in checkpoints for name in checkpoint.tensors)
    for name in names:
        tensors = [checkpoint.tensors.get(name) for checkpoint in checkpoints]
        if len({tensor and tensor.shape for tensor in tensors}) > 1:
            yield Mismatch(name, tuple(_tensor(tensor) for tensor in tensors))


def _aspects(checkpoints: Sequence[Checkpoint]) -> dict[str, Callable[[Checkpoint], str]]:
    """Return what must be equal besides the tensors: its name, and how a model's value is shown."""
    aspects: dict[str, Callable[[Checkpoint], str]] = {}
    for field in dataclasses.fields(checkpoints[0].config):
        aspects[field.name] = partial(_setting, field.name)
    aspects["tokenizer.json"] = _tokenizers(checkpoints)
    aspects["pooling"] = lambda checkpoint: checkpoint.pooling
    aspects["default prompt"] = lambda checkpoint: checkpoint.prompts.default or ABSENT
    aspects["dense layers"] = lambda checkpoint: ", ".join(
        f"{a} to {b}" for a, b in checkpoint.dense
    )
    aspects["matryoshka_dims"] = stated_dims
    aspects["default width"] = lambda checkpoint: str(checkpoint.default_dim)
    aspects["longest text"] = lambda checkpoint: f"{checkpoint.max_tokens} tokens"
    for name in sorted({name for checkpoint in checkpoints for name in checkpoint.prompts}):
        aspects[f"prompt {name}"] = partial(_prompt, name)
    return aspects


def stated_dims(checkpoint: Checkpoint) -> str:
    """Return the trained widths that the folder's settings name: 768,256."""
    settings = read_optional_json(checkpoint.file("config_sentence_transformers.json"))
    stated = settings.get("matryoshka_dims") is not None
    return _value(checkpoint.matryoshka_dims) if stated else UNSTATED


def _value(value: object) -> str:
    if not isinstance(value, tuple):
        return str(value)
    if any(isinstance(item, bool) for item in value):  # is_sliding
        return "".join("s" if item else "G" for item in value)
    return ",".join(map(str, value))


def _setting(name: str, checkpoint: Checkpoint) -> str:
    return _value(getattr(checkpoint.config, name))


def _prompt(name: str, checkpoint: Checkpoint) -> str:
    return repr(checkpoint.prompts[name]) if name in checkpoint.prompts else ABSENT


def _tensor(tensor: StoredTensor | None) -> str:
    return f"{tensor.dtype} {'x'.join(map(str, tensor.shape))}" if tensor else ABSENT


def _tokenizers(checkpoints: Sequence[Checkpoint]) -> Callable[[Checkpoint], str]:
    """Return how to show a tokenizer: what decides about a text's ids, as far as it differs."""
    files = {
        checkpoint.folder: _digest(checkpoint.file("tokenizer.json")) for checkpoint in checkpoints
    }
    if len(set(files.values())) == 1:
        return lambda checkpoint: files[checkpoint.folder]
    parts = [tokenizer_parts(c.file("tokenizer.json"), c.config.vocab_size) for c in checkpoints]
    shown: dict[Path, list[str]] = {checkpoint.folder: [] for checkpoint in checkpoints}
    for name in dict.fromkeys(name for part in parts for name in part):
        values = [part.get(name) for part in parts]
        if any(value != values[0] for value in values):
            for checkpoint, text in zip(checkpoints, in_words(values), strict=True):
                shown[checkpoint.folder].append(f"{name} {text}")
    return lambda checkpoint: "; ".join(shown[checkpoint.folder])


def _digest(path: Path) -> str:
    if not path.exists():
        return ABSENT
    with path.open("rb") as file:  # 33 MB, of each model
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]


def table(
    ingredients: Sequence[Ingredient], differing: Sequence[Mismatch]
) -> list[tuple[str, ...]]:
    """Return the rows of a table of differences: the first model, and those unlike it."""
    odd = [
        i
        for i in range(len(ingredients))
        if any(mismatch.values[i] != mismatch.values[0] for mismatch in differing)
    ]
    columns = [0, *odd]
    rows = [("", *(ingredients[i].name for i in columns))]
    tensors = [mismatch for mismatch in differing if mismatch.setting in _all_tensors(ingredients)]
    shown = [mismatch for mismatch in differing if mismatch not in tensors] + tensors[:MOST_TENSORS]
    rows += [(mismatch.setting, *(mismatch.values[i] for i in columns)) for mismatch in shown]
    if len(tensors) > MOST_TENSORS:
        rows.append((f"and {len(tensors) - MOST_TENSORS} more tensors", *("" for _ in columns)))
    return rows


def summary(ingredients: Sequence[Ingredient], differing: Sequence[Mismatch]) -> str:
    """Return the differences in a few words: `vocab_size and 3 tensors differ`."""
    tensors = _all_tensors(ingredients)
    parts = [mismatch.setting for mismatch in differing if mismatch.setting not in tensors]
    if len(parts) > 4:
        parts = [*parts[:3], f"{len(parts) - 3} other settings"]
    count = sum(mismatch.setting in tensors for mismatch in differing)
    parts += [f"{count} tensor{'s' if count > 1 else ''}"] if count else []
    return f"{', '.join(parts)} {'differs' if len(differing) == 1 else 'differ'}"


def _all_tensors(ingredients: Sequence[Ingredient]) -> set[str]:
    return {name for ingredient in ingredients for name in ingredient.checkpoint.tensors}
