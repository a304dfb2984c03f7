"""The JSON files of a model folder; and config.json's values, for EmbeddingGemma's arithmetic."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemb.errors import UsageError
from gemb.io.foreign import MOST, json_value, read_bytes

MOST_TOKENIZER = 128 << 20  # bytes of tokenizer.json: Gemma's has 33 MB
MOST_LAYERS = 512  # as llama.cpp (LLAMA_MAX_LAYERS)
_MOST_NUMBER = (1 << 31) - 1
PATTERN = 6  # every sixth layer is global (transformers Gemma3TextConfig)


def read_json(path: Path, most: int = MOST) -> dict[str, Any]:
    """Return the object in a JSON file.

    Args:
        path: of the file.
        most: bytes that it may have.

    Raises:
        UsageError: it is missing, no regular file, too large, or holds no JSON object.
    """
    value = read_json_value(path, most)
    if not isinstance(value, dict):
        raise UsageError(f"{path}: a JSON object is expected")
    return value


def read_json_value(path: Path, most: int = MOST) -> Any:  # noqa: ANN401
    """Return what a JSON file holds.

    Raises:
        UsageError: as `read_json`, but that it may hold any value.
    """
    try:
        data = read_bytes(path, most)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: missing from the model folder") from error
    return json_value(data, path)


def read_optional_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, empty where there is no such file.

    Raises:
        UsageError: as `read_json`, if it is there, or a link to what is not.
    """
    return read_json(path) if path.exists() or path.is_symlink() else {}


def write_json(path: Path, value: object, indent: int | None = 2) -> None:
    """Write JSON as Hugging Face's libraries do: UTF-8, indented unless it is huge.

    Raises:
        OSError: the file cannot be written.
    """
    path.write_text(json.dumps(value, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8")


def whole_number(path: Path, raw: Mapping[str, Any], key: str, *, most: int = _MOST_NUMBER) -> int:
    """Return the whole number above zero, and up to `most`, at `key` of what was read from `path`.

    Raises:
        UsageError: it is absent, or no such number.
    """
    value = raw.get(key)
    if type(value) is not int or not 0 < value <= most:
        bound = f" up to {most}" if type(value) is int and value > most else ""
        raise UsageError(f"{path}: {key} must be a positive whole number{bound}, not {value!r}")
    return value


def positive_number(path: Path, raw: Mapping[str, Any], key: str, default: float) -> float:
    """Return the finite number above zero at `key` of what was read from `path`.

    Raises:
        UsageError: it is no such number.
    """
    value = raw.get(key, default)
    if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
        raise UsageError(f"{path}: {key} must be a positive number, not {value!r}")
    return float(value)


@dataclass(frozen=True, kw_only=True)
class GemmaConfig:
    """The values of config.json that the arithmetic uses."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    query_pre_attn_scalar: float
    sliding_window: int  # as in the file, both sides together: 512 is 256 on either side
    is_sliding: tuple[bool, ...]  # by layer
    rope_theta: float  # base of the global layers
    rope_local_theta: float  # base of the sliding layers
    max_position_embeddings: int


def read_config(path: Path) -> GemmaConfig:
    """Return the values of a config.json.

    Raises:
        UsageError: it is missing or broken, or asks for arithmetic that gemb does not have.
    """
    raw = read_json(path)
    if raw.get("quantization_config"):
        method = raw["quantization_config"]
        method = method.get("quant_method", "quantized") if isinstance(method, dict) else method
        raise UsageError(
            f"{path}: quantization_config: weights of {method}, which gemb does not read; take the "
            "model that they were made of"
        )
    for key, right, absent in (
        ("model_type", "gemma3_text", None),
        ("use_bidirectional_attention", True, None),
        ("hidden_activation", "gelu_pytorch_tanh", "gelu_pytorch_tanh"),
        ("attention_bias", False, False),
        ("attn_logit_softcapping", None, None),
        ("rope_scaling", None, None),
    ):
        if raw.get(key, absent) != right:
            raise UsageError(f"{path}: {key} is {raw.get(key)!r}; EmbeddingGemma has {right!r}")
    heads, key_heads = (
        whole_number(path, raw, f"num_{kind}_heads") for kind in ("attention", "key_value")
    )
    if heads % key_heads:
        raise UsageError(f"{path}: {heads} query heads do not share {key_heads} key heads evenly")
    layers = whole_number(path, raw, "num_hidden_layers", most=MOST_LAYERS)
    window = whole_number(path, raw, "sliding_window")
    if window % 2:
        # transformers before its PR 47940 wrote the halved window back at each save.
        raise UsageError(
            f"{path}: sliding_window {window} was halved by an old transformers when it saved; "
            f"write {2 * (window - 1)} there"
        )
    theta, local_theta = _rope_bases(path, raw)
    return GemmaConfig(
        vocab_size=whole_number(path, raw, "vocab_size"),
        hidden_size=whole_number(path, raw, "hidden_size"),
        intermediate_size=whole_number(path, raw, "intermediate_size"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=whole_number(path, raw, "head_dim"),
        rms_norm_eps=positive_number(path, raw, "rms_norm_eps", 1e-6),
        query_pre_attn_scalar=positive_number(path, raw, "query_pre_attn_scalar", 256),
        sliding_window=window,
        is_sliding=_layer_kinds(path, raw, layers),
        rope_theta=theta,
        rope_local_theta=local_theta,
        max_position_embeddings=whole_number(path, raw, "max_position_embeddings"),
    )


def _layer_kinds(path: Path, raw: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    """Return which layers slide: `layer_types`, or every sixth global where the key is absent."""
    kinds = raw.get("layer_types")
    if kinds is None:
        keys = [
            key for key in ("_sliding_window_pattern", "sliding_window_pattern") if raw.get(key)
        ]
        pattern = whole_number(path, raw, keys[0]) if keys else PATTERN
        return tuple((i + 1) % pattern != 0 for i in range(layers))
    known = ("sliding_attention", "full_attention")
    if not isinstance(kinds, list) or len(kinds) != layers or any(k not in known for k in kinds):
        raise UsageError(f"{path}: layer_types must name {layers} sliding or full attentions")
    return tuple(kind == "sliding_attention" for kind in kinds)


def _rope_bases(path: Path, raw: Mapping[str, Any]) -> tuple[float, float]:
    """Return the RoPE bases of global and sliding layers; transformers 5 nests them."""
    nested = raw.get("rope_parameters")
    if nested is None:
        return (
            positive_number(path, raw, "rope_theta", 1e6),
            positive_number(path, raw, "rope_local_base_freq", 1e4),
        )
    try:
        both = nested["full_attention"], nested["sliding_attention"]
        kinds = [part.get("rope_type", "default") for part in both]
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: rope_parameters lacks {error}") from error
    if kinds != ["default", "default"]:
        raise UsageError(f"{path}: rope_type {kinds}; EmbeddingGemma has 'default'")
    return (
        positive_number(path, both[0], "rope_theta", 1e6),
        positive_number(path, both[1], "rope_theta", 1e4),
    )
