"""The weights of the language model in a folder: one file, or shards and their index."""

from __future__ import annotations

from pathlib import Path

from gemb.errors import UsageError
from gemb.io.paths import is_inside
from gemb.models.config import read_json
from gemb.models.safetensors import StoredTensor, read_header


def stored_backbone(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of model.safetensors, or of the shards of its index, without `model.`.

    Raises:
        UsageError: a file is missing or broken, or a tensor stands twice.
    """
    whole = folder / "model.safetensors"
    index = folder / "model.safetensors.index.json"
    # As transformers: an index that is left beside a whole file is an old one.
    if index.exists() and not whole.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise UsageError(f"{index}: weight_map must map tensors to files")
        outside = [name for name in weight_map.values() if not is_inside(name)]
        if outside:
            raise UsageError(f"{index}: {outside[0]!r} is no file in the model folder")
        files = [folder / name for name in sorted(set(weight_map.values()))]
    else:
        files = [whole]
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        if not file.is_file():
            raise UsageError(f"{file}: missing from the model folder{other_weights(folder)}")
        for stored, tensor in read_header(file).items():
            name = stored.removeprefix("model.")
            if name in tensors:
                where = dict.fromkeys((tensors[name].path.name, file.name))
                raise UsageError(f"{folder}: tensor {name} stands twice, in {' and '.join(where)}")
            tensors[name] = tensor
    return tensors


def other_weights(folder: Path) -> str:
    """Return what a folder without weights that gemb reads has, and the way out."""
    if (folder / "pytorch_model.bin").exists() or (
        folder / "pytorch_model.bin.index.json"
    ).exists():
        return (
            "; pytorch_model.bin is a pickle, which gemb does not read: load the model with "
            "sentence-transformers and save it again"
        )
    if others := sorted(f.name for f in folder.glob("model*.safetensors") if f.is_file()):
        return (
            f"; {others[0]} is there: name it model.safetensors if it is whole, or fetch "
            "model.safetensors.index.json if it is a shard"
        )
    return ""
