"""`--check-recall`: what the quick ranking of an index misses, measured on its own rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from gemb.errors import UsageError
from gemb.io.text import visible
from gemb.search.form import Write

if TYPE_CHECKING:
    from gemb.search.search_run import OPEN, Job


def run_recall(
    job: Job, folder: Path, open_model: OPEN, count: int, write: Write, *, as_json: bool
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
    from gemb.search.index_match import check_asked, check_model, own_task
    from gemb.search.index_search import rows_of
    from gemb.search.query_vectors import embedded
    from gemb.search.recall import check_recall, rows_as_queries

    with Index.open(folder) as index:
        check_asked(index, folder, task=job.task, dim=job.dim)
        rows = rows_of(index, job.wanted.where)
        shown = visible(os.fspath(folder))
        if not rows.count:
            raise UsageError(f"--check-recall: {shown} has no rows to look at")
        if index.codes is None or index.coder is None:
            raise UsageError(f"--check-recall: {shown} has no codes, so that every search is exact")
        k = job.wanted.k or 10
        # What `auto` would do is exact for few rows, of which nothing can be missed.
        accuracy = "balanced" if job.wanted.accuracy == "auto" else job.wanted.accuracy
        how = plan(accuracy, rows.count, k)
        dtype = index.spec.dtype
        own = None  # the rows that the queries are
        if job.queries:
            encoder = open_model(job.model or index.model)
            check_model(index, folder, encoder, given=job.model, force=job.force)
            words = prompts.for_task(job.task or own_task(index), encoder.profile.prompts)
            queries = job.queries[:count]
            vectors = embedded(queries, encoder, words, index.spec.dim, quiet=job.quiet)
        else:
            drawn = rows_as_queries(index.stored, dtype=dtype, count=count, rows=rows.numbers)
            vectors, own = drawn.queries, drawn.rows
            if not len(own):
                raise UsageError(f"--check-recall: no row of {shown} has a vector")
        found = check_recall(
            vectors,
            index.stored,
            index.codes,
            index.coder,
            how,
            dtype=dtype,
            k=k,
            rows=rows.numbers,
            own=own,
        )
    whose = "queries" if job.queries else "rows as queries"
    if as_json:
        report = {
            "queries": found.queries,
            "kind": whose,
            "k": found.k,
            "recall": found.recall,
            "worst": found.worst,
            "accuracy": accuracy,
            "candidates": how.candidates,
            "exact_ms": round(found.exact_ms, 3),
            "plan_ms": round(found.plan_ms, 3),
        }
        write((json.dumps(report) + "\n").encode())
    else:
        line = (
            f"recall@{found.k} {found.recall:.4f} (worst {found.worst:.2f}) of {found.queries} "
            f"{whose}; {accuracy}, {how}: {found.plan_ms:.1f} ms a query, exact: "
            f"{found.exact_ms:.1f} ms\n"
        )
        write(line.encode())
    return 0
