"""Read the header of a GGUF file, and refuse a broken one before llama.cpp sees it.

    GGUF  version  tensor count  entry count
    entries:  key, type, value            key and strings: length as uint64, then UTF-8
    tensors:  name, dimensions, type, offset
    padding, then the tensors' bytes

`gguf.GGUFReader` needs seconds for 262,144 tokens, and trusts the file. Here long arrays are
skipped, and every count and length is compared with the file's size, so that even a damaged file is
read in milliseconds. Source: ggml `docs/gguf.md` and `src/gguf.cpp`.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from gemb.errors import UsageError
from gemb.io.foreign import open_regular
from gemb.io.lfs import check_no_pointer
from gemb.models.tensors import FP16_OVERFLOW

# GGUF's value types: number -> name, struct code (none for strings and arrays).
STRING, ARRAY = 8, 9
VALUE_TYPES: dict[int, tuple[str, str]] = {
    0: ("uint8", "B"),
    1: ("int8", "b"),
    2: ("uint16", "H"),
    3: ("int16", "h"),
    4: ("uint32", "I"),
    5: ("int32", "i"),
    6: ("float32", "f"),
    7: ("bool", "?"),
    STRING: ("string", ""),
    ARRAY: ("array", ""),
    10: ("uint64", "Q"),
    11: ("int64", "q"),
    12: ("float64", "d"),
}

# ggml's tensor types: number -> name, values in a block, bytes in a block (ggml.c `type_traits`).
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("f32", 1, 4),
    1: ("f16", 1, 2),
    2: ("q4_0", 32, 18),
    3: ("q4_1", 32, 20),
    6: ("q5_0", 32, 22),
    7: ("q5_1", 32, 24),
    8: ("q8_0", 32, 34),
    10: ("q2_K", 256, 84),
    11: ("q3_K", 256, 110),
    12: ("q4_K", 256, 144),
    13: ("q5_K", 256, 176),
    14: ("q6_K", 256, 210),
    16: ("iq2_xxs", 256, 66),
    17: ("iq2_xs", 256, 74),
    18: ("iq3_xxs", 256, 98),
    19: ("iq1_s", 256, 50),
    20: ("iq4_nl", 32, 18),
    21: ("iq3_s", 256, 110),
    22: ("iq2_s", 256, 82),
    23: ("iq4_xs", 256, 136),
    29: ("iq1_m", 256, 56),
    30: ("bf16", 1, 2),
    34: ("tq1_0", 256, 54),
    35: ("tq2_0", 256, 66),
    39: ("mxfp4", 32, 17),
    40: ("nvfp4", 64, 36),
    41: ("q1_0", 128, 18),
    42: ("q2_0", 64, 18),
}
# The same by name -> (number, values in a block, bytes in a block).
TENSORS = {
    name.lower(): (number, block, size) for number, (name, block, size) in TENSOR_TYPES.items()
}

# llama.cpp on a CPU keeps the residual in fp32, and computes f16 weights rightly; a program that
# computes all in the weights' type does not (vLLM issue 24318, unsloth PR 4014).
F16_REASON = (
    "f16 overflows where a program computes in the type of the weights: "
    f"{FP16_OVERFLOW}; use bf16, which is as small"
)

Scalar = int | float | bool | str

ALIGNMENT = 32  # bytes, where general.alignment is absent; no other may be smaller
LONG = 1024  # arrays up to this length are read, longer ones only placed

_MOST_ENTRIES = 10_000
_MOST_TENSORS = 100_000
_MOST_STRINGS = 1 << 22  # in one array
_MOST_NAME = 63  # bytes in a tensor's name (GGML_MAX_NAME - 1)


@dataclass(frozen=True)
class Array:
    """An array among the metadata. `values` is None where it is long."""

    type: str  # of an item: string, float32, int32, ...
    length: int
    begin: int  # bytes begin:end of the file
    end: int
    values: tuple[Scalar, ...] | None


@dataclass(frozen=True)
class TensorInfo:
    """The shape, type and position of one tensor."""

    name: str
    shape: tuple[int, ...]  # as ggml has it: the innermost first
    type: str  # f32, bf16, q8_0, ...
    offset: int  # of its first byte in the file
    size_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """The header of a GGUF file: everything before the bytes of its tensors."""

    path: Path
    metadata: Mapping[str, Scalar | Array]
    types: Mapping[str, str]  # of the metadata's values: uint32, string, array, ...
    tensors: Mapping[str, TensorInfo]  # in the file's order
    data_start: int  # byte where the tensors begin
    size_bytes: int  # of the file


def looks_like_gguf(path: Path) -> bool:
    """Return whether the file begins as GGUF does, or is named so."""
    if not path.is_file():
        return False
    if path.suffix == ".gguf":
        return True
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def read_header(path: Path) -> GgufHeader:
    """Return the header of a GGUF file.

    Raises:
        UsageError: no such file, no GGUF, a version that llama.cpp does not read, broken or cut.
    """
    try:
        with open_regular(path) as file:
            if path.stat().st_size < 24:
                raise _broken(path, "it is shorter than any header")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such GGUF file") from error
    with data:
        return _HeaderReader(path, data).header()


def strings(header: GgufHeader, key: str) -> list[bytes]:
    """Return a long array of strings, as UTF-8 bytes.

    Raises:
        UsageError: the key is absent, or no array of strings.
    """
    array = header.metadata.get(key)
    if not isinstance(array, Array) or array.type != "string":
        raise UsageError(f"{header.path}: {key} is no array of strings; fetch or write it again")
    with header.path.open("rb") as file:
        file.seek(array.begin)
        data = file.read(array.end - array.begin)
    values = []
    at = 0
    unpack = struct.Struct("<Q").unpack_from
    for _ in range(array.length):
        end = at + 8 + unpack(data, at)[0]
        values.append(data[at + 8 : end])
        at = end
    return values


def _broken(path: Path, why: str) -> UsageError:
    return UsageError(f"{path}: not a whole GGUF file: {why}; fetch or write it again")


class _HeaderReader:
    """Steps through the header; `at` is the next byte."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.at = 0

    def header(self) -> GgufHeader:
        if self.data[:4] != b"GGUF":
            check_no_pointer(self.path)
            raise _broken(self.path, "it does not begin with GGUF")
        self.at = 4
        version = self.number("I")
        if version not in (2, 3):
            raise _broken(self.path, f"version {version}, and llama.cpp reads 2 and 3")
        tensor_count, entry_count = self.number("Q"), self.number("Q")
        if tensor_count > _MOST_TENSORS or entry_count > _MOST_ENTRIES:
            raise _broken(self.path, f"{tensor_count} tensors and {entry_count} entries")
        metadata, types = self.entries(entry_count)
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if types.get("general.alignment", "uint32") != "uint32" or not _is_alignment(alignment):
            raise _broken(self.path, f"general.alignment is {alignment!r}")
        assert isinstance(alignment, int), alignment
        raw = [self.tensor() for _ in range(tensor_count)]
        start = -(-self.at // alignment) * alignment
        return GgufHeader(
            path=self.path,
            metadata=metadata,
            types=types,
            tensors=self.placed(raw, start, alignment),
            data_start=start,
            size_bytes=self.size,
        )

    def entries(self, count: int) -> tuple[dict[str, Scalar | Array], dict[str, str]]:
        metadata: dict[str, Scalar | Array] = {}
        types: dict[str, str] = {}
        for _ in range(count):
            key = self.text()
            if not key or key in metadata:
                raise _broken(self.path, f"the key {key!r} is empty or occurs twice")
            kind = self.number("I")
            metadata[key] = self.array(key) if kind == ARRAY else self.scalar(key, kind)
            types[key] = VALUE_TYPES[kind][0]
        return metadata, types

    def scalar(self, key: str, kind: int) -> Scalar:
        if kind == STRING:
            return self.text()
        if kind not in VALUE_TYPES:
            raise _broken(self.path, f"{key!r} has the unknown type {kind}")
        return self.number(VALUE_TYPES[kind][1])

    def array(self, key: str) -> Array:
        kind, length = self.number("I"), self.number("Q")
        begin = self.at
        if kind not in VALUE_TYPES or kind == ARRAY:
            raise _broken(self.path, f"{key!r} is an array of the unknown type {kind}")
        name, code = VALUE_TYPES[kind]
        values: tuple[Scalar, ...] | None = None
        if kind == STRING:
            if length > min(_MOST_STRINGS, (self.size - self.at) // 8):
                raise _broken(self.path, f"{key!r} has {length} strings")
            if length <= LONG:
                values = tuple(self.text() for _ in range(length))
            else:
                self.skip_strings(key, length)
        else:
            item = struct.calcsize("<" + code)
            if length > (self.size - self.at) // item:
                raise _broken(self.path, f"{key!r} has {length} items, more than the file holds")
            if length <= LONG:
                values = struct.unpack_from(f"<{length}{code}", self.data, self.at)
            self.at += length * item
        return Array(name, length, begin, self.at, values)

    def skip_strings(self, key: str, count: int) -> None:
        data, at = self.data, self.at
        unpack = struct.Struct("<Q").unpack_from
        try:
            for _ in range(count):
                at += 8 + unpack(data, at)[0]
        except (struct.error, OverflowError, IndexError) as error:
            raise _broken(self.path, f"a string of {key!r} runs past its end") from error
        self.at = at
        self.check(0)

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Return name, shape, type and relative offset."""
        name = self.text()
        if len(name.encode()) > _MOST_NAME:
            raise _broken(self.path, f"a tensor's name of {len(name)} characters")
        dimensions = self.number("I")
        if not 1 <= dimensions <= 4:
            raise _broken(self.path, f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))
        return name, shape, self.number("I"), self.number("Q")

    def placed(
        self, raw: list[tuple[str, tuple[int, ...], int, int]], start: int, alignment: int
    ) -> dict[str, TensorInfo]:
        """Return the tensors, after checking that each follows the one before it."""
        tensors: dict[str, TensorInfo] = {}
        expected = 0
        for name, shape, kind, offset in raw:
            if name in tensors:
                raise _broken(self.path, f"tensor {name!r} occurs twice")
            if kind not in TENSOR_TYPES:
                raise UsageError(
                    f"{self.path}: tensor {name!r} has ggml type {kind}, which gemb does not know; "
                    f"it knows {', '.join(known for known, _, _ in TENSOR_TYPES.values())}"
                )
            type_name, block, block_bytes = TENSOR_TYPES[kind]
            if shape[0] % block or not all(shape):
                raise _broken(self.path, f"tensor {name!r}: shape {list(shape)} as {type_name}")
            if offset != expected:
                raise _broken(self.path, f"tensor {name!r} is at offset {offset}, not {expected}")
            size = prod(shape) // block * block_bytes
            if start + offset + size > self.size:
                raise UsageError(
                    f"{self.path}: cut short: tensor {name} ends at byte {start + offset + size}, "
                    f"the file has {self.size}; fetch or write it again"
                )
            tensors[name] = TensorInfo(name, shape, type_name, start + offset, size)
            expected = -(-(offset + size) // alignment) * alignment
        return tensors

    def number(self, code: str) -> int:
        size = struct.calcsize("<" + code)
        self.check(size)
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += size
        return value  # type: ignore[no-any-return]

    def text(self) -> str:
        length = self.number("Q")
        self.check(length)
        raw = self.data[self.at : self.at + length]
        self.at += length
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise _broken(
                self.path, f"the string at byte {self.at - length} is no UTF-8"
            ) from error

    def check(self, size: int) -> None:
        if self.at + size > self.size:
            raise _broken(
                self.path, f"the header requires byte {self.at + size}, the file has {self.size}"
            )


def _is_alignment(value: object) -> bool:
    """Return whether it is a power of two, and as large as ggml's `TENSOR_ALIGNMENT` at least."""
    return isinstance(value, int) and value >= ALIGNMENT and value & (value - 1) == 0
