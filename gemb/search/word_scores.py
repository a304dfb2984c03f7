"""BM25 of texts that are in no index: one pass over them, for a query's words alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from gemb.search.query_words import query_words

# As FTS5 has them: https://www.sqlite.org/fts5.html#the_bm25_function
K1 = 1.2
B = 0.75
LEAST_IDF = 1e-6  # of a word that half of the texts have

# A word is also found with another of these endings, and without its own.
ENDINGS = "ing|ies|ed|es|e|s|y"
_ENDING = re.compile(f"(?:{ENDINGS})$")
_SHORTEST = 3  # letters that stay


def word_scores(query: str, texts: Iterable[str]) -> NDArray[np.float32]:
    """Return the BM25 of each text for a query, float32 [n]; 0 where they share no word.

    The formula is that of FTS5, with a text's length in characters. Words are compared without
    regard to case, and to a common English ending.

    Args:
        query: as the user wrote it, without a prompt.
        texts: the passages; they are read once, and not kept.
    """
    stems = list(dict.fromkeys(map(_stem, query_words(query))))
    patterns = [_pattern(stem) for stem in stems]
    lengths: list[int] = []
    rows: list[int] = []
    numbers: list[int] = []  # of the stem
    counts: list[int] = []  # how often the row has it
    for row, text in enumerate(texts):
        lengths.append(len(text))
        lower = text.lower()
        for number, stem in enumerate(stems):
            if stem in lower and (count := len(patterns[number].findall(lower))):
                rows.append(row)
                numbers.append(number)
                counts.append(count)
    return _bm25(lengths, len(stems), np.array([rows, numbers, counts], np.int64))


def _bm25(lengths: Sequence[int], stems: int, hits: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return each row's score; `hits` is [3, hits]: rows, numbers of stems, counts."""
    scores = np.zeros(len(lengths), np.float64)
    if not hits.size:
        return scores.astype(np.float32)
    rows, numbers, counts = hits
    found_in = np.bincount(numbers, minlength=stems)
    idf = np.log((len(lengths) - found_in + 0.5) / (found_in + 0.5))
    relative = np.array(lengths)[rows] / np.mean(lengths)
    weights = counts * (K1 + 1) / (counts + K1 * (1 - B + B * relative))
    np.add.at(scores, rows, np.maximum(idf, LEAST_IDF)[numbers] * weights)
    return scores.astype(np.float32)


def _stem(word: str) -> str:
    shorter = _ENDING.sub("", word)
    return shorter if len(shorter) >= _SHORTEST else word


def _pattern(stem: str) -> re.Pattern[str]:
    ending = f"(?:{ENDINGS})?" if len(stem) >= _SHORTEST else ""
    literal = re.escape(stem)  # it comes first: re looks for a literal beginning fast
    return re.compile(rf"{literal}(?<![^\W_]{literal}){ending}(?![^\W_])")
