"""The words of a query, for a search by words."""

from __future__ import annotations

import unicodedata

MOST = 256  # different words of one query; a passage that serves as a query has about 200


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
