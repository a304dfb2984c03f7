"""Files of vectors as a teacher: what `gemb embed --keep text` wrote, as JSON lines or Parquet.

A row is found by its text, its title and its task: its key is that of the words which the model
card puts around them (`gemb.prompts.CARD`), whatever words the model that made it saw. The rows are
copied into the cache once, so that a file of any size is as fast as a model's vectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from gemb.embedding.formats.lines import read_rows
from gemb.embedding.store import VectorStore, key_of
from gemb.embedding.vectors import META, VectorSpec, unpacked
from gemb.errors import UsageError
from gemb.io.notes import note, warn
from gemb.models.fingerprint import fingerprint
from gemb.models.prompts import CARD, TASKS, Prompt, for_task
from gemb.teachers import Filling, Teacher, Wanted

READ = (".jsonl", ".parquet")
TEXTLESS = (".npy", ".npz", ".f32", ".csv", ".base64")
CHUNK = 4096  # rows at a time


class Chunk(NamedTuple):
    """Rows that were read."""

    words: list[str]
    vectors: NDArray[np.float32]  # [len(words), dim]
    failed: int  # rows beside these that have no vector


def is_vectors(reference: str) -> bool:
    """Return whether a teacher's name is that of files of vectors.

    Raises:
        UsageError: it is a file of vectors without their texts.
    """
    suffix = Path(reference).suffix
    if suffix in TEXTLESS:
        raise UsageError(
            f"{reference}: a teacher's file needs the texts of its vectors, and {suffix} has none: "
            "gemb embed --keep text -o FILE.parquet (or FILE.jsonl)"
        )
    return suffix in READ


class FileTeacher(Teacher):
    """Vectors that were computed elsewhere."""

    def __init__(self, reference: str, cache: Path) -> None:
        """Copy the files into the cache, unless they are there.

        Raises:
            UsageError: there is no such file, or it is not what `gemb embed --keep text` writes.
        """
        self.reference = reference
        paths = _paths(reference)
        times = [str(path.stat().st_mtime_ns).encode() for path in paths]
        sizes = [(path, 0, path.stat().st_size) for path in paths]
        self.fingerprint = fingerprint([b"file of vectors", *times], sizes)
        self.prompts = {}
        self.dim = _dim(paths)
        self._store = VectorStore(cache / self.fingerprint, self.dim)
        if not self._store.describes().get("is_whole"):
            with self._store.locked():
                self._copy(paths)

    def fill(self, wanted: Iterable[Wanted], *, quiet: bool = False) -> int:
        """As `Teacher.fill` says; nothing is computed."""
        absent = dict(self.absent(wanted))
        if not absent:
            return 0
        first = next(iter(absent.values()))
        task = next((name for name in TASKS if _is_of(first.words, name)), "none")
        raise UsageError(
            f"{self.reference} lacks {len(absent)} of the texts, the first: {first.shown()}; "
            f"to make them: gemb embed -m MODEL --task {task} --keep text TEXTS.jsonl -o MORE.jsonl"
        )

    def predict(self, wanted: Iterable[Wanted]) -> Filling:
        """As `Teacher.predict` says; nothing is computed."""
        return Filling(self.fill(wanted), 0.0)

    def _copy(self, paths: Sequence[Path]) -> None:
        if self._store.describes().get("is_whole"):  # another run did it meanwhile
            return
        self._store.describe(reference=self.reference)
        repeats = failed = 0
        for path in paths:
            read = _read_parquet if path.suffix == ".parquet" else _read_jsonl
            for chunk in read(path):
                failed += chunk.failed
                if chunk.vectors.shape[1:] != (self.dim,):
                    raise UsageError(
                        f"{path}: vectors of width {chunk.vectors.shape[1]}; those before have "
                        f"{self.dim}"
                    )
                lengths = np.linalg.norm(chunk.vectors, axis=1, keepdims=True)
                if not ((lengths > 0) & np.isfinite(lengths)).all():
                    raise UsageError(f"{path}: a vector of zeros, or not finite")
                keys = {key_of(words): row for row, words in enumerate(chunk.words)}
                known = self._store.find(list(keys))
                fresh = [key for key, row in zip(keys, known.tolist(), strict=True) if row < 0]
                repeats += len(chunk.words) - len(fresh)
                rows = [keys[key] for key in fresh]
                self._store.append(fresh, (chunk.vectors / lengths)[rows])
        if failed:
            warn(f"{self.reference}: {failed} rows have an error in the place of a vector")
        if repeats:
            note(f"{self.reference}: {repeats} rows repeat the text of another")
        self._store.describe(reference=self.reference, is_whole=True)


def _paths(reference: str) -> list[Path]:
    path = Path(reference)
    found = [path] if path.is_file() else sorted(path.parent.glob(path.name))
    if not found:
        raise UsageError(f"{reference}: no such file of vectors")
    return found


def _dim(paths: Sequence[Path]) -> int:
    """Return the width of the vectors.

    Raises:
        UsageError: there are none.
    """
    for path in paths:
        read = _read_parquet if path.suffix == ".parquet" else _read_jsonl
        for chunk in read(path):
            if chunk.words:
                return int(chunk.vectors.shape[1])
    raise UsageError(f"{paths[0]}: no vector in it")


def _is_of(words: str, task: str) -> bool:
    head = CARD[task].partition("none")[0]
    return bool(head) and words.startswith(head)


def _words(path: str, task: object, text: object, title: object, template: str | None) -> str:
    """Return the key's words of a row."""
    if not isinstance(text, str):
        raise UsageError(
            f"{path}: no field 'text' with the text: gemb embed --keep text wrote none"
        )
    if task in TASKS:
        prompt = for_task(str(task), {})
    elif template is not None:
        prompt = Prompt(template)
    else:
        raise UsageError(
            f"{path}: its prompt is not in the file (task {task!r}); Parquet holds it: "
            "gemb embed --prompt ... --keep text -o FILE.parquet"
        )
    return prompt.render(text, str(title) if title else None)


def _numbers(stored: NDArray[Any], dtype: str, path: Path) -> NDArray[np.float32]:
    if dtype not in ("f32", "f16", "int8"):
        raise UsageError(f"{path}: {dtype} vectors are too coarse for a teacher: --dtype f16")
    return unpacked(stored, dtype, stored.shape[1])


def _read_jsonl(path: Path) -> Iterator[Chunk]:
    words: list[str] = []
    numbers: list[NDArray[Any]] = []
    failed = 0
    dtype = "f32"
    for _, place, fields, vector in read_rows(path):
        if vector is None:
            failed += 1
            continue
        found = fields.get("dtype", "f32")
        if numbers and found != dtype:
            raise UsageError(f"{place}: {found} after rows of {dtype}")
        dtype = found
        words.append(
            _words(place, fields.get("task"), fields.get("text"), fields.get("title"), None)
        )
        numbers.append(vector)
        if len(words) == CHUNK:
            yield Chunk(words, _numbers(np.array(numbers), dtype, path), failed)
            words, numbers, failed = [], [], 0
    if words or failed:
        rows = np.array(numbers) if numbers else np.zeros((0, 0), np.float32)
        yield Chunk(words, _numbers(rows, dtype, path), failed)


def _read_parquet(path: Path) -> Iterator[Chunk]:
    from gemb.texts.tables import import_pyarrow

    pyarrow, parquet = import_pyarrow()
    try:
        file = parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise UsageError(f"{path}: {str(error).splitlines()[0]}") from None
    names = file.schema_arrow.names
    described = (file.schema_arrow.metadata or {}).get(META.encode())
    if described is None or "embedding" not in names:
        raise UsageError(f"{path}: no vectors that gemb embed wrote")
    spec = VectorSpec.from_json(described)
    task = orjson.loads(described).get("task")
    columns = [name for name in ("text", "title", "embedding") if name in names]
    for batch in file.iter_batches(CHUNK, columns=columns):
        column = batch.column("embedding")
        valid = ~np.asarray(column.is_null())
        texts = batch.column("text").to_pylist() if "text" in columns else [None] * len(valid)
        titles = batch.column("title").to_pylist() if "title" in columns else [None] * len(valid)
        words = [
            _words(str(path), task, texts[row], titles[row], spec.prompt)
            for row in np.flatnonzero(valid).tolist()
        ]
        flat = column.flatten().to_numpy(zero_copy_only=False)
        vectors = _numbers(flat.reshape(-1, column.type.list_size), spec.dtype, path)
        yield Chunk(words, vectors, int((~valid).sum()))
