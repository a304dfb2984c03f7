"""Refuse a GGUF file that llama.cpp would abort on, or compute wrongly without a word.

llama.cpp aborts the process on some wrong files (unequal widths, a token that is there twice), dies
later on others (a missing byte token), and gives plausible wrong vectors with others (no dense
layers, no EOS). Sources: llama.cpp `src/models/gemma-embedding.cpp` (keys, tensors),
`src/llama-model.cpp` and `src/llama-vocab.cpp` (what it asserts).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from gemb.checkpoint import CARD_DIMS
from gemb.errors import UsageError
from gemb.gemma_config import PATTERN
from gemb.gguf_header import Array, GgufHeader, Scalar, TensorInfo, strings
from gemb.poolings import GGUF_POOLINGS

ARCHITECTURE = "gemma-embedding"
MOST_LAYERS = 512  # LLAMA_MAX_LAYERS
_MOST = 1 << 20  # of any width, length or count
_EXPORT = "make one from the model folder: gemb export-gguf FOLDER -o NEW.gguf"

# Other keys of llama.cpp's loader that would change the arithmetic, or make it abort.
_FOREIGN = ("expert", "nextn", "rope.scal", "embedding_length_out", "classifier")

_REFUSED = {
    "gemma-embedding2": (
        "EmbeddingGemma 2, which the installed llama.cpp cannot load: it needs a build from "
        "October 2026 on"
    ),
    "gemma3": "Gemma 3 itself, of which gemb train adapt makes an encoder; or Ollama's layout of "
    f"this model: {_EXPORT}",
}


def wrong(header: GgufHeader, what: str) -> UsageError:
    """Return the refusal of a file that llama.cpp would fail on, or compute wrongly."""
    kind = str(header.metadata.get("general.architecture"))
    if kind != ARCHITECTURE:  # a decoder's file, read as an encoder's (`gemma_decoder.py`)
        what = what.replace(ARCHITECTURE, kind)
        return UsageError(f"{header.path}: {what}, which no right {kind} file has; fetch it again")
    return UsageError(f"{header.path}: {what}, which no right {ARCHITECTURE} file has; {_EXPORT}")


def check_architecture(header: GgufHeader) -> None:
    """Refuse another architecture, a part of a split file, or keys of another model."""
    found = header.metadata.get("general.architecture")
    if found != ARCHITECTURE:
        what = _REFUSED.get(str(found), f"gemb runs {ARCHITECTURE} files")
        raise UsageError(f"{header.path}: architecture {found}: {what}")
    if header.metadata.get("split.count", 1) != 1:
        raise UsageError(f"{header.path}: one part of a split file; join them: llama-gguf-split")
    for key, value in header.metadata.items():
        name = key.removeprefix(f"{ARCHITECTURE}.")
        if name != key and name.startswith(_FOREIGN):
            raise wrong(header, f"{key} is not EmbeddingGemma's")
        if name == "attention.causal" and value is not False:
            raise wrong(header, f"{key} is {value}, and EmbeddingGemma reads both ways")


def _get(header: GgufHeader, name: str) -> tuple[Scalar | Array | None, str]:
    key = f"{ARCHITECTURE}.{name}"
    return header.metadata.get(key), header.types.get(key, "absent")


def number(header: GgufHeader, name: str, *, most: int = _MOST, optional: bool = False) -> int:
    """Return a positive whole number, or 0 where it is optional and absent."""
    value, kind = _get(header, name)
    if value is None and optional:
        return 0
    if kind != "uint32" or not isinstance(value, int) or not 0 < value <= most:  # as llama.cpp
        raise wrong(header, f"{ARCHITECTURE}.{name} is {_show(value)} ({kind})")
    return value


def equal(header: GgufHeader, name: str, right: int, *, optional: bool = False) -> None:
    """Refuse a file whose key has another value."""
    value, kind = _get(header, name)
    if value is None and optional:
        return
    if kind != "uint32" or value != right:
        raise wrong(header, f"{ARCHITECTURE}.{name} is {_show(value)} ({kind}), not {right}")


def pooling(header: GgufHeader) -> str:
    """Return how the tokens' states become one, as a recipe names it."""
    value, kind = _get(header, "pooling_type")
    for name, code in GGUF_POOLINGS.items():
        if kind == "uint32" and value == code:
            return name
    right = ", ".join(f"{code} ({name})" for name, code in GGUF_POOLINGS.items())
    raise wrong(header, f"{ARCHITECTURE}.pooling_type is {_show(value)} ({kind}), none of {right}")


def positive(header: GgufHeader, name: str) -> None:
    """Refuse a file whose key is no finite float above zero."""
    value, kind = _get(header, name)
    if name == "rope.freq_base_swa" and value is None:
        return  # llama.cpp's default is EmbeddingGemma's 10,000
    if kind != "float32" or not isinstance(value, float) or not 0 < value < math.inf:
        raise wrong(header, f"{ARCHITECTURE}.{name} is {_show(value)} ({kind})")


def _show(value: object) -> str:
    return f"an array of {value.length}" if isinstance(value, Array) else repr(value)


def pattern(header: GgufHeader, layers: int) -> tuple[bool, ...]:
    """Return which layers slide: an array of flags, or a period whose last layer is global."""
    value, kind = _get(header, "attention.sliding_window_pattern")
    if isinstance(value, Array):
        if value.type not in ("bool", "uint32", "int32") or value.length != layers:
            raise wrong(header, f"the window pattern has {value.length} {value.type} items")
        return tuple(bool(flag) for flag in value.values or ())
    if value is None:
        value = PATTERN
    elif kind != "uint32":
        raise wrong(header, f"the window pattern is {value!r} ({kind})")
    period = int(value)
    return tuple(period == 0 or i % period < period - 1 for i in range(layers))


def check_both_kinds(header: GgufHeader, is_sliding: tuple[bool, ...]) -> None:
    """Refuse a model without a sliding or without a global layer.

    llama.cpp fills the mask of either kind whether or not a layer uses it, and aborts where it has
    no memory (`llm_graph_input_attn_no_cache::set_input`).
    """
    if len(set(is_sliding)) < 2:
        kind, other = ("sliding", "global") if is_sliding[0] else ("global", "sliding")
        raise UsageError(
            f"{header.path}: its attention is {kind} in every layer ({len(is_sliding)}), and "
            f"llama.cpp aborts on that; cut the model again and keep a {other} layer, too"
        )


def matryoshka(header: GgufHeader, dim: int) -> tuple[int, ...]:
    """Return the trained widths, widest first: the file's own, or the model card's."""
    array = header.metadata.get("gemb.matryoshka_dims")
    if array is None:
        return CARD_DIMS if dim == CARD_DIMS[0] else (dim,)
    dims = array.values if isinstance(array, Array) else None
    if not dims or dims[0] != dim or not all(isinstance(d, int) and 0 < d <= dim for d in dims):
        raise wrong(header, f"gemb.matryoshka_dims is {dims!r} of {dim}")
    return tuple(int(d) for d in dims)


def check_tokenizer(header: GgufHeader) -> int:
    """Return the number of tokens, after checking what llama.cpp's tokenizer trusts."""
    data = header.metadata
    if data.get("tokenizer.ggml.model") != "llama":
        raise UsageError(
            f"{header.path}: tokenizer {data.get('tokenizer.ggml.model')}: Gemma's is 'llama' "
            f"(SentencePiece), and another cuts texts otherwise; {_EXPORT}"
        )
    for key, right in (
        ("add_bos_token", True),
        ("add_eos_token", True),
        ("add_space_prefix", False),
    ):
        if data.get(f"tokenizer.ggml.{key}") is not right:
            raise UsageError(
                f"{header.path}: tokenizer.ggml.{key} is {data.get(f'tokenizer.ggml.{key}')}, and "
                f"this model was trained with {right}: its vectors would be wrong; {_EXPORT}"
            )
    if data.get("tokenizer.ggml.remove_extra_whitespaces", False) is not False:
        raise wrong(header, "tokenizer.ggml.remove_extra_whitespaces is set")
    tokens = strings(header, "tokenizer.ggml.tokens")
    for key, kind in (("scores", "float32"), ("token_type", "int32")):
        array = data.get(f"tokenizer.ggml.{key}")
        if not isinstance(array, Array) or (array.type, array.length) != (kind, len(tokens)):
            raise wrong(header, f"tokenizer.ggml.{key} is not one {kind} for each token")
    _check_tokens(header, tokens)
    for key in ("bos", "eos", "unknown", "padding", "mask"):
        name = f"tokenizer.ggml.{key}_token_id"
        value = data.get(name)
        if value is None and key not in ("bos", "eos"):
            continue
        whole = isinstance(value, int) and header.types[name] == "uint32"
        if not whole or not 0 <= int(str(value)) < len(tokens):
            raise wrong(header, f"{name} is {_show(value)} of {len(tokens)} tokens")
    return len(tokens)


def _check_tokens(header: GgufHeader, tokens: list[bytes]) -> None:
    if b"".join(tokens).count(b"\0"):
        raise wrong(header, "a token holds a NUL byte")  # its end, to llama.cpp
    known = set(tokens)
    if len(known) != len(tokens):
        raise wrong(header, f"{len(tokens) - len(known)} tokens are there twice")
    missing = [byte for byte in range(256) if b"<0x%02X>" % byte not in known]
    if missing:
        raise wrong(header, f"{len(missing)} byte tokens are missing, <0x{missing[0]:02X}> first")


def check_tensors(
    header: GgufHeader, hidden: int, middle: int, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse other tensors than these, other types than llama.cpp takes, or no dense layers."""
    tensors = header.tensors
    absent = [name for name in ("dense_2.weight", "dense_3.weight") if name not in tensors]
    if absent or not middle:
        raise UsageError(
            f"{header.path}: its dense layers (dense_2, dense_3) are missing, as in many published "
            f"files, and its vectors would be wrong; {_EXPORT}"
        )
    equal(header, "dense_2_feat_in", hidden)
    equal(header, "dense_3_feat_in", middle)
    equal(header, "dense_3_feat_out", hidden)
    check_shapes(header, shapes)


def check_shapes(header: GgufHeader, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse other tensors than these, and other types than llama.cpp takes."""
    for name, shape in shapes.items():
        if name not in header.tensors:
            raise wrong(header, f"tensor {name} is missing")
        _check_tensor(header, header.tensors[name], shape)
    if unknown := header.tensors.keys() - shapes.keys():
        raise wrong(header, f"tensor {min(unknown)} is not this model's")


def _check_tensor(header: GgufHeader, tensor: TensorInfo, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise wrong(header, f"tensor {tensor.name}: shape {list(tensor.shape)}, not {list(shape)}")
    if len(shape) == 1 and tensor.type != "f32":
        raise wrong(header, f"tensor {tensor.name} is {tensor.type}; norms are f32")
