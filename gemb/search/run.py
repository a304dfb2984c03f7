"""One run of `gemb search`: queries against files or an index, and what is found into a form."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gemb.errors import UsageError
from gemb.index.hits import Hit
from gemb.io.notes import is_quiet, note
from gemb.io.text import visible
from gemb.search.excerpts import compared, excerpts
from gemb.search.forms import Form
from gemb.search.queries import Query, QueryHits, Wanted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gemb.backend import Encoder
    from gemb.embedding.vectors import VectorSpec
    from gemb.models.prompts import Prompt
    from gemb.search.gather import Sources
    from gemb.search.live import LiveHits
    from gemb.search.passage_search import Answer, Corpus


STOP_S = 1.0  # that a walk may take to end
OPEN = Callable[[str], "Encoder"]  # a model reference, or empty: the user's -> the open model


class StopWalk(Exception):
    """Ends a walk in another thread."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a run is to do."""

    queries: Sequence[Query]  # empty with `like`
    like: str | None  # an id, or FILE:LINE
    wanted: Wanted
    task: str | None  # of the queries; None: query, or what an index says
    dim: int | None  # None: the model's, or the index's
    model: str  # as the user gave it; empty: nobody named one
    force: bool  # another model than the index's


def run_files(job: Job, sources: Sources, open_model: OPEN, form: Form, *, is_silent: bool) -> int:
    """Search files, folders and standard input; return the exit code.

    As grep's it is 2 where a file could not be read, unless `is_silent` and something was found.

    Raises:
        UsageError: an input cannot be read as `sources` says, or --like names no passage.
        GembError: the model fails.
    """
    from gemb.search.files import search_files
    from gemb.search.live import LiveHits
    from gemb.search.queries import passage_vector

    live = LiveHits()
    ready = _ready(job, sources, open_model, live)
    corpus, encoder, passages, vectors = ready.corpus, ready.encoder, ready.passages, ready.vectors
    queries, like = list(job.queries), None
    if job.like is not None:
        path, line = file_and_line(job.like)
        like = corpus.at(path, line)
        queries = [Query(job.like, like.text, job.like)]
        vectors = passage_vector(like.text, like.title, encoder, passages, ready.spec.dim)
    last: list[Answer] = []

    def seen(answer: Answer) -> None:
        last[:] = [answer]
        live.show(answer)

    show = _Shown(form, encoder, passages, queries)
    try:
        found = search_files(
            corpus, queries, vectors, encoder, ready.spec, job.wanted, seen=seen, like=like
        )
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C is final
        live.close()
        # Another thread may still be at work with the encoder.
        _tell_stopped(job, last, vectors, _Shown(form, None, None, queries))
        raise
    finally:
        live.close()
    for one in found:
        show.write(one)
    corpus.skipped.say()
    if not len(corpus) and not corpus.skipped.failed:
        only_stdin = sources.paths == ("-",)
        note(
            "nothing to search: standard input has no text"
            if only_stdin
            else "nothing to search: there is no text in what was named; files that are hidden, "
            "ignored by git, or not wanted by -g are left out (--hidden, --no-ignore)"
        )
    code = _code(job, found, len(corpus))
    return code if not corpus.skipped.failed or (is_silent and not code) else 2


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """What a search of files begins with."""

    corpus: Corpus
    encoder: Encoder
    passages: Prompt  # of the corpus
    spec: VectorSpec  # of its vectors
    vectors: NDArray[np.float32]  # of the queries


def _ready(job: Job, sources: Sources, open_model: OPEN, live: LiveHits) -> _Ready:
    """Open the model, and walk in another thread meanwhile."""
    from gemb.embedding.vectors import VectorSpec
    from gemb.io.caches import search_cache
    from gemb.models import prompts
    from gemb.search.passage_search import gather
    from gemb.search.queries import embedded

    is_stopped = threading.Event()

    def looked(files: int) -> None:
        if is_stopped.is_set():
            raise StopWalk
        live.looked(files)

    pool = ThreadPoolExecutor(1, thread_name_prefix="gemb-gather")
    gathering = pool.submit(gather, sources, cache=search_cache(), looked=looked)
    try:
        encoder = open_model(job.model)
        profile = encoder.profile
        passages = prompts.for_task("document", profile.prompts)
        asked = prompts.for_task(job.task or "query", profile.prompts)
        spec = VectorSpec.of(profile, passages, dim=job.dim, dtype="f16")
        vectors = embedded(job.queries, encoder, asked, spec.dim)
        corpus = gathering.result()
    except BaseException:
        is_stopped.set()
        wait([gathering], STOP_S)  # what was split is kept
        raise
    finally:
        live.close()
        pool.shutdown(wait=False, cancel_futures=True)
    return _Ready(corpus=corpus, encoder=encoder, passages=passages, spec=spec, vectors=vectors)


def run_index(job: Job, folder: Path, open_model: OPEN, form: Form) -> int:
    """Search an index; return the exit code.

    Raises:
        UsageError: the index is of another model, prompt or size than asked for, or a filter or
            row that is named is wrong.
        GembError: the index is damaged, or the model fails.
    """
    from gemb.index.reader import Index
    from gemb.models import prompts
    from gemb.search.index import check_asked, check_model, own_task, rows_of, search_index, warm_up
    from gemb.search.queries import embedded

    with Index.open(folder) as index:
        check_asked(index, folder, task=job.task, dim=job.dim)
        rows = rows_of(index, job.wanted.where)
        if job.like is not None:
            like = index.find(job.like)
            vectors = index.vector(like)[None]
            import numpy as np

            (hit,) = index.hits(np.array([like]), np.ones(1, np.float32))
            queries = [Query(job.like, hit.text, job.like)]
            show = _Shown(form, None, None, queries)
        else:
            like = None
            warm_up(index, rows, job.wanted)
            encoder = open_model(job.model or index.model)
            check_model(index, folder, encoder, given=job.model, force=job.force)
            words = prompts.for_task(job.task or own_task(index), encoder.profile.prompts)
            queries = list(job.queries)
            vectors = embedded(queries, encoder, words, index.spec.dim)
            show = _Shown(form, encoder, prompts.Prompt(index.spec.prompt), queries)
        found = []
        for one in search_index(index, rows, queries, vectors, job.wanted, like=like):
            show.write(one)
            found.append(one)
    if not rows.count:
        why = "no row passes --where" if job.wanted.where else "it has no rows"
        note(f"{visible(str(folder))}: {why}")
    return _code(job, found, rows.count)


class _Shown:
    """Puts answers into a form."""

    def __init__(
        self, form: Form, encoder: Encoder | None, passages: Prompt | None, queries: Sequence[Query]
    ) -> None:
        self._form = form
        self._encoder = encoder
        self._passages = passages
        # Of many queries each waits for all before it; the words they share must do.
        self._is_single = len(queries) == 1

    def write(self, one: QueryHits) -> None:
        shown = excerpts(one.query.text, one.hits)
        if self._form.needs_lines and self._is_single and self._encoder and self._passages:
            shown = compared(shown, one.vector, self._encoder, self._passages)
        self._form.show(one.query, shown)


def file_and_line(like: str) -> tuple[str, int]:
    """Return the path and the line of FILE:LINE.

    Raises:
        UsageError: it is none.
    """
    path, _, line = like.rpartition(":")
    if not path or not line.isascii() or not line.isdigit() or not int(line[:9]):
        raise UsageError(
            f"--like {visible(like)}: without an index it is FILE:LINE, such as README.md:12"
        )
    return path, int(line[:9])


def _tell_stopped(job: Job, last: list[Answer], vectors: object, show: _Shown) -> None:
    """Show the best so far on a terminal, and say what is kept."""
    if not last or is_quiet():
        return
    answer = last[0]
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    if is_terminal and len(answer.hits) == len(job.queries) == 1 and answer.hits[0]:
        show.write(_unfinished(job.queries[0], answer.hits[0], vectors))
    note(
        f"stopped: {answer.done:,} of {answer.total:,} passages were searched; they are kept, and "
        "the same search goes on from there"
    )


def _unfinished(query: Query, hits: list[Hit], vectors: object) -> QueryHits:
    import numpy as np

    vector = np.asarray(vectors, np.float32)[0]
    return QueryHits(query=query, vector=vector, hits=hits, floor=-1.0, best_below=None)


def _code(job: Job, found: Sequence[QueryHits], count: int) -> int:
    """Say what was left out as weak, and return the exit code, as grep's."""
    empty = [one for one in found if not one.hits]
    below = [one for one in empty if one.best_below is not None]
    if below:
        if len(found) == 1:
            best = below[0].best_below
            how = "--min-score" if job.wanted.min_score is not None else "--weak shows it"
            note(
                f"nothing relevant: the best of {count:,} scores {best:.2f}, under "
                f"{below[0].floor:.2f} ({how})"
            )
        else:
            note(f"{len(below):,} of {len(found):,} queries have no relevant answer (--weak)")
    return 0 if len(empty) < len(found) else 1
