"""How promising a passage is before it has a vector: by the words that it shares with the queries.

It decides in what order passages are embedded, and nothing else: what it misjudges comes later.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_TERMS = 32  # of all queries together
_WORD = re.compile(r"\w+")
_ENDINGS = ("ations", "ation", "ings", "ing", "ies", "ied", "ers", "er", "es", "ed", "s", "e", "y")
# Words that say nothing of what is looked for, in the languages of most queries.
_COMMON_WORDS = (
    "the and for with what where which when how does why who that this are was can from into not "
    "der die das und wie ist wird den les des est une que qui dans los las como por para del"
)
_COMMON = frozenset(_COMMON_WORDS.split())


@dataclass(frozen=True)
class Promise:
    """The stems of the queries' words."""

    terms: tuple[str, ...]

    @staticmethod
    def of(queries: Sequence[str]) -> Promise:
        """Return the terms of these queries, the first of each query first."""
        lists = [
            [_stem(word) for word in _WORD.findall(query.lower()) if _counts(word)]
            for query in queries
        ]
        longest = max(map(len, lists), default=0)
        terms = [found[place] for place in range(longest) for found in lists if place < len(found)]
        return Promise(tuple(dict.fromkeys(terms))[:MOST_TERMS])

    def found(self, text: str, spans: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
        """Return which terms stand in which part of a text, bool [len(spans), len(terms)]."""
        low = text.lower()
        if len(low) != len(text):  # a few capital letters become two
            low = "".join(one if len(one.lower()) != 1 else one.lower() for one in text)
        rows = [[low.find(term, *span) >= 0 for term in self.terms] for span in spans]
        return np.array(rows, bool).reshape(len(spans), len(self.terms))

    def scores(self, found: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return how promising each part is, float32 [n]: a rare term weighs more."""
        count = len(found)
        often = found.sum(axis=0)
        weights = [math.log((count + 1) / (times + 0.5)) for times in often.tolist()]
        return (found @ np.array(weights, np.float32)).astype(np.float32)


def _counts(word: str) -> bool:
    return (len(word) > 2 or not word.isascii()) and word not in _COMMON


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if len(word) - len(ending) >= 4 and word.endswith(ending):
            return word.removesuffix(ending)
    return word
