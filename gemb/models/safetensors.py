"""Read and write `.safetensors` with numpy, tensor by tensor, bf16 included.

The format is eight bytes of header length, a JSON header, then the tensors' bytes, little-endian.
The package of that name cannot hand bf16 to numpy, and gemb must not need torch to export a model.
Source: https://github.com/huggingface/safetensors, README, "Format".
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gemb.errors import UsageError
from gemb.models.lfs import check_no_pointer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
_HEADER_LIMIT = 100_000_000  # as the reference implementation


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor stands in a file; nothing of it is read yet."""

    path: Path
    dtype: str  # F32, BF16 or F16
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
        """Return its values, or its rows begin:end, float32; exact for each of the three dtypes."""
        rows = range(self.shape[0])[begin:end]
        row_bytes = self.size_bytes // max(1, self.shape[0])
        raw = self.raw()[rows.start * row_bytes : rows.stop * row_bytes]
        return decoded(raw, self.dtype).reshape(len(rows), *self.shape[1:])


def decoded(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Return stored numbers as float32 [N], exactly; raw uint8 [N * bytes of F32, BF16 or F16]."""
    import numpy as np

    match dtype:
        case "F32":
            return raw.view("<f4")
        case "F16":
            return raw.view("<f2").astype(np.float32)
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


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return every tensor of a file by name.

    Raises:
        UsageError: it is not a safetensors file, is cut short, or has a dtype that is no float.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(size - 8, _HEADER_LIMIT):
            check_no_pointer(path)
            raise UsageError(f"{path}: not a safetensors file, or cut short; fetch it again")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
        except ValueError as error:
            raise UsageError(f"{path}: its safetensors header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise UsageError(f"{path}: its safetensors header is no JSON object; fetch it again")
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        tensor = _stored(path, name, entry, 8 + length)
        if tensor.offset + tensor.size_bytes > size:
            raise UsageError(f"{path}: cut short at tensor {name}; fetch it again")
        tensors[name] = tensor
    return tensors


def _stored(path: Path, name: str, entry: object, data_start: int) -> StoredTensor:
    try:
        fields = cast("dict[str, Any]", entry)
        dtype, shape = fields["dtype"], tuple(fields["shape"])
        begin, end = fields["data_offsets"]
        whole = all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        whole = False
    if not whole:
        raise UsageError(f"{path}: the header's entry of tensor {name} is broken; fetch it again")
    if dtype not in _BYTES:
        raise UsageError(f"{path}: tensor {name} is {dtype}; gemb reads F32, BF16 and F16")
    tensor = StoredTensor(path, dtype, shape, data_start + begin)
    if tensor.size_bytes != end - begin:
        raise UsageError(f"{path}: tensor {name} has {end - begin} bytes, not its shape's")
    return tensor


@dataclass(frozen=True)
class NewTensor:
    """One tensor to write, and where its bytes come from."""

    dtype: str  # F32, BF16 or F16
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
