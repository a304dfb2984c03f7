"""Measure what two-stage ranking misses on the user's own corpus."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gemb.arrays import Floats, Ints
from gemb.embedding.vectors import unpacked
from gemb.errors import UsageError
from gemb.index.ranking import Plan, ranked
from gemb.io.text import visible
from gemb.search.forms import Write

if TYPE_CHECKING:
    from gemb.index.ranking import Found, StoredVectors
    from gemb.search.queries import ModelOpener, SearchJob


EQUAL = 2e-6  # two dot products of float32, summed in different orders, may differ so much
TIMED = 20  # queries that are ranked one by one
EXACT = Plan(candidates=None)


@dataclass(frozen=True)
class Recall:
    """Recall and speed of two-stage ranking."""

    queries: int
    k: int
    recall: float  # share of the exact best k that the plan found, over all queries
    worst: float  # of the query with the lowest share
    exact_ms: float  # median of a query by itself, the files in memory
    plan_ms: float


class Drawn(NamedTuple):
    """Stored vectors that stand in for queries."""

    queries: Floats  # [n, D], unit rows
    rows: Ints  # [n]: where they are stored


def check_recall(
    queries: Floats,
    stored: StoredVectors,
    how: Plan,
    *,
    k: int,
    rows: Ints | None = None,
    own: Ints | None = None,
) -> Recall:
    """Rank as `how` says and exactly, and compare.

    Args as of `ranked`; queries: unit rows [Q, D], at least one, the user's own or those of
    `rows_as_queries`, whose rows are then `own`: a query does not find itself. What has the score
    of the exact k-th counts as found, whichever of several equal rows it is.
    """
    depth = k if own is None else k + 1

    def rank(batch: Floats, plan: Plan) -> Found:
        return ranked(batch, stored, plan, k=depth, rows=rows)

    expected = _others(rank(queries, EXACT), own, k)
    scores = _others(rank(queries, how), own, k)
    is_row = np.isfinite(expected)
    last = np.where(is_row, expected, np.inf).min(axis=1, keepdims=True)
    hits = (np.isfinite(scores) & (scores >= last - EQUAL)).sum(axis=1)
    counts = is_row.sum(axis=1)
    hits = np.minimum(hits, counts)
    shares = np.where(counts > 0, hits / np.maximum(counts, 1), 1)
    return Recall(
        queries=len(queries),
        k=k,
        recall=float(hits.sum() / counts.sum()) if counts.any() else 1.0,
        worst=float(shares.min()),
        exact_ms=_one_by_one(lambda query: rank(query, EXACT), queries),
        plan_ms=_one_by_one(lambda query: rank(query, how), queries),
    )


def rows_as_queries(
    stored: StoredVectors,
    *,
    count: int,
    rows: Ints | None = None,
    seed: int = 0,
) -> Drawn:
    """Draw up to `count` stored vectors, all as likely; equal arguments, equal rows.

    A row that failed, or is all zeros, is passed over, so there may be fewer.
    """
    among = len(stored.array) if rows is None else len(rows)
    drawn = np.sort(np.random.default_rng(seed).choice(among, min(count, among), replace=False))
    drawn = drawn if rows is None else rows[drawn]
    queries = unpacked(np.asarray(stored.array)[drawn], stored.dtype, stored.array.shape[1])
    lengths = np.linalg.norm(queries, axis=1)
    usable = lengths > 0  # no comparison with NaN holds
    return Drawn(queries[usable] / lengths[usable, None], drawn[usable])


def _others(best: Found, own: Ints | None, k: int) -> Floats:
    """Return the scores [Q, k] of the best rows, without each query's own row."""
    if own is None:
        return best.scores
    itself = best.rows == own[:, None]
    order = np.argsort(itself, axis=1, kind="stable")  # the rest keeps its order
    return np.take_along_axis(best.scores, order, 1)[:, :k]


def _one_by_one(rank: Callable[[Floats], Found], queries: Floats) -> float:
    rank(queries[:1])
    times = []
    for query in queries[:TIMED]:
        began = time.perf_counter()
        rank(query[None])
        times.append(time.perf_counter() - began)
    return 1000 * median(times)


def run_recall(
    job: SearchJob,
    folder: Path,
    open_model: ModelOpener,
    count: int,
    write: Write,
    *,
    as_json: bool,
) -> int:
    """Measure recall with queries of the user's, or with rows of the index; return the exit code.

    Args:
        job: `queries` are taken where there are any, the first `count` of them.
        folder: of the index.
        open_model: opens the model, where there are queries.
        count: queries.
        write: takes the report.
        as_json: one JSON document, and not one line.

    Raises:
        UsageError: the index has no rows, or no codes.
        GembError: it is damaged.
    """
    import os

    from gemb.index.ranking import plan
    from gemb.index.reader import Index
    from gemb.models import prompts
    from gemb.search.index import check_asked, check_model, own_task, rows_of
    from gemb.search.queries import embedded

    with Index.open(folder) as index:
        check_asked(index, folder, task=job.task, dim=job.dim)
        rows = rows_of(index, job.criteria.where)
        shown = visible(os.fspath(folder))
        if not rows.count:
            raise UsageError(f"--check-recall: {shown} has no rows to look at")
        numbers = rows.numbers
        if len(index.drafts):  # which a search ranks by themselves
            numbers = np.arange(len(index.stored)) if numbers is None else numbers
            numbers = np.setdiff1d(numbers, index.drafts, assume_unique=True)
            if not len(numbers):
                raise UsageError(
                    f"--check-recall: all rows of {shown} are drafts; gemb index refine {shown}"
                )
        if index.codes is None or index.coder is None:
            raise UsageError(f"--check-recall: {shown} has no codes, so that every search is exact")
        k = job.criteria.k or 10
        # `auto` is exact for few rows and misses nothing, so there would be nothing to measure.
        accuracy = "balanced" if job.criteria.accuracy == "auto" else job.criteria.accuracy
        how = plan(accuracy, rows.count if numbers is None else len(numbers), k)
        own = None  # the rows that the queries are
        if job.queries:
            encoder = open_model(job.model or index.model)
            check_model(index, folder, encoder, name=job.model, force=job.force)
            prompt = prompts.for_task(job.task or own_task(index), encoder.profile.prompts)
            queries = job.queries[:count]
            vectors = embedded(queries, encoder, prompt, index.spec.dim)
        else:
            drawn = rows_as_queries(index.vectors, count=count, rows=numbers)
            vectors, own = drawn.queries, drawn.rows
            if not len(own):
                raise UsageError(f"--check-recall: no row of {shown} has a vector")
        measured = check_recall(
            vectors,
            index.vectors,
            how,
            k=k,
            rows=numbers,
            own=own,
        )
    whose = "queries" if job.queries else "rows as queries"
    if as_json:
        report = {
            "queries": measured.queries,
            "kind": whose,
            "k": measured.k,
            "recall": measured.recall,
            "worst": measured.worst,
            "accuracy": accuracy,
            "candidates": how.candidates,
            "exact_ms": round(measured.exact_ms, 3),
            "plan_ms": round(measured.plan_ms, 3),
        }
        write((json.dumps(report) + "\n").encode())
    else:
        line = (
            f"recall@{measured.k} {measured.recall:.4f} (worst {measured.worst:.2f}) of "
            f"{measured.queries} {whose}; {accuracy}, {how}: {measured.plan_ms:.1f} ms a query, "
            f"exact: {measured.exact_ms:.1f} ms\n"
        )
        write(line.encode())
    return 0
