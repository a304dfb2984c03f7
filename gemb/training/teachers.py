"""The two kinds of teachers: a model, and files of vectors that `gemb embed --keep text` wrote.

A model computes the vectors that are not in the cache yet. Files are copied into the cache once, so
that a file of any size is as fast as a model's vectors.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemb.backend import Encoder, Runtime
from gemb.embedding.engine import open_engine
from gemb.embedding.formats.read import open_vectors
from gemb.embedding.formats.table import read_format_of
from gemb.embedding.pipeline import Embedder
from gemb.embedding.store import VectorStore, key_of
from gemb.errors import GembError, UsageError
from gemb.io.notes import note, warn
from gemb.io.progress import CountProgress
from gemb.io.stamps import Stamp
from gemb.models.fingerprint import fingerprint
from gemb.models.prompts import CARD, TASKS, Prompt, for_task
from gemb.models.references import resolve
from gemb.plugins import for_model
from gemb.texts.records import Record
from gemb.training.teacher import FillEstimate, Teacher, TeacherText

if TYPE_CHECKING:
    from gemb.embedding.pipeline import OutputRow


WINDOW_TEXTS = 16_384  # sorted by length together
WINDOW_CHARS = 1 << 26  # of texts in memory
FIRST_CHARS = 1 << 14  # of the first batch; the next ones are as long as FLUSH_S takes
FLUSH_S = 3.0  # what a kill may cost
SAMPLE = (8, 64)  # texts that a prediction embeds: to load the model, and to time it


class ModelTeacher(Teacher):
    """A model, which is in memory while it fills vectors in, and only then."""

    def __init__(
        self,
        reference: str,
        cache: Path,
        runtime: Runtime,
        backend: str,
        max_tokens: int | None = None,
    ) -> None:
        """Read the model's description and the keys of the cache."""
        self.reference = reference
        self._path = resolve(reference)
        self._backend = for_model(self._path, backend, runtime)
        self._runtime = runtime
        self._encoder: Encoder | None = None
        if self._backend.can("describe"):
            described = self._backend.describe(self._path)
            weights, self.dim = described.fingerprint, described.dim
            self.prompts, self.licence = described.prompts, described.licence
        else:
            model = self._open().profile
            weights, self.dim, self.prompts = model.fingerprint, model.dim, model.prompts
        self._max_tokens = max_tokens
        parts = f"{weights} {self._backend.name} {runtime.precision} {max_tokens or ''}".rstrip()
        self.fingerprint = hashlib.blake2b(parts.encode(), digest_size=8).hexdigest()
        self._store = VectorStore(cache / self.fingerprint, self.dim)

    def fill(self, texts: Iterable[TeacherText]) -> int:
        """As `Teacher.fill` says; flushed every few seconds, so that a killed run goes on."""
        try:
            return self._fill(texts)
        finally:
            self._encoder = None

    def predict(self, texts: Iterable[TeacherText]) -> FillEstimate:
        """As `Teacher.predict` says: by the characters of a random sample."""
        count, chars = self._missing(texts)
        sample = _sample((text for _, text in self.absent(texts)), sum(SAMPLE))
        warm, timed = sample[: SAMPLE[0]], sample[SAMPLE[0] :]
        try:
            self._fill(warm, shown=False)  # loads the model
            began = time.monotonic()
            done = self._fill(timed, shown=False)
            took = time.monotonic() - began
        finally:
            self._encoder = None
        size = sum(len(text.words) for text in timed)
        return FillEstimate(count, took * chars / size if done else 0.0)

    def _fill(self, texts: Iterable[TeacherText], *, shown: bool = True) -> int:
        is_countable = iter(texts) is not texts  # it can be counted first
        if is_countable and not self.missing(texts):
            return 0
        done = cut = 0
        with self._store.locked(may_move=True):
            # Another run may have filled some in while this one waited.
            total, chars = self._missing(texts) if is_countable else (None, 0)
            progress = CountProgress(
                total, f"vectors of {self.reference}", "texts", shown=shown, work=chars
            )
            try:
                for keys, rows, vectors in self._computed(texts):
                    self._store.append(keys, vectors)
                    progress.add(
                        len(rows),
                        tokens=sum(row.tokens for row in rows),
                        work=sum(len(row.record.text) for row in rows),
                    )
                    done += len(rows)
                    cut += sum(row.is_cut for row in rows)
            finally:
                progress.close()
        if cut:
            most = self._most_tokens()
            warn(
                f"{cut} of {done} texts were cut at {most} tokens for the teacher {self.reference}"
            )
        return done

    def _computed(
        self, texts: Iterable[TeacherText]
    ) -> Iterator[tuple[list[bytes], list[OutputRow], NDArray[np.float32]]]:
        """Yield keys, rows and vectors, [n, dim], of batches that take about FLUSH_S each."""
        embedder: Embedder | None = None
        chars = FIRST_CHARS
        for window in _windows(self.absent(texts)):
            # Some were looked up before the last window was written, and may have been in it.
            known = self._store.find(list(window)) >= 0
            pending = [
                item for item, is_known in zip(window.items(), known, strict=True) if not is_known
            ]
            if not pending:
                continue
            embedder = embedder or self._embedder()
            pending.sort(key=lambda item: -len(item[1].words))
            at = 0
            while at < len(pending):
                size, end = 0, at
                while end < len(pending) and (end == at or size < chars):
                    size += len(pending[end][1].words)
                    end += 1
                batch, at = pending[at:end], end
                began = time.monotonic()
                records = [Record(n, text.place, text.words) for n, (_, text) in enumerate(batch)]
                computed = embedder.window(records)
                self._check(computed.rows, [text for _, text in batch])
                yield [key for key, _ in batch], computed.rows, computed.vectors
                took = max(time.monotonic() - began, FLUSH_S / 8)
                chars = max(FIRST_CHARS, min(int(size * FLUSH_S / took), 2 * chars))

    def _check(self, rows: Sequence[OutputRow], texts: Sequence[TeacherText]) -> None:
        for row, text in zip(rows, texts, strict=True):
            if row.error:
                raise GembError(
                    f"the teacher {self.reference} has no vector for {text.shown()}: "
                    f"{row.error.message}"
                )

    def _open(self) -> Encoder:
        if self._encoder is None:
            engine = open_engine(self._path, self._runtime, self._backend.name)
            self._encoder = engine.encoder
        return self._encoder

    def _most_tokens(self) -> int:
        trained = self._open().profile.max_tokens
        return min(self._max_tokens or trained, trained)

    def _embedder(self) -> Embedder:
        """Open the model, and note its arithmetic in the store.

        Raises:
            UsageError: the store holds vectors of another arithmetic, as another device gives.
        """
        encoder = self._open()
        profile = encoder.profile
        known = self._store.describes().get("arithmetic", profile.dtype)
        if known != profile.dtype:
            raise UsageError(
                f"{self.folder} holds vectors computed in {known}, and this run computes in "
                f"{profile.dtype}: ask for --precision, or use another cache folder"
            )
        self._store.describe(
            model=profile.fingerprint,
            reference=self.reference,
            backend=self._backend.name,
            arithmetic=profile.dtype,
            max_tokens=self._most_tokens(),
        )
        # The words have their prompt.
        return Embedder.of(encoder, "none", max_tokens=self._most_tokens())


def _sample(texts: Iterable[TeacherText], most: int) -> list[TeacherText]:
    """Return a few texts, each as likely as any other."""
    chosen: list[TeacherText] = []
    dice = random.Random(0)
    for number, text in enumerate(texts):
        if number < most:
            chosen.append(text)
        elif (at := dice.randrange(number + 1)) < most:
            chosen[at] = text
    return list(dict.fromkeys(chosen))


def _windows(texts: Iterable[tuple[bytes, TeacherText]]) -> Iterator[dict[bytes, TeacherText]]:
    """Yield texts by the window, each once."""
    window: dict[bytes, TeacherText] = {}
    size = 0
    for key, text in texts:
        if key in window:
            continue
        window[key] = text
        size += len(text.words)
        if len(window) == WINDOW_TEXTS or size > WINDOW_CHARS:
            yield window
            window, size = {}, 0
    if window:
        yield window


class FileRows(NamedTuple):
    """Rows of a file of vectors."""

    words: list[str]
    vectors: NDArray[np.float32]  # [len(words), dim]
    failed: int  # rows beside these that have no vector


def is_vectors(reference: str) -> bool:
    """Return whether a teacher's name is that of files of vectors.

    Raises:
        UsageError: it is a file of vectors without their texts.
    """
    form = read_format_of(Path(reference))
    if form and not (form.reader and form.holds_fields):
        raise UsageError(
            f"{reference}: a teacher's file needs the texts of its vectors, and .{form.name} has "
            "none: gemb embed --keep text -o FILE.parquet (or FILE.jsonl)"
        )
    return form is not None


class FileTeacher(Teacher):
    """Vectors that were computed elsewhere.

    A row is found by its text, its title and its task: its key is that of the words which the model
    card puts around them (`gemb.models.prompts.CARD`), whatever words the model that made it saw.
    """

    def __init__(self, reference: str, cache: Path) -> None:
        """Copy the files into the cache, unless they are there.

        Raises:
            UsageError: there is no such file, or it is not what `gemb embed --keep text` writes.
        """
        self.reference = reference
        paths = _paths(reference)
        stamps = [Stamp.of(path.stat()) for path in paths]
        spans = [(path, 0, stamp.size) for path, stamp in zip(paths, stamps, strict=True)]
        self.fingerprint = fingerprint([b"file of vectors", repr(stamps).encode()], spans)
        self.prompts = {}
        self.dim = _dim(paths)
        self._store = VectorStore(cache / self.fingerprint, self.dim)
        if not self._store.describes().get("is_whole"):
            with self._store.locked(may_move=True):
                self._copy(paths)

    def fill(self, texts: Iterable[TeacherText]) -> int:
        """As `Teacher.fill` says; nothing is computed."""
        absent = dict(self.absent(texts))
        if not absent:
            return 0
        first = next(iter(absent.values()))
        task = next((name for name in TASKS if _is_of(first.words, name)), "none")
        raise UsageError(
            f"{self.reference} lacks {len(absent)} of the texts, the first: {first.shown()}; "
            f"to make them: gemb embed -m MODEL --task {task} --keep text TEXTS.jsonl -o MORE.jsonl"
        )

    def predict(self, texts: Iterable[TeacherText]) -> FillEstimate:
        """As `Teacher.predict` says; nothing is computed."""
        return FillEstimate(self.fill(texts), 0.0)

    def _copy(self, paths: Sequence[Path]) -> None:
        if self._store.describes().get("is_whole"):  # another run did it meanwhile
            return
        self._store.describe(reference=self.reference)
        repeats = failed = 0
        for path in paths:
            for chunk in _chunks(path):
                failed += chunk.failed
                if chunk.vectors.shape[1:] != (self.dim,):
                    raise UsageError(
                        f"{path}: vectors of width {chunk.vectors.shape[1]}; those before have "
                        f"{self.dim}"
                    )
                lengths = np.linalg.norm(chunk.vectors, axis=1, keepdims=True)
                if not ((lengths > 0) & np.isfinite(lengths)).all():
                    raise UsageError(f"{path}: a vector whose length is not 1")
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
    paths = [path] if path.is_file() else sorted(path.parent.glob(path.name))
    if not paths:
        raise UsageError(f"{reference}: no such file of vectors")
    return paths


def _dim(paths: Sequence[Path]) -> int:
    """Return the width of the vectors.

    Raises:
        UsageError: there are none.
    """
    for path in paths:
        reader = open_vectors(path)
        if reader.description.dim and reader.count != 0:
            return reader.description.dim
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


def _chunks(path: Path) -> Iterator[FileRows]:
    """Yield the rows of a file.

    Raises:
        UsageError: it is damaged, has no texts, or has vectors that are too coarse.
    """
    reader = open_vectors(path)
    description = reader.description
    if description.dtype == "ubinary":
        raise UsageError(f"{path}: ubinary vectors are too coarse for a teacher: --dtype f16")
    template = description.spec.prompt if description.spec else None
    for batch in reader.batches(("text", "title", "task")):
        rows = np.flatnonzero(batch.has_vector)
        words = [
            _words(
                f"{path}, {reader.unit} {batch.numbers[row]}",
                batch.fields[row].get("task", description.task),
                batch.fields[row].get("text"),
                batch.fields[row].get("title"),
                template,
            )
            for row in rows.tolist()
        ]
        vectors = batch.vectors(description)[rows]
        yield FileRows(words, vectors, len(batch.numbers) - len(rows))


def open_teacher(
    reference: str,
    cache: Path,
    runtime: Runtime,
    *,
    backend: str = "auto",
    max_tokens: int | None = None,
) -> Teacher:
    """Return the teacher. No model is loaded before a text without a vector is to be filled in.

    Args:
        reference: a model reference; or a .jsonl or .parquet file of vectors, or several as a
            pattern: `vectors/*.parquet`.
        cache: folder of all teachers' vectors, which need not exist.
        runtime: how a model is run.
        backend: what runs it; auto: what opens it.
        max_tokens: of a text, where a student sees no more; None: as many as the model takes.

    Raises:
        UsageError: there is no such model or file, or it is broken.
        Missing: the model or a library is not here.
    """
    if is_vectors(reference):
        return FileTeacher(reference, cache)
    return ModelTeacher(reference, cache, runtime, backend, max_tokens)
