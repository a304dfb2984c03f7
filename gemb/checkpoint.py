"""The model folder that transformers and sentence-transformers read and write.

    config.json  model.safetensors  tokenizer.json  tokenizer_config.json ...
    modules.json                       Transformer, Pooling, Dense, Dense, Normalize
    1_Pooling/config.json              mean over all tokens, the prompt's included
    2_Dense/  3_Dense/                 config.json, model.safetensors; no bias, no activation
    config_sentence_transformers.json  prompts
    sentence_bert_config.json          max_seq_length

`open_checkpoint` checks everything that is cheap to check, and refuses what gemb would compute
wrongly. Tensors are named as in the files, without a leading `model.`; those of the two dense
layers are `2_Dense.linear.weight` and `3_Dense.linear.weight`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemb.errors import UsageError
from gemb.fingerprint import fingerprint
from gemb.safetensors import StoredTensor, read_header

CARD_DIMS = (768, 512, 256, 128)  # the sizes EmbeddingGemma-300M was trained for (model card)
PATTERN = 6  # every sixth layer is global (transformers Gemma3TextConfig)


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


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model folder, checked; the tensors are not read yet."""

    folder: Path
    config: GemmaConfig
    dense: tuple[tuple[int, int], tuple[int, int]]  # (in, out) of the two dense layers
    prompts: Mapping[str, str]
    matryoshka_dims: tuple[int, ...]  # widest first
    max_tokens: int
    tensors: Mapping[str, StoredTensor]

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self.dense[1][1]

    def licence(self) -> str:
        """Return the licence that the folder's README.md names, or an empty string."""
        card = self.folder / "README.md"
        if not card.is_file():
            return ""
        lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
        for line in lines[1:] if lines[:1] == ["---"] else ():  # the front matter, as on the hub
            if line == "---":
                break
            key, _, value = line.partition(":")
            if key == "license":
                return value.partition(" #")[0].strip().strip("\"'")
        return ""

    def fingerprint(self) -> str:
        """Return the 16 hex digits of `gemb.fingerprint`."""
        files = ("config.json", "tokenizer.json", "config_sentence_transformers.json")
        found = (self.folder / name for name in files)
        return fingerprint(
            (path.read_bytes() for path in found if path.exists()),
            ((t.path, t.offset, t.size_bytes) for _, t in sorted(self.tensors.items())),
        )


def looks_like_checkpoint(folder: Path) -> bool:
    """Return whether the folder may be a model folder."""
    return (folder / "config.json").is_file()


def open_checkpoint(folder: Path) -> Checkpoint:
    """Return the checked folder.

    Raises:
        UsageError: a file is missing or broken, or asks for arithmetic that gemb does not have.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such model folder")
    if not looks_like_checkpoint(folder):
        raise UsageError(f"{folder}: no model folder: it has no config.json")
    config = _config(folder / "config.json")
    dense_paths = _modules(folder)
    tensors = _backbone_tensors(folder)
    dense = []
    for path in dense_paths:
        dense.append(_dense_size(folder / path / "config.json"))
        weights = folder / path / "model.safetensors"
        if not weights.is_file():
            raise UsageError(f"{weights}: missing; gemb reads no pytorch_model.bin")
        for name, tensor in read_header(weights).items():
            tensors[f"{path}.{name}"] = tensor
    (in_first, middle), (in_second, out) = dense
    if in_first != config.hidden_size or in_second != middle:
        raise UsageError(f"{folder}: the dense layers {dense} do not follow {config.hidden_size}")
    _check_shapes(folder, tensors, expected_shapes(config, dense))
    settings = _optional(folder / "config_sentence_transformers.json")
    transformer = _optional(folder / "sentence_bert_config.json")
    if transformer.get("do_lower_case"):
        raise UsageError(f"{folder}/sentence_bert_config.json: do_lower_case; gemb has none of it")
    length = transformer.get("max_seq_length")
    if length is not None:
        length = _number(folder / "sentence_bert_config.json", transformer, "max_seq_length")
    return Checkpoint(
        folder=folder,
        config=config,
        dense=(dense[0], dense[1]),
        prompts=_prompts(folder, settings),
        matryoshka_dims=_matryoshka_dims(folder, settings, out),
        max_tokens=min(length or config.max_position_embeddings, config.max_position_embeddings),
        tensors=tensors,
    )


def _prompts(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(p, str) for p in prompts.values()):
        raise UsageError(
            f"{folder}/config_sentence_transformers.json: prompts must map names to texts"
        )
    return prompts


def _matryoshka_dims(folder: Path, settings: Mapping[str, Any], dim: int) -> tuple[int, ...]:
    """Return the trained widths: the folder's own, which is gemb's key, or the model card's."""
    dims = settings.get("matryoshka_dims")
    if dims is None:
        return CARD_DIMS if dim == CARD_DIMS[0] else (dim,)
    whole = isinstance(dims, list) and all(isinstance(d, int) and 0 < d <= dim for d in dims)
    if not whole or dim not in dims:
        raise UsageError(
            f"{folder}/config_sentence_transformers.json: matryoshka_dims {dims!r} must be widths "
            f"up to {dim}, and {dim} itself"
        )
    return tuple(sorted(dims, reverse=True))


def expected_shapes(
    config: GemmaConfig, dense: list[tuple[int, int]]
) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor that a folder with this config holds."""
    D, F, E = config.hidden_size, config.intermediate_size, config.head_dim
    H, K = config.num_attention_heads, config.num_key_value_heads
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (config.vocab_size, D),
        "norm.weight": (D,),
    }
    layer = {
        "self_attn.q_proj": (H * E, D),
        "self_attn.k_proj": (K * E, D),
        "self_attn.v_proj": (K * E, D),
        "self_attn.o_proj": (D, H * E),
        "self_attn.q_norm": (E,),
        "self_attn.k_norm": (E,),
        "mlp.gate_proj": (F, D),
        "mlp.up_proj": (F, D),
        "mlp.down_proj": (D, F),
        "input_layernorm": (D,),
        "post_attention_layernorm": (D,),
        "pre_feedforward_layernorm": (D,),
        "post_feedforward_layernorm": (D,),
    }
    for i in range(config.num_hidden_layers):
        shapes |= {f"layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    for path, (size_in, size_out) in zip(("2_Dense", "3_Dense"), dense, strict=True):
        shapes[f"{path}.linear.weight"] = (size_out, size_in)
    return shapes


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        UsageError: it is missing, or holds no JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UsageError(f"{path}: missing from the model folder") from error
    except ValueError as error:
        raise UsageError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path}: a JSON object is expected")
    return value


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _config(path: Path) -> GemmaConfig:
    """Return the values of config.json, after refusing other arithmetic than EmbeddingGemma's."""
    raw = read_json(path)
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
    heads, key_heads = (_number(path, raw, f"num_{k}_heads") for k in ("attention", "key_value"))
    if heads % key_heads:
        raise UsageError(f"{path}: {heads} query heads do not share {key_heads} key heads evenly")
    layers = _number(path, raw, "num_hidden_layers")
    window = _number(path, raw, "sliding_window")
    if window % 2:
        # transformers before its PR 47940 wrote the halved window back at each save.
        raise UsageError(
            f"{path}: sliding_window {window} was halved by an old transformers when it saved; "
            f"write {2 * (window - 1)} there"
        )
    theta, local_theta = _rope_bases(path, raw)
    return GemmaConfig(
        vocab_size=_number(path, raw, "vocab_size"),
        hidden_size=_number(path, raw, "hidden_size"),
        intermediate_size=_number(path, raw, "intermediate_size"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=_number(path, raw, "head_dim"),
        rms_norm_eps=_positive(path, raw, "rms_norm_eps", 1e-6),
        query_pre_attn_scalar=_positive(path, raw, "query_pre_attn_scalar", 256),
        sliding_window=window,
        is_sliding=_layer_kinds(path, raw, layers),
        rope_theta=theta,
        rope_local_theta=local_theta,
        max_position_embeddings=_number(path, raw, "max_position_embeddings"),
    )


def _number(path: Path, raw: Mapping[str, Any], key: str) -> int:
    value = raw.get(key)
    if not isinstance(value, int) or value <= 0:
        raise UsageError(f"{path}: {key} must be a positive whole number, not {value!r}")
    return value


def _positive(path: Path, raw: Mapping[str, Any], key: str, default: float) -> float:
    value = raw.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UsageError(f"{path}: {key} must be a positive number, not {value!r}")
    return float(value)


def _layer_kinds(path: Path, raw: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    """Return which layers slide: `layer_types`, or every sixth global where the key is absent."""
    kinds = raw.get("layer_types")
    if kinds is None:
        keys = [
            key for key in ("_sliding_window_pattern", "sliding_window_pattern") if raw.get(key)
        ]
        pattern = _number(path, raw, keys[0]) if keys else PATTERN
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
            _positive(path, raw, "rope_theta", 1e6),
            _positive(path, raw, "rope_local_base_freq", 1e4),
        )
    try:
        both = nested["full_attention"], nested["sliding_attention"]
        kinds = {part.get("rope_type", "default") for part in both}
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: rope_parameters lacks {error}") from error
    bases = _positive(path, both[0], "rope_theta", 1e6), _positive(path, both[1], "rope_theta", 1e4)
    if kinds != {"default"}:
        raise UsageError(f"{path}: rope_type {sorted(kinds)}; EmbeddingGemma has 'default'")
    return bases


def _modules(folder: Path) -> list[str]:
    """Return the folders of the two dense layers, after checking what stands around them."""
    path = folder / "modules.json"
    try:
        modules = json.loads(path.read_bytes())
        kinds = [module["type"].rpartition(".")[2] for module in modules]
        paths = [str(module["path"]) for module in modules]
    except FileNotFoundError as error:
        raise UsageError(
            f"{path}: missing: a bare language model, or no sentence-transformers folder"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{path}: not a list of modules: {error}") from error
    if kinds != ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]:
        without = " (its two dense layers are missing)" if "Dense" not in kinds else ""
        raise UsageError(
            f"{path}: modules {', '.join(kinds)}{without}; "
            "EmbeddingGemma has Transformer, Pooling, Dense, Dense, Normalize"
        )
    _check_pooling(folder / paths[1] / "config.json")
    if paths[2:4] != ["2_Dense", "3_Dense"]:
        raise UsageError(f"{path}: dense layers in {paths[2:4]}; expected 2_Dense and 3_Dense")
    return paths[2:4]


def _check_pooling(path: Path) -> None:
    raw = read_json(path)
    # sentence-transformers 6 writes `pooling_mode`; earlier ones a flag for each mode.
    mode = raw.get("pooling_mode")
    modes = {mode} if isinstance(mode, str) else set(mode or ())
    if not modes:
        modes = {
            key.removeprefix("pooling_mode_").removesuffix("_tokens")
            for key, value in raw.items()
            if key.startswith("pooling_mode_") and value
        }
    if modes != {"mean"} or not raw.get("include_prompt", True):
        raise UsageError(
            f"{path}: pooling {', '.join(sorted(modes)) or 'none'}, include_prompt "
            f"{raw.get('include_prompt', True)}; gemb has mean pooling over all tokens"
        )


def _dense_size(path: Path) -> tuple[int, int]:
    raw = read_json(path)
    activation = str(raw.get("activation_function", "torch.nn.modules.activation.Tanh"))
    if activation.rpartition(".")[2] != "Identity":  # an absent key means Tanh
        raise UsageError(f"{path}: activation {activation}; gemb has Identity alone")
    if raw.get("bias", True):
        raise UsageError(f"{path}: a bias; EmbeddingGemma's dense layers have none")
    return _number(path, raw, "in_features"), _number(path, raw, "out_features")


def _backbone_tensors(folder: Path) -> dict[str, StoredTensor]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict):
            raise UsageError(f"{index}: weight_map must map tensors to files")
        files = [folder / str(name) for name in sorted(set(places.values()))]
    else:
        files = [folder / "model.safetensors"]
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        if not file.is_file():
            raise UsageError(f"{file}: missing from the model folder")
        for name, tensor in read_header(file).items():
            tensors[name.removeprefix("model.")] = tensor
    return tensors


def _check_shapes(
    folder: Path, tensors: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    missing = sorted(shapes.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - shapes.keys())
    if missing or unknown:
        what = f"no tensor {missing[0]}" if missing else f"an unknown tensor {unknown[0]}"
        raise UsageError(
            f"{folder}: {what} ({len(missing)} missing, {len(unknown)} unknown of {len(shapes)})"
        )
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise UsageError(
                f"{tensors[name].path}: tensor {name} has shape {list(tensors[name].shape)}; "
                f"config.json makes it {list(shape)}"
            )
