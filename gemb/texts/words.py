"""The words of queries and texts: how they are told apart, compared and weighed.

`query_words` gives SQLite's FTS5 whole words, for it has a stemmer of its own. Everything else
compares stems: which line answers best, which words are marked, what is embedded first.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from math import log
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST = 256  # different words of one query; a passage that serves as a query has about 200
STEM = 5  # characters by which forms of a word are told: cancel, cancelled, cancellation
MOST_TERMS = 32  # of all queries together, by which passages are put in order

# cancel_order, cancelOrder and HTTPError are two words each; a text without spaces is pairs.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{1,2}"
    # Not again within a run of letters, which would take time with the square of its length.
    r"|(?<![a-zA-Z])[a-zA-Z]*[^\W\d_a-zA-Z\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af][^\W\d_]*"
    r"|[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+"
)
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a about an and are as at be been by can could did do does for from had has have how i
        if in into is it its me my no not of on or our should so that the their them then there
        these they this to us was we were what when where which who why will with would you your""",
    )
)


def query_words(text: str) -> list[str]:
    """Return the different words of a text in lower case, in order, the first `MOST` of them.

    A word is a run of letters, digits, the marks on them, and _: nothing that a query language
    could take for an operator.
    """
    lower = unicodedata.normalize("NFC", text).lower()
    runs = "".join(one if _is_of_a_word(one) else " " for one in lower).split()
    return list(dict.fromkeys(run for run in runs if run.strip("_")))[:MOST]


def _is_of_a_word(character: str) -> bool:
    return (
        character.isalnum() or character == "_" or unicodedata.category(character).startswith("M")
    )


class Word(NamedTuple):
    """A word of a text: `text[start:end]`."""

    stem: str
    start: int
    end: int


def words_of(text: str) -> Iterator[Word]:
    """Yield the words of a text, with the stems by which they are compared."""
    for match in _WORD.finditer(text):
        yield Word(_stem(match[0].lower()), match.start(), match.end())


def wanted_stems(query: str) -> frozenset[str]:
    """Return the stems of a query; stop words count where there are no others."""
    return frozenset(_ordered_stems(query))


def _ordered_stems(query: str) -> list[str]:
    words = [match[0].lower() for match in _WORD.finditer(query)]
    telling = [word for word in words if word not in _STOP_WORDS]
    return list(dict.fromkeys(map(_stem, telling or words)))


def _stem(word: str) -> str:
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    return word[:STEM]


def weights(stems: frozenset[str], texts: Sequence[str]) -> dict[str, float]:
    """Return how much each stem tells: the fewer of the texts have it, the more."""
    having = Counter(
        stem for text in texts for stem in {word.stem for word in words_of(text)} & stems
    )
    return {stem: log(1 + len(texts) / (1 + having[stem])) for stem in stems}


@dataclass(frozen=True)
class Promise:
    """How promising a passage is before it has a vector: by the words it shares with the queries.

    It decides in what order passages are embedded, and nothing else: what it misjudges comes later.
    So a stem is looked for as a part of the text, without taking the text's words apart.
    """

    terms: tuple[str, ...]

    @staticmethod
    def of(queries: Sequence[str]) -> Promise:
        """Return the terms of these queries, the first of each query first."""
        stems = (
            [stem for stem in _ordered_stems(query) if len(stem) > 2 or not stem.isascii()]
            for query in queries
        )
        terms = chain.from_iterable(zip_longest(*stems))
        return Promise(tuple(dict.fromkeys(filter(None, terms)))[:MOST_TERMS])

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
        weights = [log((count + 1) / (times + 0.5)) for times in often.tolist()]
        return (found @ np.array(weights, np.float32)).astype(np.float32)
