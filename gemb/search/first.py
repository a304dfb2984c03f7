"""The first ranking of all passages: by their words (BM25) and by draft vectors.

A draft model makes a vector in the space of the real model, not as good, a hundred times as fast.
What words and drafts rank first is worth a real vector.
"""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gemb.arrays import Floats, Ints, Vectors
from gemb.embedding.drafts import DraftModel
from gemb.embedding.pipeline import shortened
from gemb.errors import GembError
from gemb.index.bm25 import by_words, with_all
from gemb.index.words import add_words
from gemb.io.notes import note
from gemb.search.cache import VectorCache
from gemb.search.corpus import PassageTexts
from gemb.search.fusion import are_telling, fused
from gemb.search.kept_words import KnownWords, word_keys
from gemb.texts.words import exact_terms, query_terms

ALL = 1 << 40  # rows
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
    rows: Ints  # [n]: of each passage in the table; -1: it is gone
    drafts: Drafts | None

    def scores(self, query: str, vector: Vectors) -> FirstScores:
        """Return the scores of all passages.

        Args:
            query: as text.
            vector: of the query, [dim].
        """
        count = 1 + int(self.rows.max(initial=-1))
        found = by_words(self.table, query, ALL, share=0, terms=query_terms(query))
        by_row = np.zeros(count + 1, np.float32)  # the last one is of those that are gone
        is_here = found.rows < count
        by_row[found.rows[is_here]] = found.scores[is_here]
        words = by_row[self.rows]
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

    def raised(self, query: str) -> Ints:
        """Return the passages that have the very names or words of a query, ascending.

        Names in a question tell little where many passages have them.
        """
        rows = with_all(self.table, exact_terms(query))
        numbers = np.flatnonzero(np.isin(self.rows, rows))
        return numbers if are_telling(query, len(numbers), len(self.rows)) else numbers[:0]


def first_ranking(
    texts: PassageTexts,
    drafts: Drafts | None,
    *,
    kept: Path | None = None,
    read: Callable[[int], None] = lambda passages: None,
) -> FirstRanking:
    """Read passages for their words and for drafts, those of which one is not known.

    Args:
        texts: of the passages.
        drafts: gets those that are missing; None: there is no draft model.
        kept: where the words are kept for later searches; None: they are not.
        read: called with the number of passages so far. An exception, from it or any other, ends
            the reading; the drafts that were made are kept.
    """
    keys = word_keys(texts.corpus)
    words = KnownWords(kept, len(keys))
    rows = words.find(keys)
    is_needed = rows < 0
    if drafts:
        is_needed |= drafts.rows < 0
    needed = np.flatnonzero(is_needed).tolist()
    if needed:
        _read(texts, needed, words, keys, drafts, read)
        words.save()
        rows = words.find(keys)
    return FirstRanking(table=words.table, rows=rows, drafts=drafts)


def _read(
    texts: PassageTexts,
    needed: Sequence[int],
    words: KnownWords,
    keys: Sequence[bytes],
    drafts: Drafts | None,
    read: Callable[[int], None],
) -> None:
    """Put the words of these passages into the table; meanwhile make the drafts that are missing.

    A passage that is gone has no words.
    """
    known = len(texts.corpus) - len(needed)
    with (
        ThreadPoolExecutor(1, thread_name_prefix="gemb-words") as word_pool,
        ThreadPoolExecutor(1, thread_name_prefix="gemb-drafts") as draft_pool,
    ):
        adding: deque[Future[None]] = deque()
        drafting: deque[tuple[list[int], Future[Vectors]]] = deque()
        try:
            for start in range(0, len(needed), CHUNK):
                records = {number: texts.record(number) for number in needed[start : start + CHUNK]}
                here = {number: record for number, record in records.items() if record}
                new = {
                    keys[number]: (f"{texts.folder(number)} {record.title or ''}", record.text)
                    for number, record in here.items()
                    if not words.has(keys[number])
                }
                if new:
                    first = words.take(list(new))
                    adding.append(
                        word_pool.submit(add_words, words.table, first, list(new.values()))
                    )
                missing = [number for number in here if drafts and drafts.rows[number] < 0]
                if drafts and missing:
                    passages = [(here[number].title, here[number].text) for number in missing]
                    drafting.append((missing, draft_pool.submit(drafts.model.vectors, passages)))
                while len(adding) > AHEAD:
                    adding.popleft().result()
                while drafts and len(drafting) > AHEAD:
                    done, future = drafting.popleft()
                    drafts.take(done, future.result())
                read(known + start + len(records))
            while adding:
                adding.popleft().result()
            while drafts and drafting:
                done, future = drafting.popleft()
                drafts.take(done, future.result())
        finally:
            for pool in (word_pool, draft_pool):
                pool.shutdown(wait=False, cancel_futures=True)
            if drafts:
                drafts.done()
