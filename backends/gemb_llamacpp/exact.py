"""Give a quantized file the blocks of ggml's reference rounding, whatever compiled llama.cpp.

A compiler may fuse a product and a sum into one step of another rounding, and a few codes of a
million then differ. Training that imitates the rounding imitates the reference, as gguf's
quantizers do.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gemb.backend import TensorPlan
from gemb.errors import UsageError
from gemb.models.gguf_header import GgufHeader, read_header
from gemb.weights.types import PLAIN, is_matrix

if TYPE_CHECKING:
    from pathlib import Path

REFERENCED = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")  # types whose reference gguf has, bit for bit
_ROWS = 4096  # of a tensor in memory at a time


def make_exact(source: GgufHeader, target: Path, plan: Sequence[TensorPlan]) -> None:
    """Overwrite the blocks of a file that are not the reference's.

    Args:
        source: the unquantized file.
        target: what llama.cpp made of it.
        plan: the types of its tensors.

    Raises:
        UsageError: a type has no reference here.
    """
    import gguf
    import numpy as np

    written = read_header(target)
    with source.path.open("rb") as file:
        given = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with target.open("r+b") as file:
        for tensor in plan:
            if not is_matrix(tensor.shape) or tensor.type in PLAIN:
                continue
            if tensor.type not in REFERENCED or tensor.source not in PLAIN:
                raise UsageError(
                    f"{tensor.name} from {tensor.source} to {tensor.type}: only "
                    f"{', '.join(REFERENCED)} can be exact"
                )
            kind = gguf.GGMLQuantizationType[tensor.type.upper()]
            before, after = source.tensors[tensor.name], written.tensors[tensor.name]
            rows = tensor.shape[1]
            raw = np.frombuffer(given, np.uint8, before.size_bytes, before.offset)
            raw = raw.reshape(rows, -1)
            file.seek(after.offset)
            for begin in range(0, rows, _ROWS):
                wide = gguf.dequantize(
                    raw[begin : begin + _ROWS], gguf.GGMLQuantizationType[tensor.source.upper()]
                )
                with np.errstate(all="ignore"):  # llama.cpp has looked at the scales
                    packed = gguf.quantize(np.ascontiguousarray(wide, np.float32), kind)
                file.write(np.ascontiguousarray(packed).data)
