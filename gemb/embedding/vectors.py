"""What the numbers of a vector file mean, and files of vectors read back.

int8 has a fixed scale that depends on the width alone, never on the batch, so that equal text gives
equal bytes: component x becomes round(127 x / clip), with clip = `INT8_SPREAD` / sqrt(dim), at most
1. ubinary is one bit a component, 1 where it is above 0, the first component in the highest bit.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gemb.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gemb.texts.records import Id


DTYPES = ("f32", "f16", "int8", "ubinary")
META = "gemb"  # the key of the description in a Parquet schema, and its mark in JSON

# The component that becomes 127, in units of 1/sqrt(dim), the root mean square of a unit vector's.
# Of EmbeddingGemma-300M the largest is 7.7 (282 document texts in 12 languages, all four widths):
# nothing is clipped, and the cosine of a text's int8 and float vectors is at least 0.9998. With 6
# it falls to 0.998, for a few components are always large.
INT8_SPREAD = 8.0


@dataclass(frozen=True, kw_only=True)
class VectorSpec:
    """All that decides the numbers for a text. Vectors of two different ones never mix."""

    model: str  # fingerprint of the model
    prompt: str  # template
    dim: int
    dtype: str  # one of DTYPES
    max_tokens: int  # longer texts were cut here

    @property
    def fingerprint(self) -> str:
        """16 hex digits."""
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def int8_clip(self) -> float:
        """The component that becomes 127."""
        return _int8_clip(self.dim)

    def to_json(self, **more: object) -> str:
        """Return the description that a vector file carries, with `more` entries, in one line."""
        clip = {"int8_clip": self.int8_clip} if self.dtype == "int8" else {}
        entries = {META: 1, "fingerprint": self.fingerprint, **asdict(self), **clip, **more}
        return json.dumps(entries, ensure_ascii=False)

    @staticmethod
    def from_json(text: str | bytes) -> VectorSpec:
        """Return the spec in a description.

        Raises:
            UsageError: it is none of ours.
        """
        try:
            entries = json.loads(text)
            names = VectorSpec.__dataclass_fields__
            spec = VectorSpec(**{name: entries[name] for name in names})
            if spec.dtype not in DTYPES:
                raise ValueError(spec.dtype)
            return spec
        except (ValueError, KeyError, TypeError):
            raise UsageError("the description of the vectors is none that gemb wrote") from None


def _int8_clip(dim: int) -> float:
    return min(1.0, INT8_SPREAD / math.sqrt(dim))


def packed(vectors: NDArray[np.float32], spec: VectorSpec) -> NDArray[Any]:
    """Return float32 [n, dim] in the spec's dtype: [n, dim], or uint8 [n, dim / 8] for ubinary.

    A row of NaN, which failed, stays NaN in f32 and f16, and is all zeros in int8 and ubinary.
    """
    import numpy as np

    match spec.dtype:
        case "f32":
            return vectors
        case "f16":
            return vectors.astype(np.float16)
        case "int8":
            scaled = np.nan_to_num(vectors * np.float32(127 / spec.int8_clip))
            whole: NDArray[Any] = np.rint(np.clip(scaled, -127, 127)).astype(np.int8)
            return whole
        case "ubinary":
            return np.packbits(vectors > 0, axis=1)
    raise AssertionError(spec.dtype)


def unpacked(stored: NDArray[Any], dtype: str, dim: int) -> NDArray[np.float32]:
    """Return float32 [n, dim] for what `packed` made; sign bits become +1 and -1, no bit NaN.

    Raises:
        TypeError: the numbers are complex, or no numbers.
    """
    import numpy as np

    if stored.dtype.kind not in "fiu":
        raise TypeError(f"{stored.dtype} is no type of real numbers")
    if dtype == "ubinary":
        bits = np.unpackbits(stored.astype(np.uint8), axis=1, count=dim)
        signs = bits.astype(np.float32) * 2 - 1
        # No unit vector of a model is without a positive component: this row failed.
        signs[~stored.any(axis=1)] = np.nan
        return signs
    if dtype == "int8":
        return stored.astype(np.float32) * np.float32(_int8_clip(dim) / 127)
    return stored.astype(np.float32)


class VectorFile(NamedTuple):
    """Vectors that were read back."""

    vectors: NDArray[np.float32]  # [n, dim]; NaN where a row failed
    ids: Sequence[Id]  # the row's number from 1 where the file holds none
    dtype: str  # one of DTYPES, in which they were stored; f32 where the file does not say
    spec: VectorSpec | None  # None where the file does not say


def sidecar(path: Path) -> Path:
    """Return where the description of a file that cannot hold one lies: beside it or its target."""
    beside = path.with_name(path.name + ".json")
    if path.is_symlink() and not beside.exists():
        return sidecar(path.resolve())
    return beside


def read_vectors(path: Path) -> VectorFile:
    """Read a .npy, .npz, .parquet, .jsonl or .f32 file that `gemb embed` wrote, or a plain .npy.

    Raises:
        UsageError: the file is absent, damaged, or of another kind.
        Missing: it is a Parquet file, and pyarrow is not installed.
    """
    readers = {
        ".npy": _read_npy,
        ".npz": _read_npz,
        ".parquet": _read_parquet,
        ".jsonl": _read_jsonl,
        ".f32": _read_f32,
    }
    if path.suffix not in readers:
        raise UsageError(f"{path}: vectors are read from {', '.join(readers)} files")
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    try:
        found = readers[path.suffix](path)
    except (ValueError, KeyError, EOFError, TypeError) as error:
        reason = str(error).split("\n", 1)[0]
        raise UsageError(f"{path}: no vectors can be read from it: {reason}") from None
    if found.vectors.ndim != 2:
        raise UsageError(f"{path}: shape {list(found.vectors.shape)} is not [rows, dim]")
    return found


def _beside(path: Path) -> VectorSpec | None:
    described = sidecar(path)
    return VectorSpec.from_json(described.read_bytes()) if described.is_file() else None


def _numbered(
    stored: NDArray[Any], spec: VectorSpec | None, ids: Sequence[Id] | None = None
) -> VectorFile:
    dtype, dim = (spec.dtype, spec.dim) if spec else ("f32", 0)
    return VectorFile(unpacked(stored, dtype, dim), ids or range(1, len(stored) + 1), dtype, spec)


def _read_npy(path: Path) -> VectorFile:
    import numpy as np

    return _numbered(np.load(path, allow_pickle=False), _beside(path))


def _read_npz(path: Path) -> VectorFile:
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as arrays:
            spec = VectorSpec.from_json(str(arrays["meta"])) if "meta" in arrays else None
            ids = arrays["ids"].tolist() if "ids" in arrays else None
            return _numbered(arrays["vectors"], spec, ids)
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from None


def _read_f32(path: Path) -> VectorFile:
    import numpy as np

    spec = _beside(path)
    if spec is None:
        raise UsageError(f"{path}: its width is in {sidecar(path).name}, which is not there")
    return _numbered(np.fromfile(path, dtype="<f4").reshape(-1, spec.dim), spec)


def _read_parquet(path: Path) -> VectorFile:
    import numpy as np

    from gemb.texts.tables import import_pyarrow

    pyarrow, parquet = import_pyarrow()
    table = parquet.read_table(path)
    metadata = table.schema.metadata or {}
    spec = VectorSpec.from_json(metadata[META.encode()]) if META.encode() in metadata else None
    column = table["embedding"].combine_chunks()
    valid = ~np.asarray(column.is_null())
    if not pyarrow.types.is_fixed_size_list(column.type):
        raise TypeError(f"its column 'embedding' is {column.type}, not lists of one length")
    flat = column.flatten().to_numpy(zero_copy_only=False)  # of the rows that are not null
    dtype, dim = (spec.dtype, spec.dim) if spec else ("f32", 0)
    some = unpacked(flat.reshape(-1, column.type.list_size), dtype, dim)
    vectors = np.full((len(valid), some.shape[1]), np.nan, np.float32)
    vectors[valid] = some
    ids = table["id"].to_pylist() if "id" in table.column_names else range(1, len(valid) + 1)
    return VectorFile(vectors, ids, dtype, spec)


def _read_jsonl(path: Path) -> VectorFile:
    import numpy as np

    from gemb.embedding.formats.lines import read_rows

    ids: list[Id] = []
    rows: list[NDArray[Any] | None] = []
    dtypes: set[str] = set()
    for row in read_rows(path):
        ids.append(row.fields.get("id", row.number))
        rows.append(row.vector)
        if row.vector is not None:
            dtypes.add(row.fields.get("dtype", "f32"))
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        raise UsageError(f"{path}: its rows are of the types {', '.join(sorted(map(str, dtypes)))}")
    dtype = dtypes.pop() if dtypes else "f32"
    good = [place for place, row in enumerate(rows) if row is not None]
    some = np.array([row for row in rows if row is not None])
    width = some.shape[1] if good else 0
    dim = 8 * width if dtype == "ubinary" else width
    vectors = np.full((len(rows), dim), np.nan, np.float32)
    if good:
        vectors[good] = unpacked(some, dtype, dim)
    return VectorFile(vectors, ids, dtype, None)
