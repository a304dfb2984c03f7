"""Search of files, folders and standard input, stage by stage.

sources -> passages -> first ranking -> (known, missing) -> scored -> hits -> answers, each from the
one before it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from gemb.embedding.drafts import DraftModel, DraftOpener, open_draft
from gemb.embedding.vectors import VectorSpec
from gemb.errors import UsageError
from gemb.index.hits import Hit
from gemb.io.caches import search_cache
from gemb.io.notes import is_quiet, note
from gemb.io.text import visible
from gemb.models.prompts import for_task
from gemb.search.answers import NO_FLOOR, QueryHits, exit_code, show
from gemb.search.cache import PassageTable, VectorCache
from gemb.search.corpus import Corpus, Sources, gather, sources_name
from gemb.search.file_search import FileSearch
from gemb.search.first_reading import FirstReader
from gemb.search.forms import OutputForm
from gemb.search.kept_drafts import Drafts
from gemb.search.kept_words import KnownWords, words_path
from gemb.search.live import LiveHits
from gemb.search.passage_texts import PassageTexts
from gemb.search.queries import ModelOpener, Query, SearchJob, embedded, passage_vector
from gemb.search.scoring import SearchProgress
from gemb.search.stages import Stages
from gemb.texts.walk import Skipped

MODEL = "files and model"  # stage
STOP_S = 1.0  # that a walk may take to end


class StopWalk(Exception):
    """Ends a walk in another thread."""


def run_files(
    job: SearchJob,
    sources: Sources,
    open_model: ModelOpener,
    form: OutputForm,
    *,
    is_silent: bool,
    open_draft: DraftOpener = open_draft,
) -> int:
    """Search files, folders and standard input; return the exit code.

    As grep's it is 2 where a file could not be read, unless `is_silent` and something was found.

    Args:
        job: the queries and options.
        sources: what is searched.
        open_model: opens the model.
        form: writes the answers.
        is_silent: nothing is written but errors.
        open_draft: opens the draft of a model, or returns one that is open.

    Raises:
        UsageError: an input cannot be read as `sources` says, or --like names no passage.
        GembError: the model fails.
    """
    queries = list(job.queries)
    live = LiveHits()
    skipped = Skipped()
    stages = Stages()
    opened: Future[VectorSpec] = Future()
    reader = first_reader(search_cache(), sources_name(sources), opened.result, open_draft)
    with _gathering(sources, skipped, live, reader, opened) as gathered, stages.timed(MODEL):
        encoder = open_model(job.model)
        prompt = for_task("document", encoder.profile.prompts)
        spec = VectorSpec.of(encoder.profile, prompt, dim=job.dim, dtype="f16")
        opened.set_result(spec)
        query_prompt = for_task(job.task or "query", encoder.profile.prompts)
        vectors = embedded(queries, encoder, query_prompt, spec.dim)
        corpus, table = gathered.result()
    texts = PassageTexts(corpus, table, skipped)
    like: Hit | None = None
    try:
        cache = VectorCache(search_cache(), spec, is_said=table.has_failed)
        if job.like is not None:
            like = texts.hit_at(*file_and_line(job.like))
            queries = [Query(job.like, like.text, job.like)]
            vectors = passage_vector(like.text, like.title, encoder, prompt, spec.dim)
        search = FileSearch(texts, cache, queries, vectors, encoder, job.criteria, stages, like)
        if search.needs_first:
            with stages.timed("words and drafts"):
                search.rank_first(reader, live.read)
        answers = search.answers(live.show)
    except KeyboardInterrupt:
        live.close()
        if live.last and not is_quiet():
            _say_stopped(live.last, search, form)
        raise
    finally:
        live.close()
        reader.close()
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


def first_reader(
    folder: Path | None,
    sources: str,
    spec: Callable[[], VectorSpec],
    open_draft: DraftOpener = open_draft,
) -> FirstReader:
    """Return what reads passages for their words and drafts.

    Args:
        folder: of the cache; None: nothing is kept.
        sources: as `sources_name` returns it.
        spec: waits for the model, and returns what its vectors are.
        open_draft: as of `run_files`.
    """

    def open_drafts() -> Drafts | None:
        real = spec()
        encoder = open_draft(real.model)
        model = DraftModel.of(encoder, real.dim) if encoder else None
        return Drafts(model, folder and folder / "drafts") if model else None

    return FirstReader(lambda: KnownWords(words_path(folder, sources)), open_drafts)


@contextmanager
def _gathering(
    sources: Sources,
    skipped: Skipped,
    live: LiveHits,
    reader: FirstReader,
    opened: Future[VectorSpec],
) -> Iterator[Future[tuple[Corpus, PassageTable]]]:
    """Gather the passages in another thread; where the caller fails the walk is ended.

    The reader takes those that are new meanwhile, for words at once, for drafts when the model is
    `opened`.
    """
    is_stopped = threading.Event()

    def looked(files: int) -> None:
        if is_stopped.is_set():
            raise StopWalk
        live.looked(files)

    def gathered() -> tuple[Corpus, PassageTable]:
        table = PassageTable(search_cache(), f"{sources.kind} {sources.walk.encoding}".strip())
        return gather(sources, table, skipped, looked, reader.take), table

    pool = ThreadPoolExecutor(1, thread_name_prefix="gemb-gather")
    future = pool.submit(gathered)
    try:
        yield future
    except BaseException:
        is_stopped.set()
        opened.cancel()  # the reader may wait for it
        wait([future], STOP_S)  # what was split is kept
        reader.close()
        raise
    finally:
        live.close()
        pool.shutdown(wait=False, cancel_futures=True)


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
