"""What goes into a soup: model folders with their weights, and whether they can be averaged.

Models can be averaged that differ in their numbers alone. Only headers and small files are read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gemb.errors import UsageError
from gemb.models.checkpoint import Checkpoint, looks_like_checkpoint, open_checkpoint
from gemb.models.references import resolve
from gemb.models.safetensors import StoredTensor
from gemb.recipe.run_folder import RunFolder

MOST_TENSORS = 5  # shown of those that differ
ABSENT = "-"


class Named(NamedTuple):
    """What a user wrote for an ingredient."""

    reference: str
    weight: float | None  # None: none was given


@dataclass(frozen=True, kw_only=True)
class Ingredient:
    """A model of a soup."""

    name: str  # as the user named it
    weight: float  # above 0, relative to those of the others
    checkpoint: Checkpoint
    fingerprint: str  # as `Checkpoint.fingerprint`


class Difference(NamedTuple):
    """A thing in which models differ."""

    what: str
    values: tuple[str, ...]  # of each model


def named(word: str) -> Named:
    """Return the reference and the weight of `MODEL=0.3`; a path that exists has no weight.

    Raises:
        UsageError: the weight is no number, or none above 0.
    """
    reference, sign, tail = word.rpartition("=")
    if not sign or Path(os.path.expanduser(word)).exists():  # noqa: PTH111 - of an unknown user
        return Named(word, None)
    try:
        weight = float(tail)
    except ValueError:
        if reference and Path(os.path.expanduser(reference)).exists():  # noqa: PTH111
            raise UsageError(
                f"{word}: {tail!r} is no weight: a number, as {reference}=0.3"
            ) from None
        return Named(word, None)
    if not reference:
        raise UsageError(f"{word}: a weight without a model; write MODEL={tail}")
    if not 0 < weight < math.inf:
        raise UsageError(f"{word}: a weight must be a number above 0; leave out what has none")
    return Named(reference, weight)


def last_checkpoints(run: Path, count: int) -> list[Path]:
    """Return the model folders of the last so many checkpoints of a run, the oldest first.

    Raises:
        UsageError: it is no run, or has fewer.
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


def open_ingredients(words: Sequence[Named]) -> tuple[Ingredient, ...]:
    """Return the models, opened and checked, each by itself.

    Raises:
        UsageError: some have a weight and others have none; one is no model folder.
        Missing: a model is not here.
    """
    check_weights(words)
    return tuple(_opened(word) for word in words)


def check_weights(words: Sequence[Named]) -> None:
    """Refuse models of which some have a weight and others have none.

    Raises:
        UsageError: it is so.
    """
    given = [word.weight is not None for word in words]
    if any(given) and not all(given):
        raise UsageError(
            f"{words[given.index(False)].reference} has no weight, and others have; "
            "give all or none one"
        )


def _opened(word: Named) -> Ingredient:
    path = resolve(word.reference)
    if not path.is_dir():
        raise UsageError(f"{path} is a file; soup takes model folders")
    run = RunFolder(path)
    if not looks_like_checkpoint(path) and run.recipe.is_file():
        raise UsageError(
            f"{path} is a run; name {run.best}, {run.model}, or give --last N for its checkpoints"
        )
    checkpoint = open_checkpoint(path)
    return Ingredient(
        name=word.reference,
        weight=1.0 if word.weight is None else word.weight,
        checkpoint=checkpoint,
        fingerprint=checkpoint.fingerprint(),
    )


def in_order(ingredients: Sequence[Ingredient]) -> tuple[Ingredient, ...]:
    """Return the ingredients in the order in which they are summed, however they were named."""
    return tuple(
        sorted(
            ingredients,
            key=lambda one: (one.fingerprint, one.weight, one.checkpoint.folder.resolve()),
        )
    )


def differences(ingredients: Sequence[Ingredient]) -> list[Difference]:
    """Return in what the models differ beside their numbers; of tensors, all."""
    return list(_differences([one.checkpoint for one in ingredients]))


def _differences(checkpoints: Sequence[Checkpoint]) -> Iterator[Difference]:
    for what, look in _aspects(checkpoints).items():
        values = tuple(look(one) for one in checkpoints)
        if len(set(values)) > 1:
            yield Difference(what, values)
    names = dict.fromkeys(name for one in checkpoints for name in one.tensors)
    for name in names:
        values = tuple(_tensor(one.tensors.get(name)) for one in checkpoints)
        if len(set(values)) > 1:
            yield Difference(name, values)


def _aspects(checkpoints: Sequence[Checkpoint]) -> dict[str, Callable[[Checkpoint], str]]:
    """Return what must be alike beside the tensors, each with the words for a model's own."""
    found: dict[str, Callable[[Checkpoint], str]] = {}
    for field in dataclasses.fields(checkpoints[0].config):
        found[field.name] = lambda one, name=field.name: _value(getattr(one.config, name))  # type: ignore[misc]
    found["tokenizer.json"] = _tokenizers(checkpoints)
    found["pooling"] = lambda one: one.pooling
    found["dense layers"] = lambda one: ", ".join(f"{a} to {b}" for a, b in one.dense)
    found["matryoshka_dims"] = lambda one: _value(one.matryoshka_dims)
    found["longest text"] = lambda one: f"{one.max_tokens} tokens"
    for name in sorted({name for one in checkpoints for name in one.prompts}):
        found[f"prompt {name}"] = lambda one, name=name: _prompt(one.prompts, name)  # type: ignore[misc]
    return found


def _value(value: object) -> str:
    if not isinstance(value, tuple):
        return str(value)
    if any(isinstance(item, bool) for item in value):  # is_sliding
        return "".join("s" if item else "G" for item in value)
    return ",".join(map(str, value))


def _prompt(prompts: Mapping[str, str], name: str) -> str:
    return repr(prompts[name]) if name in prompts else ABSENT


def _tensor(tensor: StoredTensor | None) -> str:
    return f"{tensor.dtype} {'x'.join(map(str, tensor.shape))}" if tensor else ABSENT


def _tokenizers(checkpoints: Sequence[Checkpoint]) -> Callable[[Checkpoint], str]:
    """Return the words for a tokenizer: a hash of the file, or of its content if files differ."""
    digests = {one.folder: _digest(one.folder / "tokenizer.json") for one in checkpoints}
    if len(set(digests.values())) > 1:
        digests = {one.folder: _content(one.folder / "tokenizer.json") for one in checkpoints}
    return lambda one: digests[one.folder]


def _digest(path: Path) -> str:
    if not path.exists():
        return ABSENT
    with path.open("rb") as file:  # 33 MB, of each model
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]


def _content(path: Path) -> str:
    """Return a hash of JSON without regard to white space and the order of keys."""
    import orjson

    if not path.exists():
        return ABSENT
    try:
        # The order of a vocabulary's entries says nothing; that of the merges does, and stays.
        text = orjson.dumps(orjson.loads(path.read_bytes()), option=orjson.OPT_SORT_KEYS)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{path}: not JSON: {error}") from error
    return hashlib.sha256(text).hexdigest()[:8]


def table(ingredients: Sequence[Ingredient], found: Sequence[Difference]) -> list[tuple[str, ...]]:
    """Return the rows of a table of differences: the first model, and those unlike it."""
    odd = [
        i for i in range(len(ingredients)) if any(one.values[i] != one.values[0] for one in found)
    ]
    columns = [0, *odd]
    rows = [("", *(ingredients[i].name for i in columns))]
    tensors = [one for one in found if one.what in _all_tensors(ingredients)]
    shown = [one for one in found if one not in tensors] + tensors[:MOST_TENSORS]
    rows += [(one.what, *(one.values[i] for i in columns)) for one in shown]
    if len(tensors) > MOST_TENSORS:
        rows.append((f"and {len(tensors) - MOST_TENSORS} more tensors", *("" for _ in columns)))
    return rows


def summary(ingredients: Sequence[Ingredient], found: Sequence[Difference]) -> str:
    """Return the differences in a few words: `vocab_size and 3 tensors differ`."""
    tensors = _all_tensors(ingredients)
    words = [one.what for one in found if one.what not in tensors]
    if len(words) > 4:
        words = [*words[:3], f"{len(words) - 3} other settings"]
    count = sum(one.what in tensors for one in found)
    words += [f"{count} tensor{'s' if count > 1 else ''}"] if count else []
    return f"{', '.join(words)} {'differs' if len(found) == 1 else 'differ'}"


def _all_tensors(ingredients: Sequence[Ingredient]) -> set[str]:
    return {name for one in ingredients for name in one.checkpoint.tensors}
