"""Scores of several kinds made one.

Cosines of drafts, cosines of real vectors and BM25 cannot be compared as they are. Each kind is
taken in deviations from the mean of its own background: the scores of all passages, most of which
do not answer the query.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gemb.arrays import Doubles, Floats
from gemb.texts.words import asks_for_names

# What the words' score weighs beside the draft's 1, both in deviations from their means. nDCG@10
# and recall@50 of 300 questions a set with the draft of mini, for 1, 0.5 and 0.3: cosqa 48.5 89.7,
# 51.7 92.0, 53.2 94.3; boolq 90.8 99.7, 91.2 99.7, 91.3 99.7; debian-desc 89.6 99.3, 90.4 99.3,
# 89.9 99.3; xsum 87.8 98.0, 87.8 98.0, 87.0 98.0.
WORDS = 0.5
# What a passage that has the very names or words of a query is raised by: more than separates the
# cosines of most answers from those of all other passages.
RAISED = 0.2
COMMON = 10, 0.01  # passages, and their share, that may have a question's names: these tell then
SAME = 1e-6  # deviation of equal scores, of their mean: what summing them left
LINE = 0.15, 0.02  # cosine of a passage of first score 0, and what each deviation adds: usual ones
LINE_LEAST, LINE_MOST = 16, 1024  # passages from which the slope is measured


class Background(NamedTuple):
    """How the scores of one kind are spread."""

    mean: float
    deviation: float  # 0: all are the same

    @staticmethod
    def of(scores: Floats | Doubles, count: int | None = None) -> Background:
        """Return that of scores; NaN is none.

        Args:
            scores: [n].
            count: of all passages; those that have no score have 0. None: all have one.
        """
        known = scores[~np.isnan(scores)].astype(np.float64)
        count = len(known) if count is None else count
        if not count:
            return Background(0.0, 0.0)
        mean = float(known.sum()) / count
        squares = float(((known - mean) ** 2).sum()) + (count - len(known)) * mean**2
        return Background(mean, float(np.sqrt(squares / count)))


def standardised(scores: Floats, background: Background | None = None) -> Floats:
    """Return scores in deviations from the mean of a background, [n]; NaN stays.

    Args:
        scores: of one kind, [n].
        background: of that kind; None: these scores are all there are.
    """
    mean, deviation = background or Background.of(scores)
    if not deviation > SAME * abs(mean):
        return np.zeros_like(scores)
    return ((scores - mean) / deviation).astype(scores.dtype)


def are_telling(query: str, having: int, count: int) -> bool:
    """Return whether passages that have the names or words of a query are raised for it.

    A question of more than names says what it wants in other words, too: there a name that many
    passages have, as GitHub may be, is no reason.

    Args:
        query: as text.
        having: passages that have all of its names.
        count: of all passages.
    """
    least, share = COMMON
    return having <= max(least, share * count) or asks_for_names(query)


def fused(
    cosines: Floats | None,
    words: Floats,
    of_cosines: Background | None = None,
    of_words: Background | None = None,
) -> Floats:
    """Return the scores of passages by meaning and by words as one, [n].

    Args:
        cosines: of drafts or of real vectors, [n]; NaN: a passage has none. None: none has one.
        words: BM25, [n], 0 where no word is shared.
        of_cosines: background of the cosines; None: themselves.
        of_words: background of the words; None: themselves.
    """
    scores = WORDS * standardised(words, of_words)
    if cosines is not None:
        scores = scores + np.nan_to_num(standardised(cosines, of_cosines))
    return scores


def probable_cosines(first: Floats, tested: Floats, cosines: Floats) -> Floats:
    """Return the cosines that passages without a real vector probably have, [n].

    They lie on a straight line through first scores and cosines of those that have one; what is not
    likely to reach the level of the best ones does not disturb it.

    Args:
        first: scores before real vectors, of all passages, [n].
        tested: of these, those of passages with a real vector, [m].
        cosines: of these vectors, [m].
    """
    start, slope = LINE
    best = np.argsort(-tested, kind="stable")[:LINE_MOST]
    tested, cosines = tested[best], cosines[best]
    if len(tested):
        if len(tested) >= LINE_LEAST and tested.std() > 0:
            slope = max(0.0, float(np.cov(tested, cosines)[0, 1] / tested.var(ddof=1)))
        start = float(cosines.mean() - slope * tested.mean())
    probable: Floats = np.clip(start + slope * first, -1, 1).astype(np.float32)
    return probable
