"""What `gemb embed` wrote as the source of an index: its vectors are taken as they are.

.npy and .f32 with their descriptions beside them, .npz, .parquet and .jsonl. Rows are read as they
are needed; of an .npz, whose members cannot be mapped, the vectors are held in memory.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemb.embedding.vectors import DTYPES, META, VectorSpec, packed, sidecar, unpacked
from gemb.errors import UsageError
from gemb.index.source import Source, SourceRow
from gemb.io.text import visible
from gemb.texts.records import Id, Record, RowError

BATCH = 8192  # rows
SUFFIXES = (".npy", ".npz", ".f32", ".parquet", ".jsonl")
FAILED = RowError("no_vector", "the row has no vector")
# Columns of an output that say something of a row's vector, not of the row.
OWN = ("id", "embedding", "tokens", "truncated", "task", "fingerprint", "dtype", "error")


@dataclass(frozen=True, kw_only=True)
class Described:
    """What a file says of its vectors."""

    spec: VectorSpec | None  # None: JSON lines, which carry but its fingerprint
    fingerprint: str  # of the spec
    task: str  # name of the prompt; empty where the file does not say
    dtype: str
    dim: int


def is_vectors(path: str) -> bool:
    """Return whether a file holds vectors that `gemb embed` wrote. Reads little."""
    file = Path(path)
    if file.suffix not in SUFFIXES or not file.is_file():
        return False
    if file.suffix == ".jsonl":
        return _first_line(file) is not None
    if file.suffix == ".parquet":
        with file.open("rb") as opened:
            if opened.read(4) != b"PAR1":
                return False
        return META.encode() in (_parquet(file).schema_arrow.metadata or {})
    return True


def describe(path: str) -> Described:
    """Return what a file of vectors says of them.

    Raises:
        UsageError: it says too little, or is damaged.
    """
    file = Path(path)
    try:
        if file.suffix == ".jsonl":
            row = _first_line(file) or {}
            dtype = str(row.get("dtype", "f32"))
            width = len(row["embedding"])
            return Described(
                spec=None,
                fingerprint=str(row["fingerprint"]),
                task=str(row.get("task", "")),
                dtype=dtype,
                dim=8 * width if dtype == "ubinary" else width,
            )
        text = _description(file)
        spec = VectorSpec.from_json(text)
        task = str(json.loads(text).get("task", ""))
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None
    return Described(
        spec=spec, fingerprint=spec.fingerprint, task=task, dtype=spec.dtype, dim=spec.dim
    )


def vector_rows(source: Source, spec: VectorSpec) -> Iterator[SourceRow]:
    """Yield the rows of all files, their vectors packed as the index stores them.

    Args:
        source: the files.
        spec: of the index.

    Raises:
        UsageError: a file is not there, is damaged, or has vectors of another kind.
    """
    several = len(source.paths) > 1
    for path, real in zip(source.paths, source.real(), strict=True):
        if not is_vectors(real):
            raise UsageError(f"{visible(real)} is not there, or holds no vectors of gemb embed")
        found = describe(real)
        wanted = VectorSpec(**{**vars(spec), "dtype": found.dtype}).fingerprint
        if found.fingerprint != wanted:
            raise UsageError(
                f"{visible(real)} has vectors of another model, prompt or width than the others; "
                "build an index of its own of it"
            )
        try:
            yield from _file_rows(Path(real), path if several else "", source, spec, found)
        except _UNREADABLE as error:
            raise _unreadable(real, error) from None


def count(paths: Sequence[str]) -> int | None:
    """Return how many rows the files have, None where only reading them tells."""
    total = 0
    for path in map(Path, paths):
        if path.suffix == ".parquet":
            total += int(_parquet(path).metadata.num_rows)
        elif path.suffix == ".npy":
            total += len(np.load(path, mmap_mode="r", allow_pickle=False))
        elif path.suffix == ".f32":
            total += path.stat().st_size // (4 * describe(str(path)).dim)
        else:
            return None
    return total


def _file_rows(
    path: Path, label: str, source: Source, spec: VectorSpec, found: Described
) -> Iterator[SourceRow]:
    batches = {
        ".jsonl": _jsonl_batches,
        ".parquet": _parquet_batches,
    }.get(path.suffix, _array_batches)
    number = 0
    for values, stored in batches(path, found):
        vectors = unpacked(stored, found.dtype, found.dim)
        good = np.logical_and(np.isfinite(vectors).all(axis=1), vectors.any(axis=1)).tolist()
        again = stored if found.dtype == spec.dtype else packed(vectors, spec)
        for place, fields in enumerate(values):
            number += 1
            row_id: Id = fields.get("id", number)  # type: ignore[assignment]
            where = f"{label}:{number}" if label else f"row {number}"
            if label and isinstance(row_id, int):
                row_id = f"{label}:{row_id}"
            record = _record(fields, row_id, where, source, is_good=good[place])
            yield SourceRow(record, row_id, stored=again[place : place + 1])


def _record(
    fields: Mapping[str, object], row_id: Id, place: str, source: Source, *, is_good: bool
) -> Record:
    if not is_good:
        return Record(row_id, place, error=FAILED)
    names = source.fields
    texts = [str(fields[name]) for name in names.text or ("text",) if fields.get(name) is not None]
    title = fields.get(names.title) if names.title else None
    taken = {*OWN, *(names.text or ("text",)), names.title}
    kept = {name: value for name, value in fields.items() if name not in taken}
    if not names.keep_all:
        kept = {name: fields.get(name) for name in names.keep}
    return Record(row_id, place, "\n".join(texts), str(title) if title else None, kept)


_UNREADABLE = (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


def _unreadable(path: str, error: Exception) -> UsageError:
    reason = str(error).split("\n", 1)[0]
    return UsageError(f"{visible(path)}: no vectors of gemb embed can be read from it: {reason}")


Batches = Iterator[tuple[Sequence[Mapping[str, object]], NDArray[Any]]]


def _array_batches(path: Path, found: Described) -> Batches:
    """Yield ids, where there are any, and stored vectors."""
    ids: NDArray[Any] | None = None
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            stored, ids = arrays["vectors"], arrays.get("ids", None)
    elif path.suffix == ".f32":
        stored = np.memmap(path, "<f4", "r").reshape(-1, found.dim)
    else:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    if stored.ndim != 2 or stored.shape[1] != _width(found):
        raise ValueError(f"shape {list(stored.shape)} is not [rows, {_width(found)}]")
    for first in range(0, len(stored), BATCH):
        some = np.array(stored[first : first + BATCH])
        names = ids[first : first + BATCH].tolist() if ids is not None else []
        yield [{"id": one} for one in names] or [{}] * len(some), some


def _jsonl_batches(path: Path, found: Described) -> Batches:
    import orjson

    numbers = {"f32": "<f4", "f16": "<f2", "int8": "i1", "ubinary": "u1"}[found.dtype]
    width = _width(found)
    values: list[Mapping[str, object]] = []
    vectors: list[NDArray[Any]] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            row = orjson.loads(line)
            embedding = row.pop("embedding", None)
            if embedding is not None and (
                len(embedding) != width or row.get("fingerprint") != found.fingerprint
            ):
                raise ValueError(f"line {number} is of another model, prompt or width")
            values.append(row)
            empty = np.zeros(width, numbers)
            vectors.append(empty if embedding is None else np.array(embedding, numbers))
            if len(values) == BATCH:
                yield values, np.stack(vectors)
                values, vectors = [], []
    if values:
        yield values, np.stack(vectors)


def _parquet_batches(path: Path, found: Described) -> Batches:
    for batch in _parquet(path).iter_batches(batch_size=BATCH):
        columns = {
            name: batch.column(place)
            for place, name in enumerate(batch.schema.names)
            if name not in OWN or name == "id"
        }
        embedding = batch.column(batch.schema.get_field_index("embedding"))
        valid = ~np.asarray(embedding.is_null(), np.bool_)
        flat = embedding.flatten().to_numpy(zero_copy_only=False).reshape(-1, _width(found))
        stored = np.zeros((len(valid), _width(found)), flat.dtype)
        stored[valid] = flat
        lists = {name: column.to_pylist() for name, column in columns.items()}
        yield (
            [{name: lists[name][row] for name in lists} for row in range(len(valid))],
            stored,
        )


def _width(found: Described) -> int:
    return found.dim // 8 if found.dtype == "ubinary" else found.dim


def _description(path: Path) -> str | bytes:
    if path.suffix == ".parquet":
        metadata = _parquet(path).schema_arrow.metadata or {}
        described: bytes = metadata[META.encode()]
        return described
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return str(arrays["meta"])
    beside = sidecar(path)
    if not beside.is_file():
        raise UsageError(
            f"{visible(str(path))}: what its vectors are is in {visible(beside.name)}, which is "
            "not there; gemb embed -o writes both"
        )
    return beside.read_bytes()


def _first_line(path: Path) -> Mapping[str, Any] | None:
    """Return the first row with a vector of JSON lines that `gemb embed` wrote, among the first."""
    import orjson

    with path.open("rb") as file:
        for _, line in zip(range(1000), file, strict=False):
            try:
                row = orjson.loads(line)
            except ValueError:
                return None
            if not isinstance(row, dict) or not {"embedding", "error"} & row.keys():
                return None
            if "embedding" in row:
                is_ours = "fingerprint" in row and row.get("dtype", "f32") in DTYPES
                return row if is_ours and isinstance(row["embedding"], list) else None
    return None


def _parquet(path: Path) -> Any:  # noqa: ANN401  pyarrow has no types
    from gemb.texts.tables import import_pyarrow

    pyarrow, parquet = import_pyarrow()
    try:
        return parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        reason = str(error).split("\n", 1)[0]
        raise UsageError(f"{visible(str(path))}: no readable Parquet file: {reason}") from None
