"""From a GGUF file's vocabulary back to the tokenizer.json that transformers reads.

llama.cpp joins, of all neighbours whose join is a token, those of the highest score first, the
leftmost of equals. Byte-pair encoding says the same with a merge for each split of a token into
two tokens, the token of the highest score first; of equal scores (runs of newlines, spaces and
tabs) the split with the longest left part first, so that a run grows as far as it can before the
next begins. Gemma's own merges were made so (transformers `SentencePieceExtractor`).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemb.errors import UsageError
from gemb.gguf_header import Array, GgufHeader, strings

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # llama.cpp's `llama_token_type`


@dataclass(frozen=True, kw_only=True)
class Roles:
    """Ids of the tokens that have a role; None: the file names none."""

    bos: int
    eos: int
    unknown: int | None
    pad: int | None
    mask: int | None


def roles(header: GgufHeader) -> Roles:
    """Return the roles of a checked file (`gguf_checks.check_tokenizer`)."""

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
        UsageError: a token is no UTF-8, or a score no number.
    """
    try:
        tokens = [token.decode() for token in strings(header, "tokenizer.ggml.tokens")]
    except UnicodeDecodeError as error:
        raise UsageError(f"{header.path}: the token {error.object!r} is no UTF-8") from error
    types = _numbers(header, "tokenizer.ggml.token_type", "i")
    scores = _numbers(header, "tokenizer.ggml.scores", "f")
    for token, score in zip(tokens, scores, strict=True):
        if math.isnan(score):
            raise UsageError(f"{header.path}: the score of token {token!r} is no number")
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
    known = set(tokens)
    found: list[tuple[float, int, list[str]]] = []
    for token, score in zip(tokens, scores, strict=True):
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in known and right in known:
                found.append((-score, -at, [left, right]))
    # Stable: of equals, the token of the lower id. The right part's length follows from the token.
    found.sort(key=lambda merge: (merge[0], merge[1], -len(merge[2][1])))
    return [merge for _, _, merge in found]


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
