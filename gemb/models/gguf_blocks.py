"""Numbers of a GGUF tensor as float32, exactly as ggml unpacks them.

The types that gemb writes for a table of tokens are unpacked here, since the package gguf takes
longer to load than a model takes to open; the others are that package's.

Source: llama.cpp, ggml/src/ggml-common.h and ggml-quants.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SCALE = 2  # bytes of a block's float16 scale, which stand first


def unpacked(packed: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    """Return the numbers of packed rows, float32 [rows, numbers].

    Args:
        packed: uint8 [rows, bytes of a row].
        kind: the tensor's type, in small letters: "q4_0".

    Raises:
        NotImplementedError: the package gguf cannot unpack this type.
        KeyError: it does not know it.
    """
    rows = len(packed)
    match kind:
        case "f32" | "f16" | "bf16":
            from gemb.models.safetensors import decoded

            return decoded(np.ascontiguousarray(packed).reshape(-1), kind.upper()).reshape(rows, -1)
        case "q8_0":  # a scale, and 32 signed bytes
            blocks = packed.reshape(rows, -1, _SCALE + 32)
            numbers = blocks[..., _SCALE:].view(np.int8)
        case "q4_0":  # a scale, and 32 numbers from -8 to 7: the lower halves of 16 bytes first
            blocks = packed.reshape(rows, -1, _SCALE + 16)
            halves = blocks[..., _SCALE:]
            numbers = np.concatenate([halves & 15, halves >> 4], axis=-1).view(np.int8) - np.int8(8)
        case _:
            return _by_library(packed, kind)
    scales = np.ascontiguousarray(blocks[..., :_SCALE]).view("<f2").astype(np.float32)
    return (numbers * scales).reshape(rows, -1)


def _by_library(packed: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    import gguf

    wide: NDArray[np.float32] = gguf.dequantize(packed, gguf.GGMLQuantizationType[kind.upper()])
    return wide
