"""A model as a teacher: it computes the vectors that are not in the cache yet, and keeps them."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gemb.backend import Backend, Encoder, Runtime
from gemb.embedding.pipeline import Embedder, plain_embedder
from gemb.embedding.store import VectorStore
from gemb.errors import GembError, UsageError
from gemb.io.notes import warn
from gemb.io.progress import CountProgress
from gemb.models.prompts import Prompt
from gemb.models.references import resolve
from gemb.plugins import for_model
from gemb.teachers import Filling, Teacher, Wanted
from gemb.texts.records import Record

if TYPE_CHECKING:
    from gemb.embedding.pipeline import Row

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
        self._backend = for_model(self._path, backend)
        self._runtime = runtime
        self._encoder: Encoder | None = None
        if type(self._backend).describe is Backend.describe:  # a plugin that has none
            model = self._open().profile
            weights, self.dim, self.prompts = model.fingerprint, model.dim, model.prompts
        else:
            described = self._backend.describe(self._path)
            weights, self.dim = described.fingerprint, described.dim
            self.prompts, self.licence = described.prompts, described.licence
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
        # The words have their prompt.
        words = Prompt("{text}")
        return plain_embedder(encoder, words, profile.dim, max_tokens=self._most_tokens())


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
