"""Write trained weights as a model folder, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from gemb.io.atomic import new_folder
from gemb.models.checkpoint import Checkpoint, open_checkpoint, pooling_settings
from gemb.models.config import read_optional_json, write_json
from gemb.models.folder import (
    SETTINGS,
    TOKENIZER_FILES,
    config_of,
    copy_files,
    name_dtype,
    write_readme,
)
from gemb.models.qat import CONFIG_KEY, Types, in_words
from gemb.models.safetensors import NewTensor, write_file
from gemb.models.tensors import tensor_class
from gemb_torch.model.rounding import round_to
from gemb_torch.model.weights import HEAD

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def write_checkpoint(
    source: Checkpoint,
    target: Path,
    state: Mapping[str, Tensor],
    *,
    pooling: str,
    note: str,
    matryoshka_dims: tuple[int, ...] | None = None,
    types: Types | None = None,
    licence: str = "",
) -> None:
    """Write the folder `target`, which is replaced if it exists: fp32 weights, bit for bit.

    Args:
        source: the model that training started from: its tokenizer, configuration, prompts and
            licence are taken over.
        target: where it goes; it appears whole or not at all.
        state: the parameters, as `EmbeddingGemma.state_dict` names them, on any device.
        pooling: mean, first, last or attention.
        note: what was done, for README.md, between "by `gemb train`: " and a full stop.
        matryoshka_dims: the widths that were trained; the full width is always counted among them.
            None: as the source says.
        types: that were trained for, of the classes of tensors: the weights are rounded to them.
        licence: of the new model; empty: the source's.

    Raises:
        OSError: the folder cannot be written.
    """
    files = {parameter: stored for stored, parameter in HEAD.items()}
    types = types or {}
    tensors = {
        files.get(name, name): _Weight(tensor, types.get(tensor_class(name), "f32"))
        for name, tensor in state.items()
    }
    with new_folder(target) as part:
        copy_files(source.folder, part, TOKENIZER_FILES, SETTINGS)
        raw = config_of(source.folder)
        raw.pop(CONFIG_KEY, None)
        if types:
            raw[CONFIG_KEY] = dict(types)
        name_dtype(raw, "float32")
        write_json(part / "config.json", raw)
        if pooling != source.pooling:
            settings = pooling_settings(pooling, source.config.hidden_size)
            write_json(part / "1_Pooling" / "config.json", settings)
        if matryoshka_dims is not None:
            _write_dims(part, {source.dim, *matryoshka_dims})
        for folder in ("1_Pooling", "2_Dense", "3_Dense"):
            own = {name for name in tensors if name.startswith(f"{folder}.")}
            if own:
                head = {name.removeprefix(f"{folder}."): tensors.pop(name) for name in sorted(own)}
                _write_tensors(part / folder / "model.safetensors", head)
        _write_tensors(part / "model.safetensors", tensors)
        rounded = f" Its weights are rounded to {in_words(types)}." if types else ""
        write_readme(source, part, f"`gemb train`: {note}.{rounded}", licence)
        written = open_checkpoint(part)
        assert written.pooling == pooling, "the pooling was written as it is read"


class _Weight(NamedTuple):
    values: Tensor
    type: str  # to which the values are rounded


def _write_dims(part: Path, dims: set[int]) -> None:
    path = part / "config_sentence_transformers.json"
    raw = read_optional_json(path)
    raw["matryoshka_dims"] = sorted(dims, reverse=True)
    write_json(path, raw)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors of any device and type as fp32.

    Raises:
        OSError: the file cannot be written.
    """
    _write_tensors(path, {name: _Weight(tensor, "f32") for name, tensor in tensors.items()})


def _write_tensors(path: Path, weights: Mapping[str, _Weight]) -> None:
    write_file(
        path,
        {
            name: NewTensor("F32", tuple(weight.values.shape), _bytes(weight))
            for name, weight in weights.items()
        },
    )


def _bytes(weight: _Weight) -> Iterator[NDArray[np.uint8]]:
    """Yield a tensor's fp32 bytes, when the file is written: one tensor's copy in memory."""
    is_rounded = weight.type != "f32"
    values = weight.values.detach().to("cpu", torch.float32, copy=is_rounded).contiguous()
    round_to(values, weight.type)
    yield values.flatten().view(torch.uint8).numpy()
