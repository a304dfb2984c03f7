"""Quantization-aware training: which type each tensor is trained for, and where that is kept.

Rounding to these types does not change the weights of such a model. The types are kept as JSON: in
config.json of the folder, in the metadata of the GGUF file:

    "gemb_qat": {"token_embd": "q4_0", "attention": "q8_0", "ffn": "q4_0", "dense": "q8_0"}
    gemb.qat = '{"token_embd": "q4_0", ...}'

Norms are f32 always.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemb.errors import UsageError
from gemb.io.foreign import json_value
from gemb.io.text import visible
from gemb.models.config import read_json
from gemb.models.tensors import CLASSES, QAT_TYPES

CONFIG_KEY = "gemb_qat"
GGUF_KEY = "gemb.qat"
_SHOWN = 200  # characters of what stands in its place, in a message

Types = Mapping[str, str]  # of CLASSES -> q4_0, q8_0, bf16 or f32; empty: not trained so


def trained_types(raw: Mapping[str, Any], where: object) -> dict[str, str]:
    """Return the types that a folder's config.json names; empty where it names none.

    Raises:
        UsageError: it names other types than `QAT_TYPES`.
    """
    types = raw.get(CONFIG_KEY)
    if types is None:
        return {}
    is_whole = isinstance(types, dict) and set(types) == set(CLASSES)
    if not is_whole or not all(type_ in QAT_TYPES for type_ in types.values()):
        try:
            shown = visible(json.dumps(types), _SHOWN)
        except RecursionError:  # it is nested almost as deeply as can be read
            shown = "nested deeply"
        raise UsageError(
            f"{where}: {CONFIG_KEY} is {shown}; it must give {', '.join(CLASSES)} one "
            f"of {', '.join(QAT_TYPES)} each"
        )
    return dict(types)


def folder_types(folder: Path) -> dict[str, str]:
    """Return the types that a model folder was trained for; empty where it was not.

    Raises:
        UsageError: there is no config.json, or it names other types than gemb has.
    """
    from gemb.models.adapter import is_adapter  # which a GGUF file does not need

    if is_adapter(folder):  # its change leaves the numbers that the types can hold
        return {}
    path = folder / "config.json"
    return trained_types(read_json(path), path)


def gguf_types(types: Types, stated: object, path: Path) -> dict[str, str]:
    """Return the types that a file was trained for; empty where it has others now, or names none.

    Args:
        types: that the file has, by class.
        stated: its `gemb.qat`; None: it has none.
        path: of the file, for the message.

    Raises:
        UsageError: its `gemb.qat` is not what gemb writes.
    """
    if stated is None:
        return {}
    value = json_value(str(stated).encode("utf-8", "surrogatepass"), f"{path}: {GGUF_KEY}")
    trained = trained_types({CONFIG_KEY: value}, path)
    # A program that quantized the file again may have left the key as it was.
    return trained if keeps(types, trained) else {}


def file_types(outtype: str, trained: Types) -> dict[str, str]:
    """Return the types of an exported file; auto: those that were trained for, or bf16."""
    if outtype == "auto" and trained:
        return dict(trained)
    return dict.fromkeys(CLASSES, "bf16" if outtype == "auto" else outtype)


def keeps(types: Types, trained: Types) -> bool:
    """Return whether a file of these types holds the numbers that were trained."""
    return bool(trained) and all(types[name] in (trained[name], "f32") for name in CLASSES)


def in_words(types: Types) -> str:
    """Return `q4_0 (token_embd, ffn), q8_0 (attention, dense)`, or one type alone."""
    if len(set(types.values())) == 1:
        return next(iter(types.values()))
    classes = {type_: [name for name in types if types[name] == type_] for type_ in types.values()}
    return ", ".join(f"{type_} ({', '.join(names)})" for type_, names in classes.items())
