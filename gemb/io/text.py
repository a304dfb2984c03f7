"""Text for people: one line without control characters, time spans, sizes, columns."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache

ELLIPSIS = "…"
_SHORT = {"\n": "⏎", "\t": "⇥"}
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")  # control, direction, surrogate, line separators


def visible(text: str, width: int = 0) -> str:
    """Return the text on one line, with no character that a terminal obeys.

    Args:
        text: anything, escape codes and surrogates too; one that stands for a byte of a name that
            is no UTF-8 is shown as that byte: xff after a backslash.
        width: about so many characters; of a longer text the beginning and the end stay, and
            between them the number of characters that are left out. 0: all of it.
    """
    if 0 < width < len(text) - len(" … 1,000 more characters … "):
        head = width * 2 // 3
        tail = width - head
        left_out = f" … {len(text) - width:,} more characters … "
        return visible(text[:head]) + left_out + visible(text[-tail:])
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_shown, text))


def visible_lines(text: str) -> str:
    """Return text of several lines, with no character that a terminal obeys but line ends and tabs.

    It is `visible` for what stands as it is: a table, a document.
    """
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    text = text.replace("\r\n", "\n")
    return "".join(char if char in "\n\t" else _shown(char) for char in text)


def _shown(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    if character == "\N{ZERO WIDTH JOINER}" or unicodedata.category(character) not in _HIDDEN:
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )


def duration(seconds: float) -> str:
    """Return a time span in words: 40 s, 12 min, 3 h 05 min, 2 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def size_in_words(size_bytes: int) -> str:
    """Return a number of bytes in words, powers of ten: 1.25 GB, 33.4 MB, 512 kB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= size:
            return f"{size_bytes / size:.3g} {unit}"
    return f"{size_bytes} B"


def did_you_mean(name: str, names: Iterable[str], otherwise: str = "") -> str:
    """Return "did you mean 'x'?" with the nearest of the names; other words where none is near."""
    import difflib  # a misspelt name is rare

    near = difflib.get_close_matches(name, list(names), 1)
    return f"did you mean '{near[0]}'?" if near else otherwise


# Latin, Greek, Cyrillic and punctuation: one column each. wcwidth knows that as well, but its
# import takes 40 ms, and a title has a " › " in it.
_NARROW = re.compile(r"[\0-\u02ff\u0370-\u0482\u2010-\u2027\u2030-\u205e]*")


def width_of(text: str) -> int:
    """Return how many columns a text takes."""
    return len(text) if _NARROW.fullmatch(text) else sum(map(_width, text))


def cut(text: str, width: int) -> str:
    """Return the text, its end replaced by an ellipsis where it is wider."""
    if width_of(text) <= width:
        return text
    used = 0
    for end, character in enumerate(text):
        used += _width(character)
        if used > width - 1:
            return text[:end].rstrip() + ELLIPSIS
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
    for end in range(start, len(text)):
        used += _width(text[end])
        if used > width:
            return max(start + 1, end)
    return len(text)


@cache
def _width(character: str) -> int:
    """Return how many columns a character takes: 0 for one that combines with another, 1 or 2."""
    if _NARROW.fullmatch(character):
        return 1
    from wcwidth import wcwidth

    return max(0, wcwidth(character))
