"""The hits of several searches for one question as one list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gemb.index.floor import USUAL
from gemb.search.fusion import RAISED
from gemb.search.interface import SearchHits


class _Chance(NamedTuple):
    """How a question scores that is not answered."""

    best: float  # the best cosine
    deviation: float


def merged(searches: Sequence[SearchHits], k: int) -> SearchHits:
    """Return the best hits of all searches, at most k.

    Cosines in one space of vectors are compared as they are: a passage is worth the same in a
    folder and in an index. Cosines of different models, prompts or widths tell nothing about each
    other; as kinds of scores in `gemb.search.fusion`, each is taken in deviations, here from the
    best score that chance explains. What has the very names of the question is raised as in its own
    search, so that the hits of each keep their order.
    """
    if len(searches) == 1:
        return searches[0]
    spaces = {hits.scale.space for hits in searches}
    chances = {
        space: _chance([hits for hits in searches if hits.scale.space == space]) for space in spaces
    }
    rows = [
        ((hit.score + RAISED * hit.is_named - chance.best) / chance.deviation, hit)
        for hits in searches
        for chance in [chances[hits.scale.space]]
        for hit in hits
    ]
    rows.sort(key=lambda row: -row[0])
    unsure = next((hits.unsure for hits in searches if hits.unsure), None)
    return SearchHits((hit for _, hit in rows[:k]), unsure)


def _chance(searches: Sequence[SearchHits]) -> _Chance:
    """Return what chance explains in one space, on the mean of its searches."""
    backgrounds = [hits.scale.background for hits in searches]
    deviation = float(np.mean([background.deviation for background in backgrounds]))
    best = float(np.mean([background.best_of(USUAL.rows) for background in backgrounds]))
    return _Chance(best, deviation if deviation > 0 else USUAL.deviation)
