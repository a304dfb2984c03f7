"""A stream of bytes as records that end in a newline or a NUL, with a mark where the input idles.

Memory stays flat: a record is held only up to `LONGEST`, and a longer one is skipped to its end.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from dataclasses import dataclass

BLOCK = 1 << 18  # bytes asked for at a time
LONGEST = 16 << 20  # bytes of a record
IDLE_S = 0.05  # after this long without input, what is pending is worked off
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Oversize:
    """A record longer than `LONGEST`: its bytes are gone."""

    size: int  # bytes


def blocks(fd: int, *, live: bool) -> Iterator[bytes | None]:
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


def read_blocks(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """Yield what a stream without a file descriptor gives."""
    while block := read(BLOCK):
        yield block


def split(stream: Iterator[bytes | None], separator: bytes) -> Iterator[bytes | Oversize | None]:
    """Yield records without their separator; the last needs none. None is passed through.

    A UTF-8 byte order mark at the beginning is dropped.
    """
    held: list[bytes] = []  # of the record whose end has not come yet
    size = 0
    is_first = True
    for block in stream:
        if block is None:
            yield None
            continue
        *ended, tail = block.split(separator)
        if ended:
            size += len(ended[0])
            whole = _whole([*held, ended[0]], size)
            yield _without_bom(whole) if is_first else whole
            yield from ended[1:]
            is_first = False
            held, size = [], 0
        if tail:
            size += len(tail)
            if size <= LONGEST:
                held.append(tail)
            else:
                held.clear()
    if size:
        whole = _whole(held, size)
        yield _without_bom(whole) if is_first else whole


def _whole(parts: list[bytes], size: int) -> bytes | Oversize:
    return Oversize(size) if size > LONGEST else b"".join(parts)


def _without_bom(record: bytes | Oversize) -> bytes | Oversize:
    return record.removeprefix(BOM) if isinstance(record, bytes) else record
