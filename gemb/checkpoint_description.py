"""What a model folder says of itself: `gemb models show FOLDER`."""

from __future__ import annotations

from pathlib import Path

from gemb.backend import ModelDescription
from gemb.checkpoint import open_checkpoint
from gemb.qat import folder_types

# Files beside the weights that a run reads.
SMALL_FILES = (
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def describe_folder(folder: Path) -> ModelDescription:
    """Return the description of a sentence-transformers folder; no tensor is read whole.

    Raises:
        UsageError: as `gemb.checkpoint.open_checkpoint`.
    """
    checkpoint = open_checkpoint(folder)
    tensors = checkpoint.tensors
    found: dict[str, set[str]] = {}
    for name, tensor in tensors.items():
        found.setdefault(_class_of(name), set()).add(tensor.dtype.lower())
    small = (folder / name for name in SMALL_FILES)
    files = {tensor.path for tensor in tensors.values()} | {path for path in small if path.exists()}
    return ModelDescription(
        path=folder,
        format="sentence-transformers",
        architecture="gemma3_text",
        layers=checkpoint.config.num_hidden_layers,
        hidden=checkpoint.config.hidden_size,
        dim=checkpoint.dim,
        matryoshka_dims=checkpoint.matryoshka_dims,
        max_tokens=checkpoint.max_tokens,
        vocabulary=checkpoint.config.vocab_size,
        parameters=sum(tensor.count for tensor in tensors.values()),
        pooling=checkpoint.pooling,
        dense=checkpoint.dense,
        prompts=checkpoint.prompts,
        types={kind: "+".join(sorted(types)) for kind, types in found.items()},
        size_bytes=sum(path.stat().st_size for path in files),
        fingerprint=checkpoint.fingerprint(),
        licence=checkpoint.licence(),
        trained_types=folder_types(folder),
    )


def _class_of(name: str) -> str:
    if name.startswith("embed_tokens"):
        return "token_embd"
    if "norm" in name:
        return "norm"
    if "self_attn" in name:
        return "attention"
    return "ffn" if ".mlp." in name else "dense"
