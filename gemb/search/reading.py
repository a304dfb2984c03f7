"""The text of a file, or why it has none."""

from __future__ import annotations

import os
import stat

from gemb.search.skipped import Skipped
from gemb.search.tree import Entry, reason

LOOKED_AT = 8192  # bytes: a NUL in them makes a file binary, as for git and grep
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
# Formats that may have no NUL so early, and hold no text as it stands.
_FOREIGN = (b"%PDF-", b"\x1f\x8b", b"PK\x03\x04", b"BZh9", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


def read_text(entry: Entry, skipped: Skipped) -> str | None:
    """Return the file's text, None where it has none that can be read (counted in `skipped`).

    UTF-8, or UTF-16 where the file begins with its mark; what is no UTF-8 becomes U+FFFD, and
    every end of a line is a newline. A binary file (a NUL in its first 8 KiB, or a format known by
    its first bytes), a vanished one and one that may not be read have no text. Of a file that
    grows, what it held when it was found is read.
    """
    try:
        data = _content(entry)
    except FileNotFoundError as error:
        if entry.is_named:
            skipped.failure(entry.path, reason(error))
        return None  # it has vanished
    except OSError as error:
        skipped.failure(entry.path, reason(error))
        return None
    if data is None:
        skipped.binary += 1
        return None
    return _decoded(data, entry.path, skipped)


def is_binary(start: bytes) -> bool:
    """Return whether a file that begins so is no text."""
    if start.startswith(_UTF16):
        return False
    return b"\0" in start[:LOOKED_AT] or start.startswith(_FOREIGN)


def _content(entry: Entry) -> bytes | None:
    """Return the bytes of a file, None where it is binary or no file any more."""
    # A pipe in the place of the file must not hold the search up.
    file = os.open(entry.real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return None
        start = _read(file, min(entry.size, LOOKED_AT))
        if is_binary(start):
            return None
        return start + _read(file, entry.size - len(start))
    finally:
        os.close(file)


def _read(file: int, size: int) -> bytes:
    parts: list[bytes] = []
    while size > 0 and (part := os.read(file, size)):
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _decoded(data: bytes, path: str, skipped: Skipped) -> str:
    data = data.removeprefix(b"\xef\xbb\xbf")
    encoding = "utf-16" if data.startswith(_UTF16) else "utf-8"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        # The last character of a file that is being written may not be there yet.
        if error.start < len(data) - 4:
            skipped.undecodable.append(path)
        text = data.decode(encoding, "replace")
    return text.replace("\r\n", "\n") if "\r" in text else text
