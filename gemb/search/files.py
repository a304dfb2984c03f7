"""Search of files, folders and standard input, stage by stage.

sources -> passages -> (known, missing) -> scored -> hits -> answers, each from the one before it.
"""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import numpy as np

from gemb.arrays import Ints, Vectors
from gemb.embedding.vectors import VectorSpec
from gemb.errors import UsageError
from gemb.index.floor import measure
from gemb.index.hits import Hit, fused
from gemb.io.caches import search_cache
from gemb.io.notes import is_quiet, note
from gemb.io.text import visible
from gemb.models.prompts import for_task
from gemb.search.answers import DEPTH, NO_FLOOR, QueryHits, above, depth, exit_code, show
from gemb.search.cache import PassageTable, VectorCache
from gemb.search.corpus import Corpus, PassageTexts, Sources, gather
from gemb.search.forms import OutputForm
from gemb.search.live import LiveHits
from gemb.search.queries import (
    Criteria,
    ModelOpener,
    Query,
    SearchJob,
    embedded,
    passage_vector,
)
from gemb.search.scoring import Ranking, SearchProgress, add_known, sample, scored, split_known
from gemb.texts.walk import Skipped

if TYPE_CHECKING:
    from gemb.backend import Encoder
    from gemb.texts.records import Id


STOP_S = 1.0  # that a walk may take to end
SAMPLE = 4096  # vectors from which the floor is estimated


class StopWalk(Exception):
    """Ends a walk in another thread."""


def run_files(
    job: SearchJob, sources: Sources, open_model: ModelOpener, form: OutputForm, *, is_silent: bool
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
    with _gathering(sources, skipped, live) as gathered:
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
    try:
        answers = search_files(
            texts, cache, queries, vectors, encoder, job.criteria, on_window=live.show, like=like
        )
    except KeyboardInterrupt:
        live.close()
        if live.last and not is_quiet():
            _say_stopped(live.last, texts, job.queries, vectors, form)
        raise
    finally:
        live.close()
    # With many queries the model would take too long: the best lines are found by words alone.
    finder = encoder if len(queries) == 1 else None
    for answer in answers:
        show(answer, form, finder, prompt)
    skipped.say()
    if not len(corpus) and not skipped.failed:
        only_stdin = sources.paths == ("-",)
        note(
            "nothing to search: standard input has no text"
            if only_stdin
            else "nothing to search: the sources have no text; files that are hidden, ignored "
            "by git, or excluded by -g are left out (--hidden, --no-ignore)"
        )
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


def search_files(
    texts: PassageTexts,
    cache: VectorCache,
    queries: Sequence[Query],
    vectors: Vectors,
    encoder: Encoder,
    criteria: Criteria,
    *,
    on_window: Callable[[SearchProgress, PassageTexts], None] = lambda progress, texts: None,
    like: Hit | None = None,
) -> list[QueryHits]:
    """Return the answers to each query, in order.

    Args:
        texts: of the corpus.
        cache: of its vectors.
        queries: as texts.
        vectors: of the queries, unit rows [Q, dim].
        encoder: the open model.
        criteria: of the answers.
        on_window: called after each window of passages.
        like: the passage that the only query is; it is no answer to itself, and there is no floor
            but one that was asked for.

    Raises:
        GembError: the model fails on every passage, or a vector of the cache is damaged.
    """
    corpus = texts.corpus
    is_auto = criteria.min_score is None and like is None and not criteria.is_weak
    min_score = NO_FLOOR if criteria.min_score is None or criteria.is_weak else criteria.min_score
    # Where all answers above a floor are requested, the floor depends on the vectors, so each
    # passage gets its vector first. Else passages under the floor are ranked as well, for the note
    # about the best of them.
    k = None if criteria.k is None else depth(criteria, 0) + (like is not None)
    first_k = 1 if k is None and is_auto else k
    floor_by_meaning = min_score if k is None else NO_FLOOR

    known, missing = split_known(corpus, cache)
    query_texts = [query.text for query in queries]
    steps = scored(
        known,
        missing,
        texts,
        cache,
        vectors,
        encoder,
        query_texts=query_texts,
        k=first_k,
        floor=floor_by_meaning,
    )
    with closing(steps):
        for progress in steps:
            on_window(progress, texts)
    ranking = progress.ranking

    floor = min_score
    if is_auto and len(corpus):
        if missing:
            known, _ = split_known(corpus, cache)
        floor = measure(sample(known, cache, SAMPLE), "f32", cache.spec, encoder).floor(len(corpus))
        if k is None:
            ranking = Ranking(len(queries), None, floor)
            add_known(ranking, known, cache, vectors)

    texts.forget()  # hits are what the files hold now
    word_table: sqlite3.Connection | None = None
    if criteria.is_hybrid:
        from gemb.index.bm25 import words_table

        word_table = words_table(texts.titles_and_texts())
    answers: list[QueryHits] = []
    for index, (query, vector) in enumerate(zip(queries, vectors, strict=True)):
        best = ranking.best(index)
        cache.check([corpus.keys[number] for number, _ in best])
        hits = texts.hits(best, ranking.k)
        if like is not None:
            hits = [hit for hit in hits if not _is_same(hit, like)][: criteria.k]
        if word_table:
            hits = with_words(query, vector, hits, word_table, texts, cache)
        answers.append(above(query, vector, hits, floor, criteria))
    return answers


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

    numbers = by_words(word_table, query.text, DEPTH).rows
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


def _say_stopped(
    progress: SearchProgress,
    texts: PassageTexts,
    queries: Sequence[Query],
    vectors: Vectors,
    form: OutputForm,
) -> None:
    """Show the best hits so far on a terminal, and print that the work is kept."""
    ranking = progress.ranking
    is_terminal = sys.stdout.isatty()
    if is_terminal and len(queries) == 1 and ranking.k is not None:
        hits = texts.hits(ranking.best(0), ranking.k, is_last=False)
        if hits:
            # Without the encoder: another thread may still be at work with it.
            answer = QueryHits(
                query=queries[0], vector=vectors[0], hits=hits, floor=NO_FLOOR, best_below=None
            )
            show(answer, form, None, None)
    note(
        f"stopped: {ranking.count:,} of {progress.total:,} passages were searched; they are kept, "
        "and the same search goes on from there"
    )
