"""The search of gathered passages: what is known, what gets a vector, and the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gemb.arrays import Bools, Floats, Ints, Vectors
from gemb.index.floor import USUAL, measure
from gemb.index.hits import Hit
from gemb.search.answers import DEPTH, NO_FLOOR, QueryHits, above, depth
from gemb.search.cache import VectorCache
from gemb.search.first import FirstRanking, FirstScores, first_ranking
from gemb.search.first_reading import FirstReader
from gemb.search.fusion import RAISED, fused, probable_cosines
from gemb.search.passage_texts import PassageTexts
from gemb.search.queries import Criteria, Query, Scale, Unsure
from gemb.search.scoring import (
    HOPELESS,
    SETTLED,
    SPARE,
    Ranking,
    SearchProgress,
    add_known,
    nearest_first,
    sample,
    scored,
    split_known,
    without_copies,
)
from gemb.search.stages import Stages
from gemb.texts.words import exact_terms

if TYPE_CHECKING:
    from gemb.backend import Encoder

SAMPLE = 4096  # vectors from which the floor is estimated
# Of the budget, for new vectors: however long reading took, and where nothing had to be read.
LEAST_SHARE, MOST_SHARE = 1 / 3, 0.6


class RankedPassage(NamedTuple):
    """A passage with its score."""

    number: int
    score: float
    is_estimate: bool = False  # it has no vector


class FileSearch:
    """The search of gathered passages for some queries."""

    def __init__(
        self,
        texts: PassageTexts,
        cache: VectorCache,
        queries: Sequence[Query],
        vectors: Vectors,
        encoder: Encoder,
        criteria: Criteria,
        stages: Stages | None = None,
        like: Hit | None = None,
    ) -> None:
        """Take what is searched; look up which passages have a vector.

        Args:
            texts: of the corpus.
            cache: of its vectors.
            queries: as texts.
            vectors: of the queries, unit rows [Q, dim].
            encoder: the open model.
            criteria: of the answers.
            stages: gets times and counts.
            like: the passage that the only query is; it is no answer to itself, and there is no
                floor but one that was asked for.
        """
        self.texts = texts
        self.queries = queries
        self.vectors = vectors
        self._cache = cache
        self._encoder = encoder
        self._criteria = criteria
        self._stages = stages or Stages()
        self._like = like
        self._first: FirstRanking | None = None
        self._raises: list[Ints] = []  # of each query
        self._scores: tuple[int, FirstScores] | None = None  # number of a query, and its scores
        self._background = USUAL
        self._known, self._missing = split_known(texts.corpus, cache)

    @property
    def needs_first(self) -> bool:
        """Whether all passages are to be read: not where all have vectors, and these decide."""
        criteria = self._criteria
        is_exact = self._like is None and any(exact_terms(query.text) for query in self.queries)
        return bool(self._missing) or criteria.is_hybrid or criteria.explains or is_exact

    def rank_first(
        self,
        reader: FirstReader,
        read: Callable[[int, int], None] = lambda passages, total: None,
    ) -> None:
        """Rank all passages by words, and by drafts where there is a draft model.

        Args:
            reader: of passages for their words and drafts.
            read: called with the number of passages so far, and of all.
        """
        total = len(self.texts.corpus)
        self._first = first_ranking(
            self.texts,
            reader,
            with_drafts=bool(self._missing) or self._criteria.explains,
            read=lambda count: read(count, total),
        )
        if drafts := self._first.drafts:
            self._stages.drafted = drafts.made
            self._stages.drafts = int((self._first.draft_rows >= 0).sum())

    def answers(
        self, on_window: Callable[[SearchProgress, FileSearch], None] = lambda *_: None
    ) -> list[QueryHits]:
        """Return the answers to each query, in order.

        Args:
            on_window: called before the first window of new vectors, and after each.

        Raises:
            GembError: the model fails on every passage, or a vector of the cache is damaged.
        """
        corpus, cache, criteria = self.texts.corpus, self._cache, self._criteria
        is_auto = criteria.min_score is None and self._like is None and not criteria.is_weak
        least = NO_FLOOR if criteria.min_score is None or criteria.is_weak else criteria.min_score
        # Where all answers above a floor are requested, the floor depends on the vectors, so each
        # passage gets its vector first. Else passages under the floor are ranked as well, for the
        # note about the best of them.
        k = None if criteria.k is None else depth(criteria, 0) + (self._like is not None)
        raised = self._raises = self._raised()
        ranking = Ranking(
            len(self.queries),
            1 if k is None and is_auto else k,
            least if k is None else NO_FLOOR,
            raised,
            corpus.copies[0] if criteria.is_once else None,
        )
        with self._stages.timed("vectors"):
            steps = scored(
                *(self._known, self._missing, self.texts, cache, self.vectors, self._encoder),
                ranking=ranking,
                order=self._order(),
                before=self._before(),
                seconds=self._seconds(),
            )
            with closing(steps):
                for progress in steps:
                    on_window(progress, self)
        self._stages.known = len(self._known.numbers)
        self._stages.embedded = progress.embedded
        self._stages.compared = progress.ranking.count
        floor = least
        if is_auto and len(corpus):
            known = split_known(corpus, cache)[0] if self._missing else self._known
            vectors = sample(known, cache, SAMPLE)
            self._background = measure(vectors, "f32", cache.spec, self._encoder)
            floor = self._background.floor(len(corpus))
            if k is None:
                ranking = Ranking(len(self.queries), None, floor, raised)
                add_known(ranking, known, cache, self.vectors)
        self.texts.forget()  # hits are what the files hold now
        with self._stages.timed("hits"):
            return [
                self._answer(index, progress, ranking, floor) for index in range(len(self.queries))
            ]

    def best(self, progress: SearchProgress, k: int) -> list[Hit]:
        """Return the best hits so far of the only query."""
        order = self._ranked(0, progress, k)
        return [hit for _, hit in self._hits(0, order, k, is_last=False)]

    def _seconds(self) -> float | None:
        """Return the time for new vectors; None: all passages get one."""
        budget = self._criteria.seconds
        if budget is None:
            return None
        left = budget - self._stages.elapsed()
        return min(max(left, LEAST_SHARE * budget), MOST_SHARE * budget)

    def _raised(self) -> list[Ints]:
        if self._first is None or self._like is not None:
            return [np.zeros(0, np.int64)] * len(self.queries)
        return [self._first.raised(query.text) for query in self.queries]

    def _order(self) -> list[int]:
        """Return the passages that are to get a vector, the most promising ones first."""
        if not self._missing or self._first is None:
            return []
        scores = (self._scores_of(index).fused for index in range(len(self.queries)))
        order = nearest_first(self._missing, scores)
        if self._criteria.seconds is None or not self._criteria.is_once:
            return order
        return without_copies(order, self.texts.corpus.copies[0])

    def _before(self) -> list[int]:
        """Return the known passages that the only query ranks above all without a vector."""
        if not self._missing or len(self.queries) > 1 or self._first is None:
            return []
        fused = self._scores_of(0).fused
        highest = max(float(fused[numbers[0]]) for numbers in self._missing.values())
        known = self._known.numbers[fused[self._known.numbers] > highest]
        before: list[int] = known[np.argsort(-fused[known], kind="stable")].tolist()
        return before

    def _scores_of(self, index: int) -> FirstScores:
        """Return the first scores of a query; those of the last one are held."""
        assert self._first, "passages that were ranked"
        if self._scores is None or self._scores[0] != index:
            query = self.queries[index]
            self._scores = index, self._first.scores(query.text, self.vectors[index])
        return self._scores[1]

    def _ranked(
        self, index: int, progress: SearchProgress, k: int | None, floor: float = NO_FLOOR
    ) -> list[RankedPassage]:
        """Return the best passages of a query, estimates among them where time was short."""
        ranking = progress.ranking
        is_enough = k is None or self._is_enough(progress)
        if self._criteria.is_hybrid and self._first:
            return self._with_words(index, k, floor, is_enough=is_enough)
        tested = [RankedPassage(number, score) for number, score in ranking.best(index)]
        if is_enough or not self._first:
            return tested
        cosines, is_tested = self._cosines(index)
        raised = self._raised_by(index)
        same = self.texts.corpus.copies[0]
        is_known = np.isin(same, same[is_tested]) if self._criteria.is_once else is_tested
        first = self._scores_of(index)
        # One passage alone is not above the mean.
        is_likely = (first.fused > 0) | ((first.fused == 0) & (first.words > 0))
        untested = np.flatnonzero(~is_known & is_likely)
        best = untested[np.argsort(-(cosines + raised)[untested], kind="stable")]
        estimated = [
            RankedPassage(number, float(cosines[number]), is_estimate=True)
            for number in best[: (k or 0) + SPARE].tolist()
        ]
        return sorted([*tested, *estimated], key=lambda row: -row.score - float(raised[row.number]))

    def _is_enough(self, progress: SearchProgress) -> bool:
        """Return whether so many passages have a vector that the others hold no better answer."""
        is_all = progress.ranking.count >= len(self.texts.corpus)
        return is_all or progress.is_settled or progress.embedded >= self._wanted

    def _unsure(self, progress: SearchProgress) -> Unsure | None:
        """Return why too few passages have a vector; None: there are enough."""
        if self._is_enough(progress):
            return None
        tried = progress.embedded + progress.failed
        is_failure = not progress.embedded or tried >= self._wanted or progress.failed >= HOPELESS
        return "failed" if progress.failed and is_failure else "time"

    @property
    def _wanted(self) -> int:
        """How many passages are to get a vector before the answer may be sure."""
        return max(self._criteria.k or 0, SETTLED) * len(self.queries)

    def _with_words(
        self, index: int, k: int | None, floor: float, *, is_enough: bool
    ) -> list[RankedPassage]:
        """Return the best passages of a query by meaning and by words.

        Those without a vector are among them unless enough have one. Where all are requested, they
        are those that reach the floor, and the first ones.
        """
        cosines, is_tested = self._cosines(index)
        words = self._scores_of(index).words
        order = np.argsort(-fused(cosines + self._raised_by(index), words), kind="stable")
        if is_enough:
            order = order[is_tested[order]]
        if k is None:
            order = order[(cosines[order] >= floor) | (np.arange(len(order)) < DEPTH)]
        return [
            RankedPassage(number, float(cosines[number]), is_estimate=not is_tested[number])
            for number in order[: None if k is None else k + SPARE].tolist()
        ]

    def _cosines(self, index: int) -> tuple[Floats, Bools]:
        """Return the cosines of all passages with a query, [n], and whether each is a vector's.

        Those of passages without a vector are what they probably are.
        """
        rows = self._cache.find(self.texts.corpus.keys)
        is_tested = rows >= 0
        first = self._scores_of(index).fused
        cosines = self._cache.scores(rows[is_tested], self.vectors[index][None])[:, 0]
        probable = probable_cosines(first, first[is_tested], cosines)
        probable[is_tested] = cosines
        return probable, is_tested

    def _raised_by(self, index: int) -> Floats:
        raised = np.zeros(len(self.texts.corpus), np.float32)
        raised[self._raises[index]] = RAISED
        return raised

    def _hits(
        self, index: int, order: Sequence[RankedPassage], k: int | None, *, is_last: bool = True
    ) -> list[tuple[int, Hit]]:
        """Return the first k passages of a query that are still there, with their numbers."""
        estimated = {row.number for row in order if row.is_estimate}
        named = set(self._raises[index].tolist())
        hits = self.texts.numbered_hits(
            ((row.number, row.score) for row in order),
            k,
            is_last=is_last,
            once=self._criteria.is_once,
        )
        return [
            (number, replace(hit, is_estimate=number in estimated, is_named=number in named))
            for number, hit in hits
        ]

    def _answer(
        self, index: int, progress: SearchProgress, ranking: Ranking, floor: float
    ) -> QueryHits:
        """Return the answer to one query.

        Args:
            index: of the query.
            progress: of the search at its end.
            ranking: of the passages that have a vector.
            floor: the least score of an answer.
        """
        corpus, criteria = self.texts.corpus, self._criteria
        query, vector = self.queries[index], self.vectors[index]
        order = self._ranked(index, progress._replace(ranking=ranking), ranking.k, floor)
        self._cache.check([corpus.keys[row.number] for row in order])
        numbered = self._hits(index, order, ranking.k)
        if criteria.explains:
            numbered = self._explained(index, numbered)
        hits = [hit for _, hit in numbered]
        if self._like is not None:
            hits = [hit for hit in hits if not _is_same(hit, self._like)][: criteria.k]
        unsure = None if criteria.seconds is None else self._unsure(progress)
        scale = Scale(self._cache.spec.space, self._background)
        return above(query, vector, hits, floor, criteria, unsure=unsure, scale=scale)

    def _explained(self, index: int, numbered: Sequence[tuple[int, Hit]]) -> list[tuple[int, Hit]]:
        """Return the hits with their ranks by words, drafts and real vectors."""
        first = self._scores_of(index)
        cosines, is_tested = self._cosines(index)

        def ranks(number: int, hit: Hit) -> dict[str, int | None]:
            above = int((is_tested & (cosines > cosines[number])).sum())
            return first.ranks(number) | {"vector": None if hit.is_estimate else 1 + above}

        return [(number, replace(hit, ranks=ranks(number, hit))) for number, hit in numbered]


def _is_same(hit: Hit, other: Hit) -> bool:
    return (hit.path, hit.id, hit.line, hit.text) == (other.path, other.id, other.line, other.text)
