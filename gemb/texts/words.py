"""The words of queries and texts: how they are told apart, compared and weighed.

SQLite's FTS5 has a stemmer of its own: `expanded` gives it texts, `query_terms` what to look for.
There cancelOrder is found by cancel, by order, by cancelorder and as a whole, and a text without
spaces by its pairs of characters. Everything else compares stems: which line answers best, which
words are marked.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import log
from typing import NamedTuple

VERSION = 2  # of what `expanded` makes of a text
MOST = 256  # different words of one query; a passage that serves as a query has about 200
STEM = 5  # characters by which forms of a word are told: cancel, cancelled, cancellation
FEW = 2  # words of a query that are asked for as they stand; more are a question

# cancel_order, cancelOrder and HTTPError are two words each; a text without spaces is pairs.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{1,2}"
    # Not again within a run of letters, which would take time with the square of its length.
    r"|(?<![a-zA-Z])[a-zA-Z]*[^\W\d_a-zA-Z\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af][^\W\d_]*"
    r"|[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+"
)
# A name of several words: cancelOrder, HTTPError. It begins at the edge of a word, so that a long
# run of letters takes no time with the square of its length.
_HUMPED = re.compile(
    r"[A-Za-z0-9](?<![A-Za-z0-9].)"  # a class comes first: to where one matches, `re` skips fast
    r"(?:(?<=[A-Z])(?:[A-Z]++[a-z]|[A-Z]*+[a-z0-9]++[A-Z])|(?<=[a-z0-9])[a-z0-9]*+[A-Z])"
    r"[A-Za-z0-9]*+"
)
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SPACELESS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_NAME = re.compile(r"\w+(?:(?:::|[./\\:-])\w+)*")
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
    runs = "".join(character if _is_of_a_word(character) else " " for character in lower).split()
    return list(dict.fromkeys(run for run in runs if run.strip("_")))[:MOST]


def _is_of_a_word(character: str) -> bool:
    return (
        character.isalnum() or character == "_" or unicodedata.category(character).startswith("M")
    )


def expanded(text: str) -> str:
    """Return a text as FTS5 is to see it.

    A name of several words becomes these words, and stands whole at the end, so that it is found by
    both. A run of characters without spaces becomes its pairs, and its last character.
    """
    names: dict[str, None] = {}

    def parted(match: re.Match[str]) -> str:
        names[match[0].lower()] = None
        return _parted(match[0])

    text = _HUMPED.sub(parted, text)
    if not text.isascii():
        text = _SPACELESS.sub(lambda match: f" {' '.join(_pairs(match[0]))} ", text)
    return f"{text} {' '.join(names)}" if names else text


@lru_cache(1 << 14)
def _parted(name: str) -> str:
    return _HUMP.sub(" ", name)


def _pairs(run: str) -> list[str]:
    return [run[at : at + 2] for at in range(len(run))]


def query_terms(text: str) -> list[str]:
    """Return what to look for in texts that are `expanded`, in FTS5's language, at most `MOST`.

    These are the words of a query, those of its names of several words, and such names as phrases.
    """
    terms: dict[str, None] = {}
    for match in _NAME.finditer(unicodedata.normalize("NFC", text)):
        all_words: list[str] = []
        pieces = re.findall(r"\w+", match[0])
        for piece in pieces:
            words = [word for word in _split(piece) if word.strip("_")]
            all_words += words
            is_prefix = len(words) == 1 and _SPACELESS.fullmatch(words[0]) and len(words[0]) == 1
            terms |= dict.fromkeys(f'"{word}"*' if is_prefix else f'"{word}"' for word in words)
            if len(words) > 1:
                terms[f'"{" ".join(words)}"'] = None
            if _HUMPED.fullmatch(piece):
                terms[f'"{piece.lower()}"'] = None
        if len(pieces) > 1 and len(all_words) > 1:
            terms[f'"{" ".join(all_words)}"'] = None
    return list(terms)[:MOST]


def _split(piece: str) -> list[str]:
    """Return the words of a run of letters, digits and _, in lower case."""
    words = _HUMP.sub(" ", piece).replace("_", " ").lower()
    return _SPACELESS.sub(
        lambda match: f" {' '.join(_pairs(match[0])[: max(1, len(match[0]) - 1)])} ", words
    ).split()


def exact_terms(query: str) -> list[str]:
    """Return what a query asks for as it stands, in FTS5's language; empty for a question.

    These are its names of programs, such as cancelOrder, cancel_order and shop.cancel; else its
    words, where they are `FEW`.
    """
    names = [match[0] for match in _NAME.finditer(unicodedata.normalize("NFC", query))]
    phrases = [f'"{" ".join(_words_of_name(name))}"' for name in names if _is_identifier(name)]
    if phrases:
        return phrases
    words = re.findall(r"\w+", query)
    is_few = 0 < len(words) <= FEW and not _STOP_WORDS.issuperset(map(str.lower, words))
    return query_terms(query) if is_few else []


def asks_for_names(query: str) -> bool:
    """Return whether a query is hardly more than names and words that are asked for as they stand.

    Where it has names of programs, stop words may stand beside them.
    """
    names = [match[0] for match in _NAME.finditer(unicodedata.normalize("NFC", query))]
    others = [name for name in names if not _is_identifier(name)]
    telling = [name for name in others if name.lower() not in _STOP_WORDS]
    return len(names) <= FEW or (len(others) < len(names) and not telling)


def _is_identifier(name: str) -> bool:
    """Return whether only programs write a word so: cancel_order, cancelOrder, shop.cancel."""
    pieces = re.split(r"::|\.", name)
    is_dotted = len(pieces) > 1 and all(re.fullmatch(r"[^\W\d]\w+", piece) for piece in pieces)
    return is_dotted or "_" in name.strip("_") or _HUMP.search(name) is not None


def _words_of_name(name: str) -> list[str]:
    return [word for piece in re.findall(r"\w+", name) for word in _split(piece)]


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
    words = [match[0].lower() for match in _WORD.finditer(query)]
    telling = [word for word in words if word not in _STOP_WORDS]
    return frozenset(map(_stem, telling or words))


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
