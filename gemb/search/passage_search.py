"""One search of passages: those whose vectors are kept, then the others as they are embedded."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gemb.embedding.pipeline import Window, embed, plain_embedder
from gemb.embedding.vectors import VectorSpec
from gemb.errors import GembError
from gemb.index.hits import Hit
from gemb.models.prompts import Prompt
from gemb.search.best import Best
from gemb.search.corpus import Passages
from gemb.search.embedding_order import ordered
from gemb.search.vector_cache import VectorCache, scores_of
from gemb.texts.records import Record
from gemb.texts.words import Promise

if TYPE_CHECKING:
    from gemb.backend import Encoder

Vectors = NDArray[np.float32]

SCORES = 1 << 22  # that are held at once
KEEP_S = 2.0  # seconds of embedding that a kill may cost
KEEP_ROWS = 4096


@dataclass(frozen=True)
class Answer:
    """What was found so far."""

    hits: list[list[Hit]]  # for each query, best first, at most k
    done: int  # passages that have a vector, and were compared
    total: int
    tokens: int  # embedded in this run
    is_last: bool


class PassageSearch:
    """What was compared, and what is still to be embedded."""

    def __init__(
        self,
        passages: Passages,
        cache: VectorCache,
        queries: Vectors,
        encoder: Encoder,
        spec: VectorSpec,
        *,
        k: int | None,
        floor: float,
    ) -> None:
        """Begin; nothing is compared yet.

        Args:
            passages: that are searched.
            cache: of vectors of `spec`; new ones are put into it.
            queries: unit vectors [Q, spec.dim].
            encoder: embeds the passages, under `spec.prompt`.
            spec: of the passages' vectors.
            k: hits of a query; None: all that reach the floor.
            floor: the least score.
        """
        self._passages = passages
        self._queries = np.ascontiguousarray(queries, np.float32)
        self._encoder = encoder
        self._spec = spec
        self._k = k
        self._best = Best(len(queries), k, floor)
        self._cache = cache
        self._keys = passages.keys()
        self._unsaved: list[tuple[list[bytes], Vectors]] = []
        self._saved_at = time.monotonic()
        self._skipped = passages.skipped
        self.done = 0
        self._tokens = 0
        self._missing: dict[bytes, list[int]] = {}  # the passages of each key without a vector

    @property
    def is_done(self) -> bool:
        """Whether every passage was compared."""
        return not self._missing

    def compare_known(self) -> None:
        """Compare what has a vector, and note what has none."""
        rows = self._cache.find(self._keys)
        known = np.flatnonzero(rows >= 0)
        step = max(1, SCORES // max(1, len(self._queries)))
        for start in range(0, len(known), step):
            numbers = known[start : start + step]
            self._compare(self._cache.scores(rows[numbers], self._queries), numbers)
        for number in np.flatnonzero(rows < 0).tolist():
            self._missing.setdefault(self._keys[number], []).append(number)

    def _compare(self, scores: Vectors, numbers: NDArray[np.int64]) -> None:
        self._best.add(scores, numbers)
        self.done += len(numbers)

    def embed_missing(self, promise: Promise) -> Iterator[None]:
        """Embed and compare window by window."""
        spec = self._spec
        embedder = plain_embedder(
            self._encoder, Prompt(spec.prompt), spec.dim, max_tokens=spec.max_tokens
        )
        try:
            for window in embed(self._records(promise), embedder, live=False):
                self._take(window)
                yield
        except GembError as error:
            # Where a search before this one was fine, only what failed then is left to embed.
            if not self.done:
                raise
            left = len(self._keys) - self.done
            self._skipped.failure(f"{left:,} passages", str(error))

    def _records(self, promise: Promise) -> Iterator[Record]:
        firsts = [places[0] for places in self._missing.values()]
        for number in ordered(self._passages, firsts, promise):
            record = self._passages.record(number)
            if record is None:
                self._passages.lose(number)
            else:
                yield record

    def _take(self, window: Window) -> None:
        """Compare the passages of a window, and keep their vectors."""
        good: list[int] = []
        for place, row in enumerate(window.rows):
            self._tokens += row.tokens
            self._skipped.cut += row.is_cut
            if row.error:
                self._skipped.failure(row.record.place, row.error.message)
            else:
                good.append(place)
        numbers = [int(window.rows[place].record.id) for place in good]
        keys = [self._keys[number] for number in numbers]
        vectors = window.vectors[good]
        if not good:
            return
        self._unsaved.append((keys, vectors))
        # One text may stand in many places.
        places = [self._missing.get(key, []) for key in keys]
        repeats = np.repeat(np.arange(len(keys)), [len(numbers) for numbers in places])
        flat = np.array([number for numbers in places for number in numbers], np.int64)
        scores = scores_of(vectors.astype(np.float16), self._queries)
        self._compare(scores[repeats], flat)
        is_late = time.monotonic() - self._saved_at > KEEP_S
        if is_late or sum(len(keys) for keys, _ in self._unsaved) > KEEP_ROWS:
            self.keep()

    def keep(self) -> None:
        """Cache what was computed since the last time."""
        unsaved, self._unsaved = self._unsaved, []
        if unsaved:
            keys = [key for keys, _ in unsaved for key in keys]
            self._cache.add(keys, np.concatenate([vectors for _, vectors in unsaved]))
        self._saved_at = time.monotonic()

    def answer(self, *, is_last: bool) -> Answer:
        """Return what was found so far."""
        hits: list[list[Hit]] = []
        if is_last:  # what the files hold now
            self._passages.drop_texts()
        for query in range(len(self._queries)):
            hits.append([])
            if self._k is None and not is_last:
                continue
            for number, score in self._best.ranked(query):
                if self._k is not None and len(hits[-1]) == self._k:
                    break
                hit = self._passages.hit(number, score)
                if hit:
                    hits[-1].append(hit)
                elif is_last:
                    self._passages.lose(number)
        return Answer(hits, self.done, len(self._passages), self._tokens, is_last)
