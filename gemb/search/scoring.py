"""Score passages: those whose vectors are cached, then the others as they are embedded."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemb.arrays import Ints, Vectors
from gemb.embedding.pipeline import Embedder, embed
from gemb.errors import GembError
from gemb.search.cache import VectorCache, scores_of
from gemb.search.corpus import Corpus, PassageTexts
from gemb.texts.records import Record
from gemb.texts.words import Promise

if TYPE_CHECKING:
    from gemb.backend import Encoder

SPARE = 32  # ranks beyond k, for passages that turn out to have changed
SCORES = 1 << 22  # that are held at once
JUDGED = 64  # so many passages or fewer are embedded as they come
FIRST_BEST = 8192  # passages that are embedded strictly by their words; then file by file
KEEP_S = 2.0  # seconds of embedding that a kill may cost
KEEP_ROWS = 4096


class CachedPassages(NamedTuple):
    """Passages that have a vector in the cache."""

    numbers: Ints  # [n], ascending
    rows: Ints  # [n]: of the cache


# Key without a vector -> numbers of its passages, ascending.
MissingPassages = Mapping[bytes, Sequence[int]]


def split_known(corpus: Corpus, cache: VectorCache) -> tuple[CachedPassages, MissingPassages]:
    """Return the passages that have a vector in the cache, and those that have none."""
    rows = cache.find(corpus.keys)
    numbers = np.flatnonzero(rows >= 0)
    missing: dict[bytes, list[int]] = {}
    for number in np.flatnonzero(rows < 0).tolist():
        missing.setdefault(corpus.keys[number], []).append(number)
    return CachedPassages(numbers, rows[numbers]), missing


class Ranking:
    """The best passages for some queries, of all that were added so far."""

    def __init__(self, queries: int, k: int | None, floor: float) -> None:
        """Begin with no passage.

        Args:
            queries: how many.
            k: passages of a query, and some to spare; None: all that reach the floor.
            floor: the least score.
        """
        self.queries = queries
        self.k = k
        self.count = 0  # passages that were added
        self._most = None if k is None else k + SPARE
        self._floor = floor
        self._scores = [np.zeros(0, np.float32) for _ in range(queries)]
        self._numbers = [np.zeros(0, np.int64) for _ in range(queries)]

    def add(self, scores: NDArray[np.float32], numbers: Ints) -> None:
        """Add passages: scores [n, queries], and their numbers [n]."""
        self.count += len(numbers)
        for query in range(self.queries):
            column = scores[:, query]
            least = self._floor
            if self._most is not None and len(self._scores[query]) >= self._most:
                least = max(least, float(self._scores[query].min()))
            keep = np.flatnonzero(column >= least)
            if not len(keep):
                continue
            joined = np.concatenate([self._scores[query], column[keep]])
            named = np.concatenate([self._numbers[query], numbers[keep]])
            if self._most is not None and len(joined) > self._most:
                order = np.lexsort((named, -joined))[: self._most]
                joined, named = joined[order], named[order]
            self._scores[query], self._numbers[query] = joined, named

    def best(self, query: int) -> list[tuple[int, float]]:
        """Return number and score of a query's best, best first; of equal ones the first first."""
        scores, numbers = self._scores[query], self._numbers[query]
        order = np.lexsort((numbers, -scores))
        return list(zip(numbers[order].tolist(), scores[order].tolist(), strict=True))


def add_known(
    ranking: Ranking, known: CachedPassages, cache: VectorCache, queries: Vectors
) -> None:
    """Score passages by their vectors in the cache, and add them to a ranking.

    Args:
        ranking: of these queries.
        known: passages.
        cache: of their vectors.
        queries: unit vectors [Q, dim].

    Raises:
        GembError: the cache is damaged.
    """
    step = max(1, SCORES // max(1, len(queries)))
    for start in range(0, len(known.numbers), step):
        part = slice(start, start + step)
        ranking.add(cache.scores(known.rows[part], queries), known.numbers[part])


def by_shared_words(
    missing: MissingPassages, texts: PassageTexts, queries: Sequence[str]
) -> list[int]:
    """Return a passage of each key, those first that share the most words with the queries.

    Passages are embedded in this order, so that good answers come early.
    """
    numbers = [same[0] for same in missing.values()]
    promise = Promise.of(queries)
    if len(numbers) <= JUDGED or not promise.terms:
        return numbers
    scores = promise.scores(_terms(numbers, texts, promise))
    order = np.argsort(-scores, kind="stable")
    best, rest = order[:FIRST_BEST], order[FIRST_BEST:]
    # The rest comes file by file, so that no file is read again and again; the best passage of a
    # file decides.
    files = texts.corpus.files_of(np.array(numbers)[rest])
    highest = np.zeros(len(texts.corpus.files) + 1, np.float32)
    np.maximum.at(highest, files, scores[rest])
    rest = rest[np.lexsort((rest, files, -highest[files]))]
    return [numbers[index] for index in (*best.tolist(), *rest.tolist())]


def _terms(numbers: Sequence[int], texts: PassageTexts, promise: Promise) -> NDArray[np.bool_]:
    """Return which terms are in which passages, whose numbers ascend, bool [n, terms]."""
    corpus = texts.corpus
    files = corpus.files_of(np.array(numbers))
    ends = [*(np.flatnonzero(np.diff(files)) + 1).tolist(), len(numbers)]
    parts: list[NDArray[np.bool_]] = []
    start = 0
    for end in ends:
        file = int(files[start])
        if file == len(corpus.files):
            for number in numbers[start:end]:
                record = texts.record(number)
                text = record.text if record else ""
                parts.append(promise.found(text, [(0, len(text))]))
        else:
            rows = corpus.table[numbers[start:end]]
            spans = list(zip(rows["start"].tolist(), rows["end"].tolist(), strict=True))
            path = corpus.files[file].path
            in_path = promise.found(path, [(0, len(path))])
            parts.append(promise.found(texts.of_file(file) or "", spans) | in_path)
        start = end
    return np.concatenate(parts)


class Embedded(NamedTuple):
    """Passages that got their vectors together."""

    vectors: NDArray[np.float16]  # [texts, dim]
    places: Ints  # [n]: of each passage's vector; one text may stand in many passages
    numbers: Ints  # [n]: of the passages
    tokens: int


def embed_missing(
    order: Sequence[int],
    missing: MissingPassages,
    texts: PassageTexts,
    cache: VectorCache,
    encoder: Encoder,
) -> Generator[Embedded, None, None]:
    """Yield passages with their vectors, window by window, and put the vectors into the cache.

    It may be stopped at any time, by closing it or by any exception: what was computed is kept.
    After that another thread may use the encoder for one more window, so that nobody else may.

    Args:
        order: a passage of each key, as they are to be embedded.
        missing: the passages of each key.
        texts: of the passages; its `skipped` counts those that fail, are cut, or are gone.
        cache: takes the vectors, every few seconds.
        encoder: embeds the passages, as `cache.spec` says.

    Raises:
        GembError: the model fails on every passage.
    """
    keys, skipped = texts.corpus.keys, texts.skipped
    embedder = Embedder(encoder, cache.spec)
    unsaved: list[tuple[bytes, Vectors]] = []
    saved_at = time.monotonic()
    try:
        with closing(embed(_records(order, texts), embedder, live=False)) as windows:
            for window in windows:
                good: list[int] = []
                for index, row in enumerate(window.rows):
                    if row.is_cut:
                        skipped.cut_passage()
                    if row.error:
                        skipped.failure(row.record.place, row.error.message)
                    else:
                        good.append(index)
                vectors = window.vectors[good]
                window_keys = [keys[int(window.rows[index].record.id)] for index in good]
                unsaved += zip(window_keys, vectors, strict=True)
                passages = [missing[key] for key in window_keys]
                counts = np.array([len(numbers) for numbers in passages], np.int64)
                yield Embedded(
                    vectors=vectors.astype(np.float16),
                    places=np.repeat(np.arange(len(good)), counts),
                    numbers=np.fromiter(chain.from_iterable(passages), np.int64, counts.sum()),
                    tokens=sum(row.tokens for row in window.rows),
                )
                if time.monotonic() - saved_at > KEEP_S or len(unsaved) > KEEP_ROWS:
                    _save(unsaved, cache)
                    saved_at = time.monotonic()
    finally:
        _save(unsaved, cache)


def _save(unsaved: list[tuple[bytes, Vectors]], cache: VectorCache) -> None:
    """Put vectors into the cache, and empty the list."""
    if unsaved:
        keys, vectors = zip(*unsaved, strict=True)
        cache.add(keys, np.stack(vectors))
        unsaved.clear()


def _records(order: Sequence[int], texts: PassageTexts) -> Iterator[Record]:
    for number in order:
        record = texts.record(number)
        if record is None:
            texts.lose(number)
        else:
            yield record


class SearchProgress(NamedTuple):
    """How far a search is."""

    ranking: Ranking  # of the passages that have a vector
    total: int  # passages, with those that have none yet
    tokens: int  # embedded in this run


def scored(
    known: CachedPassages,
    missing: MissingPassages,
    texts: PassageTexts,
    cache: VectorCache,
    queries: Vectors,
    encoder: Encoder,
    *,
    query_texts: Sequence[str],
    k: int | None,
    floor: float = -1.0,
) -> Generator[SearchProgress, None, None]:
    """Yield one ranking, which grows with each window; at the end it covers all passages.

    What is known is compared first; the other passages are embedded, those first that share words
    with the queries. It may be stopped at any time, as `embed_missing`.

    Args:
        known: passages, as `split_known` gives them.
        missing: and those without a vector.
        texts: of the passages.
        cache: of their vectors; its spec's dtype is f16.
        queries: unit vectors [Q, dim].
        encoder: embeds the missing passages.
        query_texts: the queries as texts.
        k: passages of a query; None: all that reach the floor.
        floor: the least score.

    Raises:
        GembError: the model fails on every passage, or the cache is damaged.
    """
    assert np.isfinite(queries).all(), "a query without a vector"
    queries = np.ascontiguousarray(queries, np.float32)
    total = len(texts.corpus)
    tokens = 0
    ranking = Ranking(len(queries), k, floor)
    add_known(ranking, known, cache, queries)
    yield SearchProgress(ranking, total, tokens)
    if not missing:
        return
    order = by_shared_words(missing, texts, query_texts)
    try:
        with closing(embed_missing(order, missing, texts, cache, encoder)) as windows:
            for embedded in windows:
                scores = scores_of(embedded.vectors, queries)
                ranking.add(scores[embedded.places], embedded.numbers)
                tokens += embedded.tokens
                yield SearchProgress(ranking, total, tokens)
    except GembError as error:
        # Where others were compared, those are left on which the model failed before.
        if not ranking.count:
            raise
        texts.skipped.failure(f"{total - ranking.count:,} passages", str(error))


def sample(known: CachedPassages, cache: VectorCache, count: int) -> Vectors:
    """Return the vectors of so many known passages, spread evenly, float32 [n, dim]."""
    most = len(known.rows)
    places = np.unique(np.linspace(0, max(0, most - 1), min(count, most), dtype=int))
    if not len(places):
        return np.zeros((0, cache.spec.dim), np.float32)
    return cache.gather(known.rows[places])
