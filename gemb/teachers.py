"""Teachers: whose vectors a student learns from, computed once and kept on disk for every run.

A teacher is any model reference, or files of vectors that `gemb embed --keep text` wrote
(`teacher_files.py`). Either way the vectors lie in a `VectorStore` by the words that the teacher
sees, so that runs with other data, orders or seeds share them.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemb.backend import Backend, Encoder, Runtime, for_model
from gemb.count_progress import CountProgress
from gemb.errors import GembError, UsageError
from gemb.models import resolve
from gemb.notes import warn
from gemb.pipeline import Embedder, Plan, computing
from gemb.prompts import Prompt
from gemb.records import Record
from gemb.vector_store import KEY_BYTES, VectorStore, key_of

if TYPE_CHECKING:
    from gemb.pipeline import Row

CHUNK = 1024  # texts that are looked up together
WINDOW_TEXTS = 16_384  # sorted by length together
WINDOW_CHARS = 1 << 26  # of texts in memory
FIRST_CHARS = 1 << 14  # of the first batch; the next ones are as long as FLUSH_S takes
FLUSH_S = 3.0  # what a kill may cost
SAMPLE = (8, 64)  # texts that a prediction embeds: to load the model, and to time it


class Wanted(NamedTuple):
    """A text whose vector is wanted."""

    words: str  # with the teacher's prompt around it, as `Prompt.render` gives them
    place: str = ""  # for messages: pairs.jsonl:17

    def shown(self) -> str:
        """Return what a message calls it."""
        short = self.words if len(self.words) <= 60 else self.words[:57] + "..."
        return f"{self.place} ({short!r})" if self.place else repr(short)


def default_cache() -> Path:
    """Return the folder of all teachers' vectors: $XDG_CACHE_HOME/gemb/teachers."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(cache)) / "gemb" / "teachers"  # noqa: PTH111 - unknown user


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
    from gemb.teacher_files import FileTeacher, is_vectors

    if is_vectors(reference):
        return FileTeacher(reference, cache)
    return ModelTeacher(reference, cache, runtime, backend, max_tokens)


class Filling(NamedTuple):
    """What a fill has to do."""

    texts: int  # that have no vector
    seconds: float  # about


class Teacher:
    """Unit vectors of texts. Any number of threads and processes may read; one thread fills."""

    reference: str  # as the user wrote it
    dim: int  # width of a vector
    fingerprint: str  # 16 hex digits of all that decides the vectors; name of the cache's folder
    prompts: Mapping[str, str]  # the model's dictionary; empty for files
    _store: VectorStore

    @property
    def folder(self) -> Path:
        """Where its vectors are kept."""
        return self._store.folder

    def fill(self, wanted: Iterable[Wanted], *, quiet: bool = False) -> int:
        """See to it that every text has a vector, and return how many were computed.

        Args:
            wanted: texts, repeats allowed. What can be iterated over again, as a list can, is
                counted first, so that the time left can be told.
            quiet: show no progress.

        Raises:
            UsageError: a file of vectors lacks some of them.
            GembError: the teacher gives numbers that are not finite.
            OSError: the cache cannot be written; what was computed so far is kept.
        """
        raise NotImplementedError

    def predict(self, wanted: Iterable[Wanted]) -> Filling:
        """Return what `fill` has to do; a few texts are embedded, and kept, to time it.

        Args:
            wanted: can be iterated over again and again.

        Raises:
            UsageError, GembError: as `fill`.
        """
        raise NotImplementedError

    def absent(self, wanted: Iterable[Wanted]) -> Iterator[tuple[bytes, Wanted]]:
        """Yield the key and each text that has no vector when it is its turn; repeats too."""
        source = iter(wanted)
        while chunk := list(islice(source, CHUNK)):
            keys = [key_of(one.words) for one in chunk]
            for place in np.flatnonzero(self._store.find(keys) < 0).tolist():
                yield keys[place], chunk[place]

    def missing(self, wanted: Iterable[Wanted]) -> int:
        """Return how many different texts have no vector yet."""
        return self._missing(wanted)[0]

    def _missing(self, wanted: Iterable[Wanted]) -> tuple[int, int]:
        """Return how many different texts have no vector yet, and their characters.

        24 bytes of memory for each.
        """
        keys, chars = bytearray(), array("q")
        for key, one in self.absent(wanted):
            keys += key
            chars.append(len(one.words))
        different = np.unique(np.frombuffer(keys, f"S{KEY_BYTES}"), return_index=True)[1]
        return len(different), int(np.frombuffer(chars, np.int64)[different].sum())

    def rows(self, wanted: Sequence[Wanted]) -> NDArray[np.int64]:
        """Return where the vectors are, int64 [n], as `at` takes it.

        Raises:
            GembError: `fill` was not given one of them.
        """
        keys = [key_of(one.words) for one in wanted]
        rows = self._store.find(keys)
        if (rows < 0).any():
            self._store.reload()  # another process may have filled them in
            rows = self._store.find(keys)
        absent = np.flatnonzero(rows < 0)
        if len(absent):
            first = wanted[int(absent[0])].shown()
            raise GembError(
                f"{len(absent)} texts have no vector of the teacher {self.reference} in "
                f"{self.folder}, the first: {first}; was the cache removed during the run?"
            )
        return rows

    def at(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return unit vectors, float32 [n, dim], read from the disk."""
        return self._store.gather(rows)

    def vectors(self, wanted: Sequence[Wanted]) -> NDArray[np.float32]:
        """Return unit vectors, float32 [n, dim], of texts that `fill` has seen.

        Raises:
            GembError: one has no vector, or the cache is damaged.
        """
        return self.at(self.rows(wanted))


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
        self._backend = for_model(self._path, backend)
        self._runtime = runtime
        self._encoder: Encoder | None = None
        if type(self._backend).describe is Backend.describe:  # a plugin that has none
            model = self._open().profile
            weights, self.dim, self.prompts = model.fingerprint, model.dim, model.prompts
        else:
            described = self._backend.describe(self._path)
            weights, self.dim = described.fingerprint, described.dim
            self.prompts = described.prompts
        self._max_tokens = max_tokens
        parts = f"{weights} {self._backend.name} {runtime.precision} {max_tokens or ''}".rstrip()
        self.fingerprint = hashlib.blake2b(parts.encode(), digest_size=8).hexdigest()
        self._store = VectorStore(cache / self.fingerprint, self.dim)

    def fill(self, wanted: Iterable[Wanted], *, quiet: bool = False) -> int:
        """As `Teacher.fill` says; flushed every few seconds, so that a killed run goes on."""
        try:
            return self._fill(wanted, quiet=quiet)
        finally:
            self._encoder = None

    def predict(self, wanted: Iterable[Wanted]) -> Filling:
        """As `Teacher.predict` says: by the characters of a random sample."""
        texts, chars = self._missing(wanted)
        sample = _some((one for _, one in self.absent(wanted)), sum(SAMPLE))
        warm, timed = sample[: SAMPLE[0]], sample[SAMPLE[0] :]
        try:
            self._fill(warm, quiet=True)  # loads the model
            began = time.monotonic()
            done = self._fill(timed, quiet=True)
            took = time.monotonic() - began
        finally:
            self._encoder = None
        size = sum(len(one.words) for one in timed)
        return Filling(texts, took * chars / size if done else 0.0)

    def _fill(self, wanted: Iterable[Wanted], *, quiet: bool) -> int:
        is_told = iter(wanted) is not wanted  # it can be counted first
        if is_told and not self.missing(wanted):
            return 0
        done = cut = 0
        with self._store.locked():
            # Another run may have filled some in while this one waited.
            total, chars = self._missing(wanted) if is_told else (None, 0)
            progress = CountProgress(
                total, f"vectors of {self.reference}", "texts", quiet=quiet, work=chars
            )
            try:
                for keys, rows, vectors in self._computed(wanted):
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
        self, wanted: Iterable[Wanted]
    ) -> Iterator[tuple[list[bytes], list[Row], NDArray[np.float32]]]:
        """Yield keys, rows and vectors, [n, dim], of batches that take about FLUSH_S each."""
        embedder: Embedder | None = None
        chars = FIRST_CHARS
        for window in _windows(self.absent(wanted)):
            # Some were looked up before the last window was written, and may have been in it.
            known = self._store.find(list(window)) >= 0
            texts = [
                item for item, is_known in zip(window.items(), known, strict=True) if not is_known
            ]
            if not texts:
                continue
            embedder = embedder or self._embedder()
            texts.sort(key=lambda item: -len(item[1].words))
            at = 0
            while at < len(texts):
                size, end = 0, at
                while end < len(texts) and (end == at or size < chars):
                    size += len(texts[end][1].words)
                    end += 1
                batch, at = texts[at:end], end
                began = time.monotonic()
                records = [Record(n, one.place, one.words) for n, (_, one) in enumerate(batch)]
                computed = embedder.window(records)
                self._check(computed.rows, [one for _, one in batch])
                yield [key for key, _ in batch], computed.rows, computed.vectors
                took = max(time.monotonic() - began, FLUSH_S / 8)
                chars = max(FIRST_CHARS, min(int(size * FLUSH_S / took), 2 * chars))

    def _check(self, rows: Sequence[Row], wanted: Sequence[Wanted]) -> None:
        for row, one in zip(rows, wanted, strict=True):
            if row.error:
                raise GembError(
                    f"the teacher {self.reference} has no vector for {one.shown()}: "
                    f"{row.error.message}"
                )

    def _open(self) -> Encoder:
        if self._encoder is None:
            self._encoder = self._backend.open(self._path, self._runtime)
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
        plan = Plan(
            prompt=Prompt("{text}"),  # the words have theirs
            dim=profile.dim,
            max_tokens=self._most_tokens(),
            closing_tokens=profile.closing_tokens,
            on_long="truncate",
        )
        return Embedder(encoder, plan, computing(encoder, profile.dim))


def _some(texts: Iterable[Wanted], most: int) -> list[Wanted]:
    """Return a few texts, each as likely as any other."""
    chosen: list[Wanted] = []
    dice = random.Random(0)
    for number, one in enumerate(texts):
        if number < most:
            chosen.append(one)
        elif (place := dice.randrange(number + 1)) < most:
            chosen[place] = one
    return list(dict.fromkeys(chosen))


def _windows(texts: Iterable[tuple[bytes, Wanted]]) -> Iterator[dict[bytes, Wanted]]:
    """Yield texts by the window, each once."""
    window: dict[bytes, Wanted] = {}
    size = 0
    for key, one in texts:
        if key in window:
            continue
        window[key] = one
        size += len(one.words)
        if len(window) == WINDOW_TEXTS or size > WINDOW_CHARS:
            yield window
            window, size = {}, 0
    if window:
        yield window
