"""The words of a query, and where a text has them: in any form of a word, in identifiers, too."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from math import log
from typing import NamedTuple

# cancel_order, cancelOrder and HTTPError are two words each; a text without spaces is pairs.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{1,2}"
    r"|[a-zA-Z]*[^\W\d_a-zA-Z\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af][^\W\d_]*"
    r"|[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+"
)
STEM = 5  # characters by which forms of a word are told: cancel, cancelled, cancellation
_EVERYWHERE = frozenset(
    re.findall(
        r"\w+",
        """a about an and are as at be been by can could did do does for from had has have how i
        if in into is it its me my no not of on or our should so that the their them then there
        these they this to us was we were what when where which who why will with would you your""",
    )
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
    """Return the stems of a query; words that stand everywhere count where there are no others."""
    spelled = {match[0].lower() for match in _WORD.finditer(query)}
    return frozenset(_stem(word) for word in (spelled - _EVERYWHERE or spelled))


def weights(stems: frozenset[str], texts: Sequence[str]) -> dict[str, float]:
    """Return how much each stem tells: the fewer of the texts have it, the more."""
    having = Counter(
        stem for text in texts for stem in {word.stem for word in words_of(text)} & stems
    )
    return {stem: log(1 + len(texts) / (1 + having[stem])) for stem in stems}


def _stem(word: str) -> str:
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    return word[:STEM]
