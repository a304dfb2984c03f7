"""The rows that share words with a query, by SQLite's FTS5 and its BM25.

The table `words` has the columns title and text, takes them from the table `rows` (external
content), and is kept in step by whoever writes `rows`.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from gemb.index.where import Where

if TYPE_CHECKING:
    from gemb.search.fusion import Ranked

CREATE_WORDS = """
CREATE VIRTUAL TABLE words USING fts5(
    title, text, content='rows', content_rowid='slot',
    tokenize="porter unicode61 remove_diacritics 2"
)
"""


def match_expression(text: str) -> str | None:
    """Return an FTS5 query for rows with any word of a text, None where it has no word.

    Every word is quoted: nothing in the text works as an operator of FTS5.
    """
    raise NotImplementedError


def by_words(
    connection: sqlite3.Connection, text: str, k: int, where: Where | None = None
) -> Ranked:
    """Return the k rows that share most with the words of a text, best first.

    Scores are BM25 (k1 1.2, b 0.75), higher is better; of equal ones the lower slot comes first.

    Args:
        connection: with the tables `rows` and `words`.
        text: a query as the user wrote it, without a prompt.
        k: how many; fewer where fewer rows have any of the words.
        where: which rows to look at.

    Raises:
        GembError: the table of words cannot be read.
    """
    raise NotImplementedError
