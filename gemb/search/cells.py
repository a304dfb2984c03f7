"""Text in the columns of a terminal: how wide it is, cut and wrapped to a width."""

from __future__ import annotations

import unicodedata

ELLIPSIS = "…"


def width_of(text: str) -> int:
    """Return how many columns a text takes."""
    if text.isascii():
        return len(text)
    return sum(map(_width, text))


def cut(text: str, width: int) -> str:
    """Return the text, its end replaced by an ellipsis where it is wider."""
    if width_of(text) <= width:
        return text
    used = 0
    for place, character in enumerate(text):
        used += _width(character)
        if used > width - 1:
            return text[:place].rstrip() + ELLIPSIS
    return text


def wrapped(text: str, width: int) -> list[str]:
    """Return the text in rows that are no wider, cut between words where there are any."""
    rows: list[str] = []
    while width_of(text) > width:
        used = 0
        end = 1
        for place, character in enumerate(text):
            used += _width(character)
            if used > width:
                end = max(1, place)
                break
        space = text.rfind(" ", 1, end + 1)
        end = space if space > end // 2 else end
        rows.append(text[:end].rstrip())
        text = text[end:].lstrip(" ")
    return [*rows, text]


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
