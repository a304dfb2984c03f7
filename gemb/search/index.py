"""Search of an index: checks that the queries fit it, then rows, scores, hits and answers."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gemb.arrays import Floats, Ints
from gemb.errors import UsageError
from gemb.index.floor import USUAL, Background
from gemb.index.hits import Hit
from gemb.index.mapped import read_ahead
from gemb.index.ranking import plan
from gemb.index.reader import Index
from gemb.io.notes import note
from gemb.io.text import visible
from gemb.models.prompts import Prompt, for_task
from gemb.search.answers import NO_FLOOR, QueryHits, above, depth, exit_code, show
from gemb.search.forms import OutputForm
from gemb.search.index_search import ALL, IndexSearch
from gemb.search.queries import (
    Criteria,
    ModelOpener,
    Query,
    Scale,
    SearchJob,
    embedded,
    passage_vector,
)

if TYPE_CHECKING:
    from gemb.backend import Encoder


# Queries that were trained against documents; all other tasks go with themselves.
ASYMMETRIC = ("query", "code", "qa", "fact")
BATCH = 256  # queries
KEPT_S = 0.7e-6  # seconds that a filter of kept fields takes for a row, in memory
NOTED = 3_000_000  # with more rows a note gives the time


def run_index(job: SearchJob, folder: Path, open_model: ModelOpener, form: OutputForm) -> int:
    """Search an index; return the exit code.

    Raises:
        UsageError: the index is of another model, prompt or size than asked for, or a filter or
            row that is named is wrong.
        GembError: the index is damaged, or the model fails.
    """
    criteria = job.criteria
    with Index.open(folder) as index:
        check_asked(index, folder, task=job.task, dim=job.dim)
        rows = rows_of(index, criteria.where, criteria.where_seconds)
        like: int | None = None
        finder: Encoder | None = None  # of the best lines
        prompt = Prompt(index.spec.prompt)
        if job.like is not None:
            like = index.find(job.like)
            vectors = index.unit_vectors(np.array([like]))
            (hit,) = index.hits(np.array([like]), np.ones(1, np.float32))
            if like in index.drafts:
                encoder = open_model(job.model or index.model)
                check_model(index, folder, encoder, name=job.model, force=job.force)
                vectors = passage_vector(hit.text, hit.title, encoder, prompt, index.spec.dim)
            queries = [Query(job.like, hit.text, job.like)]
        else:
            warm_up(index, rows, criteria)
            queries = list(job.queries)
            encoder = open_model(job.model or index.model)
            check_model(index, folder, encoder, name=job.model, force=job.force)
            query_prompt = for_task(job.task or own_task(index), encoder.profile.prompts)
            vectors = embedded(queries, encoder, query_prompt, index.spec.dim)
            # With many queries the model would take too long: the best lines are found by words
            # alone.
            finder = encoder if len(queries) == 1 else None
        answers: list[QueryHits] = []
        for answer in search_index(index, rows, queries, vectors, criteria, like=like):
            answer = _marked(index, answer)
            show(answer, form, finder, prompt)
            answers.append(answer)
    if not rows.count:
        why = "no row passes --where" if criteria.where else "it has no rows"
        note(f"{visible(str(folder))}: {why}")
    _say_stale(folder, [hit for answer in answers for hit in answer.hits])
    return exit_code(answers, rows.count, criteria)


def _marked(index: Index, answer: QueryHits) -> QueryHits:
    """Return an answer whose hits say whether their files are gone, or have changed since."""
    hits = [replace(hit, stale=index.stale(hit)) for hit in answer.hits]
    return replace(answer, hits=hits)


def _say_stale(folder: Path, hits: Sequence[Hit]) -> None:
    """Print how many hits are of files that are gone, or have changed since."""
    stale = sum(hit.stale is not None for hit in hits)
    if stale:
        note(
            f"{stale:,} of {len(hits):,} hits {'is' if stale == 1 else 'are'} of files that are "
            "gone or have changed since they were indexed: gemb index sync "
            f"{shlex.quote(visible(str(folder)))}"
        )


def check_asked(index: Index, folder: Path, *, task: str | None, dim: int | None) -> None:
    """Refuse what the index was not built for, before a model is opened.

    Raises:
        UsageError: it has another width, or vectors for another task.
    """
    shown = visible(str(folder))
    if dim is not None and dim != index.spec.dim:
        raise UsageError(
            f"--dim {dim}: the vectors of {shown} have {index.spec.dim}; leave --dim out, or "
            f"build another index: gemb index build OTHER SOURCE... --dim {dim}"
        )
    own = own_task(index)
    if task is None or task == own or (task in ASYMMETRIC and own in ASYMMETRIC):
        return
    raise UsageError(
        f"--task {task}: {shown} was built with --task {index.manifest.task}, which goes with "
        f"--task {own}; leave it out, or build another index"
    )


def own_task(index: Index) -> str:
    """Return the task of queries that goes with the task of an index's vectors."""
    manifest = index.manifest
    return manifest.query_task if manifest.task in ("document", "custom") else manifest.task


def check_model(index: Index, folder: Path, encoder: Encoder, *, name: str, force: bool) -> None:
    """Refuse a model that is not the index's.

    Args:
        index: an open index.
        folder: its name.
        encoder: the open model.
        name: the model that the user named; empty: none, so that it is the index's own.
        force: take another model of the same width all the same.

    Raises:
        UsageError: it is another one.
    """
    profile, spec = encoder.profile, index.spec
    shown = visible(str(folder))
    rebuild = f"gemb index build -f {shlex.quote(shown)} SOURCE..."
    if profile.fingerprint == spec.model:
        return
    if force and spec.dim in profile.matryoshka_dims:
        return
    if force:
        raise UsageError(
            f"--force: {shown} has vectors of {spec.dim} components, and the model gives "
            f"{', '.join(map(str, profile.matryoshka_dims))}"
        )
    if name:
        own = f" ({visible(index.model)})" if index.model else ""
        mend = f"leave -m out, or {rebuild} -m {shlex.quote(name)}" if index.model else rebuild
        raise UsageError(f"{shown} holds vectors of another model{own}, not of {name}: {mend}")
    if not index.model:
        raise UsageError(f"{shown} does not say by which model its vectors are; name it with -m")
    raise UsageError(
        f"the model of {shown}, {visible(index.model)}, is not what it was when the index was "
        f"built: {rebuild}"
    )


@dataclass(frozen=True, kw_only=True)
class SelectedRows:
    """The rows of an index that a search compares."""

    numbers: Ints | None  # ascending; None: all
    count: int


def rows_of(index: Index, filter_: str | None, seconds: float | None = None) -> SelectedRows:
    """Return the rows that a filter leaves; a note says where that takes seconds.

    Args:
        index: an open index.
        filter_: None: all rows.
        seconds: that it may take; None: as `matching` says.

    Raises:
        UsageError: it is no filter, or a field is not there.
    """
    if filter_ is None:
        return SelectedRows(numbers=index.alive, count=index.count)
    from gemb.index.where import condition_for, matching

    where = condition_for(index.connection, filter_)
    if where.reads_kept and index.count > NOTED:
        seconds = KEPT_S * index.count
        note(f"--where reads the kept fields of {index.count:,} rows: about {seconds:.0f} s")
    numbers = matching(index.connection, where, seconds)
    if index.alive is not None:
        numbers = np.intersect1d(numbers, index.alive, assume_unique=True)
    return SelectedRows(numbers=numbers, count=len(numbers))


def search_index(
    index: Index,
    rows: SelectedRows,
    queries: Sequence[Query],
    vectors: Floats,
    criteria: Criteria,
    *,
    like: int | None = None,
) -> Iterator[QueryHits]:
    """Yield the answers to each query, in order.

    Args:
        index: an open index.
        rows: of it, to look at.
        queries: as texts.
        vectors: of the queries, unit rows [Q, dim].
        criteria: of the answers.
        like: the row that the only query is; it is no answer to itself, and there is no floor but
            one that was asked for.

    Raises:
        GembError: a row is damaged.
    """
    background = background_of(index)
    floor = _floor(background, rows.count, criteria, has_query=like is None)
    scale = Scale(index.spec.space, background or USUAL)
    search = IndexSearch(index, rows.numbers, rows.count, criteria, like)
    for first in range(0, len(queries), BATCH):
        batch = vectors[first : first + BATCH]
        nearest = search.nearest(batch, search.depth)
        for query, vector, ranked in zip(
            queries[first : first + BATCH], batch, nearest, strict=True
        ):
            hits = search.hits(query, vector, ranked)
            yield above(query, vector, hits, floor, criteria, best_are_tested=False, scale=scale)


def warm_up(index: Index, rows: SelectedRows, criteria: Criteria) -> None:
    """Let the system read what a search will scan, while a model is opened."""
    k = min(depth(criteria, ALL), rows.count)
    if index.codes is not None and plan(criteria.accuracy, rows.count, k).candidates is not None:
        read_ahead(index.codes)


def background_of(index: Index) -> Background | None:
    """Return how queries score that an index does not answer; None: it was not measured."""
    entries = index.manifest.background
    return None if entries is None else Background.from_json(entries)


def _floor(
    background: Background | None, count: int, criteria: Criteria, *, has_query: bool
) -> float:
    """Return the least score of an answer among `count` rows: the user's, else above chance."""
    if criteria.min_score is not None:
        return criteria.min_score
    if background is None or not has_query or not count:
        return NO_FLOOR
    return background.floor(count)
