"""From a Gemma 3 language model to the folder of an encoder that has its weights.

The weights are the decoder's, number by number. What changes is what the folder says of them:
attention sees both ways, texts end with EOS, and behind the pooling stand two dense layers, whose
weights are random (EmbeddingGemma, arXiv 2509.20354: they are trained from scratch). Adaptation
begins with this folder; trained as it is, it is the paper's "decoder-only" initialisation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemb.errors import UsageError
from gemb.models.adapter import file_of
from gemb.models.card import history_of, known_as, licence_of, write_card
from gemb.models.checkpoint import backbone_tensors, check_shapes, expected_shapes
from gemb.models.config import read_config, read_optional_json, whole_number, write_json
from gemb.models.folder import config_of, copy_files, write_modules
from gemb.models.from_gguf import unpack
from gemb.models.gguf import (
    MOST_LAYERS,
    GgufModel,
    check_tokenizer,
    number,
    pattern,
    positive,
    window,
)
from gemb.models.gguf import check_shapes as check_gguf_shapes
from gemb.models.gguf import expected_shapes as gguf_shapes
from gemb.models.gguf_header import GgufHeader, looks_like_gguf, read_header
from gemb.models.gguf_keys import ARCHITECTURE, check_kind
from gemb.models.profile import CARD_DIMS
from gemb.models.prompts import DICTIONARY
from gemb.models.safetensors import NewTensor, lazily, write_file
from gemb.models.tokenizer_json import check_marks, read_tokenizer

MAX_TOKENS = 2048  # of a text, where the decoder takes more (EmbeddingGemma's model card)
WIDENING = 4  # the dense layers go from D to 4 D and back, as EmbeddingGemma's 768, 3072, 768
_DECODER = "gemma3"  # llama.cpp's architecture
_COPIED = ("tokenizer.model", "special_tokens_map.json", "added_tokens.json", "LICENSE*", "NOTICE*")


def write_encoder(source: Path, target: Path, *, seed: int) -> None:
    """Fill the empty folder `target`.

    Args:
        source: a Gemma 3 text model: a folder of Hugging Face's, or a GGUF file.
        target: the encoder's folder.
        seed: of the dense layers.

    Raises:
        UsageError: the source is not a Gemma 3, or has a feature that gemb does not support.
        OSError: the folder cannot be written.
    """
    if source.is_dir():
        hidden, licence = _from_folder(source, target), licence_of(source)
        name, history = known_as(source), history_of(source)
    elif looks_like_gguf(source):
        hidden, licence = _from_gguf(source, target)
        name, history = source.name, history_of(target)
    else:
        raise UsageError(f"{source}: no model folder and no GGUF file")
    _write_dense(target, hidden, seed)
    change = (
        f"Made by gemb of the language model {name}: attention sees both ways, and the dense "
        "layers are random. Not trained to embed."
    )
    write_card(target, licence, change, history)


def _from_gguf(path: Path, target: Path) -> tuple[int, str]:
    header = _as_encoder(read_header(path))
    model = _gguf_model(header)
    unpack(model, target)
    return model.hidden, str(header.metadata.get("general.license", ""))


def _as_encoder(header: GgufHeader) -> GgufHeader:
    """Return the header with the names, and the settings, of an encoder's.

    Raises:
        UsageError: it is another model's, or a part of a split one.
    """
    check_kind(header)
    architecture = header.metadata.get("general.architecture")
    if architecture != _DECODER:
        detail = " already, and no decoder" if architecture == ARCHITECTURE else ""
        raise UsageError(
            f"{header.path}: architecture {architecture}{detail}; adaptation begins with a Gemma 3 "
            f"text model, architecture {_DECODER}"
        )
    for name in ("rope.scaling.type", "rope.scaling.factor", "final_logit_softcapping"):
        value = header.metadata.get(f"{_DECODER}.{name}")
        if value not in (None, "none", 0.0, 1.0):
            raise UsageError(f"{header.path}: {name} is {value}; gemb does not support it")

    def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
        begin = f"{_DECODER}."
        return {
            f"{ARCHITECTURE}.{key.removeprefix(begin)}" if key.startswith(begin) else key: value
            for key, value in values.items()
        }

    metadata = renamed(header.metadata) | {"tokenizer.ggml.add_eos_token": True}
    return dataclasses.replace(header, metadata=metadata, types=renamed(header.types))


def _gguf_model(header: GgufHeader) -> GgufModel:
    window(header)
    for key in ("attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.freq_base_swa"):
        positive(header, key)
    layers = number(header, "block_count", most=MOST_LAYERS)
    hidden = number(header, "embedding_length")
    model = GgufModel(
        header=header,
        layers=layers,
        hidden=hidden,
        feed_forward=number(header, "feed_forward_length"),
        heads=number(header, "attention.head_count"),
        kv_heads=number(header, "attention.head_count_kv"),
        head_dim=number(header, "attention.key_length"),
        pooling="mean",
        dense=_dense(hidden),
        is_sliding=pattern(header, layers),
        max_tokens=min(MAX_TOKENS, number(header, "context_length")),
        vocabulary=len(check_tokenizer(header)),
        matryoshka_dims=_widths(hidden),
        default_dim=hidden,
        prompts=DICTIONARY,
    )
    shapes = gguf_shapes(model)
    check_gguf_shapes(
        header, {name: shape for name, shape in shapes.items() if "dense" not in name}
    )
    return model


def _from_folder(source: Path, target: Path) -> int:
    path, raw = file_of(source, "config.json"), config_of(source)
    _check_decoder(path, raw)
    raw |= {"architectures": ["Gemma3TextModel"], "use_bidirectional_attention": True}
    length = whole_number(path, raw, "max_position_embeddings")
    raw["max_position_embeddings"] = min(MAX_TOKENS, length)
    write_json(target / "config.json", raw)
    try:
        config = read_config(target / "config.json")
    except UsageError as error:
        raise UsageError(str(error).replace(str(target), str(source))) from None
    tensors = backbone_tensors(source)
    tensors.pop("lm_head.weight", None)  # tied: the token table again
    shapes = expected_shapes(config, list(_dense(config.hidden_size)))
    check_shapes(
        source, tensors, {name: shape for name, shape in shapes.items() if "Dense" not in name}
    )
    write_file(
        target / "model.safetensors",
        {
            name: NewTensor(stored.dtype, stored.shape, lazily(stored.raw))
            for name, stored in tensors.items()
        },
    )
    _write_tokenizer(source, target)
    write_modules(
        target,
        hidden=config.hidden_size,
        pooling="mean",
        dense=_dense(config.hidden_size),
        prompts=DICTIONARY,
        matryoshka_dims=_widths(config.hidden_size),
        max_tokens=config.max_position_embeddings,
    )
    return config.hidden_size


def _check_decoder(path: Path, raw: Mapping[str, Any]) -> None:
    kind = raw.get("model_type")
    if kind != "gemma3_text":
        hint = ", whose text model is a part: save that alone" if kind == "gemma3" else ""
        raise UsageError(
            f"{path}: model_type is {kind!r}{hint}; adaptation begins with a Gemma 3 text model, "
            "'gemma3_text'"
        )
    if raw.get("use_bidirectional_attention"):
        raise UsageError(
            f"{path}: its attention sees both ways: it is an encoder already; the stages pretrain "
            "and finetune go on with it"
        )
    if raw.get("final_logit_softcapping") is not None:
        raise UsageError(f"{path}: final_logit_softcapping is not null; gemb does not support it")
    if not raw.get("tie_word_embeddings", True):
        raise UsageError(f"{path}: tie_word_embeddings is false; Gemma 3 has one table")


def _write_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer, which puts EOS behind a text from now on, too."""
    path = file_of(source, "tokenizer.json")
    raw = read_tokenizer(path)
    check_marks(path, raw)
    ids = {token["content"]: token["id"] for token in raw["added_tokens"]}
    config = read_optional_json(file_of(source, "tokenizer_config.json"))
    names = [_content(config.get(role, f"<{role[:3]}>")) for role in ("bos_token", "eos_token")]
    for name in names:
        if name not in ids:
            raise UsageError(f"{path}: no token {name}; Gemma 3 has it")
    sequence = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
    around = [
        [{"SpecialToken": {"id": name, "type_id": kind}} for name in names] for kind in (0, 1)
    ]
    single, second = ([bos, text, eos] for (bos, eos), text in zip(around, sequence, strict=True))
    raw["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, *second],
        "special_tokens": {
            name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in names
        },
    }
    write_json(target / "tokenizer.json", raw, None)
    write_json(
        target / "tokenizer_config.json", config | {"add_bos_token": True, "add_eos_token": True}
    )
    copy_files(source, target, _COPIED)


def _content(token: object) -> str:
    return str(token.get("content") if isinstance(token, dict) else token)


def _write_dense(folder: Path, hidden: int, seed: int) -> None:
    """Write the dense layers' weights: normal, of a variance that keeps lengths as they are."""
    import numpy as np

    random = np.random.default_rng([seed, hidden])
    for path, (size_in, size_out) in zip(("2_Dense", "3_Dense"), _dense(hidden), strict=True):
        values = random.standard_normal((size_out, size_in), np.float32) / np.float32(size_in**0.5)
        new = NewTensor("F32", values.shape, [values.reshape(-1).view(np.uint8)])
        write_file(folder / path / "model.safetensors", {"linear.weight": new})


def _dense(hidden: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return (hidden, WIDENING * hidden), (WIDENING * hidden, hidden)


def _widths(hidden: int) -> tuple[int, ...]:
    return hidden, *(width for width in CARD_DIMS if width < hidden)
