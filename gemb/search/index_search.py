"""The rows of an index that answer a query: by vectors, by very names, by words, by drafts."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from gemb.arrays import Bools, Floats, Ints, Vectors
from gemb.embedding.pipeline import shortened
from gemb.index.bm25 import by_words, with_all
from gemb.index.drafts import WANTED, padded
from gemb.index.hits import Hit, Ranked
from gemb.index.ranking import plan, ranked
from gemb.index.reader import Index
from gemb.index.source import RowSource, source_from_json
from gemb.search.answers import DEPTH, depth
from gemb.search.fusion import RAISED, Background, are_telling, fused, probable_cosines
from gemb.search.queries import Criteria, Query
from gemb.texts.words import exact_terms, query_terms

ALL = 10_000  # rows of a query at most, where all that reach the floor are asked for
EXACT = 4096  # rows with the very words of a query that are compared; of more, none stands out
SAMPLE = 2048  # vectors from which the background of a query's cosines is measured
LEARNT = 512  # rows with a draft and a real vector from which one is told by the other


class ScoredRows(NamedTuple):
    """Rows with their cosines, best first."""

    slots: Ints
    cosines: Floats
    are_estimates: Bools  # of cosines: the rows have drafts alone
    are_named: Bools  # they have the very names or words of the query

    @staticmethod
    def of(slots: Ints, cosines: Floats, are_estimates: Bools | None = None) -> ScoredRows:
        """Return rows, not looked through for names; None: all have real vectors."""
        nothing = np.zeros(len(slots), np.bool_)
        return ScoredRows(
            slots, cosines, nothing if are_estimates is None else are_estimates, nothing
        )


class IndexSearch:
    """The search of some rows of an index."""

    def __init__(
        self, index: Index, numbers: Ints | None, count: int, criteria: Criteria, like: int | None
    ) -> None:
        """Take what is searched.

        Args:
            index: an open index.
            numbers: the rows to look at, ascending; None: all.
            count: of these rows.
            criteria: of the answers.
            like: the row that the only query is; it is no answer to itself.
        """
        self._index = index
        self._numbers = numbers
        self._count = count
        self._criteria = criteria
        self._like = like
        self._source = source_from_json(index.manifest.source)
        index.check_drafts()
        self._drafts = self._selected(index.drafts)
        self._real = numbers  # rows with real vectors; None: all
        if len(self._drafts):
            everything = np.arange(len(index.stored)) if numbers is None else numbers
            self._real = np.setdiff1d(everything, self._drafts, assume_unique=True)
        self.depth = depth(criteria, ALL) + (like is not None)

    def nearest(self, vectors: Vectors, k: int) -> list[ScoredRows]:
        """Return the k rows nearest to each query, unit rows [Q, dim], of those with real vectors.

        Raises:
            GembError: a row is damaged.
        """
        return self._nearest(vectors, k, self._real, self._count - len(self._drafts))

    def hits(self, query: Query, vector: Vectors, nearest: ScoredRows) -> list[Hit]:
        """Return the answers to a query, best first.

        Args:
            query: as text.
            vector: of it, [dim].
            nearest: the rows that are nearest to it, `depth` of them.

        Raises:
            GembError: a row is damaged.
        """
        k = None if self._criteria.k is None else depth(self._criteria, ALL)
        looked_at = self.depth
        most = max(self._count - len(self._drafts), len(self._drafts))
        while True:
            hits = self._distinct(self._ordered(query, vector, nearest, looked_at), k)
            if k is None or len(hits) >= k or looked_at >= most:
                return hits
            # There are copies among them.
            looked_at *= 4
            (nearest,) = self.nearest(vector[None], looked_at)

    def _nearest(
        self, vectors: Vectors, k: int, numbers: Ints | None, count: int
    ) -> list[ScoredRows]:
        k = min(k, count)
        if not k:
            nothing = ScoredRows.of(np.empty(0, np.int64), np.empty(0, np.float32))
            return [nothing] * len(vectors)
        how = plan(self._criteria.accuracy, count, k)
        best = ranked(vectors, self._index.vectors, how, k=k, rows=numbers)
        return [
            ScoredRows.of(slots[slots >= 0], scores[slots >= 0])
            for slots, scores in zip(best.rows, best.scores, strict=True)
        ]

    def _ordered(
        self, query: Query, vector: Vectors, nearest: ScoredRows, looked_at: int
    ) -> ScoredRows:
        """Return the rows in the order of the answers; so many drafts are looked at, too."""
        is_question = self._like is None
        exact = self._exact(query) if is_question else np.empty(0, np.int64)
        is_hybrid = self._criteria.is_hybrid and is_question
        words = self._by_words(query) if is_hybrid or len(self._drafts) else None
        if words is None and not len(exact):
            is_other = nearest.slots != self._like
            return ScoredRows(*(column[is_other] for column in nearest))
        named = [exact, words.rows[: self.depth]] if words else [exact]
        slots = np.unique(np.concatenate([nearest.slots, *named]))
        slots = np.setdiff1d(slots, self._drafts, assume_unique=True)
        rows = ScoredRows.of(slots, self._index.unit_vectors(slots) @ vector)
        if words and len(self._drafts):
            rows = self._with_drafts(rows, vector, words, exact, looked_at)
        rows = rows._replace(are_named=np.isin(rows.slots, exact))
        order = rows.cosines + np.where(rows.are_named, RAISED, 0).astype(np.float32)
        if words and is_hybrid:
            of_cosines = Background.of(self._sample @ vector) if len(self._sample) else None
            of_words = Background.of(words.scores, self._count)
            order = fused(order, _scores_of(words, rows.slots), of_cosines, of_words)
        best = np.lexsort((rows.slots, -order))
        best = best[rows.slots[best] != self._like]
        return ScoredRows(*(column[best] for column in rows))

    def _with_drafts(
        self, real: ScoredRows, vector: Vectors, words: Ranked, exact: Ints, looked_at: int
    ) -> ScoredRows:
        """Return rows with those that drafts, words or very names rank high, and want these.

        Drafts and words are taken in deviations from their own backgrounds; which cosine such a
        sum stands for is told from rows that have both.
        """
        index, dim, width = self._index, self._index.spec.dim, self._index.manifest.draft_width
        short = shortened(vector[None], width)
        draft_query = padded(short, dim)
        most = max(DEPTH, looked_at)
        (near,) = self._nearest(draft_query, most, self._drafts, len(self._drafts))
        slots = np.unique(np.concatenate([near.slots, exact, words.rows[:most]]))
        slots = np.intersect1d(slots, self._drafts, assume_unique=True)
        spread = _spread(self._real_rows, LEARNT)
        kept = index.kept_drafts(np.union1d(real.slots, spread).tolist())
        known = np.array(list(kept), np.int64)
        of_known = np.array(list(kept.values()), np.float32).reshape(-1, width) @ short[0]
        # A few rows that still have drafts are no background.
        sampled = self._sampled(self._drafts) @ draft_query[0]
        of_drafts = Background.of(np.concatenate([sampled, of_known[np.isin(known, spread)]]))
        of_words = Background.of(words.scores, self._count)

        def first(rows: Ints, cosines: Floats) -> Floats:
            return fused(cosines, _scores_of(words, rows), of_drafts, of_words)

        estimated = first(slots, index.unit_vectors(slots) @ draft_query[0])
        tested = first(known, of_known)
        cosines = index.unit_vectors(known) @ vector
        # One row alone has no deviation.
        good = (estimated >= 0) | self._criteria.is_weak
        slots, estimated = slots[good], estimated[good]
        if self._like is None and looked_at == self.depth:
            best = slots[np.argsort(-estimated, kind="stable")][:WANTED]
            index.want(best.tolist())
        return ScoredRows.of(
            np.concatenate([real.slots, slots]),
            np.concatenate([real.cosines, probable_cosines(estimated, tested, cosines)]),
            np.concatenate([real.are_estimates, np.ones(len(slots), np.bool_)]),
        )

    def _exact(self, query: Query) -> Ints:
        """Return the rows with the very names or words of a query; none where many have them."""
        if self._index.has_old_words:
            return np.empty(0, np.int64)
        rows = with_all(self._index.connection, exact_terms(query.text), EXACT + 1)
        is_telling = are_telling(query.text, len(rows), self._index.count)
        return self._selected(rows) if len(rows) <= EXACT and is_telling else rows[:0]

    def _by_words(self, query: Query) -> Ranked:
        """Return all rows that share words with a query, best first."""
        terms = None if self._index.has_old_words else query_terms(query.text)
        connection, numbers = self._index.connection, self._numbers
        return by_words(connection, query.text, self._count, numbers, share=0, terms=terms)

    def _selected(self, slots: Ints) -> Ints:
        if self._numbers is None:
            return slots
        return np.intersect1d(slots, self._numbers, assume_unique=True)

    @property
    def _real_rows(self) -> Ints:
        return np.arange(len(self._index.stored)) if self._real is None else self._real

    @cached_property
    def _sample(self) -> Vectors:
        """Vectors from everywhere in the rows with real ones, [n, dim]."""
        return self._sampled(self._real_rows)

    def _sampled(self, rows: Ints) -> Vectors:
        return self._index.unit_vectors(_spread(rows, SAMPLE))

    def _distinct(self, scored: ScoredRows, k: int | None) -> list[Hit]:
        """Return the first k as hits; rows of the same text are one, which says how many."""
        hits: dict[object, Hit] = {}
        step = max(1, len(scored.slots) if k is None else k)
        for start in range(0, len(scored.slots), step):
            part = slice(start, start + step)
            new = self._index.hits(scored.slots[part], scored.cosines[part])
            columns = (column[part].tolist() for column in (scored[0], *scored[2:]))
            for hit, slot, is_estimate, is_named in zip(new, *columns, strict=True):
                is_once = self._criteria.is_once and self._is_nameless(hit)
                key = hit.text if is_once else slot
                if key in hits:
                    hits[key] = replace(hits[key], copies=hits[key].copies + 1)
                elif k is None or len(hits) < k:
                    hits[key] = replace(hit, is_estimate=is_estimate, is_named=is_named)
            if k is not None and len(hits) >= k:
                break
        return [
            replace(hit, copies=self._copies(hit)) if isinstance(key, str) else hit
            for key, hit in hits.items()
        ]

    def _is_nameless(self, hit: Hit) -> bool:
        """Return whether nothing but its text tells a row: no id of its own, no further fields."""
        return hit.id is None or (
            isinstance(self._source, RowSource) and self._source.id is None and not hit.kept
        )

    def _copies(self, hit: Hit) -> int:
        slots = self._index.copies(hit.text)
        return hit.copies if slots is None else len(self._selected(slots))


def _scores_of(words: Ranked, slots: Ints) -> Floats:
    """Return the scores of rows by words, [n]; 0 where they share none."""
    scores = np.zeros(len(slots), np.float32)
    _, here, there = np.intersect1d(slots, words.rows, return_indices=True)
    scores[here] = words.scores[there]
    return scores


def _spread(rows: Ints, count: int) -> Ints:
    """Return at most so many rows, from everywhere."""
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]
