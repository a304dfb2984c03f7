"""The first ranking of all passages: by their words (BM25) and by draft vectors.

A draft model makes a vector in the space of the real model, not as good, a hundred times as fast.
What words and drafts rank first is worth a real vector.
"""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gemb.arrays import Floats, Vectors
from gemb.embedding.drafts import DraftModel
from gemb.embedding.pipeline import shortened
from gemb.errors import GembError
from gemb.index.bm25 import by_words, with_all
from gemb.index.words import add_words, words_table
from gemb.io.notes import note
from gemb.search.cache import VectorCache
from gemb.search.corpus import PassageTexts
from gemb.search.fusion import RAISED, fused
from gemb.search.kept_words import keep_words, kept_words
from gemb.texts.records import Record
from gemb.texts.words import exact_terms, query_terms

CHUNK = 256  # passages that a thread is given
AHEAD = 4  # chunks that wait for a thread
KEEP_S = 2.0  # seconds of drafting that a kill may cost


class Drafts:
    """Drafts of the passages of a search, in a cache."""

    def __init__(self, model: DraftModel, cache: VectorCache, keys: Sequence[bytes]) -> None:
        """Look up which are there."""
        self.model = model
        self._cache = cache
        self._keys = keys
        self.rows = cache.find(keys)  # [n], -1: none
        self.made = 0
        self._unsaved: list[tuple[bytes, Vectors]] = []
        self._saved_at = time.monotonic()

    def missing(self, numbers: range) -> list[int]:
        """Return which of these passages have no draft."""
        return [number for number in numbers if self.rows[number] < 0]

    def take(self, numbers: Sequence[int], vectors: Vectors) -> None:
        """Take new drafts; those of NaN are none."""
        good = np.flatnonzero(~np.isnan(vectors[:, 0])).tolist()
        self._unsaved += [(self._keys[numbers[row]], vectors[row]) for row in good]
        self.made += len(good)
        if time.monotonic() - self._saved_at > KEEP_S:
            self.save()

    def save(self) -> None:
        """Put what was made into the cache."""
        if self._unsaved:
            vectors = dict(self._unsaved)  # one of each key
            self._cache.add(list(vectors), np.stack(list(vectors.values())))
            self._unsaved.clear()
        self._saved_at = time.monotonic()

    def done(self) -> None:
        """Save, and look up the rows of all passages."""
        self.save()
        self.rows = self._cache.find(self._keys)

    def scores(self, query: Vectors) -> Floats:
        """Return the cosines of the drafts with a query of any width, [n]; NaN: no draft.

        Raises:
            GembError: the cache is damaged.
        """
        scores = np.full(len(self.rows), np.nan, np.float32)
        has_draft = self.rows >= 0
        short = shortened(query[None], self.model.spec.dim)
        scores[has_draft] = self._cache.scores(self.rows[has_draft], short)[:, 0]
        return scores


class FirstScores(NamedTuple):
    """How the passages of a search answer one query, before real vectors."""

    words: Floats  # [n]: BM25, 0 where no word is shared
    drafts: (
        Floats | None
    )  # [n]: cosines, NaN where there is no draft; None: there is no draft model
    fused: Floats  # [n]: both, as `gemb.search.fusion.fused`

    def ranks(self, number: int) -> dict[str, int | None]:
        """Return the ranks of a passage, from 1; None where it has none."""
        words, drafts = self.words, self.drafts
        ranks: dict[str, int | None] = {
            "words": 1 + int((words > words[number]).sum()) if words[number] > 0 else None
        }
        ranks["draft"] = None
        if drafts is not None and not np.isnan(drafts[number]):
            ranks["draft"] = 1 + int((drafts > drafts[number]).sum())
        return ranks


@dataclass(frozen=True, kw_only=True)
class FirstRanking:
    """Ranks all passages of a search for a query, without real vectors."""

    table: sqlite3.Connection  # of words: `gemb.index.words.words_table`
    count: int  # passages
    drafts: Drafts | None

    def scores(self, query: str, vector: Vectors) -> FirstScores:
        """Return the scores of all passages.

        Args:
            query: as text.
            vector: of the query, [dim].
        """
        found = by_words(self.table, query, self.count, share=0, terms=query_terms(query))
        words = np.zeros(self.count, np.float32)
        words[found.rows] = found.scores
        drafts = self._draft_scores(vector)
        return FirstScores(words, drafts, fused(drafts, words))

    def _draft_scores(self, vector: Vectors) -> Floats | None:
        if self.drafts is None:
            return None
        try:
            return self.drafts.scores(vector)
        except GembError as error:
            note(f"{error}; this search does without drafts", once=True)
            return None

    def raised(self, query: str) -> Floats | None:
        """Return what the passages with the very names or words of a query are raised by, [n]."""
        rows = with_all(self.table, exact_terms(query))
        if not len(rows):
            return None
        raised = np.zeros(self.count, np.float32)
        raised[rows] = RAISED
        return raised


def first_ranking(
    texts: PassageTexts,
    drafts: Drafts | None,
    *,
    kept: Path | None = None,
    read: Callable[[int], None] = lambda passages: None,
) -> FirstRanking:
    """Read all passages once, for their words and for drafts where there are none.

    Args:
        texts: of the passages.
        drafts: gets those that are missing; None: there is no draft model.
        kept: where the words are kept for later searches; None: they are not.
        read: called with the number of passages so far. An exception, from it or any other, ends
            the reading; the drafts that were made are kept.
    """
    count = len(texts.corpus)
    known = kept_words(kept) if kept else None
    if known and (drafts is None or not drafts.missing(range(count))):
        return FirstRanking(table=known, count=count, drafts=drafts)
    table, is_whole = _words(texts, drafts, read)
    if kept and is_whole:
        keep_words(table, kept)
    return FirstRanking(table=table, count=count, drafts=drafts)


def _words(
    texts: PassageTexts, drafts: Drafts | None, read: Callable[[int], None]
) -> tuple[sqlite3.Connection, bool]:
    """Return the words of all passages; meanwhile make the drafts that are missing.

    The second value is whether all passages are still there; one that is gone has no word.
    """
    table = words_table()
    is_whole = True
    with (
        ThreadPoolExecutor(1, thread_name_prefix="gemb-words") as word_pool,
        ThreadPoolExecutor(1, thread_name_prefix="gemb-drafts") as draft_pool,
    ):
        words: deque[Future[None]] = deque()
        drafting: deque[tuple[list[int], Future[Vectors]]] = deque()
        try:
            for numbers in _chunks(len(texts.corpus)):
                records = [texts.record(number) for number in numbers]
                passages = [_title_and_text(record) for record in records]
                named = [
                    (f"{texts.folder(number)} {title or ''}", text)
                    for number, (title, text) in zip(numbers, passages, strict=True)
                ]
                words.append(word_pool.submit(add_words, table, numbers[0], named))
                gone = {number for number, record in enumerate(records, numbers[0]) if not record}
                is_whole = is_whole and not gone
                missing = [
                    number
                    for number in (drafts.missing(numbers) if drafts else [])
                    if number not in gone
                ]
                if drafts and missing:
                    new = [passages[number - numbers[0]] for number in missing]
                    drafting.append((missing, draft_pool.submit(drafts.model.vectors, new)))
                while len(words) > AHEAD:
                    words.popleft().result()
                while drafts and len(drafting) > AHEAD:
                    done, future = drafting.popleft()
                    drafts.take(done, future.result())
                read(numbers[-1] + 1)
            while words:
                words.popleft().result()
            while drafts and drafting:
                done, future = drafting.popleft()
                drafts.take(done, future.result())
        finally:
            for pool in (word_pool, draft_pool):
                pool.shutdown(wait=False, cancel_futures=True)
            if drafts:
                drafts.done()
    return table, is_whole


def _chunks(count: int) -> Iterator[range]:
    return (range(at, min(at + CHUNK, count)) for at in range(0, count, CHUNK))


def _title_and_text(record: Record | None) -> tuple[str | None, str]:
    """Return title and text of a passage; of one that is gone, nothing."""
    return (record.title, record.text) if record else (None, "")
