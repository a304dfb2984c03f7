"""The model folder that transformers and sentence-transformers read and write.

    config.json  model.safetensors  tokenizer.json  tokenizer_config.json ...
    modules.json                       Transformer, Pooling, Dense, Dense, Normalize
    1_Pooling/config.json              mean (or cls, lasttoken), the prompt's tokens included
    2_Dense/  3_Dense/                 config.json, model.safetensors; no bias, no activation
    config_sentence_transformers.json  prompts
    sentence_bert_config.json          max_seq_length

`open_checkpoint` checks everything that is cheap to check, and refuses what gemb would compute
wrongly. Tensors are named as in the files, without a leading `model.`; those of the two dense
layers are `2_Dense.linear.weight` and `3_Dense.linear.weight`. With attention pooling, which is
gemb's own and which sentence-transformers refuses, there is `1_Pooling.queries`, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gemb.errors import UsageError
from gemb.io.foreign import read_bytes
from gemb.models.adapter import (
    CONFIG,
    adapter_in_words,
    base_of,
    check_config,
    file_of,
    is_adapter,
    merged,
    sources,
)
from gemb.models.backbone import other_weights, stored_backbone
from gemb.models.card import history_of, known_as, licence_of, reaching
from gemb.models.config import (
    MOST_TOKENIZER,
    GemmaConfig,
    read_config,
    read_json,
    read_json_value,
    read_optional_json,
    whole_number,
)
from gemb.models.fingerprint import fingerprint
from gemb.models.profile import CARD_DIMS, CLOSING_TOKENS, ModelDescription, ModelProfile
from gemb.models.prompts import ModelPrompts
from gemb.models.qat import folder_types
from gemb.models.safetensors import StoredTensor, read_header
from gemb.models.settings import SETTINGS, default_dim_of, matryoshka_dims_of, prompts_of
from gemb.models.tensors import tensor_class

# As a recipe names it, and as sentence-transformers does; `attention` is gemb's own.
POOLINGS = {"mean": "mean", "first": "cls", "last": "lasttoken", "attention": "attention"}
_DENSE_USUAL: dict[str, object] = {  # of a dense layer, as sentence-transformers 6 has them
    "module_input_name": "sentence_embedding",
    "module_output_name": "sentence_embedding",
    "use_residual": False,
}
ATTENTION_HEADS = 4  # learned queries of attention pooling (arXiv 2509.20354, ablations)
MODULE_SETTINGS = (  # of the Transformer module: the first that is there, as sentence-transformers
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
# Files beside the weights that a run reads.
SMALL_FILES = (
    "config.json",
    SETTINGS,
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model folder, checked; the tensors are not read yet."""

    folder: Path
    config: GemmaConfig
    pooling: str  # mean, first, last or attention
    dense: tuple[tuple[int, int], tuple[int, int]]  # (in, out) of the two dense layers
    prompts: ModelPrompts
    matryoshka_dims: tuple[int, ...]  # widest first
    default_dim: int  # width of a vector where none is asked for; at most `dim`
    max_tokens: int
    tensors: Mapping[str, StoredTensor]

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self.dense[1][1]

    def profile(self, dtype: str) -> ModelProfile:
        """Return what a caller must know of the open model; `dtype` is that of its arithmetic."""
        return ModelProfile(
            dim=self.dim,
            matryoshka_dims=self.matryoshka_dims,
            max_tokens=self.max_tokens,
            closing_tokens=CLOSING_TOKENS,
            prompts=self.prompts,
            dtype=dtype,
            fingerprint=self.fingerprint(),
            default_dim=self.default_dim,
        )

    def licence(self) -> str:
        """Return the licence that the folder's README.md names, or an empty string.

        Of an adapter it is that of its base, too.
        """
        return reaching([licence_of(self.folder), licence_of(base_of(self.folder))])

    def known_as(self) -> str:
        """Return the name by which a model card refers to the model; of an adapter, to both."""
        base = base_of(self.folder)
        if base == self.folder:
            return known_as(self.folder)
        return f"{known_as(base)} with the adapter {known_as(self.folder)}"

    def history(self) -> list[str]:
        """Return gemb's changes to the model, and to an adapter's base, the last first."""
        folders = dict.fromkeys((self.folder, base_of(self.folder)))
        return [line for folder in folders for line in history_of(folder)]

    def file(self, name: str) -> Path:
        """Return where a file beside the weights is, which may be absent: see `file_of`."""
        return file_of(self.folder, name)

    def fingerprint(self) -> str:
        """Return the 16 hex digits of `gemb.models.fingerprint`."""
        files = ["config.json", "tokenizer.json", SETTINGS]
        if self.pooling != "mean":  # what means had before there was a choice stays theirs
            files.append("1_Pooling/config.json")
        paths = [self.file(name) for name in files]
        paths += [self.folder / CONFIG] if is_adapter(self.folder) else []
        tensors = (tensor for _, tensor in sorted(self.tensors.items()))
        return fingerprint(
            (read_bytes(path, MOST_TOKENIZER) for path in paths if path.exists()),
            ((t.path, t.offset, t.size_bytes) for t in sources(tensors)),
        )


def looks_like_checkpoint(folder: Path) -> bool:
    """Return whether the folder may be a model folder."""
    return (folder / "config.json").is_file() or is_adapter(folder)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Return the checked folder.

    Raises:
        UsageError: a file is missing or broken, or asks for arithmetic that gemb does not have.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such model folder")
    if not looks_like_checkpoint(folder):
        raise UsageError(f"{folder}: no model folder: it has no config.json")
    config = read_config(file_of(folder, "config.json"))
    _check_modules(file_of(folder, "modules.json"))
    pooling = read_pooling(file_of(folder, "1_Pooling/config.json"))
    check_config(folder)
    tensors = stored_backbone(base_of(folder))
    dense = [dense_size(file_of(folder, f"{path}/config.json")) for path in ("2_Dense", "3_Dense")]
    own_files = ["1_Pooling"] if pooling == "attention" else []
    for path in [*own_files, "2_Dense", "3_Dense"]:
        weights = file_of(folder, f"{path}/model.safetensors")
        if not weights.is_file():
            raise UsageError(f"{weights}: missing{other_weights(weights.parent)}")
        for name, tensor in read_header(weights).items():
            tensors[f"{path}.{name}"] = tensor
    (in_first, middle), (in_second, out) = dense
    if in_first != config.hidden_size or in_second != middle:
        raise UsageError(f"{folder}: the dense layers {dense} do not follow {config.hidden_size}")
    if pooling == "attention":
        check_heads(config.hidden_size, str(folder))
    if is_adapter(folder):
        tensors = merged(folder, tensors)
    check_shapes(folder, tensors, expected_shapes(config, dense, pooling))
    settings = read_optional_json(file_of(folder, SETTINGS))
    default_dim = default_dim_of(folder, settings, out)
    known_dims = CARD_DIMS if out == CARD_DIMS[0] else (out,)
    return Checkpoint(
        folder=folder,
        config=config,
        pooling=pooling,
        dense=(dense[0], dense[1]),
        prompts=prompts_of(folder, settings),
        matryoshka_dims=matryoshka_dims_of(folder, settings, default_dim, known_dims),
        default_dim=default_dim,
        max_tokens=_max_tokens(folder, config),
        tensors=tensors,
    )


def _max_tokens(folder: Path, config: GemmaConfig) -> int:
    """Return how many tokens of a text the model takes, as sentence-transformers finds it.

    The settings of the module name it, `max_seq_length`, or hold it for the tokenizer; where they
    do neither, as of those that sentence-transformers 6 saves, the tokenizer's own does.
    """
    most = config.max_position_embeddings
    paths = [file_of(folder, name) for name in MODULE_SETTINGS]
    path = next((path for path in paths if path.exists()), paths[0])
    transformer = read_optional_json(path)
    if transformer.get("do_lower_case"):
        raise UsageError(f"{path}: do_lower_case is not supported")
    tokenizer_path = file_of(folder, "tokenizer_config.json")
    tokenizer = read_optional_json(tokenizer_path)
    if tokenizer.get("truncation_side") not in (None, "right"):
        raise UsageError(
            f"{tokenizer_path}: truncation_side is {tokenizer['truncation_side']!r}; "
            "gemb cuts long texts at their end: 'right'"
        )
    for key in ("processor_kwargs", "tokenizer_args"):  # of version 6, and before it
        arguments = transformer.get(key)
        if isinstance(arguments, dict) and arguments.get("model_max_length") is not None:
            return min(most, _length(path, arguments, "model_max_length"))
    if transformer.get("max_seq_length") is not None:
        return min(most, _length(path, transformer, "max_seq_length"))
    if tokenizer.get("model_max_length") is not None:
        return min(most, _length(tokenizer_path, tokenizer, "model_max_length"))
    return most


def _length(path: Path, raw: Mapping[str, Any], key: str) -> int:
    """Return a length, a whole number or 1e30: transformers' word for no limit."""
    value = raw[key]
    is_whole = isinstance(value, float) and value.is_integer()
    return whole_number(path, {key: int(value)} if is_whole else raw, key, most=1 << 128)


def expected_shapes(
    config: GemmaConfig, dense: list[tuple[int, int]], pooling: str = "mean"
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
    if pooling == "attention":
        shapes["1_Pooling.queries"] = (ATTENTION_HEADS, D)
    return shapes


def _check_modules(path: Path) -> None:
    """Refuse other modules than EmbeddingGemma's, or other folders."""
    if not path.exists():
        raise UsageError(
            f"{path}: missing: a bare language model (gemb train adapt makes an encoder of a "
            "Gemma 3), or no sentence-transformers folder"
        )
    try:
        modules = read_json_value(path)
        types = [str(module["type"]) for module in modules]
        kinds = [kind.rpartition(".")[2] for kind in types]
        paths = [str(module["path"]) for module in modules]
    except (TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{path}: not a list of modules: {error}") from error
    if kinds != ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]:
        without = " (its two dense layers are missing)" if "Dense" not in kinds else ""
        raise UsageError(
            f"{path}: modules {', '.join(kinds)}{without}; "
            "EmbeddingGemma has Transformer, Pooling, Dense, Dense, Normalize"
        )
    if strange := [kind for kind in types if not kind.startswith("sentence_transformers.")]:
        raise UsageError(f"{path}: module {strange[0]} is code of its own, which gemb does not run")
    if paths[0].strip("./"):
        raise UsageError(
            f"{path}: the Transformer is in {paths[0]}; gemb reads it beside this file"
        )
    expected = ["1_Pooling", "2_Dense", "3_Dense"]
    if paths[1:4] != expected:
        raise UsageError(f"{path}: modules in {', '.join(paths[1:4])}; not {', '.join(expected)}")


def dense_size(path: Path) -> tuple[int, int]:
    """Return the widths in and out of a dense layer, from its config.json.

    Raises:
        UsageError: it is missing or broken, has a bias or an activation, or takes or gives what is
            no vector of a text.
    """
    raw = read_json(path)
    activation = str(raw.get("activation_function", "torch.nn.modules.activation.Tanh"))
    if activation.rpartition(".")[2] != "Identity":  # an absent key means Tanh
        raise UsageError(f"{path}: activation {activation}; gemb has Identity alone")
    if raw.get("bias", True):
        raise UsageError(f"{path}: a bias; EmbeddingGemma's dense layers have none")
    for key, usual in _DENSE_USUAL.items():
        if raw.get(key) not in (None, usual):
            raise UsageError(f"{path}: {key} is {raw[key]!r}; gemb has {usual!r} alone")
    return whole_number(path, raw, "in_features"), whole_number(path, raw, "out_features")


def backbone_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a folder's model.safetensors, or of its shards, without `model.`.

    Where the folder holds an adapter, its change is in them (`gemb.models.adapter`).

    Raises:
        UsageError: a file is missing or broken.
        Missing: an adapter's base is not here.
    """
    check_config(folder)
    tensors = stored_backbone(base_of(folder))
    return merged(folder, tensors) if is_adapter(folder) else tensors


def check_shapes(
    folder: Path, tensors: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse missing and unknown tensors, and tensors of another shape.

    Raises:
        UsageError: one is missing, unknown, or of another shape.
    """
    missing = sorted(shapes.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - shapes.keys())
    if missing or unknown:
        difference = f"no tensor {missing[0]}" if missing else f"an unknown tensor {unknown[0]}"
        raise UsageError(
            f"{folder}: {difference} ({len(missing)} missing, {len(unknown)} unknown "
            f"of {len(shapes)})"
        )
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise UsageError(
                f"{tensors[name].path}: tensor {name} has shape {list(tensors[name].shape)}; "
                f"config.json makes it {list(shape)}"
            )


def read_pooling(path: Path) -> str:
    """Return the pooling in the config.json of a folder's `1_Pooling`, as a recipe names it.

    Raises:
        UsageError: it is missing or broken, or gemb does not support the pooling.
    """
    raw = read_json(path)
    # sentence-transformers 6 writes `pooling_mode`; earlier ones a flag for each mode.
    mode = raw.get("pooling_mode")
    modes = set(map(str, mode)) if isinstance(mode, list) else {str(mode)} if mode else set()
    if not modes:
        modes = {
            key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
            for key, value in raw.items()
            if key.startswith("pooling_mode_") and value
        }
    poolings = [pooling for pooling, name in POOLINGS.items() if modes == {name}]
    if not poolings or not raw.get("include_prompt", True):
        raise UsageError(
            f"{path}: pooling {', '.join(sorted(modes)) or 'none'}, include_prompt "
            f"{raw.get('include_prompt', True)}; gemb has one of {', '.join(POOLINGS.values())}, "
            "over all tokens"
        )
    return poolings[0]


def pooling_settings(pooling: str, width: int) -> dict[str, object]:
    """Return what `1_Pooling/config.json` holds of states of this width.

    Every version of sentence-transformers reads it, and refuses attention pooling, which it lacks.
    """
    settings: dict[str, object] = {"word_embedding_dimension": width}
    if pooling == "attention":
        settings["pooling_mode"] = POOLINGS[pooling]
    else:
        for name, flag in (("first", "cls_token"), ("mean", "mean_tokens"), ("last", "lasttoken")):
            settings[f"pooling_mode_{flag}"] = name == pooling
    return settings | {"include_prompt": True}


def check_heads(width: int, model: str) -> None:
    """Refuse a model whose states of this width attention pooling cannot divide.

    Raises:
        UsageError: the heads do not share the width evenly.
    """
    if width % ATTENTION_HEADS:
        raise UsageError(
            f"{model}: attention pooling has {ATTENTION_HEADS} heads, which do not share a width "
            f"of {width} evenly"
        )


def describe_folder(folder: Path) -> ModelDescription:
    """Return the description of a sentence-transformers folder; no tensor is read whole.

    Raises:
        UsageError: as `open_checkpoint`, and as `load_tokenizer` where its library is installed.
    """
    checkpoint = open_checkpoint(folder)
    if find_spec("tokenizers") is not None:
        from gemb.models.tokenizer import load_tokenizer

        load_tokenizer(checkpoint.file("tokenizer.json"), checkpoint.config.vocab_size)
    tensors = checkpoint.tensors
    types: dict[str, set[str]] = {}
    for name, tensor in tensors.items():
        types.setdefault(tensor_class(name), set()).add(tensor.dtype.lower())
    small = (*(checkpoint.file(name) for name in SMALL_FILES), folder / CONFIG)
    files = {tensor.path for tensor in sources(tensors.values())}
    files |= {path for path in small if path.exists()}
    return ModelDescription(
        path=folder,
        format="sentence-transformers",
        architecture="gemma3_text",
        layers=checkpoint.config.num_hidden_layers,
        hidden=checkpoint.config.hidden_size,
        dim=checkpoint.dim,
        matryoshka_dims=checkpoint.matryoshka_dims,
        default_dim=checkpoint.default_dim,
        max_tokens=checkpoint.max_tokens,
        vocabulary=checkpoint.config.vocab_size,
        parameters=sum(tensor.count for tensor in tensors.values()),
        pooling=checkpoint.pooling,
        dense=checkpoint.dense,
        prompts=checkpoint.prompts,
        types={kind: "+".join(sorted(names)) for kind, names in types.items()},
        size_bytes=sum(path.stat().st_size for path in files),
        fingerprint=checkpoint.fingerprint(),
        licence=checkpoint.licence(),
        trained_types=folder_types(folder),
        adapter=adapter_in_words(folder),
    )
