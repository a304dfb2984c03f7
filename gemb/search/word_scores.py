"""BM25 of texts that are in no index: one pass over them, for a query's words alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from gemb.texts.words import query_words

# As FTS5 has them: https://www.sqlite.org/fts5.html#the_bm25_function
K1 = 1.2
B = 0.75
LEAST_IDF = 1e-6  # of a word that half of the texts have

# A row with few of a question's words does the fused ranking harm: where the vectors are good they
# rank it better. nDCG@10 of EmbeddingGemma-300M on six sets of 150 questions, the mean, and on 180
# searches for one or two rare words of a text: vectors alone 86.1 and 62.6, words alone 66.7 and
# 82.4; fused: all rows 78.2 and 79.7, from a share of 0.6 83.5 and 80.7, from 0.8 84.9 and 82.2.
SHARE = 0.8

# A word is also found with another of these endings, and without its own.
ENDINGS = "ing|ies|ed|es|e|s|y"
_ENDING = re.compile(f"(?:{ENDINGS})$")
_SHORTEST = 3  # letters that stay


def word_scores(query: str, texts: Iterable[str], *, share: float = SHARE) -> NDArray[np.float32]:
    """Return the BM25 of each text for a query, float32 [n]; 0 where they share too few words.

    The formula is that of FTS5, with a text's length in characters. Words are compared without
    regard to case, and to a common English ending.

    Args:
        query: as the user wrote it, without a prompt.
        texts: the passages; they are read once, and not kept.
        share: of the score that a text of average length has which has every word once, words that
            no text has among them: less is nothing.
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
    return _bm25(lengths, len(stems), np.array([rows, numbers, counts], np.int64), share)


def idf(found_in: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Return what each word weighs that so many of `count` texts have, float64 [words]."""
    weights: NDArray[np.float64] = np.log((count - found_in + 0.5) / (found_in + 0.5))
    return np.maximum(weights, LEAST_IDF)


def _bm25(
    lengths: Sequence[int], stems: int, hits: NDArray[np.int64], share: float
) -> NDArray[np.float32]:
    """Return each row's score; `hits` is [3, hits]: rows, numbers of stems, counts."""
    scores = np.zeros(len(lengths), np.float64)
    if not hits.size:
        return scores.astype(np.float32)
    rows, numbers, counts = hits
    weights = idf(np.bincount(numbers, minlength=stems), len(lengths))
    relative = np.array(lengths)[rows] / np.mean(lengths)
    parts = counts * (K1 + 1) / (counts + K1 * (1 - B + B * relative))
    np.add.at(scores, rows, weights[numbers] * parts)
    scores[scores < share * weights.sum()] = 0
    return scores.astype(np.float32)


def _stem(word: str) -> str:
    shorter = _ENDING.sub("", word)
    return shorter if len(shorter) >= _SHORTEST else word


def _pattern(stem: str) -> re.Pattern[str]:
    ending = f"(?:{ENDINGS})?" if len(stem) >= _SHORTEST else ""
    literal = re.escape(stem)  # it comes first: re looks for a literal beginning fast
    return re.compile(rf"{literal}(?<![^\W_]{literal}){ending}(?![^\W_])")
