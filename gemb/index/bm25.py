"""The rows that share words with a query, by SQLite's FTS5 and its BM25.

Porter's stemmer and the weight of a title were chosen by nDCG@10 on six sets of English questions,
300 of each, without and with the stemmer: boolq 86.7 88.8, cosqa 37.3 39.2, debian-desc 85.7 87.8,
narrativeqa 95.9 96.4, pubmedqa 99.8 99.8, xsum 91.0 90.7; a title of weight 2: boolq 89.1.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np

from gemb.index.where import Where, reading_rows
from gemb.search.fusion import Ranked
from gemb.search.word_scores import SHARE, idf
from gemb.texts.words import query_words

TITLE = 2.0  # weight of a word in the title; in the text it is 1

# FTS5 scores every row that it finds, at one to two microseconds a row, and counts the rows that
# have a word at a tenth of that: so many bear a query.
MOST_FOUND = 200_000
MOST_COUNTED = 2_000_000


def by_words(
    connection: sqlite3.Connection,
    text: str,
    k: int,
    where: Where | None = None,
    *,
    share: float = SHARE,
) -> Ranked:
    """Return the k rows that share most with the words of a text, best first.

    Scores are BM25 (k1 1.2, b 0.75), higher is better; of equal ones the lower slot comes first.
    Rows are found by the query's rarest words, as many as `MOST_FOUND` allows: the commonest add
    next to nothing to a score. Where even the rarest is too common, rows must have all the words.

    Args:
        connection: with the tables `rows` and `words`.
        text: a query as the user wrote it, without a prompt.
        k: how many; fewer where fewer rows have enough of the words.
        where: which rows to look at.
        share: of the score that a row of average length has which has every word once, words that
            no row has among them: less is nothing.

    Raises:
        GembError: the table of words cannot be read.
    """
    with reading_rows():
        counts = _counts(connection, query_words(text))
        match = _match(counts)
        if not match:
            return Ranked(np.empty(0, np.int64), np.empty(0, np.float64))
        # CROSS JOIN: the words come first, then the filter looks at the rows that they found.
        condition = f"AND {where.sql}" if where else ""
        join = "CROSS JOIN rows ON rows.slot = words.rowid" if where else ""
        found = connection.execute(
            f"SELECT words.rowid, -bm25(words, ?, 1.0) AS score FROM words {join} "
            f"WHERE words MATCH ? {condition} ORDER BY score DESC, words.rowid LIMIT ?",
            (TITLE, match, *(where.parameters if where else ()), k),
        ).fetchall()
        last = connection.execute("SELECT max(slot) FROM rows").fetchone()[0] or 0
    least = share * idf(np.array(list(counts.values())), last + 1).sum()
    good = [(slot, score) for slot, score in found if score >= least]
    return Ranked(
        np.array([slot for slot, _ in good], np.int64),
        np.array([score for _, score in good], np.float64),
    )


def _counts(connection: sqlite3.Connection, words: Sequence[str]) -> dict[str, int]:
    """Return each word, quoted for FTS5, and how many rows have it; at most `MOST_COUNTED`."""
    quoted = [f'"{word}"' for word in words]  # nothing inside quotes is an operator
    query = "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT ?)"
    return {word: connection.execute(query, (word, MOST_COUNTED)).fetchone()[0] for word in quoted}


def _match(counts: Mapping[str, int]) -> str:
    """Return the query in FTS5's language, empty where no row has any of the words."""
    rarest = sorted((word for word in counts if counts[word]), key=lambda word: counts[word])
    sums = accumulate(counts[word] for word in rarest)
    chosen = [word for word, found in zip(rarest, sums, strict=True) if found <= MOST_FOUND]
    return " OR ".join(chosen) or " AND ".join(rarest)
