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
    start = 0
    while start < len(text):
        end = _fitting(text, start, width)
        if end < len(text):
            space = text.rfind(" ", start + 1, end + 1)
            end = space if space > start + (end - start) // 2 else end
        rows.append(text[start:end].rstrip())
        start = end
        while start < len(text) and text[start] == " ":
            start += 1
    return rows or [""]


def _fitting(text: str, start: int, width: int) -> int:
    """Return where the characters from `start` on that fit end; at least one does."""
    used = 0
    for place in range(start, len(text)):
        used += _width(text[place])
        if used > width:
            return max(start + 1, place)
    return len(text)


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
