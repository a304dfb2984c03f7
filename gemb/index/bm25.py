"""Ranking by words: SQLite's FTS5 and its BM25, for the rows of an index and the passages of files.

Porter's stemmer and the weight of a title were chosen by nDCG@10 on six sets of English questions,
300 of each, without and with the stemmer: boolq 86.7 88.8, cosqa 37.3 39.2, debian-desc 85.7 87.8,
narrativeqa 95.9 96.4, pubmedqa 99.8 99.8, xsum 91.0 90.7; a title of weight 2: boolq 89.1.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from itertools import accumulate, islice

import numpy as np
from numpy.typing import NDArray

from gemb.arrays import Ints
from gemb.index.hits import Ranked
from gemb.index.where import reading_rows
from gemb.texts.words import query_words

TITLE = 2.0  # weight of a word in the title; in the text it is 1
LEAST_IDF = 1e-6  # of a word that half of the texts have, in FTS5

# A row with few of a question's words does the fused ranking harm: where the vectors are good they
# rank it better. nDCG@10 of EmbeddingGemma-300M on six sets of 150 questions, the mean, and on 180
# searches for one or two rare words of a text: vectors alone 86.1 and 62.6, words alone 66.7 and
# 82.4; fused: all rows 78.2 and 79.7, from a share of 0.6 83.5 and 80.7, from 0.8 84.9 and 82.2.
SHARE = 0.8

# FTS5 scores every row that it finds, at one to two microseconds a row, and counts the rows that
# have a word at a tenth of that: so many bear a query.
MOST_FOUND = 200_000
MOST_COUNTED = 2_000_000


def by_words(
    connection: sqlite3.Connection,
    text: str,
    k: int,
    rows: Ints | None = None,
    *,
    share: float = SHARE,
    terms: Sequence[str] | None = None,
) -> Ranked:
    """Return the k rows that share most with the words of a text, best first.

    Scores are BM25 (k1 1.2, b 0.75), higher is better; of equal ones the lower slot comes first.
    Rows are found by the query's rarest words, as many as `MOST_FOUND` allows: the commonest add
    next to nothing to a score. Where even the rarest is too common, rows must have all the words.

    Args:
        connection: with the table `words`.
        text: a query as the user wrote it, without a prompt.
        k: how many; fewer where fewer rows have enough of the words.
        rows: the only ones to look at, ascending; None: all.
        terms: what to look for, in FTS5's language; None: the words of the text.
        share: of the score that a row of average length has which has every word once, words that
            no row has among them: less is nothing.

    Raises:
        GembError: the table of words cannot be read.
    """
    with reading_rows():
        # Nothing inside quotes is an operator.
        words = [f'"{word}"' for word in query_words(text)] if terms is None else terms
        counts = _counts(connection, words)
        match = _match(counts)
        if not match:
            return Ranked(np.empty(0, np.int64), np.empty(0, np.float64))
        ranked = connection.execute(
            "SELECT rowid, -bm25(words, ?, 1.0) AS score FROM words "
            "WHERE words MATCH ? ORDER BY score DESC, rowid",
            (TITLE, match),
        )
        passing = ranked if rows is None else (row for row in ranked if _is_among(row[0], rows))
        best = list(islice(passing, k))
        ranked.close()
        last = connection.execute("SELECT max(id) FROM words_docsize").fetchone()[0] or 0
    required = np.array(list(_required(counts).values()))
    least = share * _idf(required, last + 1).sum()
    good = [(slot, score) for slot, score in best if score >= least]
    return Ranked(
        np.array([slot for slot, _ in good], np.int64),
        np.array([score for _, score in good], np.float64),
    )


def with_all(connection: sqlite3.Connection, terms: Sequence[str], most: int = -1) -> Ints:
    """Return the rows that have all of these terms, ascending; none where there are no terms.

    Args:
        connection: with the table `words`.
        terms: in FTS5's language.
        most: rows at which it stops; -1: it does not.
    """
    if not terms:
        return np.empty(0, np.int64)
    with reading_rows():
        rows = connection.execute(
            "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rowid LIMIT ?",
            (" AND ".join(terms), most),
        )
        return np.fromiter((row for (row,) in rows), np.int64)


def _is_among(row: int, rows: Ints) -> bool:
    """Return whether a row is one of `rows`, which are ascending."""
    place = int(rows.searchsorted(row))
    return place < len(rows) and int(rows[place]) == row


def _required(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the terms without those that no row has and that are other ones in another form.

    These are phrases, and names that also stand there as the words of a phrase.
    """
    names = {term.replace(" ", "") for term in counts if " " in term}
    return {
        term: count for term, count in counts.items() if count or not (" " in term or term in names)
    }


def _idf(counts: Ints, total: int) -> NDArray[np.float64]:
    """Return what each word weighs that so many of `total` rows have, float64 [words]."""
    weights: NDArray[np.float64] = np.log((total - counts + 0.5) / (counts + 0.5))
    return np.maximum(weights, LEAST_IDF)


def _counts(connection: sqlite3.Connection, words: Sequence[str]) -> dict[str, int]:
    """Return each word, and how many rows have it; at most `MOST_COUNTED`."""
    query = "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT ?)"
    return {word: connection.execute(query, (word, MOST_COUNTED)).fetchone()[0] for word in words}


def _match(counts: Mapping[str, int]) -> str:
    """Return the query in FTS5's language, empty where no row has any of the words."""
    rarest = sorted((word for word in counts if counts[word]), key=lambda word: counts[word])
    totals = accumulate(counts[word] for word in rarest)
    chosen = [word for word, total in zip(rarest, totals, strict=True) if total <= MOST_FOUND]
    return " OR ".join(chosen) or " AND ".join(rarest)
