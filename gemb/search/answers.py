"""From hits to answers: the floor, the form of the output, the exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gemb.index.hits import Hit
from gemb.io.notes import note
from gemb.search.excerpts import compared, excerpts
from gemb.search.forms import OutputForm, ShownAnswer
from gemb.search.queries import USUAL_SCALE, Criteria, Query, Scale, Unsure
from gemb.texts.words import wanted_stems, words_of

if TYPE_CHECKING:
    from gemb.backend import Encoder
    from gemb.models.prompts import Prompt

NO_FLOOR = -1.0  # no cosine is below
DEPTH = 100  # ranks by meaning and by words that are looked at, where both count
UNSURE: dict[Unsure, str] = {
    "time": "there was too little time to tell what is relevant; the same search goes on from "
    "here, and --budget 30s gives it more",
    "failed": "the model failed before it could be told what is relevant; gemb doctor tries it",
}


@dataclass(frozen=True, kw_only=True)
class QueryHits:
    """The answers to one query."""

    query: Query
    vector: NDArray[np.float32]  # of the query, [dim]
    hits: list[Hit]  # that reach the floor, best first
    floor: float  # NO_FLOOR: there is none
    best_below: float | None  # the best score that does not reach it; None: all reach it
    unsure: Unsure | None = None  # why it is not told whether hits are relevant; None: it is
    scale: Scale = USUAL_SCALE  # of the scores


def depth(criteria: Criteria, most: int) -> int:
    """Return how many ranks are looked at; `most` where all are requested."""
    k = most if criteria.k is None else criteria.k
    return max(k, DEPTH) if criteria.is_hybrid else k


def above(
    query: Query,
    vector: NDArray[np.float32],
    hits: Sequence[Hit],
    floor: float,
    criteria: Criteria,
    *,
    best_are_tested: bool = True,
    unsure: Unsure | None = None,
    scale: Scale = USUAL_SCALE,
) -> QueryHits:
    """Return the hits that reach the floor, at most `criteria.k`; if `is_weak`, the others, too.

    A hit with all the words of the query counts as relevant, whatever its cosine: models know
    little of rare names. Of 180 searches for one or two rare words of a text 19 % found nothing
    without this rule, 9 % with it (EmbeddingGemma-300M), and of 1,400 questions about another
    subject one more has an answer. A least score that the user gives holds for all, unless words
    are asked for as well (`is_hybrid`).

    Args:
        query: as text.
        vector: of the query, [dim].
        hits: best first.
        floor: the least score.
        criteria: of the answers.
        best_are_tested: what has an estimate for a score is less promising than what has a vector.
        unsure: None: so many were tested that there is no answer if none of them is one; else why
            not: then all hits are returned where none that was tested reaches the floor, and no
            hit is no answer.
        scale: of the scores.
    """
    words_count = criteria.is_hybrid or criteria.min_score is None
    stems = wanted_stems(query.text)
    reached: list[Hit] = []
    below: list[Hit] = []
    for hit in hits:
        if (
            criteria.is_weak
            or (hit.is_estimate and criteria.min_score is None)
            or hit.score >= floor
            or (words_count and has_all(hit, stems))
        ):
            reached.append(hit)
        else:
            below.append(hit)
    tested = [hit.score for hit in below if not hit.is_estimate]
    is_open = bool(tested) and all(hit.is_estimate for hit in reached)  # none of them is one
    if criteria.min_score is not None or not (is_open or not hits):
        unsure = None
    if unsure:
        reached = list(hits)
    elif is_open:
        reached = [] if best_are_tested else [hit for hit in reached if hit.score > max(tested)]
    return QueryHits(
        query=query,
        vector=vector,
        hits=reached[: criteria.k],
        floor=floor,
        best_below=max((hit.score for hit in below), default=None),
        unsure=unsure,
        scale=scale,
    )


def has_all(hit: Hit, stems: frozenset[str]) -> bool:
    """Return whether a hit has all of these words; False where there are none."""
    return bool(stems) and stems <= {
        word.stem for word in words_of(f"{hit.title or ''} {hit.text}")
    }


def show(
    answer: QueryHits, form: OutputForm, encoder: Encoder | None, prompt: Prompt | None
) -> None:
    """Write the answers to one query.

    Args:
        answer: the query's hits.
        form: writes it.
        encoder: finds the best lines where words do not; None: only words find them.
        prompt: of the passages.
    """
    shown = excerpts(answer.query.text, answer.hits)
    if form.needs_lines and encoder and prompt:
        shown = compared(shown, answer.vector, encoder, prompt)
    form.show(
        ShownAnswer(query=answer.query, excerpts=shown, unsure=answer.unsure, scale=answer.scale)
    )


def exit_code(answers: Sequence[QueryHits], count: int, criteria: Criteria) -> int:
    """Return 0 where a query has an answer, else 1, as grep; notes say what the floor left out.

    Args:
        answers: of all queries.
        count: passages or rows that were searched.
        criteria: by which they were chosen.
    """
    if unsure := next((answer.unsure for answer in answers if answer.unsure), None):
        note(UNSURE[unsure])
    empty = [answer for answer in answers if not answer.hits]
    below = [answer for answer in empty if answer.best_below is not None]
    if below:
        if len(answers) == 1:
            how = "--min-score" if criteria.min_score is not None else "--weak shows it"
            note(
                f"nothing relevant: the best of {count:,} scores {below[0].best_below:.2f}, under "
                f"{below[0].floor:.2f} ({how})"
            )
        else:
            note(f"{len(below):,} of {len(answers):,} queries have no relevant answer (--weak)")
    return 0 if len(empty) < len(answers) else 1
