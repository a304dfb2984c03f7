"""Quantization types of files: llama.cpp's mixes, gemb's presets, and the user's rules.

A mix names the type of most tensors, and llama.cpp gives some of them more. Its habit of a Q6_K
token table is not followed: a language model computes its answer with that table, an embedder only
looks rows up in it. A type of tensor packs so many values of a row together; rows that it does not
divide get the type of `FALLBACK`, as in llama.cpp.
Source: llama.cpp `include/llama.h` (`llama_ftype`), `src/llama-quant.cpp`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gemb.backend import Quantization, Rule
from gemb.errors import UsageError
from gemb.models.gguf_header import F16_REASON, TENSORS
from gemb.models.tensors import CLASS_PATTERNS


class FileType(NamedTuple):
    """A type of file."""

    number: int  # of `llama_ftype`
    base: str  # type of most tensors
    table: str = ""  # type of the token table; empty: `base`


FILE_TYPES: dict[str, FileType] = {
    "f32": FileType(0, "f32"),
    "bf16": FileType(32, "bf16"),
    "q8_0": FileType(7, "q8_0"),
    "q6_k": FileType(18, "q6_k"),
    "q5_k_m": FileType(17, "q5_k"),
    "q5_k_s": FileType(16, "q5_k"),
    "q5_1": FileType(9, "q5_1"),
    "q5_0": FileType(8, "q5_0"),
    "q4_k_m": FileType(15, "q4_k"),
    "q4_k_s": FileType(14, "q4_k"),
    "q4_1": FileType(3, "q4_1"),
    "q4_0": FileType(2, "q4_0"),
    "iq4_nl": FileType(25, "iq4_nl"),
    "iq4_xs": FileType(30, "iq4_xs"),
    "mxfp4": FileType(38, "mxfp4"),
    "nvfp4": FileType(39, "nvfp4"),
    "q3_k_l": FileType(13, "q3_k"),
    "q3_k_m": FileType(12, "q3_k"),
    "q3_k_s": FileType(11, "q3_k"),
    "iq3_m": FileType(27, "iq3_s"),
    "iq3_s": FileType(26, "iq3_s"),
    "iq3_xs": FileType(22, "iq3_s"),
    "iq3_xxs": FileType(23, "iq3_xxs", "iq3_s"),
    "q2_k": FileType(10, "q2_k"),
    "q2_k_s": FileType(21, "q2_k"),
    "iq2_m": FileType(29, "iq2_s", "q2_k"),
    "iq2_s": FileType(28, "iq2_xs", "q2_k"),
    "iq2_xs": FileType(20, "iq2_xs", "q2_k"),
    "iq2_xxs": FileType(19, "iq2_xxs", "q2_k"),
    "tq2_0": FileType(37, "tq2_0"),
    "tq1_0": FileType(36, "tq1_0"),
    "q2_0": FileType(41, "q2_0"),
    "iq1_m": FileType(31, "iq1_m", "q2_k"),
    "iq1_s": FileType(24, "iq1_s", "q2_k"),
    "q1_0": FileType(40, "q1_0"),
}
# llama-quantize's short names.
ALIASES = {"q5_k": "q5_k_m", "q4_k": "q4_k_m", "q3_k": "q3_k_m"}
PURE = ("f32", "bf16", "q8_0", "q6_k", "mxfp4", "nvfp4", "q1_0")  # every matrix has the base type
PLAIN = ("f32", "f16", "bf16")
FALLBACK = {
    "iq1_s": "iq4_nl",
    "iq1_m": "iq4_nl",
    "iq2_xxs": "iq4_nl",
    "iq2_xs": "iq4_nl",
    "iq2_s": "iq4_nl",
    "iq3_xxs": "iq4_nl",
    "iq3_s": "iq4_nl",
    "iq4_xs": "iq4_nl",
    "q1_0": "q4_0",
    "q2_0": "q4_0",
    "q2_k": "q4_0",
    "q3_k": "q4_0",
    "tq1_0": "q4_0",
    "tq2_0": "q4_0",
    "nvfp4": "q4_0",
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
}
# Types whose quantizer requires an importance matrix (`tensor_requires_imatrix`).
WANTS_IMPORTANCE = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs")


class Preset(NamedTuple):
    """A file type with rules that were measured on the real model."""

    type: str
    rules: tuple[tuple[str, str], ...]
    about: str  # what it is for


# Of the real EmbeddingGemma-300M with Q4_0 everywhere, 8 bits take so much of the error (1 - mean
# cosine to bf16, 61 texts of many scripts) for each megabyte: dense_3 11 %, attn_v 7.5 %, dense_2
# 4.4 %, attn_output and ffn_down 1.6 %, ffn_gate 0.8 %, attn_k 0.7 %, ffn_up 0.5 %, the token table
# 0.09 %, attn_q 0.06 %. Q6_K for the table, which llama-quantize gives a Q4_0 file, costs 52 MB and
# takes 9 %; dense and attn_v cost 5 MB and take a third. Mean score of SICK-R's trial pairs and of
# 240 descriptions of Debian packages, at 768, against bf16 (89.69): q4_0 180 MB -0.53, small 185 MB
# -0.31, e4_a8_f4_p4 199 MB -0.30, medium 202 MB -0.18, large 233 MB -0.18, q8_0 334 MB -0.02.
PRESETS: dict[str, Preset] = {
    "small": Preset(
        "q4_0", (("^dense", "q8_0"), ("attn_v", "q8_0")), "4 bits, but 8 where they count most"
    ),
    "medium": Preset(
        "q4_0",
        (("^dense", "q8_0"), ("attn_v|attn_output|ffn_down", "q8_0")),
        "8 bits wherever they count, 4 in the rest",
    ),
    "large": Preset("q8_0", (("^token_embd", "q4_0"),), "8 bits, but 4 in the token table"),
    "e4_a8_f4_p4": Preset(
        "q4_0", (("attn", "q8_0"),), "as the paper's mix: attention in 8 bits, the rest in 4"
    ),
}


def quantization(text: str, rules: Sequence[Rule] = ()) -> Quantization:
    """Return the type or preset of this name (case is ignored), with the user's rules first.

    Raises:
        UsageError: no type or preset has this name.
    """
    name = text.strip().lower()
    label = " ".join([name, *(f"{user.pattern}={user.type}" for user in rules)])
    name = ALIASES.get(name, name)
    if name == "f16":
        raise UsageError(F16_REASON)
    if name in PRESETS:
        preset = PRESETS[name]
        preset_rules = tuple(Rule(*pair) for pair in preset.rules)
        return Quantization(name=name, type=preset.type, rules=(*rules, *preset_rules), label=label)
    if name not in FILE_TYPES:
        names = [*FILE_TYPES, *ALIASES, *PRESETS]
        raise UsageError(f"no type {text.strip()!r}{_hint(name, names)}; gemb quantize --types")
    return Quantization(name=name, type=name, rules=tuple(rules), label=label)


def rule(text: str) -> Rule:
    """Return the rule of `REGEX=TYPE`.

    Raises:
        UsageError: the text is no rule, or its pattern or type is wrong.
    """
    pattern, equals, type_ = text.rpartition("=")
    type_ = type_.strip().lower()
    if not equals or not pattern:
        raise UsageError(f"--tensor {text!r} is not REGEX=TYPE, as 'attn_v=q8_0'")
    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--tensor {text!r}: {error}") from error
    if type_ == "f16":
        raise UsageError(F16_REASON)
    if type_ not in TENSORS:
        mix = FILE_TYPES.get(ALIASES.get(type_, type_))
        hint = f"; it is a mix; of a tensor: {mix.base}" if mix else _hint(type_, list(TENSORS))
        raise UsageError(f"--tensor {text!r}: no type of a tensor is named {type_!r}{hint}")
    return Rule(pattern, type_)


def trained(qat: Mapping[str, str]) -> Quantization:
    """Return the types that a model was trained for, by class of tensors."""
    rules = tuple(Rule(CLASS_PATTERNS[kind], type_) for kind, type_ in qat.items())
    return Quantization(name="qat", type="q8_0", rules=rules, label="qat")


def bits(type_: str) -> float:
    """Return the mean bits per value in a tensor of this type."""
    _, block, size = TENSORS[type_]
    return 8 * size / block


def fitting(type_: str, row: int) -> str:
    """Return this type, or its fallback if rows of `row` values do not fit its blocks."""
    while row % TENSORS[type_][1]:
        # llama.cpp falls back to F16, which overflows where a program computes in it.
        type_ = FALLBACK.get(type_, "bf16")
    return type_


def is_matrix(shape: Sequence[int]) -> bool:
    """Return whether a tensor is quantized: norms, which have one dimension, stay F32."""
    return len(shape) > 1


def _hint(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, 1, 0.5)
    return f" (did you mean '{near[0]}'?)" if near else ""
