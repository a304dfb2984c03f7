"""Write an ONNX file: the few messages of `onnx.proto` that a graph of this backend has.

The package `onnx` would write them too; it is 31 MB, and takes longer to import than the file takes
to write. Field numbers: https://github.com/onnx/onnx, onnx/onnx.proto (IR version 10). Encoding:
https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

IR_VERSION = 10
OPSETS = {"": 21, "com.microsoft": 1}
_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9, "float16": 10}

Attribute = int | float | str | Sequence[int]


def _varint(number: int) -> bytes:
    number &= (1 << 64) - 1  # negative numbers are 64-bit two's complement
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)


def _number(key: int, number: int) -> bytes:
    return _varint(key << 3) + _varint(number)


def _bytes(key: int, data: bytes | str) -> bytes:
    data = data.encode() if isinstance(data, str) else data
    return _varint(key << 3 | 2) + _varint(len(data)) + data


def _attribute(name: str, value: Attribute) -> bytes:
    match value:
        case int():
            rest = _number(3, value) + _number(20, 2)
        case float():
            rest = _varint(2 << 3 | 5) + struct.pack("<f", value) + _number(20, 1)
        case str():
            rest = _bytes(4, value) + _number(20, 3)
        case _:
            rest = b"".join(_number(8, item) for item in value) + _number(20, 7)
    return _bytes(5, _bytes(1, name) + rest)


def _value(name: str, dtype: str, shape: Sequence[int | str]) -> bytes:
    dims = b"".join(
        _bytes(1, _number(1, size) if isinstance(size, int) else _bytes(2, size)) for size in shape
    )
    tensor = _number(1, _TYPES[dtype]) + _bytes(2, dims)
    return _bytes(1, name) + _bytes(2, _bytes(1, tensor))


@dataclass
class Graph:
    """A graph that grows by nodes; `file` gives the bytes of the `.onnx` file."""

    inputs: list[bytes] = field(default_factory=list)
    outputs: list[bytes] = field(default_factory=list)
    nodes: list[bytes] = field(default_factory=list)
    constants: list[bytes] = field(default_factory=list)
    names: int = 0  # that were given so far

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> str:
        """Add an input of the graph, and return its name."""
        self.inputs.append(_value(name, dtype, shape))
        return name

    def output(self, name: str, dtype: str, shape: Sequence[int | str]) -> None:
        """Make a value an output of the graph."""
        self.outputs.append(_value(name, dtype, shape))

    def constant(self, values: NDArray[np.generic]) -> str:
        """Add a small constant, which stands in the file itself, and return its name."""
        name = self._name("c")
        self.constants.append(
            self._tensor(name, str(values.dtype), values.shape) + _bytes(9, values.tobytes())
        )
        return name

    def stored(self, file: str, offset: int, values: NDArray[np.generic]) -> str:
        """Add a constant whose bytes stand in another file of the folder, and return its name."""
        name = self._name("w")
        places = {"location": file, "offset": str(offset), "length": str(values.nbytes)}
        entries = b"".join(
            _bytes(13, _bytes(1, key) + _bytes(2, value)) for key, value in places.items()
        )
        head = self._tensor(name, str(values.dtype), values.shape)
        self.constants.append(head + entries + _number(14, 1))
        return name

    def add(
        self,
        operator: str,
        *inputs: str,
        domain: str = "",
        outputs: int = 1,
        attributes: Mapping[str, Attribute] | None = None,
    ) -> list[str]:
        """Add a node, and return the names of its outputs. An empty input is one that is absent."""
        results = [self._name("v") for _ in range(outputs)]
        self.nodes.append(
            b"".join(_bytes(1, name) for name in inputs)
            + b"".join(_bytes(2, name) for name in results)
            + _bytes(3, f"{operator}_{results[0]}")
            + _bytes(4, operator)
            + b"".join(_attribute(*item) for item in (attributes or {}).items())
            + (_bytes(7, domain) if domain else b"")
        )
        return results

    def file(self) -> bytes:
        """Return the whole file."""
        graph = (
            b"".join(_bytes(1, node) for node in self.nodes)
            + _bytes(2, "encoder")
            + b"".join(_bytes(5, constant) for constant in self.constants)
            + b"".join(_bytes(11, value) for value in self.inputs)
            + b"".join(_bytes(12, value) for value in self.outputs)
        )
        opsets = b"".join(
            _bytes(8, _bytes(1, domain) + _number(2, version)) for domain, version in OPSETS.items()
        )
        return _number(1, IR_VERSION) + _bytes(2, "gemb") + _bytes(7, graph) + opsets

    def _name(self, kind: str) -> str:
        self.names += 1
        return f"{kind}{self.names}"

    @staticmethod
    def _tensor(name: str, dtype: str, shape: Sequence[int]) -> bytes:
        dims = b"".join(_number(1, size) for size in shape)
        return dims + _number(2, _TYPES[dtype]) + _bytes(8, name)
