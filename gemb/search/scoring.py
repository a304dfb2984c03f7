"""Score passages: those whose vectors are cached, then the others as they are embedded."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemb.arrays import Floats, Ints, Vectors
from gemb.embedding.pipeline import Embedder, embed, embed_for
from gemb.errors import GembError
from gemb.search.cache import VectorCache, scores_of
from gemb.search.corpus import Corpus
from gemb.search.fusion import RAISED
from gemb.search.passage_texts import PassageTexts
from gemb.texts.records import Record
from gemb.texts.walk import Skipped

if TYPE_CHECKING:
    from gemb.backend import Encoder

SPARE = 256  # ranks beyond k, for copies, and passages that turn out to have changed
SCORES = 1 << 22  # that are held at once
FIRST_BEST = 8192  # passages that are embedded strictly by their scores; then file by file
SETTLED = 20  # passages in a row that are not among the best: then the best ones are found
BEST = 5  # of each query, of which that is said
HOPELESS = 100  # passages in a row on which the model fails: no more are tried
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

    def __init__(
        self,
        queries: int,
        k: int | None,
        floor: float = -1.0,
        raised: Sequence[Ints] = (),
        same: Ints | None = None,
    ) -> None:
        """Begin with no passage.

        Args:
            queries: how many.
            k: passages of a query, and some to spare; None: all that reach the floor.
            floor: the least score.
            raised: for each query the passages, ascending, to whose scores `RAISED` is added when
                they are put in order, and when they are held against the floor.
            same: equal numbers for passages of which only the best is kept, [n]; None: all are.
        """
        self._raised = raised or (np.zeros(0, np.int64),) * queries
        self._same = same
        self.queries = queries
        self.k = k
        self.count = 0  # passages that were added
        self._most = None if k is None else k + SPARE
        self._floor = floor
        # As they are put in order: raised.
        self._scores = [np.zeros(0, np.float32) for _ in range(queries)]
        self._numbers = [np.zeros(0, np.int64) for _ in range(queries)]

    def add(self, scores: NDArray[np.float32], numbers: Ints) -> bool:
        """Add passages: scores [n, queries], and their numbers [n].

        Returns whether one of them is now among the `BEST` of a query, or among its k if they are
        fewer.
        """
        self.count += len(numbers)
        is_new = False
        for query in range(self.queries):
            column = self._in_order(query, scores[:, query], numbers)
            is_new |= len(column) > 0 and float(column.max()) > self._bar(query)
            least = self._floor
            if self._most is not None and len(self._scores[query]) >= self._most:
                least = max(least, float(self._scores[query].min()))
            keep = np.flatnonzero(column >= least)
            if not len(keep):
                continue
            joined = np.concatenate([self._scores[query], column[keep]])
            named = np.concatenate([self._numbers[query], numbers[keep]])
            if self._most is not None and len(joined) > self._most:
                order = self._distinct(np.lexsort((named, -joined)), named)[: self._most]
                joined, named = joined[order], named[order]
            self._scores[query], self._numbers[query] = joined, named
        return is_new

    def best(self, query: int) -> list[tuple[int, float]]:
        """Return number and score of a query's best, best first; of equal ones the first first."""
        scores, numbers = self._scores[query], self._numbers[query]
        order = np.lexsort((numbers, -scores))
        scores, numbers = scores[order], numbers[order]
        scores = scores - self._raise(query, numbers)
        return list(zip(numbers.tolist(), scores.tolist(), strict=True))

    def _in_order(self, query: int, scores: Floats, numbers: Ints) -> Floats:
        return scores + self._raise(query, numbers)

    def _raise(self, query: int, numbers: Ints) -> Floats:
        raised: Floats = RAISED * np.isin(numbers, self._raised[query]).astype(np.float32)
        return raised

    def _distinct(self, order: Ints, numbers: Ints) -> Ints:
        """Return the first places of an order whose passages are not the same."""
        if self._same is None:
            return order
        _, firsts = np.unique(self._same[numbers[order]], return_index=True)
        return order[np.sort(firsts)]

    @property
    def judged(self) -> int:
        """How many of the best are looked at, whether they change."""
        return BEST if self.k is None else max(1, min(self.k, BEST))

    def _bar(self, query: int) -> float:
        """Return the score of the last of the best of a query; -inf where there are fewer."""
        scores = self._scores[query]
        count = self.judged
        return float(np.partition(scores, -count)[-count]) if len(scores) >= count else -np.inf


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


def nearest_first(missing: MissingPassages, first: Iterable[Floats]) -> list[int]:
    """Return a passage of each key, in the order in which they are to get vectors.

    They come by their scores, the first of each query, then the second of each, and so on; beyond
    `FIRST_BEST` as they stand in the files, so that no file is read again and again.

    Args:
        missing: passages without a vector.
        first: scores of all passages, [n], for each query.
    """
    numbers = np.array([same[0] for same in missing.values()], np.int64)
    ranks = np.full(len(numbers), len(numbers), np.int64)
    for scores in first:
        order = np.argsort(-scores[numbers], kind="stable")
        own = np.empty_like(order)
        own[order] = np.arange(len(order))
        ranks = np.minimum(ranks, own)
    order = np.argsort(ranks, kind="stable")
    best, rest = order[:FIRST_BEST], np.sort(order[FIRST_BEST:])
    nearest: list[int] = numbers[np.concatenate([best, rest])].tolist()
    return nearest


def without_copies(order: Sequence[int], same: Ints) -> list[int]:
    """Return passages in the same order, of those that are the same only the first."""
    _, firsts = np.unique(same[list(order)], return_index=True)
    return [order[index] for index in np.sort(firsts).tolist()]


class FailedText(NamedTuple):
    """A passage on which the model failed, and all that have its text."""

    place: str
    message: str


class Embedded(NamedTuple):
    """Passages that got their vectors together, or failed."""

    vectors: NDArray[np.float16]  # [texts, dim]
    places: Ints  # [n]: of each passage's vector; one text may stand in many passages
    numbers: Ints  # [n]: of the passages
    tokens: int
    failed: Sequence[FailedText]


def embed_missing(
    order: Iterable[int],
    missing: MissingPassages,
    texts: PassageTexts,
    cache: VectorCache,
    encoder: Encoder,
    seconds: float | None = None,
) -> Generator[Embedded, None, None]:
    """Yield passages with their vectors, window by window, and put the vectors into the cache.

    It may be stopped at any time, by closing it or by any exception: what was computed is kept.
    After that another thread may use the encoder for one more window, so that nobody else may.
    Texts on which the model fails hold up no others, even where they fill a window.

    Args:
        order: a passage of each key, as they are to be embedded.
        missing: the passages of each key.
        texts: of the passages; its `skipped` counts those that are cut, or are gone.
        cache: takes the vectors, every few seconds.
        encoder: embeds the passages, as `cache.spec` says.
        seconds: after which no more are embedded; None: all are.
    """
    keys, skipped = texts.corpus.keys, texts.skipped
    embedder = Embedder(encoder, cache.spec, passes_over=True)
    unsaved: list[tuple[bytes, Vectors]] = []
    saved_at = time.monotonic()
    try:
        records = _records(order, texts)
        windows = (
            embed(records, embedder, live=False)
            if seconds is None
            else embed_for(records, embedder, seconds)
        )
        with closing(windows):
            for window in windows:
                good = [index for index, row in enumerate(window.rows) if not row.error]
                for row in window.rows:
                    if row.is_cut:
                        skipped.cut_passage()
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
                    failed=[
                        FailedText(row.record.place, row.error.message)
                        for row in window.rows
                        if row.error
                    ],
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


def _records(order: Iterable[int], texts: PassageTexts) -> Iterator[Record]:
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
    embedded: int  # in this run
    tokens: int  # of these
    left_s: float | None  # seconds that are left at most; None: till all are embedded
    is_settled: bool = False  # the best ones have not changed for long, or nothing is left
    failed: int = 0  # texts on which the model failed in this run


def scored(
    known: CachedPassages,
    missing: MissingPassages,
    texts: PassageTexts,
    cache: VectorCache,
    queries: Vectors,
    encoder: Encoder,
    *,
    ranking: Ranking,
    order: Sequence[int],
    seconds: float | None = None,
    before: Sequence[int] = (),
) -> Generator[SearchProgress, None, None]:
    """Yield one ranking, which grows with each window.

    What is known is compared first; then other passages are embedded, in their order, until all
    have a vector, the time is over, or the best ones do not change any more. It may be stopped at
    any time, as `embed_missing`.

    Args:
        known: passages, as `split_known` gives them.
        missing: and those without a vector.
        texts: of the passages.
        cache: of their vectors; its spec's dtype is f16.
        queries: unit vectors [Q, dim].
        encoder: embeds passages.
        ranking: empty, of these queries.
        order: passages to embed, one of each key.
        seconds: of embedding; None: all of `order` is embedded.
        before: known passages that would come before `order`, in the same order, where there is
            one query.

    Raises:
        GembError: the model fails on every passage, or the cache is damaged.
    """
    assert np.isfinite(queries).all(), "a query without a vector"
    queries = np.ascontiguousarray(queries, np.float32)
    total = len(texts.corpus)
    tokens = count = 0
    began = time.monotonic()
    add_known(ranking, known, cache, queries)
    # Passages since the best ones have changed.
    are_best = {number for number, _ in ranking.best(0)[: ranking.judged]} if before else set()
    places = (at for at, number in enumerate(reversed(before)) if number in are_best)
    same = next(places, len(before))
    most = SETTLED * len(queries)
    is_settled = seconds is not None and same >= most
    yield SearchProgress(ranking, total, count, tokens, seconds, is_settled)
    if not order or seconds == 0 or is_settled:
        return
    left = iter(order)
    failed: list[FailedText] = []  # not said yet: where nothing is compared they are an error
    failures = failing = 0  # texts; those since the last vector
    with closing(embed_missing(left, missing, texts, cache, encoder, seconds)) as steps:
        for embedded in steps:
            scores = scores_of(embedded.vectors, queries)
            is_new = ranking.add(scores[embedded.places], embedded.numbers)
            tokens += embedded.tokens
            made = len(embedded.vectors)
            count += made
            failed += _as_one(embedded.failed) if not made else embedded.failed
            failures += len(embedded.failed)
            failing = 0 if made else failing + len(embedded.failed)
            if ranking.count:
                _say(failed, texts.skipped)
            left_s = None if seconds is None else max(0.0, seconds + began - time.monotonic())
            same = 0 if is_new else same + made
            is_settled = seconds is not None and same >= most
            yield SearchProgress(ranking, total, count, tokens, left_s, is_settled, failures)
            if is_settled or failing >= HOPELESS:
                break
        else:
            if ranking.count < total and next(left, None) is None:  # gone, failed, or copies
                yield SearchProgress(ranking, total, count, tokens, 0.0, True, failures)
    if failures > 1 and not ranking.count:
        raise GembError(
            f"the model fails on all of {failures:,} passages ({failed[0].message}); gemb doctor "
            "tries it"
        )
    _say(failed, texts.skipped)
    if failing >= HOPELESS and (untried := len(list(left))):
        what = "the model fails on one after another, and these were not tried"
        texts.skipped.failure(f"{untried:,} more passages", what)


def _as_one(failed: Sequence[FailedText]) -> Sequence[FailedText]:
    """Return all the passages of a window as one."""
    if len(failed) < 2:
        return failed
    return [FailedText(f"{len(failed):,} passages", failed[0].message)]


def _say(failed: list[FailedText], skipped: Skipped) -> None:
    """Count passages on which the model failed, and empty the list."""
    for text in failed:
        skipped.failure(*text)
    failed.clear()


def sample(known: CachedPassages, cache: VectorCache, count: int) -> Vectors:
    """Return the vectors of so many known passages, spread evenly, float32 [n, dim]."""
    most = len(known.rows)
    places = np.unique(np.linspace(0, max(0, most - 1), min(count, most), dtype=int))
    if not len(places):
        return np.zeros((0, cache.spec.dim), np.float32)
    return cache.gather(known.rows[places])
