"""The best passages of each query so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gemb.arrays import Vectors
from gemb.embedding.pipeline import Embedder, Window, embed
from gemb.embedding.vectors import VectorSpec
from gemb.errors import GembError, UsageError
from gemb.index.hits import Hit
from gemb.io.text import visible
from gemb.search.cache import PassageTable, VectorCache, scores_of
from gemb.search.corpus import Passages
from gemb.search.gather import Sources, gather_into
from gemb.texts.records import Record
from gemb.texts.walk import Skipped
from gemb.texts.words import Promise

if TYPE_CHECKING:
    from gemb.backend import Encoder


SPARE = 32  # beyond k, for those that turn out to have changed


class Best:
    """Scores and numbers of the best, for some queries, of what is added block by block."""

    def __init__(self, queries: int, k: int | None, floor: float) -> None:
        """Begin with nothing. k None: all that reach the floor."""
        self._k = None if k is None else k + SPARE
        self._floor = floor
        self._scores = [np.zeros(0, np.float32) for _ in range(queries)]
        self._numbers = [np.zeros(0, np.int64) for _ in range(queries)]

    def add(self, scores: NDArray[np.float32], numbers: NDArray[np.int64]) -> None:
        """Add passages: scores [n, queries], and their numbers [n]."""
        for query in range(len(self._scores)):
            column = scores[:, query]
            least = self._floor
            if self._k is not None and len(self._scores[query]) >= self._k:
                least = max(least, float(self._scores[query].min()))
            keep = np.flatnonzero(column >= least)
            if not len(keep):
                continue
            joined = np.concatenate([self._scores[query], column[keep]])
            named = np.concatenate([self._numbers[query], numbers[keep]])
            if self._k is not None and len(joined) > self._k:
                order = np.lexsort((named, -joined))[: self._k]
                joined, named = joined[order], named[order]
            self._scores[query], self._numbers[query] = joined, named

    def ranked(self, query: int) -> list[tuple[int, float]]:
        """Return number and score of a query's best, best first; of equal ones the first first."""
        scores, numbers = self._scores[query], self._numbers[query]
        order = np.lexsort((numbers, -scores))
        return list(zip(numbers[order].tolist(), scores[order].tolist(), strict=True))


# In what order passages are embedded: the most promising first, for good answers early.


JUDGED = 64  # so many passages or fewer are embedded as they come
FIRST_BEST = 8192  # passages that are embedded strictly by promise; then file by file


def ordered(passages: Passages, numbers: list[int], promise: Promise) -> list[int]:
    """Return the numbers of passages, ascending before, the most promising first."""
    if len(numbers) <= JUDGED or not promise.terms:
        return numbers
    scores = promise.scores(_terms(passages, numbers, promise))
    order = np.argsort(-scores, kind="stable")
    best, rest = order[:FIRST_BEST], order[FIRST_BEST:]
    # Of the rest file by file, so that none is read again and again: its best passage counts.
    files = passages.files_of(np.array(numbers)[rest])
    hopes = np.zeros(len(passages.entries) + 1, np.float32)
    np.maximum.at(hopes, files, scores[rest])
    rest = rest[np.lexsort((rest, files, -hopes[files]))]
    return [numbers[place] for place in (*best.tolist(), *rest.tolist())]


def _terms(passages: Passages, numbers: list[int], promise: Promise) -> NDArray[np.bool_]:
    """Return which terms stand in which passages, bool [n, terms]."""
    found: list[NDArray[np.bool_]] = []
    at = 0
    while at < len(numbers):
        file = passages.file_of(numbers[at])
        if file == len(passages.entries):
            for number in numbers[at:]:
                record = passages.record(number)
                text = record.text if record else ""
                found.append(promise.found(text, [(0, len(text))]))
            break
        end = at
        while end < len(numbers) and numbers[end] in passages.of_file(file):
            end += 1
        rows = passages.table[numbers[at:end]]
        spans = list(zip(rows["start"].tolist(), rows["end"].tolist(), strict=True))
        of_text = promise.found(passages.text_of(file) or "", spans)
        path = passages.entries[file].path
        found.append(of_text | promise.found(path, [(0, len(path))]))
        at = end
    return np.concatenate(found)


# One search of passages: those whose vectors are kept, then the others as they are embedded.


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
        embedder = Embedder(self._encoder, spec)
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


# Search of files, folders and standard input without an index.
#
#     corpus = gather(Sources(paths=("docs/",)), cache=search_cache())     # needs no model
#     for answer in corpus.search(queries, encoder, spec, words=[query]):  # the best so far
#         ...
#     corpus.skipped.say()  # and exit code 2 if corpus.skipped.failed
#
# `gather` needs no model: call it in a thread while the model is opened. The search then compares
# what is in the cache, and embeds the rest, most promising first.


__all__ = ["Answer", "Corpus", "Sources", "gather"]


class Corpus(Passages):
    """The passages of all sources, in order, and the search in them."""

    def __init__(self, kind: str, cache: Path | None) -> None:
        known = PassageTable(cache, kind) if cache else None
        super().__init__(kind, Skipped(), known)
        self._cache = cache
        self._vectors: tuple[VectorSpec, VectorCache] | None = None

    def vectors(self, spec: VectorSpec) -> VectorCache:
        """Return the cache of these vectors."""
        if not self._vectors or self._vectors[0] != spec:
            is_said = self.known is not None and self.known.has_failed
            self._vectors = spec, VectorCache(self._cache, spec, is_said=is_said)
        return self._vectors[1]

    def missing(self, spec: VectorSpec) -> int:
        """Return how many passages have no vector in the cache yet."""
        return int((self.vectors(spec).find(self.keys()) < 0).sum())

    def sample(self, count: int, spec: VectorSpec) -> Vectors:
        """Return the vectors of so many passages that have one, spread evenly, float32 [n, dim]."""
        rows = self.vectors(spec).find(self.keys())
        rows = rows[rows >= 0]
        chosen = np.unique(np.linspace(0, max(0, len(rows) - 1), min(count, len(rows)), dtype=int))
        if not len(chosen):
            return np.zeros((0, spec.dim), np.float32)
        return self.vectors(spec).gather(rows[chosen])

    def at(self, path: str, line: int) -> Hit:
        """Return the passage that holds a line of a file (score 1), for --like FILE:LINE.

        Raises:
            UsageError: no such file among the sources, no passage has this line, or the file
                cannot be read.
        """
        hit = self.hit(self.number_at(path, line), 1.0)
        if hit is None:
            raise UsageError(
                f"{visible(path)}: it cannot be read any more, or has changed just now"
            )
        return hit

    def search(
        self,
        queries: Vectors,
        encoder: Encoder,
        spec: VectorSpec,
        *,
        words: Sequence[str] = (),
        k: int | None = 10,
        floor: float = -1.0,
        every_s: float = 0.5,
    ) -> Iterator[Answer]:
        """Yield what was found, better and better; the last answer is that of all passages.

        What is in the cache is compared first; the others are embedded, most promising first,
        and cached every few seconds. A hit is checked against its file: where that has changed
        since, its lines are those of now, and it is left out if it is gone.

        An interrupt (any exception, or closing the iterator) keeps what was computed. Another
        thread may be at work with the encoder for one more window then: nobody else may use it.

        Args:
            queries: unit vectors [Q, spec.dim].
            encoder: embeds the passages, under `spec.prompt`.
            spec: of the passages' vectors; its dtype is f16, as they are stored.
            words: the queries as texts; passages that share words with them are embedded first.
            k: hits of a query; None: all that reach the floor.
            floor: the least score.
            every_s: seconds between two answers. With k=None only the last one has hits.

        Raises:
            GembError: the model fails on every passage, or the cache is damaged.
        """
        assert spec.dtype == "f16", "vectors are cached in float16"
        assert np.isfinite(queries).all(), "a query without a vector"
        cache = self.vectors(spec)
        found = PassageSearch(self, cache, queries, encoder, spec, k=k, floor=floor)
        try:
            found.compare_known()
            if not found.is_done:
                if found.done:
                    yield found.answer(is_last=False)
                shown = time.monotonic()
                for _ in found.embed_missing(Promise.of(words)):
                    if time.monotonic() - shown >= every_s:
                        yield found.answer(is_last=False)
                        shown = time.monotonic()
        finally:
            found.keep()
        yield found.answer(is_last=True)


def gather(
    sources: Sources,
    *,
    cache: Path | None = None,
    looked: Callable[[int], None] | None = None,
) -> Corpus:
    """Walk, read what has changed since the last search, and return the passages.

    Args:
        sources: what is searched.
        cache: its folder, `gemb.caches.search_cache()`; None: nothing is kept.
        looked: called after each file with the number of files so far; what it raises ends the
            walk, and what was split by then is kept.

    Raises:
        UsageError: a table or stream cannot be read as `sources` says.
    """
    corpus = Corpus(sources.kind, cache)
    gather_into(corpus, sources, looked)
    return corpus
