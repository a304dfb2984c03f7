"""Read and write `.safetensors` with numpy, tensor by tensor, bf16 included.

The format is eight bytes of header length, a JSON header, then the tensors' bytes, little-endian.
The package of that name cannot hand bf16 to numpy, and gemb must not need torch to export a model.
Source: https://github.com/huggingface/safetensors, README, "Format".
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gemb.errors import UsageError
from gemb.io.foreign import MOST, json_value, open_regular
from gemb.io.lfs import check_no_pointer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


FLOATS = ("F32", "BF16", "F16")
_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I8": 1}
_MOST_NUMBER = 1 << 48  # of an offset or a width
_MOST_DIMENSIONS = 8


def not_finite(path: Path, what: str) -> UsageError:
    """Return the refusal of a file whose numbers a failed run has written.

    Args:
        path: the file.
        what: of it holds them.
    """
    return UsageError(
        f"{path}: {what} holds numbers that are not finite; "
        "the run that wrote it had failed: take an earlier checkpoint"
    )


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor stands in a file; nothing of it is read yet."""

    path: Path
    dtype: str  # F32, BF16 or F16; I8 where whole numbers were asked for
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Its length in the file."""
        return self.count * _BYTES[self.dtype]

    @property
    def sources(self) -> tuple[StoredTensor, ...]:
        """What is read from files for its values."""
        return (self,)

    def raw(self) -> NDArray[np.uint8]:
        """Return its bytes, uint8 [size_bytes], mapped from the file, not copied."""
        import numpy as np

        with self.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(mapped, np.uint8, self.size_bytes, self.offset)

    def float32(self, begin: int = 0, end: int | None = None) -> NDArray[np.float32]:
        """Return its values, or its rows begin:end, float32; exact for each dtype."""
        rows = range(self.shape[0])[begin:end]
        row_bytes = self.size_bytes // max(1, self.shape[0])
        raw = self.raw()[rows.start * row_bytes : rows.stop * row_bytes]
        return decoded(raw, self.dtype).reshape(len(rows), *self.shape[1:])


def decoded(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Return stored numbers as float32 [N], exactly; raw uint8 [N * bytes of a number]."""
    import numpy as np

    match dtype:
        case "F32":
            return raw.view("<f4")
        case "F16":
            return raw.view("<f2").astype(np.float32)
        case "I8":
            return raw.view(np.int8).astype(np.float32)
    return (raw.view("<u2").astype("<u4") << 16).view("<f4")  # bf16 is its upper half


def encoded(values: NDArray[np.float64], dtype: str) -> NDArray[np.uint8]:
    """Return finite numbers [N] as they are stored, each rounded to the nearest, ties to even.

    BF16 is rounded from the nearest float32, as every library does.
    """
    match dtype:
        case "F32":
            return values.astype("<f4").view("u1")
        case "F16":
            return values.astype("<f2").view("u1")
    bits: NDArray[np.uint32] = values.astype("<f4").view("<u4")
    halves: NDArray[np.uint16] = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")
    return halves.view("u1")


def read_header(path: Path, *, integers: bool = False) -> dict[str, StoredTensor]:
    """Return every tensor of a file by name, in the order of the header.

    Whole numbers are refused unless `integers`: most are weights of another library's quantization,
    which mean nothing without its scales.

    As strict as the package safetensors: the tensors follow each other without a hole or an overlap
    to the end of the file.

    Raises:
        UsageError: it is not a safetensors file, is broken or cut short, or has a dtype that is no
            float.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(size - 8, MOST):
            check_no_pointer(path)
            raise UsageError(f"{path}: not a safetensors file, or cut short; fetch it again")
        header = json_value(file.read(length), f"{path}: its safetensors header", unique=True)
    if not isinstance(header, dict):
        raise UsageError(f"{path}: its safetensors header is no JSON object; fetch it again")
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(text, str) for text in notes.values()):
        raise UsageError(f"{path}: the header's __metadata__ must map names to texts")
    dtypes = (*FLOATS, "I8") if integers else FLOATS
    tensors = {
        name: _stored(path, name, entry, 8 + length, dtypes) for name, entry in header.items()
    }
    end = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].count)):
        if tensor.offset + tensor.size_bytes > size:
            raise UsageError(f"{path}: cut short at tensor {name}; fetch it again")
        if tensor.offset != end:
            kind = "overlaps the one before it" if tensor.offset < end else "follows a hole"
            raise UsageError(f"{path}: tensor {name} {kind}; the file is broken: fetch it again")
        end += tensor.size_bytes
    if end != size:
        raise UsageError(f"{path}: {size - end} bytes follow the last tensor; fetch it again")
    return tensors


def _stored(
    path: Path, name: str, entry: object, data_start: int, dtypes: Sequence[str]
) -> StoredTensor:
    try:
        fields = cast("dict[str, Any]", entry)
        dtype, shape = fields["dtype"], tuple(fields["shape"])
        begin, end = fields["data_offsets"]
        numbers = (*shape, begin, end)
        is_whole = all(type(n) is int and 0 <= n < _MOST_NUMBER for n in numbers)
    except (TypeError, KeyError, ValueError):
        is_whole = False
    if not is_whole or len(shape) > _MOST_DIMENSIONS:
        raise UsageError(f"{path}: the header's entry of tensor {name} is broken; fetch it again")
    if not isinstance(dtype, str) or dtype not in dtypes:
        known = f"{', '.join(dtypes[:-1])} and {dtypes[-1]}"
        raise UsageError(f"{path}: tensor {name} is {dtype}; gemb reads {known} here")
    tensor = StoredTensor(path, dtype, shape, data_start + begin)
    if tensor.size_bytes != end - begin:
        raise UsageError(f"{path}: tensor {name} has {end - begin} bytes, not its shape's")
    return tensor


@dataclass(frozen=True)
class NewTensor:
    """One tensor to write, and where its bytes come from."""

    dtype: str  # F32, BF16, F16 or I8
    shape: tuple[int, ...]
    parts: Iterable[NDArray[np.uint8]]  # its bytes, in order; read once, when it is written


def lazily(read: Callable[[], NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """Yield what `read` returns, when it is asked for: a tensor to write in one part."""
    yield read()


def write_file(path: Path, tensors: Mapping[str, NewTensor]) -> None:
    """Write a safetensors file, one part of one tensor in memory at a time.

    Raises:
        OSError: the file cannot be written.
    """
    start = _start(tensors)
    with path.open("wb") as file:
        file.write(start)
        for part in (part for tensor in tensors.values() for part in tensor.parts):
            file.write(part.data)
        assert file.tell() == file_size(tensors), "the parts are not as long as their shapes"


def file_size(tensors: Mapping[str, NewTensor] | Mapping[str, StoredTensor]) -> int:
    """Return the size in bytes of the file that `write_file` writes."""
    return len(_start(tensors)) + sum(
        prod(tensor.shape) * _BYTES[tensor.dtype] for tensor in tensors.values()
    )


def _start(tensors: Mapping[str, NewTensor] | Mapping[str, StoredTensor]) -> bytes:
    """Return the header, which precedes the tensors' bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + prod(tensor.shape) * _BYTES[tensor.dtype]
        shape = list(tensor.shape)
        header[name] = {"dtype": tensor.dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
