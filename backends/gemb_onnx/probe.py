"""What this processor's integer products are: exact in full, exact in seven bits, or neither.

x86 processors with VNNI or AMX, and ARM ones with dot products, add products of unsigned and signed
bytes in 32 bits. AVX2 alone adds two of them in 16 bits first, which holds 2 * 255 * 63 and not
2 * 255 * 127.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from gemb_onnx.graph import FULL_RANGE, HALF_RANGE
from gemb_onnx.protobuf import Graph
from gemb_onnx.runtime import session

_ROWS, _WIDTH, _COLUMNS = 16, 768, 64


@cache
def weight_range() -> int | None:
    """Return the largest int8 weight that products of this processor are exact with, or None.

    Takes about 5 ms.
    """
    return next((most for most in (FULL_RANGE, HALF_RANGE) if _is_exact(most)), None)


def products() -> str:
    """Return what `gemb doctor` says of this processor."""
    match weight_range():
        case None:
            return "no exact int8 products on this processor: fp32"
        case most if most == FULL_RANGE:
            return "exact int8 products"
    return "int8 products that are exact with weights of seven bits (no VNNI): fp32"


def _is_exact(most: int) -> bool:
    """Return whether the products of the largest numbers are right."""
    signs = np.where(np.arange(_COLUMNS) % 2, 1, -1)
    weights = np.broadcast_to(signs * most, (_WIDTH, _COLUMNS)).astype(np.int8)
    states = np.full((_ROWS, _WIDTH), 255, np.uint8)
    graph = Graph()
    rows = graph.input("states", "uint8", ["N", _WIDTH])
    zero = graph.constant(np.asarray(np.uint8(0)))
    product = graph.add("MatMulInteger", rows, graph.constant(weights), zero)[0]
    graph.output(product, "int32", ["N", _COLUMNS])
    (sums,) = session(graph.file()).run(None, {"states": states})
    return bool((sums == states.astype(np.int64) @ weights.astype(np.int64)).all())
