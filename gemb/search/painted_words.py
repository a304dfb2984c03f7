"""The words of a query in their colour, wherever a text has them."""

from __future__ import annotations

from collections.abc import Callable

from gemb.io.colours import Paint
from gemb.texts.words import words_of


def painted(
    text: str, stems: frozenset[str], paint: Paint, rest: Callable[[str], str] = str
) -> str:
    """Return a text with the words that have these stems painted, and the rest as `rest` does."""
    if not paint.is_on:
        return text
    parts: list[str] = []
    done = 0
    for word in words_of(text):
        if word.stem in stems:
            parts += [rest(text[done : word.start]), paint.word(text[word.start : word.end])]
            done = word.end
    return "".join(parts) + rest(text[done:])
