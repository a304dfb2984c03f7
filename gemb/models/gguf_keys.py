"""Which metadata a GGUF file of EmbeddingGemma may have, and of which types.

llama.cpp reads its keys by name, and looks at few of their values: some abort the process, some
never end, some change the vectors. So a key of the architecture, or of the tokenizer, that is not
listed here is refused, and a listed one has the type that llama.cpp asks for, which refuses others
only after gemb has said that all is well. Other keys (`general.author`, `quantize.imatrix.file`)
are notes that llama.cpp does not read. Sources: llama.cpp `src/llama-model.cpp`,
`src/llama-vocab.cpp`, `src/llama-model-loader.cpp`.
"""

from __future__ import annotations

from gemb.errors import UsageError
from gemb.io.text import visible
from gemb.models.gguf_header import Array, GgufHeader, Scalar

ARCHITECTURE = "gemma-embedding"
POOLINGS = {"mean": 1, "first": 2, "last": 3}  # llama.h, enum llama_pooling_type
EXPORT = "make one from the model folder: gemb export-gguf FOLDER -o NEW.gguf"

_REFUSED = {
    "gemma-embedding2": (
        "EmbeddingGemma 2, which the installed llama.cpp cannot load: it needs a build from "
        "October 2026 on"
    ),
    "gemma3": "Gemma 3 itself, of which gemb train adapt makes an encoder; or Ollama's layout of "
    f"this model: {EXPORT}",
}
# general.type -> what such a file is, and what to do with it.
_NO_MODELS = {
    "adapter": "a LoRA adapter, which is no model: merge it into its base, a model folder, and "
    "then gemb export-gguf FOLDER -o NEW.gguf",
    "imatrix": "an importance matrix, which is no model: name the model that it was made of",
    "mmproj": "the part of a model that sees images, which is no text model",
    "vocab": "a vocabulary without weights, which is no model",
}

# Name, without the architecture -> the type of its value; gemb checks the values elsewhere.
_OF_MODEL = {
    "attention.causal": "bool",
    "attention.head_count": "uint32",
    "attention.head_count_kv": "uint32",
    "attention.key_length": "uint32",
    "attention.layer_norm_rms_epsilon": "float32",
    "attention.sliding_window": "uint32",
    "attention.sliding_window_pattern": "uint32, array of bool, array of uint32, array of int32",
    "attention.value_length": "uint32",
    "block_count": "uint32",
    "context_length": "uint32",
    "dense_2_feat_in": "uint32",
    "dense_2_feat_out": "uint32",
    "dense_3_feat_in": "uint32",
    "dense_3_feat_out": "uint32",
    "embedding_length": "uint32",
    "feed_forward_length": "uint32",
    "pooling_type": "uint32",
    "rope.dimension_count": "uint32",
    "rope.dimension_count_swa": "uint32",
    "rope.freq_base": "float32",
    "rope.freq_base_swa": "float32",
    "vocab_size": "uint32",
}
_ROLES = (
    *("bos", "eos", "unknown", "padding", "mask", "seperator", "cls", "eot", "eom", "prefix"),
    *("suffix", "middle", "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep"),
)
_TYPES = {
    "general.architecture": "string",
    "general.file_type": "uint32",
    "general.license": "string",
    "general.license.notice": "string",
    "general.name": "string",
    "general.quantization_version": "uint32",
    "general.type": "string",
    "gemb.default_prompt_name": "string",
    "gemb.matryoshka_dims": "array of int32",
    "gemb.qat": "string",
    "gemb.truncate_dim": "uint32",
    "split.count": "uint16",
    "split.no": "uint16",
    "split.tensors.count": "int32",
    "tokenizer.chat_template": "string",
    "tokenizer.ggml.add_bos_token": "bool",
    "tokenizer.ggml.add_eos_token": "bool",
    "tokenizer.ggml.add_sep_token": "bool",
    "tokenizer.ggml.add_space_prefix": "bool",
    "tokenizer.ggml.merges": "array of string",
    "tokenizer.ggml.model": "string",
    "tokenizer.ggml.pre": "string",
    "tokenizer.ggml.remove_extra_whitespaces": "bool",
    "tokenizer.ggml.scores": "array of float32",
    "tokenizer.ggml.token_type": "array of int32",
    "tokenizer.ggml.token_type_count": "uint32",
    "tokenizer.ggml.tokens": "array of string",
    **{f"tokenizer.ggml.{role}_token_id": "uint32" for role in _ROLES},
}
# Beginnings of keys of which all are listed; `tensor_extra` changes the arithmetic of tensors.
_CLOSED = ("general.tensor_extra.", "split.", "tokenizer.ggml.")


def wrong(header: GgufHeader, fault: str) -> UsageError:
    """Return the error about a file that llama.cpp would fail on, or compute wrongly."""
    kind = str(header.metadata.get("general.architecture"))
    if kind != ARCHITECTURE:  # a decoder's file, read as an encoder's (`from_decoder.py`)
        fault = fault.replace(ARCHITECTURE, kind)
        return UsageError(f"{header.path}: {fault}, which no valid {kind} file has; fetch it again")
    return UsageError(f"{header.path}: {fault}, which no valid {ARCHITECTURE} file has; {EXPORT}")


def check_kind(header: GgufHeader) -> None:
    """Refuse a file that is no model, or a part of a split one.

    Raises:
        UsageError: it is a LoRA adapter, say.
    """
    kind = str(header.metadata.get("general.type", "model"))
    if kind != "model":
        known = _NO_MODELS.get(kind, "it is no model")
        raise UsageError(f"{header.path}: general.type is {visible(kind, 80)}: {known}")
    if header.metadata.get("split.count", 1) not in (0, 1):
        raise UsageError(f"{header.path}: one part of a split file; join them: llama-gguf-split")


def check_architecture(header: GgufHeader) -> None:
    """Refuse what is no model, another architecture, unknown keys, and keys of another type.

    Raises:
        UsageError: llama.cpp would fail on it, or compute it wrongly.
    """
    check_kind(header)
    architecture = str(header.metadata.get("general.architecture"))
    if architecture != ARCHITECTURE:
        reason = _REFUSED.get(architecture, f"gemb runs {ARCHITECTURE} files")
        raise UsageError(f"{header.path}: architecture {visible(architecture, 80)}: {reason}")
    for key in header.metadata:
        _check_key(header, key)
    if header.metadata.get(f"{ARCHITECTURE}.attention.causal", False):
        raise wrong(
            header, f"{ARCHITECTURE}.attention.causal is True, and EmbeddingGemma reads both ways"
        )


def _check_key(header: GgufHeader, key: str) -> None:
    name = key.removeprefix(f"{ARCHITECTURE}.")
    right = _TYPES.get(key) if name == key else _OF_MODEL.get(name)
    if key.startswith("gemb.prompt."):
        right = "string"
    if right is None:
        if name != key or key.startswith(_CLOSED):
            raise wrong(header, f"{visible(key, 80)} is not EmbeddingGemma's")
        return
    value = header.metadata[key]
    if isinstance(value, Array):
        if f"array of {value.type}" not in right:
            raise wrong(header, f"{key} is an array of {value.length} {value.type} items")
    elif header.types[key] not in right.split(", "):
        raise wrong(header, f"{key} is {_shown(value)} ({header.types[key]}), not {right}")


def _shown(value: Scalar) -> str:
    return visible(repr(value), 80)
