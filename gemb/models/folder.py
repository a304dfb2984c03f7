"""Write a model folder: what it takes over from the one it was made of, and its own settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gemb.io.atomic import copy_file
from gemb.io.foreign import check_regular
from gemb.models.adapter import base_of, file_of, is_adapter
from gemb.models.card import write_card
from gemb.models.checkpoint import Checkpoint, pooling_settings
from gemb.models.config import read_json, write_json
from gemb.models.qat import CONFIG_KEY

# Names, or patterns, of files beside the weights.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
)
SETTINGS = (
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "3_Dense/config.json",
)
_HEADS = ("1_Pooling", "2_Dense", "3_Dense")  # they have weights in files of their own

_MODULES = (
    ("Transformer", ""),
    ("Pooling", "1_Pooling"),
    ("Dense", "2_Dense"),
    ("Dense", "3_Dense"),
    ("Normalize", "4_Normalize"),
)


def copied_files(source: Path, *patterns: Iterable[str]) -> dict[Path, Path]:
    """Return the files of the folder `source` that match, by their names in it.

    What an adapter's folder lacks is its base's.

    Raises:
        UsageError: one is a pipe or a device.
    """
    folders = dict.fromkeys((base_of(source), source))  # of both the later counts
    files = {
        file.relative_to(folder): file
        for folder in folders
        for pattern in itertools.chain(*patterns)
        for file in folder.glob(pattern)
    }
    for file in files.values():
        check_regular(file)
    return files


def copy_files(source: Path, target: Path, *patterns: Iterable[str]) -> None:
    """Copy the files of the folder `source` that match, where they are there."""
    for name, file in copied_files(source, *patterns).items():
        copy = target / name
        copy.parent.mkdir(exist_ok=True)
        copy_file(file, copy)


def config_of(source: Path) -> dict[str, Any]:
    """Return config.json for a folder that gets the tensors of the folder `source`.

    Where an adapter is merged they are 32-bit numbers, and no longer those of quantized types.
    """
    raw = read_json(file_of(source, "config.json"))
    if is_adapter(source):
        raw.pop(CONFIG_KEY, None)
        name_dtype(raw, "float32")
    return raw


def name_dtype(raw: dict[str, Any], dtype: str) -> None:
    """Name the type of the weights, where a config.json names one: transformers casts to it."""
    for key in ("dtype", "torch_dtype"):  # transformers 5 and 4
        if key in raw:
            raw[key] = dtype


def names_by_file(checkpoint: Checkpoint) -> dict[Path, dict[str, str]]:
    """Return a folder's files of weights: names in each -> names of the checkpoint's tensors."""
    files: dict[Path, dict[str, str]] = {}
    for name in checkpoint.tensors:
        head, _, rest = name.partition(".")
        folder, own = (Path(head), rest) if head in _HEADS else (Path(), name)
        files.setdefault(folder / "model.safetensors", {})[own] = name
    return files


def write_readme(source: Checkpoint, target: Path, by: str, licence: str = "") -> None:
    """Say in README.md what was changed.

    Args:
        source: the model that was changed.
        target: the new folder.
        by: the command and how it was used: what follows `Modified from MODEL by`.
        licence: of the new model; empty: the source's.
    """
    change = f"Modified from {source.known_as()} by {by}"
    write_card(target, licence or source.licence(), change, source.history())


def write_modules(
    folder: Path,
    *,
    hidden: int,
    pooling: str,
    dense: tuple[tuple[int, int], tuple[int, int]],
    prompts: Mapping[str, str],
    matryoshka_dims: Sequence[int],
    max_tokens: int,
    default_dim: int | None = None,
) -> None:
    """Write every settings file beside config.json and the tokenizer's; no weights.

    Args:
        folder: without folders of modules.
        hidden: width of a token's state.
        pooling: as a recipe names it.
        dense: (in, out) of the two dense layers.
        prompts: name -> the words before a text.
        matryoshka_dims: widths that are trained, the vector's among them.
        max_tokens: that a text may have.
        default_dim: width of a vector where none is asked for; None: the widest.

    Raises:
        OSError: a file cannot be written.
    """
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(_MODULES)
    ]
    write_json(folder / "modules.json", modules)
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", pooling_settings(pooling, hidden))
    settings: dict[str, object] = {
        "prompts": dict(prompts),
        "default_prompt_name": getattr(prompts, "default", "") or None,
        "similarity_fn_name": "cosine",
        "matryoshka_dims": list(matryoshka_dims),
    }
    if default_dim not in (None, dense[1][1]):
        settings["truncate_dim"] = default_dim
    write_json(folder / "config_sentence_transformers.json", settings)
    length = {"max_seq_length": max_tokens, "do_lower_case": False}
    write_json(folder / "sentence_bert_config.json", length)
    for path, (size_in, size_out) in zip(("2_Dense", "3_Dense"), dense, strict=True):
        (folder / path).mkdir()
        settings_of_dense = {
            "in_features": size_in,
            "out_features": size_out,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        }
        write_json(folder / path / "config.json", settings_of_dense)
