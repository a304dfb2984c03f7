"""A file or stream as lines, or as texts that end in NUL, with a mark where the input idles.

Memory stays flat: a line is held only up to `LONGEST`, and a longer one is skipped to its end.
"""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

from gemb.errors import UsageError
from gemb.texts.contents import BOM, STDIN, UNDECODED, Blocks, plain, shown
from gemb.texts.records import RowError, has_visible

BLOCK = 1 << 18  # bytes asked for at a time
LONGEST = 16 << 20  # bytes of a line
_UNDECODED = UNDECODED.encode("utf-8", "surrogatepass")
IDLE_S = 0.05  # after this long without input, what is pending is worked off


class Line(NamedTuple):
    """A line of an input, or a text that ends in NUL."""

    number: int  # from 1
    data: bytes  # without its end and without a byte-order mark; UTF-8, if it is right
    offset: int  # bytes before it in the plain text; in a plain file, where it begins
    size: int  # bytes, those of its end counted
    error: RowError | None = None  # it is longer than `LONGEST`: its bytes are gone
    end: bytes = (
        b"\n"  # of a line: newline, carriage return, or both; empty at the end of the input
    )

    def text(self) -> tuple[str, RowError | None]:
        """Return the text, or why there is none."""
        return ("", self.error) if self.error else utf8(self.data)


def utf8(data: bytes) -> tuple[str, RowError | None]:
    """Return bytes as text, or why they are none."""
    try:
        return data.decode(), None
    except UnicodeDecodeError as error:
        if data.startswith(_UNDECODED, error.start):
            character = len(data[: error.start].decode()) + 1
            message = f"character {character} is not valid in the file's encoding"
            return "", RowError("invalid_utf8", message)
        byte = f"0x{data[error.start]:02x}"
        message = f"byte {error.start + 1} ({byte}) is no valid UTF-8"
        return "", RowError("invalid_utf8", message)


Lines = Iterator[Line | None]  # None: a live input idles


def read_lines(
    path: str, *, separator: bytes = b"\n", live: bool = False, encoding: str = ""
) -> Lines:
    """Yield the lines of a file; `-` is standard input.

    Args:
        path: the file.
        separator: newline, for which a carriage return and both stand, too; or NUL.
        live: whether to mark with None where a pipe idles.
        encoding: of a file without a byte-order mark, as `checked_encoding` returns it.

    Raises:
        UsageError: it is no text: see `gemb.texts.contents.plain`.
        OSError: it cannot be read.
    """
    nul_ends = separator == b"\0"
    if path == STDIN:
        stream = plain(_stdin(live=live), path, encoding=encoding, nul_ends=nul_ends)
        yield from split(stream, separator)
        return
    with Path(path).open("rb", buffering=0) as file:
        fd = file.fileno()
        is_regular = stat.S_ISREG(os.fstat(fd).st_mode)
        start = len(BOM) if is_regular and os.pread(fd, len(BOM), 0) == BOM else 0
        stream = plain(
            blocks(fd, live=live and not is_regular), path, encoding=encoding, nul_ends=nul_ends
        )
        yield from split(stream, separator, start=start)


def file_lines(path: str | Path, encoding: str = "") -> Iterator[Line]:
    """Yield the lines of a file, bad ones too.

    Raises:
        UsageError: there is no such file, or it is no text.
    """
    if path == STDIN and sys.stdin is None:
        raise UsageError("standard input is closed; name a file")
    try:
        for line in read_lines(os.fspath(path), encoding=encoding):
            assert line is not None, "only a live input idles"
            yield line
    except FileNotFoundError:
        raise UsageError(f"no such file: {shown(path)}") from None
    except IsADirectoryError:
        raise UsageError(f"{shown(path)} is a folder; name a file") from None
    except OSError as error:
        raise UsageError(f"{shown(path)} cannot be read: {error.strerror}") from None


def text_lines(path: str | Path, encoding: str = "") -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not blank.

    Raises:
        UsageError: there is no such file, it is no text, or one of its lines is none.
    """
    for line in file_lines(path, encoding):
        text, error = line.text()
        if error:
            raise UsageError(f"{shown(path)}, line {line.number}: {error.message}")
        if has_visible(text):
            yield line.number, text


def blocks(fd: int, *, live: bool) -> Blocks:
    """Yield what can be read from a file descriptor, and None once each time that it idles.

    Args:
        fd: open for reading; a regular file never idles.
        live: whether to look at the clock at all. Without it the result depends on the bytes alone.
    """
    while True:
        if live and not select.select([fd], [], [], IDLE_S)[0]:
            yield None
        block = os.read(fd, BLOCK)
        if not block:
            return
        yield block


def _stdin(*, live: bool) -> Blocks:
    try:
        fd = sys.stdin.fileno()
    except OSError:  # a test's or a notebook's stream
        return read_blocks(sys.stdin.buffer.read)
    return blocks(fd, live=live and not stat.S_ISREG(os.fstat(fd).st_mode))


def read_blocks(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """Yield what a file's `read` gives, to its end."""
    while block := read(BLOCK):
        yield block


def split(stream: Blocks, separator: bytes, *, start: int = 0) -> Lines:
    """Yield the lines of a stream; the last one needs no separator. None is passed through.

    Args:
        stream: plain text, cut anywhere.
        separator: newline, for which a carriage return and both stand, too; or NUL.
        start: offset of the first line: the bytes of a mark before it.
    """
    held: list[bytes] = []  # of the line whose end has not come yet
    size = 0
    number, offset = 0, start
    for block in _between_ends(stream, separator):
        if block is None:
            yield None
            continue
        parts, ends, tail = _cut(block, separator)
        is_usual = len(block) <= LONGEST and BOM not in block
        for part, end in zip(parts, ends, strict=False):
            number += 1
            length = len(part) + len(end)
            if is_usual and not size:
                yield Line(number, part, offset, length, None, end)
            else:
                length += size
                yield _unusual(number, b"".join([*held, part]), offset, length, end)
                held.clear()
                size = 0
            offset += length
        if tail:
            size += len(tail)
            if size <= LONGEST:
                held.append(tail)
            else:
                held.clear()
    if size:
        yield _unusual(number + 1, b"".join(held), offset, size, b"")


def _between_ends(stream: Blocks, separator: bytes) -> Blocks:
    """Yield the blocks, none of which ends between a carriage return and its newline."""
    if separator != b"\n":
        yield from stream
        return
    held = b""
    for block in stream:
        if block is None:
            yield None
            continue
        block = held + block if held else block
        held = block[-1:] if block.endswith(b"\r") else b""
        if block := block[: len(block) - len(held)]:
            yield block
    if held:
        yield held


def _cut(block: bytes, separator: bytes) -> tuple[list[bytes], Iterable[bytes], bytes]:
    """Return the parts of a block that have an end, their ends, and the rest."""
    if separator != b"\n" or b"\r" not in block:
        *parts, tail = block.split(separator)
        return parts, repeat(separator), tail
    parts = block.splitlines()
    whole = block.splitlines(keepends=True)
    ends = [line[len(part) :] for line, part in zip(whole, parts, strict=True)]
    tail = b"" if ends[-1] else parts.pop()
    return parts, ends, tail


def _unusual(number: int, data: bytes, offset: int, size: int, end: bytes) -> Line:
    """Return a line that may be too long, or begin with a mark, as where files were joined."""
    length = size - len(end)
    if length > LONGEST:
        return Line(number, b"", offset, size, _too_big(length), end)
    if data.startswith(BOM):
        return Line(number, data[len(BOM) :], offset + len(BOM), size, None, end)
    return Line(number, data, offset, size, None, end)


def _too_big(size: int) -> RowError:
    return RowError("too_big", f"{size} bytes; a row may have {LONGEST}")
