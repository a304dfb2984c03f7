"""Text from a data file, as it may stand on a terminal and in a one-line message."""

from __future__ import annotations

import unicodedata

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
