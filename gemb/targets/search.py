"""Search of a target: the model that its vectors are of, then rows, hits and answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from gemb.arrays import Floats
from gemb.errors import UsageError
from gemb.index.hits import Hit
from gemb.index.manifest import shown_path
from gemb.index.schema import kept_fields
from gemb.io.notes import note
from gemb.io.text import visible
from gemb.models.prompts import Prompt, for_task
from gemb.search.answers import NO_FLOOR, QueryHits, above, depth, exit_code, show
from gemb.search.forms import OutputForm
from gemb.search.index import ASYMMETRIC
from gemb.search.index_search import ALL
from gemb.search.queries import Criteria, ModelOpener, Query, SearchJob, embedded
from gemb.targets.addresses import Address
from gemb.targets.base import Content, FoundRow, Target, storable
from gemb.targets.connect import open_target
from gemb.targets.filters import All, AnyOf, Condition, Field, Not, parsed, with_kept

if TYPE_CHECKING:
    from gemb.backend import Encoder


def run_target(job: SearchJob, address: Address, open_model: ModelOpener, form: OutputForm) -> int:
    """Search a target; return the exit code.

    Raises:
        UsageError: the target is of another model, prompt or width, or a filter or row that is
            named is wrong.
        GembError: the target refuses or fails, or the model fails.
    """
    criteria = job.criteria
    condition = parsed(criteria.where) if criteria.where else None
    target = open_target(address)
    try:
        content = target.content
        if content is None:
            raise UsageError(f"{target.name} is not there, or gemb index push did not make it")
        _check_asked(target, content, job)
        condition = condition and _with_fields(content, condition)
        asked = _asked(target, content, job, open_model)
        count = target.count(condition)
        answers: list[QueryHits] = []
        floor = _floor(content, count, criteria, has_query=job.like is None)
        k = max(1, min(depth(criteria, ALL), count))
        for query, vector in zip(asked.queries, asked.vectors, strict=True):
            is_exact = criteria.accuracy == "exact"
            rows = target.search(vector, k + len(asked.left_out), condition, is_exact=is_exact)
            hits = [_hit(content, row) for row in rows if row.row.id not in asked.left_out]
            answer = above(query, vector, hits[:k], floor, criteria)
            show(answer, form, asked.finder, Prompt(content.spec.prompt))
            answers.append(answer)
    finally:
        target.close()
    if not count:
        why = "no row passes --where" if condition else "it has no rows"
        note(f"{target.name}: {why}")
    return exit_code(answers, count, criteria)


class _Asked(NamedTuple):
    """What a search looks for."""

    queries: list[Query]
    vectors: Floats  # [len(queries), dim]
    finder: Encoder | None  # of the best lines
    left_out: tuple[str, ...] = ()  # ids of rows that are no answers


def _asked(target: Target, content: Content, job: SearchJob, open_model: ModelOpener) -> _Asked:
    """Return the queries with their vectors, or the row of --like.

    Raises:
        UsageError: the model is another one, or there is no such row.
    """
    if job.like is not None:
        named = target.vector_of(storable(job.like))
        if named is None:
            raise UsageError(f"no row '{visible(job.like, 80)}' in {target.name}; name an id")
        row, vector = named
        query = Query(job.like, row.text, job.like)
        return _Asked([query], content.vectors(vector[None]), None, (row.id,))
    queries = list(job.queries)
    encoder = open_model(job.model or content.model)
    _check_model(target, content, encoder, job)
    prompt = for_task(job.task or _own_task(content), encoder.profile.prompts)
    vectors = embedded(queries, encoder, prompt, content.spec.dim)
    # With many queries the best lines are found by words alone, as in an index.
    return _Asked(queries, vectors, encoder if len(queries) == 1 else None)


def _hit(content: Content, answer: FoundRow) -> Hit:
    row = answer.row
    return Hit(
        score=answer.score,
        text=row.text,
        path=row.path and shown_path(row.path, content.base),
        line=row.line,
        last_line=row.last_line,
        title=row.title,
        id=content.row_id(row),
        kept=kept_fields(row.kept),
    )


def _floor(content: Content, count: int, criteria: Criteria, *, has_query: bool) -> float:
    """Return the least score of an answer: the user's, else above chance where that is known.

    Args:
        content: of the target.
        count: rows that pass the filter.
        criteria: by which answers are chosen.
        has_query: False: they are asked for by a row.
    """
    if criteria.min_score is not None:
        return criteria.min_score
    if content.background is None or content.kind == "bit" or not has_query or not count:
        return NO_FLOOR
    from gemb.index.floor import Background

    return Background.from_json(content.background).floor(count)


def _own_task(content: Content) -> str:
    is_for_queries = content.task in ("document", "custom")
    return content.query_task if is_for_queries else content.task


def _check_asked(target: Target, content: Content, job: SearchJob) -> None:
    """Refuse what the target was not made for, before a model is opened.

    Raises:
        UsageError: it has another width, or vectors for another task.
    """
    if job.dim is not None and job.dim != content.spec.dim:
        raise UsageError(
            f"--dim {job.dim}: the vectors of {target.name} have {content.spec.dim}; leave --dim "
            "out, or push into another --table"
        )
    own = _own_task(content)
    if job.task is None or job.task == own or (job.task in ASYMMETRIC and own in ASYMMETRIC):
        return
    raise UsageError(
        f"--task {job.task}: the vectors of {target.name} are of --task {content.task}, which goes "
        f"with --task {own}; leave it out"
    )


def _check_model(target: Target, content: Content, encoder: Encoder, job: SearchJob) -> None:
    """Refuse a model that is not that of the target's vectors.

    Raises:
        UsageError: it is another one.
    """
    profile = encoder.profile
    if profile.fingerprint == content.spec.model:
        return
    if job.force and content.spec.dim in profile.matryoshka_dims:
        return
    own = f" ({visible(content.model)})" if content.model else ""
    if job.model:
        mend = "leave -m out" if content.model else "name the right one with -m"
        raise UsageError(
            f"{target.name} holds vectors of another model{own}, not of {job.model}: {mend}"
        )
    if not content.model:
        raise UsageError(f"{target.name} does not say by which model its vectors are: -m REF")
    raise UsageError(
        f"the model of {target.name}{own} is not what it was when its vectors were made"
    )


def _with_fields(content: Content, condition: Condition) -> Condition:
    """Return a filter that knows which of its fields are kept; a note names those of no row."""
    known = content.fields
    names = {field.name for field in _fields_of(condition) if not field.is_column}
    for name in sorted(names):
        if name not in known and name.partition(".")[0] not in known:
            there = ", ".join(visible(name, 40) for name in known[:20]) or "none"
            note(f"--where: no field {visible(name, 40)} in any row; there are: {there}")
    return with_kept(condition, known)


def _fields_of(condition: Condition) -> Iterator[Field]:
    match condition:
        case All(conditions) | AnyOf(conditions):
            for part in conditions:
                yield from _fields_of(part)
        case Not(part):
            yield from _fields_of(part)
        case _:
            yield condition.field
