"""Search of files, folders and standard input, stage by stage.

sources -> passages -> first ranking -> (known, missing) -> scored -> hits -> answers, each from the
one before it.
"""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gemb.arrays import Floats, Ints, Vectors
from gemb.embedding.drafts import open_draft
from gemb.embedding.vectors import VectorSpec
from gemb.errors import GembError, UsageError
from gemb.index.floor import measure
from gemb.index.hits import Hit, fused
from gemb.io.caches import search_cache
from gemb.io.notes import is_quiet, note
from gemb.io.text import visible
from gemb.models.prompts import for_task
from gemb.search.answers import DEPTH, NO_FLOOR, QueryHits, above, depth, exit_code, show
from gemb.search.cache import PassageTable, VectorCache
from gemb.search.corpus import Corpus, PassageTexts, Sources, gather
from gemb.search.first import DraftModel, Drafts, FirstRanking, FirstScores, first_ranking
from gemb.search.forms import OutputForm
from gemb.search.kept_words import words_path
from gemb.search.live import LiveHits
from gemb.search.queries import (
    Criteria,
    ModelOpener,
    Query,
    SearchJob,
    embedded,
    passage_vector,
)
from gemb.search.scoring import (
    Ranked,
    Ranking,
    SearchProgress,
    add_known,
    estimates,
    nearest_first,
    sample,
    scored,
    split_known,
    without_copies,
)
from gemb.search.stages import Stages
from gemb.texts.walk import Skipped
from gemb.texts.words import exact_terms, query_terms

if TYPE_CHECKING:
    from gemb.backend import Encoder
    from gemb.texts.records import Id

STOP_S = 1.0  # that a walk may take to end
SAMPLE = 4096  # vectors from which the floor is estimated


class StopWalk(Exception):
    """Ends a walk in another thread."""


def run_files(
    job: SearchJob,
    sources: Sources,
    open_model: ModelOpener,
    form: OutputForm,
    *,
    is_silent: bool,
) -> int:
    """Search files, folders and standard input; return the exit code.

    As grep's it is 2 where a file could not be read, unless `is_silent` and something was found.

    Raises:
        UsageError: an input cannot be read as `sources` says, or --like names no passage.
        GembError: the model fails.
    """
    queries = list(job.queries)
    live = LiveHits()
    skipped = Skipped()
    stages = Stages()
    with _gathering(sources, skipped, live) as gathered, stages.timed("files and model"):
        encoder = open_model(job.model)
        prompt = for_task("document", encoder.profile.prompts)
        spec = VectorSpec.of(encoder.profile, prompt, dim=job.dim, dtype="f16")
        query_prompt = for_task(job.task or "query", encoder.profile.prompts)
        vectors = embedded(queries, encoder, query_prompt, spec.dim)
        corpus, table = gathered.result()
    texts = PassageTexts(corpus, table, skipped)
    cache = VectorCache(search_cache(), spec, is_said=table.has_failed)
    like: Hit | None = None
    if job.like is not None:
        like = texts.hit_at(*file_and_line(job.like))
        queries = [Query(job.like, like.text, job.like)]
        vectors = passage_vector(like.text, like.title, encoder, prompt, spec.dim)
    search = FileSearch(texts, cache, queries, vectors, encoder, job.criteria, stages, like)
    try:
        if search.needs_first:
            with stages.timed("words and drafts"):
                search.rank_first(lambda: open_draft(encoder.profile), live.read)
        answers = search.answers(live.show)
    except KeyboardInterrupt:
        live.close()
        if live.last and not is_quiet():
            _say_stopped(live.last, search, form)
        raise
    finally:
        live.close()
    # With many queries the model would take too long: the best lines are found by words alone.
    finder = encoder if len(queries) == 1 else None
    for answer in answers:
        show(answer, form, finder, prompt)
    skipped.say()
    if job.is_verbose:
        stages.say(len(corpus), len(corpus.files))
    if not len(corpus) and not skipped.failed:
        only_stdin = sources.paths == ("-",)
        note(
            "nothing to search: standard input has no text"
            if only_stdin
            else "nothing to search: the sources have no text; files that are hidden, ignored "
            "by git, or excluded by -g are left out (--hidden, --no-ignore)"
        )
    criteria = job.criteria
    if criteria.k is None and criteria.seconds is not None and stages.compared < len(corpus):
        note(f"{stages.compared:,} of {len(corpus):,} passages were compared; --exact compares all")
    code = exit_code(answers, len(corpus), job.criteria)
    return code if not skipped.failed or (is_silent and not code) else 2


@contextmanager
def _gathering(
    sources: Sources, skipped: Skipped, live: LiveHits
) -> Iterator[Future[tuple[Corpus, PassageTable]]]:
    """Gather the passages in another thread; where the caller fails the walk is ended."""
    is_stopped = threading.Event()

    def looked(files: int) -> None:
        if is_stopped.is_set():
            raise StopWalk
        live.looked(files)

    def gathered() -> tuple[Corpus, PassageTable]:
        table = PassageTable(search_cache(), f"{sources.kind} {sources.walk.encoding}".strip())
        return gather(sources, table, skipped, looked), table

    pool = ThreadPoolExecutor(1, thread_name_prefix="gemb-gather")
    future = pool.submit(gathered)
    try:
        yield future
    except BaseException:
        is_stopped.set()
        wait([future], STOP_S)  # what was split is kept
        raise
    finally:
        live.close()
        pool.shutdown(wait=False, cancel_futures=True)


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
        self._raises: list[Floats | None] = [None] * len(queries)  # of each query
        self._scores: tuple[int, FirstScores] | None = None  # number of a query, and its scores
        self._known, self._missing = split_known(texts.corpus, cache)

    @property
    def needs_first(self) -> bool:
        """Whether all passages are to be read: not where all have vectors, and these decide."""
        criteria = self._criteria
        is_exact = self._like is None and any(exact_terms(query.text) for query in self.queries)
        return bool(self._missing) or criteria.is_hybrid or criteria.explains or is_exact

    def rank_first(
        self,
        open_draft: Callable[[], Encoder | None] = lambda: None,
        read: Callable[[int, int], None] = lambda passages, total: None,
    ) -> None:
        """Rank all passages by words, and by drafts where there is a draft model.

        Args:
            open_draft: opens it; None: there is none.
            read: called with the number of passages so far, and of all.
        """
        corpus, cache = self.texts.corpus, self._cache
        drafts = None
        if self._missing or self._criteria.explains:
            encoder = open_draft()
            model = DraftModel.of(encoder, cache.spec.dim) if encoder else None
            drafts = _drafts(model, cache, corpus) if model else None
        total = len(corpus)
        self._first = first_ranking(
            self.texts,
            drafts,
            kept=words_path(search_cache(), corpus) if cache.is_kept else None,
            read=lambda count: read(count, total),
        )
        if drafts:
            self._stages.drafted = drafts.made
            self._stages.drafts = int((drafts.rows >= 0).sum())

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
        )
        with self._stages.timed("vectors"):
            steps = scored(
                *(self._known, self._missing, self.texts, cache, self.vectors, self._encoder),
                ranking=ranking,
                order=self._order(),
                before=self._before(),
                seconds=None if criteria.seconds is None else criteria.seconds * len(self.queries),
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
            floor = measure(vectors, "f32", cache.spec, self._encoder).floor(len(corpus))
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
        return [hit for _, hit in self._hits(order, k, is_last=False)]

    def _raised(self) -> list[Floats | None]:
        if self._first is None or self._like is not None:
            return [None] * len(self.queries)
        return [self._first.raised(query.text) for query in self.queries]

    def _order(self) -> list[int]:
        """Return the passages that are to get a vector, the most promising ones first."""
        if not self._missing or self._first is None:
            return []
        scores = [self._scores_of(index).fused for index in range(len(self.queries))]
        order = nearest_first(self._missing, scores)
        if self._criteria.seconds is None or not self._criteria.is_once:
            return order
        return without_copies(order, self.texts.corpus)

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

    def _ranked(self, index: int, progress: SearchProgress, k: int | None) -> list[Ranked]:
        """Return the best passages of a query, those without a vector among them if time was short.

        That is where fewer than k of each query could be embedded.
        """
        ranking = progress.ranking
        tested = [Ranked(number, score) for number, score in ranking.best(index)]
        is_all = ranking.count >= len(self.texts.corpus)
        if k is None or is_all or not self._first or progress.embedded >= k * len(self.queries):
            return tested
        untested = estimates(
            *(self._scores_of(index).fused, self.texts.corpus, self._cache, self.vectors[index]), k
        )
        raised = self._raises[index]
        return sorted(
            [*tested, *untested],
            key=lambda row: -row.score - (0.0 if raised is None else float(raised[row.number])),
        )

    def _hits(
        self, order: Sequence[Ranked], k: int | None, *, is_last: bool = True
    ) -> list[tuple[int, Hit]]:
        """Return the first k passages that are still there, with their numbers."""
        estimated = {row.number for row in order if row.is_estimate}
        hits = self.texts.numbered_hits(
            ((row.number, row.score) for row in order),
            k,
            is_last=is_last,
            once=self._criteria.is_once,
        )
        return [
            (number, replace(hit, is_estimate=True) if number in estimated else hit)
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
        order = self._ranked(index, progress._replace(ranking=ranking), ranking.k)
        self._cache.check([corpus.keys[row.number] for row in order])
        numbered = self._hits(order, ranking.k)
        if criteria.explains:
            numbered = self._explained(index, numbered, ranking)
        hits = [hit for _, hit in numbered]
        if self._like is not None:
            hits = [hit for hit in hits if not _is_same(hit, self._like)][: criteria.k]
        if criteria.is_hybrid and self._first:
            hits = with_words(query, vector, hits, self._first.table, self.texts, self._cache)
        return above(query, vector, hits, floor, criteria)

    def _explained(
        self, index: int, numbered: Sequence[tuple[int, Hit]], ranking: Ranking
    ) -> list[tuple[int, Hit]]:
        """Return the hits with their ranks by words, drafts and real vectors."""
        first = self._scores_of(index)
        scores = sorted((score for _, score in ranking.best(index)), reverse=True)
        return [
            (
                number,
                replace(
                    hit,
                    ranks=first.ranks(number)
                    | {"vector": None if hit.is_estimate else 1 + scores.index(hit.score)},
                ),
            )
            for number, hit in numbered
        ]


def _drafts(model: DraftModel, cache: VectorCache, corpus: Corpus) -> Drafts | None:
    """Return the drafts that are kept; None, with a note, where their cache is damaged."""
    folder = search_cache() if cache.is_kept else None
    try:
        return Drafts(model, VectorCache(folder, model.spec, is_said=True), corpus.keys)
    except GembError as error:
        note(f"{error}; this search does without drafts")
        return None


def _is_same(hit: Hit, other: Hit) -> bool:
    return (hit.path, hit.id, hit.line, hit.text) == (other.path, other.id, other.line, other.text)


def with_words(
    query: Query,
    vector: Vectors,
    hits: Sequence[Hit],
    word_table: sqlite3.Connection,
    texts: PassageTexts,
    cache: VectorCache,
) -> list[Hit]:
    """Return the hits of two rankings, fused: `hits` by meaning, and passages by words (BM25).

    Args:
        query: as text.
        vector: of the query, [dim].
        hits: best first.
        word_table: of all passages, as `words_table` makes it.
        texts: of the corpus.
        cache: of its vectors.
    """
    from gemb.index.bm25 import by_words

    numbers = by_words(word_table, query.text, DEPTH, terms=query_terms(query.text)).rows
    rows = cache.find([texts.corpus.keys[number] for number in numbers.tolist()])
    numbers, rows = numbers[rows >= 0], rows[rows >= 0]
    cosines = (cache.gather(rows) @ vector).tolist() if len(rows) else []
    word_hits = texts.hits(zip(numbers.tolist(), cosines, strict=True), None, is_last=False)
    indices: dict[tuple[str | None, Id | None, int | None, str], int] = {}
    distinct: list[Hit] = []
    rankings: list[Ints] = []
    for ranking in (hits, word_hits):
        order: list[int] = []
        for hit in ranking:
            key = hit.path, hit.id, hit.line, hit.text
            if key not in indices:
                indices[key] = len(distinct)
                distinct.append(hit)
            order.append(indices[key])
        rankings.append(np.array(order, np.int64))
    return [distinct[index] for index in fused(rankings).rows.tolist()]


def file_and_line(like: str) -> tuple[str, int]:
    """Return the path and the line of FILE:LINE.

    Raises:
        UsageError: the text has another form.
    """
    path, _, line = like.rpartition(":")
    if not path or not line.isascii() or not line.isdigit() or not int(line[:9]):
        raise UsageError(
            f"--like {visible(like)}: without an index it is FILE:LINE, such as README.md:12"
        )
    return path, int(line[:9])


def _say_stopped(progress: SearchProgress, search: FileSearch, form: OutputForm) -> None:
    """Show the best hits so far on a terminal, and print that the work is kept."""
    ranking = progress.ranking
    if sys.stdout.isatty() and len(search.queries) == 1 and ranking.k is not None:
        hits = search.best(progress, ranking.k)
        if hits:
            # Without the encoder: another thread may still be at work with it.
            answer = QueryHits(
                query=search.queries[0],
                vector=search.vectors[0],
                hits=hits,
                floor=NO_FLOOR,
                best_below=None,
            )
            show(answer, form, None, None)
    note(
        f"stopped: {ranking.count:,} of {progress.total:,} passages were compared; they are kept, "
        "and the same search goes on from there"
    )
