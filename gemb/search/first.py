"""The first ranking of all passages: by their words (BM25) and by draft vectors.

A draft model makes a vector in the space of the real model, not as good, a hundred times as fast.
What words and drafts rank first is worth a real vector.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from gemb.arrays import Floats, Ints, Rows, Vectors
from gemb.errors import GembError
from gemb.index.bm25 import by_words, with_all
from gemb.io.notes import note
from gemb.search.first_reading import CHUNK, FirstReader
from gemb.search.fusion import are_telling, fused
from gemb.search.kept_drafts import Drafts
from gemb.search.kept_words import word_keys
from gemb.search.passage_texts import PassageTexts
from gemb.texts.words import exact_terms, query_terms

ALL = 1 << 40  # rows


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
    draft_rows: Rows  # [n]: of each passage's draft; -1: it has none

    def scores(self, query: str, vector: Vectors) -> FirstScores:
        """Return the scores of all passages.

        Args:
            query: as text.
            vector: of the query, [dim].
        """
        count = 1 + int(self.rows.max(initial=-1))
        ranked = by_words(self.table, query, ALL, share=0, terms=query_terms(query))
        by_row = np.zeros(count + 1, np.float32)  # the last one is of those that are gone
        is_here = ranked.rows < count
        by_row[ranked.rows[is_here]] = ranked.scores[is_here]
        words = by_row[self.rows]
        drafts = self._draft_scores(vector)
        return FirstScores(words, drafts, fused(drafts, words))

    def _draft_scores(self, vector: Vectors) -> Floats | None:
        if self.drafts is None:
            return None
        try:
            return self.drafts.scores(self.draft_rows, vector)
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
    reader: FirstReader,
    *,
    with_drafts: bool = True,
    read: Callable[[int], None] = lambda passages: None,
) -> FirstRanking:
    """Rank passages by their words, and by drafts; those that the reader lacks are read.

    Args:
        texts: of the passages.
        reader: has read some of them, perhaps.
        with_drafts: rank by drafts, too, where there is a draft model.
        read: called with the number of passages so far. An exception, from it or any other, ends
            the reading; the drafts that were made are kept.
    """
    try:
        reader.finish()
        words, drafts = reader.words(), reader.drafts() if with_drafts else None
        keys = word_keys(texts.corpus)
        words.trim(len(keys))
        is_needed = words.find(keys) < 0
        if drafts:
            is_needed |= drafts.whole(texts.corpus.keys) < 0
        if is_needed.any():
            _read(texts, np.flatnonzero(is_needed).tolist(), reader, read)
        words.save()
        rows = words.find(keys)
        draft_rows = drafts.find(texts.corpus.keys) if drafts else np.full(len(keys), -1, np.int64)
    finally:
        reader.close()
    return FirstRanking(table=words.table, rows=rows, drafts=drafts, draft_rows=draft_rows)


def _read(
    texts: PassageTexts, needed: Sequence[int], reader: FirstReader, read: Callable[[int], None]
) -> None:
    """Give these passages to the reader; one that is gone has no words."""
    corpus = texts.corpus
    known = len(corpus) - len(needed)
    for start in range(0, len(needed), CHUNK):
        numbers = needed[start : start + CHUNK]
        for folder, some in groupby(numbers, texts.folder):
            records = {number: texts.record(number) for number in some}
            here = {number: record for number, record in records.items() if record}
            reader.take(
                folder,
                [corpus.keys[number] for number in here],
                [(record.title, record.text) for record in here.values()],
            )
        read(known + start + len(numbers))
    reader.finish()
