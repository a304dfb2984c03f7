"""Search of an index: checks that the queries fit it, then rows, scores, hits and answers."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gemb.arrays import Floats, Ints, Vectors
from gemb.errors import UsageError
from gemb.index.bm25 import by_words, with_all
from gemb.index.hits import Hit, Ranked
from gemb.index.mapped import read_ahead
from gemb.index.ranking import plan, ranked
from gemb.index.reader import Index
from gemb.index.source import RowSource, source_from_json
from gemb.io.notes import note
from gemb.io.text import visible
from gemb.models.prompts import Prompt, for_task
from gemb.search.answers import NO_FLOOR, QueryHits, above, depth, exit_code, show
from gemb.search.forms import OutputForm
from gemb.search.fusion import RAISED, Background, fused
from gemb.search.queries import Criteria, ModelOpener, Query, SearchJob, embedded

from gemb.texts.words import exact_terms, query_terms

if TYPE_CHECKING:
    from gemb.backend import Encoder


# Queries that were trained against documents; all other tasks go with themselves.
ASYMMETRIC = ("query", "code", "qa", "fact")
ALL = 10_000  # rows of a query at most, where all that reach the floor are asked for
BATCH = 256  # queries
EXACT = 4096  # rows with the very words of a query that are compared; of more, none stands out
SAMPLE = 4096  # vectors from which the background of a query's cosines is measured
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
        rows = rows_of(index, criteria.where)
        like: int | None = None
        finder: Encoder | None = None  # of the best lines
        prompt = Prompt(index.spec.prompt)
        if job.like is not None:
            like = index.find(job.like)
            vectors = index.unit_vectors(np.array([like]))
            (hit,) = index.hits(np.array([like]), np.ones(1, np.float32))
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


def rows_of(index: Index, filter_: str | None) -> SelectedRows:
    """Return the rows that a filter leaves; a note says where that takes seconds.

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
    numbers = matching(index.connection, where)
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
    floor = _floor(index, rows.count, criteria, has_query=like is None)
    search = _IndexSearch(index, rows, criteria, like)
    for first in range(0, len(queries), BATCH):
        batch = vectors[first : first + BATCH]
        nearest = search.nearest(batch, search.depth)
        for query, vector, found in zip(
            queries[first : first + BATCH], batch, nearest, strict=True
        ):
            yield above(query, vector, search.hits(query, vector, found), floor, criteria)


class _Scored(NamedTuple):
    """Rows with their cosines, best first."""

    slots: Ints
    scores: Floats


class _IndexSearch:
    """The search of some rows of an index."""

    def __init__(
        self, index: Index, rows: SelectedRows, criteria: Criteria, like: int | None
    ) -> None:
        self._index = index
        self._rows = rows
        self._criteria = criteria
        self._like = like
        self._source = source_from_json(index.manifest.source)
        self._sample: Vectors | None = None
        self.depth = depth(criteria, ALL) + (like is not None)

    def nearest(self, vectors: Vectors, k: int) -> list[_Scored]:
        """Return the k rows nearest to each query, unit rows [Q, dim]."""
        k = min(k, self._rows.count)
        if not k:
            return [_Scored(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in vectors]
        how = plan(self._criteria.accuracy, self._rows.count, k)
        best = ranked(vectors, self._index.vectors, how, k=k, rows=self._rows.numbers)
        return [
            _Scored(slots[slots >= 0], scores[slots >= 0])
            for slots, scores in zip(best.rows, best.scores, strict=True)
        ]

    def hits(self, query: Query, vector: Vectors, nearest: _Scored) -> list[Hit]:
        """Return the answers to a query, best first.

        Args:
            query: as text.
            vector: of it, [dim].
            nearest: the rows that are nearest to it, `depth` of them.
        """
        k = None if self._criteria.k is None else depth(self._criteria, ALL)
        looked_at = self.depth
        while True:
            hits = self._distinct(self._ordered(query, vector, nearest), k)
            if k is None or len(hits) >= k or len(nearest.slots) < looked_at:
                return hits
            # There are copies among them.
            looked_at *= 4
            (nearest,) = self.nearest(vector[None], looked_at)

    def _ordered(self, query: Query, vector: Vectors, nearest: _Scored) -> _Scored:
        """Return the rows in the order of the answers."""
        if self._like is not None:
            is_other = nearest.slots != self._like
            return _Scored(nearest.slots[is_other], nearest.scores[is_other])
        exact = self._exact(query)
        words = self._by_words(query) if self._criteria.is_hybrid else None
        if words is None and not len(exact):
            return nearest
        slots = np.unique(
            np.concatenate([nearest.slots, exact, words.rows[: self.depth] if words else exact])
        )
        cosines = self._index.unit_vectors(slots) @ vector
        order = cosines + np.where(np.isin(slots, exact), RAISED, 0).astype(np.float32)
        if words:
            scores = np.zeros(len(slots), np.float32)
            common, here, there = np.intersect1d(slots, words.rows, return_indices=True)
            scores[here] = words.scores[there]
            background = Background.of(self._sample_vectors() @ vector)
            of_words = Background.of(words.scores, self._rows.count)
            order = fused(order, scores, background, of_words)
        best = np.lexsort((slots, -order))
        return _Scored(slots[best], cosines[best])

    def _exact(self, query: Query) -> Ints:
        """Return the rows with the very names or words of a query; none where they are many."""
        if self._index.has_old_words:
            return np.empty(0, np.int64)
        rows = with_all(self._index.connection, exact_terms(query.text), EXACT + 1)
        return self._selected(rows) if len(rows) <= EXACT else rows[:0]

    def _by_words(self, query: Query) -> Ranked:
        """Return all rows that share words with a query, best first."""
        terms = None if self._index.has_old_words else query_terms(query.text)
        connection, rows = self._index.connection, self._rows
        return by_words(connection, query.text, rows.count, rows.numbers, share=0, terms=terms)

    def _selected(self, slots: Ints) -> Ints:
        rows = self._rows.numbers
        return slots if rows is None else np.intersect1d(slots, rows, assume_unique=True)

    def _sample_vectors(self) -> Vectors:
        """Return vectors from everywhere in the rows, [n, dim]."""
        if self._sample is None:
            count = min(SAMPLE, self._rows.count)
            rows = np.linspace(0, self._rows.count - 1, count).astype(np.int64)
            numbers = self._rows.numbers
            self._sample = self._index.unit_vectors(rows if numbers is None else numbers[rows])
        return self._sample

    def _distinct(self, scored: _Scored, k: int | None) -> list[Hit]:
        """Return the first k as hits; rows of the same text are one, which says how many."""
        hits: dict[object, Hit] = {}
        step = len(scored.slots) if k is None else k
        for start in range(0, len(scored.slots), max(1, step)):
            part = slice(start, start + step)
            new = self._index.hits(scored.slots[part], scored.scores[part])
            for slot, hit in zip(scored.slots[part].tolist(), new, strict=True):
                is_once = self._criteria.is_once and self._is_nameless(hit)
                key = hit.text if is_once else slot
                if key in hits:
                    hits[key] = replace(hits[key], copies=hits[key].copies + 1)
                elif k is None or len(hits) < k:
                    hits[key] = hit
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


def warm_up(index: Index, rows: SelectedRows, criteria: Criteria) -> None:
    """Let the system read what a search will scan, while a model is opened."""
    k = min(depth(criteria, ALL), rows.count)
    if index.codes is not None and plan(criteria.accuracy, rows.count, k).candidates is not None:
        read_ahead(index.codes)


def _floor(index: Index, count: int, criteria: Criteria, *, has_query: bool) -> float:
    """Return the least score of an answer among `count` rows: the user's, else above chance."""
    if criteria.min_score is not None:
        return criteria.min_score
    entries = index.manifest.background
    if entries is None or not has_query or not count:
        return NO_FLOOR
    from gemb.index import floor

    return floor.Background.from_json(entries).floor(count)
