"""Unpack a GGUF file into a plain model folder of 32-bit numbers, so that training can start there.

What a GGUF holds of the folder it was made from comes back: the weights as the file rounded them,
the tokenizer, prompts, Matryoshka widths, the trained length, the licence, and what was done to
the model before. The file holds each norm weight plus 1. The 1 is subtracted here, and the model
adds it again, which gives the same number.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemb.errors import UsageError
from gemb.models.card import KEY_LICENCE, KEY_NOTICE, history_in, write_card
from gemb.models.config import write_json
from gemb.models.folder import write_modules
from gemb.models.gguf import GgufModel, window
from gemb.models.gguf_header import Array, GgufHeader, TensorInfo, strings
from gemb.models.gguf_keys import ARCHITECTURE
from gemb.models.qat import CONFIG_KEY
from gemb.models.safetensors import NewTensor, write_file
from gemb.models.tensors import folder_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ROWS = 4096  # of a tensor in memory at a time
_PACKED_FOR_GOOD = ("q1_0", "q2_0")  # types that gguf cannot unpack
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # llama.cpp's `llama_token_type`


def unpack(model: GgufModel, target: Path) -> None:
    """Fill the empty folder `target` with what the file holds.

    Raises:
        UsageError: the file's tokens are broken, config.json cannot express its sliding window, or
            its weights are of a type that cannot be unpacked.
        OSError: the folder cannot be written.
    """
    for tensor in model.header.tensors.values():
        if tensor.type in _PACKED_FOR_GOOD:
            raise UsageError(
                f"{model.header.path}: tensor {tensor.name} is {tensor.type}, which gemb cannot "
                "unpack; start from the model folder, or another file of it"
            )
    for name, value in tokenizer_files(model.header, model.max_tokens).items():
        indent = None if name == "tokenizer.json" else 2
        write_json(target / name, value, indent)
    write_json(target / "config.json", _config(model))
    write_modules(
        target,
        hidden=model.hidden,
        pooling=model.pooling,
        dense=model.dense,
        prompts=model.prompts,
        matryoshka_dims=model.matryoshka_dims,
        max_tokens=model.max_tokens,
        default_dim=model.default_dim,
    )
    _write_weights(model, target)
    _write_card(model, target)


def _config(model: GgufModel) -> dict[str, Any]:
    data = model.header.metadata
    role = roles(model.header)

    def real(name: str, absent: float = 0.0) -> float:
        """Return a 32-bit number as the shortest one that is the same in 32 bits: 1e-06."""
        import numpy as np

        value = data.get(f"{ARCHITECTURE}.{name}", absent)
        assert isinstance(value, float), "the file has not been checked"
        return float(str(np.float32(value)))

    trained = model.trained_types()
    return {
        **({CONFIG_KEY: trained} if trained else {}),
        "architectures": ["Gemma3TextModel"],
        "model_type": "gemma3_text",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "bos_token_id": role.bos,
        "dtype": "float32",
        "eos_token_id": role.eos,
        "final_logit_softcapping": None,
        "head_dim": model.head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": model.hidden,
        "initializer_range": 0.02,
        "intermediate_size": model.feed_forward,
        "layer_types": [
            "sliding_attention" if slides else "full_attention" for slides in model.is_sliding
        ],
        "max_position_embeddings": model.max_tokens,
        "num_attention_heads": model.heads,
        "num_hidden_layers": model.layers,
        "num_key_value_heads": model.kv_heads,
        "pad_token_id": role.pad or 0,
        "query_pre_attn_scalar": model.head_dim,  # llama.cpp scales by it
        "rms_norm_eps": real("attention.layer_norm_rms_epsilon"),
        "rope_local_base_freq": real("rope.freq_base_swa", 1e4),
        "rope_scaling": None,
        "rope_theta": real("rope.freq_base"),
        "sliding_window": window(model.header),
        "use_bidirectional_attention": True,
        "use_cache": True,
        "vocab_size": model.vocabulary,
    }


def _write_weights(model: GgufModel, target: Path) -> None:
    files: dict[str, dict[str, NewTensor]] = {"": {}, "2_Dense": {}, "3_Dense": {}}
    with model.header.path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for info in model.header.tensors.values():
        name = folder_name(info.name)
        folder, _, rest = name.partition(".")
        new = NewTensor("F32", info.shape[::-1], _float32(data, info))
        if folder in files:
            files[folder][rest] = new
        else:
            files[""][name] = new
    for folder, tensors in files.items():
        write_file(target / folder / "model.safetensors", tensors)


def _float32(data: mmap.mmap, info: TensorInfo) -> Iterator[NDArray[np.uint8]]:
    """Yield the bytes of a tensor's 32-bit values, some rows at a time."""
    import numpy as np

    from gemb.models.gguf_blocks import unpacked

    if len(info.shape) == 1:  # a norm
        values = np.frombuffer(data, "<f4", info.shape[0], info.offset) - np.float32(1)
        yield values.view(np.uint8)
        return
    rows = info.shape[1]
    packed = np.frombuffer(data, np.uint8, info.size_bytes, info.offset).reshape(rows, -1)
    for begin in range(0, rows, _ROWS):
        wide = unpacked(packed[begin : begin + _ROWS], info.type)
        yield np.ascontiguousarray(wide, "<f4").view(np.uint8).reshape(-1)


def _write_card(model: GgufModel, target: Path) -> None:
    types = ", ".join(sorted({info.type for info in model.header.tensors.values()}))
    change = f"Unpacked by gemb from {model.header.path.name}, whose weights are {types}."
    data = model.header.metadata
    before = history_in(str(data.get(KEY_NOTICE, "")))
    write_card(target, str(data.get(KEY_LICENCE, "")), change, before)


@dataclass(frozen=True, kw_only=True)
class Roles:
    """Ids of the tokens that have a role; None: the file names none."""

    bos: int
    eos: int
    unknown: int | None
    pad: int | None
    mask: int | None


def roles(header: GgufHeader) -> Roles:
    """Return the roles of a checked file (`gemb.models.gguf.check_tokenizer`)."""

    def of(role: str) -> int | None:
        value = header.metadata.get(f"tokenizer.ggml.{role}_token_id")
        return value if isinstance(value, int) else None

    bos, eos = of("bos"), of("eos")
    assert bos is not None, "the file has not been checked"
    assert eos is not None, "the file has not been checked"
    return Roles(bos=bos, eos=eos, unknown=of("unknown"), pad=of("padding"), mask=of("mask"))


def tokenizer_files(header: GgufHeader, max_tokens: int) -> Mapping[str, Mapping[str, Any]]:
    """Return file name -> JSON: tokenizer.json and tokenizer_config.json.

    Args:
        header: of a checked file.
        max_tokens: what the model was trained for.

    Raises:
        UsageError: a token is no UTF-8.
    """
    try:
        tokens = [token.decode() for token in strings(header, "tokenizer.ggml.tokens")]
    except UnicodeDecodeError as error:
        raise UsageError(f"{header.path}: the token {error.object!r} is no UTF-8") from error
    types = _numbers(header, "tokenizer.ggml.token_type", "i")
    scores = _numbers(header, "tokenizer.ggml.scores", "f")
    ids = {token: i for i, token in enumerate(tokens)}
    role = roles(header)
    names = {
        name: tokens[i]
        for name, i in {
            "bos_token": role.bos,
            "eos_token": role.eos,
            "unk_token": role.unknown,
            "pad_token": role.pad,
            "mask_token": role.mask,
        }.items()
        if i is not None
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # which takes tokenizer.json as it is
        "add_bos_token": True,
        "add_eos_token": True,
        **names,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_tokens,
        "padding_side": "right",
    }
    return {
        "tokenizer.json": _tokenizer(ids, _merges(tokens, scores), types, role),
        "tokenizer_config.json": config,
    }


def _numbers(header: GgufHeader, key: str, code: str) -> tuple[Any, ...]:
    array = header.metadata[key]
    assert isinstance(array, Array), "the file has not been checked"
    with header.path.open("rb") as file:
        file.seek(array.begin)
        return struct.unpack(f"<{array.length}{code}", file.read(array.end - array.begin))


def _merges(tokens: Sequence[str], scores: Sequence[float]) -> list[list[str]]:
    """Return the merges of byte-pair encoding that join as llama.cpp does by scores.

    llama.cpp joins, of all neighbours whose join is a token, those of the highest score first, the
    leftmost of equals. Byte-pair encoding says the same with a merge for each split of a token into
    two tokens, the token of the highest score first; of equal scores (runs of newlines, spaces and
    tabs) the split with the longest left part first, so that a run grows as far as it can before
    the next begins. Gemma's own merges were made so (transformers `SentencePieceExtractor`).
    """
    known = set(tokens)
    merges: list[tuple[float, int, list[str]]] = []
    for token, score in zip(tokens, scores, strict=True):
        for at in range(1, len(token)):
            if token[:at] in known and token[at:] in known:
                merges.append((-score, -at, [token[:at], token[at:]]))
    # Stable: of equals, the token of the lower id. The right part's length follows from the token.
    merges.sort(key=lambda merge: (merge[0], merge[1], -len(merge[2][1])))
    return [parts for _, _, parts in merges]


def _tokenizer(
    ids: Mapping[str, int], merges: list[list[str]], types: Sequence[int], role: Roles
) -> dict[str, Any]:
    tokens = list(ids)
    bos, eos = tokens[role.bos], tokens[role.eos]
    unknown = tokens[role.unknown] if role.unknown is not None else None
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": tokens[i],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind != _USER_DEFINED,
            }
            for i, kind in enumerate(types)
            if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": _around("A", 0, bos, eos),
            "pair": [*_around("A", 0, bos, eos), *_around("B", 1, bos, eos)],
            "special_tokens": {
                token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in (bos, eos)
            },
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": dict(ids),
            "merges": merges,
        },
    }


def _around(sequence: str, kind: int, bos: str, eos: str) -> list[dict[str, Any]]:
    return [
        {"SpecialToken": {"id": bos, "type_id": kind}},
        {"Sequence": {"id": sequence, "type_id": kind}},
        {"SpecialToken": {"id": eos, "type_id": kind}},
    ]
