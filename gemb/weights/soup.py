"""A soup: one model folder whose numbers are averages of those of several.

The mean (Wortsman et al. 2022, arXiv 2203.05482; the last step of EmbeddingGemma's training,
arXiv 2509.20354) is weighted by each ingredient's share. SLERP (Shoemake 1985) goes from one model
to another on an arc, tensor by tensor, so that the length of a tensor stays between theirs.

Sums are in float64, a span of a tensor at a time, in the order of the ingredients' fingerprints,
and are rounded once: the same bits in whatever order the models were named, and a soup of equal
models is that model. Sums in float32 would give neither.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemb import __version__
from gemb.errors import GembError, UsageError
from gemb.io.atomic import copy_file, naming, new_folder
from gemb.io.stamps import Stamp
from gemb.models.adapter import MergedTensor, sources
from gemb.models.card import reaching, soup_history, write_card
from gemb.models.checkpoint import Checkpoint, open_checkpoint
from gemb.models.config import read_json, write_json
from gemb.models.folder import (
    SETTINGS,
    TOKENIZER_FILES,
    config_of,
    copied_files,
    copy_files,
    name_dtype,
    names_by_file,
)
from gemb.models.qat import CONFIG_KEY, folder_types
from gemb.models.safetensors import NewTensor, StoredTensor, decoded, encoded, file_size, write_file
from gemb.weights.ingredients import UNSTATED, Ingredient, in_order, stated_dims

Method = Literal["mean", "slerp"]

MANIFEST = "gemb_soup.json"
SPAN = 1 << 20  # numbers of a tensor in memory at a time
# Bytes at the peak, whatever the models: Python and numpy, and spans as bytes, float32 and float64.
# Measured on Linux: the mean of two models of 308 M numbers 74 MB, SLERP of two of 81 M 79 MB.
MEMORY = 80_000_000

LOSES_TYPES = (
    "these models were trained for few bits (QAT), and their mean is not: its numbers lie between "
    "those that their types can hold, so its config.json names no types"
)
_FILES = (TOKENIZER_FILES, SETTINGS)


@dataclass(frozen=True, kw_only=True)
class SoupPlan:
    """The size of a soup, and the memory that writing it needs."""

    size_bytes: int  # on the disk
    memory_bytes: int  # about what the process has at its peak
    tensors: int
    parameters: int


def shares(ingredients: Sequence[Ingredient]) -> list[float]:
    """Return the weights of the ingredients, brought to a sum of 1."""
    weights = _scaled(ingredients)
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _scaled(ingredients: Sequence[Ingredient]) -> list[float]:
    """Return the weights over a power of 2, which changes no bit: products cannot overflow."""
    _, exponent = math.frexp(max(ingredient.weight for ingredient in ingredients))
    return [math.ldexp(ingredient.weight, -exponent) for ingredient in ingredients]


def loses_types(ingredients: Sequence[Ingredient]) -> bool:
    """Return whether a model was trained for its types (QAT), and its soup is not.

    The numbers of such a model are those that its types can hold; means of them are others.
    """
    return len(ingredients) > 1 and any(
        folder_types(ingredient.checkpoint.folder) for ingredient in ingredients
    )


def plan(ingredients: Sequence[Ingredient]) -> SoupPlan:
    """Return the disk space and the memory that `write_soup` needs; only headers are read."""
    first = _first(ingredients)
    copied = [*copied_files(first.folder, *_FILES).values(), first.file("config.json")]
    types = soup_types(ingredients)
    return SoupPlan(
        size_bytes=sum(file.stat().st_size for file in copied)
        + sum(
            file_size(
                {
                    own: NewTensor(types[name], first.tensors[name].shape, ())
                    for own, name in names.items()
                }
            )
            for names in names_by_file(first).values()
        ),
        memory_bytes=MEMORY,
        tensors=len(first.tensors),
        parameters=sum(tensor.count for tensor in first.tensors.values()),
    )


def _first(ingredients: Sequence[Ingredient]) -> Checkpoint:
    """Return the model whose settings the soup has: the first that states all of them."""
    checkpoints = [ingredient.checkpoint for ingredient in in_order(ingredients)]
    stating = (checkpoint for checkpoint in checkpoints if stated_dims(checkpoint) != UNSTATED)
    return next(stating, checkpoints[0])


def soup_types(ingredients: Sequence[Ingredient]) -> dict[str, str]:
    """Return the type that each tensor of the soup is written in.

    That is the one that it has in every model; where they differ, F32, which holds each exactly.
    """
    types: dict[str, str] = {}
    for name in ingredients[0].checkpoint.tensors:
        stored = {ingredient.checkpoint.tensors[name].dtype for ingredient in ingredients}
        types[name] = stored.pop() if len(stored) == 1 else "F32"
    return types


def widened(ingredients: Sequence[Ingredient]) -> str:
    """Return `BF16 and F32`, the types that are mixed; empty where each tensor has one type."""
    tensors = [ingredient.checkpoint.tensors for ingredient in ingredients]
    mixed = [{part[name].dtype for part in tensors} for name in tensors[0]]
    return " and ".join(sorted({dtype for types in mixed if len(types) > 1 for dtype in types}))


def write_soup(
    ingredients: Sequence[Ingredient],
    target: Path,
    method: Method = "mean",
    evaluation: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Write the folder `target`, which is replaced if it exists, and return it.

    Args:
        ingredients: models that differ only in the values of their tensors; for slerp, two.
        target: the folder; it appears complete or not at all.
        method: mean or slerp.
        evaluation: how the ingredients were chosen, for the manifest.

    Raises:
        UsageError: a tensor holds a value that is not finite, or points opposite ways (slerp).
        GembError: an ingredient changed while it was read.
        OSError: an ingredient cannot be read, or the folder cannot be written.
    """
    ingredients = in_order(ingredients)
    assert method == "mean" or len(ingredients) == 2, "slerp is between two models"
    first = _first(ingredients)
    weights = _scaled(ingredients)
    is_unmarked = loses_types(ingredients)
    types = soup_types(ingredients)
    with ExitStack() as stack:
        models = [
            stack.enter_context(_OpenModel(ingredient.checkpoint)) for ingredient in ingredients
        ]
        part = stack.enter_context(new_folder(target))
        copy_file(first.file("config.json"), part / "config.json")
        config = config_of(first.folder)
        if is_unmarked:
            config.pop(CONFIG_KEY, None)
        if widened(ingredients):
            name_dtype(config, "float32")
        if config != read_json(part / "config.json"):
            write_json(part / "config.json", config)
        copy_files(first.folder, part, *_FILES)
        for file, names in names_by_file(first).items():
            new = {}
            for own, name in names.items():
                tensors = [model.tensor(name) for model in models]
                parts = _averaged(tensors, weights, method, types[name])
                new[own] = NewTensor(types[name], first.tensors[name].shape, parts)
            (part / file).parent.mkdir(exist_ok=True)
            write_file(part / file, new)
        for model in models:
            model.check_unchanged()
        _write_documents(ingredients, part, method, evaluation)
        open_checkpoint(part)
    return open_checkpoint(target)


class _OpenTensor(NamedTuple):
    """A tensor to read in spans, from a file that is held open."""

    name: str
    stored: StoredTensor
    file: FileIO

    def span(self, begin: int, end: int) -> NDArray[np.float32]:
        """Return its numbers begin:end, float32 [end - begin], all finite."""
        stored, path = self.stored, self.stored.path
        width = stored.size_bytes // max(1, stored.count)
        # No memory map: if the file is truncated meanwhile, a signal would end the process.
        raw = np.empty((end - begin) * width, np.uint8)
        self.file.seek(stored.offset + begin * width)
        with naming(path):
            length = self.file.readinto(raw.data)
        if length != len(raw):
            raise GembError(f"{path}: it became shorter while it was read; try again")
        values = decoded(raw, stored.dtype)
        finite = np.isfinite(values)
        if not finite.all():
            first = int(np.argmin(finite))
            index = ", ".join(map(str, np.unravel_index(begin + first, stored.shape)))
            raise UsageError(
                f"{path}: tensor {self.name} has {values[first]} at [{index}]; leave this model out"
            )
        return values


class _OpenMerged(NamedTuple):
    """A tensor that an adapter changes, as `_OpenTensor`: all of it is read from open files."""

    name: str
    stored: MergedTensor
    base: _OpenTensor
    change: tuple[_OpenTensor, _OpenTensor]

    def span(self, begin: int, end: int) -> NDArray[np.float32]:
        """Return its numbers begin:end, float32 [end - begin], all finite."""
        width = self.stored.shape[1]
        first, last = begin // width, -(-end // width)
        rows, columns = (
            tensor.span(0, tensor.stored.count).reshape(tensor.stored.shape)
            for tensor in self.change
        )
        delta = self.stored.delta(first, last, rows, columns).reshape(-1)
        values = self.base.span(begin, end)
        summed = values + delta[begin - first * width : end - first * width]
        return summed.astype(np.float32)


class _OpenModel:
    """The open weight files of a model: removing or replacing one meanwhile does no harm."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._files: dict[Path, FileIO] = {}
        self._before: dict[Path, os.stat_result] = {}

    def __enter__(self) -> _OpenModel:
        tensors = self._checkpoint.tensors.values()
        for path in dict.fromkeys(tensor.path for tensor in sources(tensors)):
            self._files[path] = path.open("rb", buffering=0)
        self._before = self._state()
        return self

    def __exit__(self, *reason: object) -> None:
        for file in self._files.values():
            file.close()

    def tensor(self, name: str) -> _OpenTensor | _OpenMerged:
        """Return a tensor to read."""
        stored = self._checkpoint.tensors[name]
        parts = [_OpenTensor(name, part, self._files[part.path]) for part in stored.sources]
        if isinstance(stored, MergedTensor):
            return _OpenMerged(name, stored, parts[0], (parts[1], parts[2]))
        return parts[0]

    def check_unchanged(self) -> None:
        """Refuse files that were written to since they were opened.

        Raises:
            GembError: there is one.
        """
        for path, state in self._state().items():
            before = self._before[path]
            stamp = Stamp.of(state)
            if state.st_nlink != before.st_nlink:  # removed or replaced, which changes its ctime
                stamp = stamp._replace(ctime_ns=before.st_ctime_ns)
            if stamp != Stamp.of(before):
                raise GembError(f"{path}: it was written to while it was read; try again")

    def _state(self) -> dict[Path, os.stat_result]:
        return {path: os.fstat(file.fileno()) for path, file in self._files.items()}


def _averaged(
    tensors: Sequence[_OpenTensor | _OpenMerged],
    weights: Sequence[float],
    method: Method,
    dtype: str = "F32",
) -> Iterator[NDArray[np.uint8]]:
    """Yield the bytes of an average, span by span; nothing is read before the first `next`.

    Args:
        tensors: one of each model, of one shape.
        weights: of each, above 0.
        method: mean or slerp.
        dtype: of the average: F32, BF16 or F16.
    """
    factors, divisor = list(weights), math.fsum(weights)
    if method == "slerp":
        factors, divisor = _slerp_factors(tensors, weights[1] / divisor), 1.0
    for begin, end in _spans(tensors[0].stored.count):
        # The sum begins with a product, not with 0, so that -0 stays -0.
        total = np.multiply(tensors[0].span(begin, end), factors[0], dtype=np.float64)
        for tensor, factor in zip(tensors[1:], factors[1:], strict=True):
            total += np.multiply(tensor.span(begin, end), factor, dtype=np.float64)
        total /= divisor
        yield encoded(total, dtype)


def _slerp_factors(tensors: Sequence[_OpenTensor | _OpenMerged], share: float) -> list[float]:
    """Return what both tensors are multiplied by, at a share of the way from the first.

    The angle is that between the whole tensors. Where one is zero, or both point the same way,
    there is no arc but a straight line.

    Raises:
        UsageError: they point opposite ways, and no arc is the shortest.
    """
    a_a = b_b = a_b = 0.0
    for begin, end in _spans(tensors[0].stored.count):
        a, b = (tensor.span(begin, end).astype(np.float64) for tensor in tensors)
        a_a, b_b, a_b = a_a + float(a @ a), b_b + float(b @ b), a_b + float(a @ b)
    straight = [1 - share, share]
    if not a_a or not b_b:
        return straight
    angle = math.acos(max(-1.0, min(1.0, a_b / math.sqrt(a_a) / math.sqrt(b_b))))
    if math.pi - angle < 1e-6:
        raise UsageError(
            f"tensor {tensors[0].name} points opposite ways in the two models: slerp has no path "
            "between them; take the mean"
        )
    if angle < 1e-7:  # where float64's own cosine ends
        return straight
    return [math.sin(part * angle) / math.sin(angle) for part in straight]


def _spans(count: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, count, SPAN):
        yield begin, min(begin + SPAN, count)


def _write_documents(
    ingredients: Sequence[Ingredient],
    part: Path,
    method: Method,
    evaluation: Mapping[str, Any] | None,
) -> None:
    """Write the manifest and README.md."""
    parts = [
        (ingredient, share)
        for ingredient, share in zip(ingredients, shares(ingredients), strict=True)
    ]
    manifest: dict[str, Any] = {
        "gemb": __version__,
        "method": method,
        "ingredients": [
            {"model": ingredient.name, "fingerprint": ingredient.fingerprint, "weight": share}
            for ingredient, share in parts
        ],
    }
    write_json(part / MANIFEST, manifest | ({"evaluation": evaluation} if evaluation else {}))
    listed = ", ".join(
        f"{_short(ingredient.name)} ({ingredient.fingerprint}, {share:.4g})"
        for ingredient, share in parts
    )
    average = "Average" if method == "mean" else "SLERP"
    licence = reaching([ingredient.checkpoint.licence() for ingredient in ingredients])
    before = soup_history(
        [(_short(ingredient.name), ingredient.checkpoint.folder) for ingredient in ingredients]
    )
    write_card(part, licence, f"{average} of models, by `gemb soup`: {listed}.", before)


def _short(name: str) -> str:
    """Return the last two parts of a path, which identify a model: `step-000500/model`."""
    return "/".join(Path(name).parts[-2:])
