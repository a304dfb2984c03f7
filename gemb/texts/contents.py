"""What the bytes of a file or stream are: compressed, text in which encoding, or no text at all.

Every command that reads texts asks here, so that one file is the same to all of them.
"""

from __future__ import annotations

import os
import re
import shlex
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from gemb.errors import UsageError
from gemb.io.text import visible

LOOKED_AT = 8192  # bytes: a NUL in them makes a file of a folder binary, as for git and grep
BOM = b"\xef\xbb\xbf"
STDIN = "-"

_HEAD = 16  # bytes that tell what a stream is
_GZIP = b"\x1f\x8b"
_COMPRESSED = {  # first bytes, as a pattern -> what decompresses it
    rb"\x28\xb5\x2f\xfd": "zstdcat",
    rb"BZh[1-9]1AY&SY": "bzcat",
    rb"\xfd7zXZ": "xzcat",
}
_PARQUET = b"PAR1"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
# Formats that may have no NUL so early, and hold no text as it stands.
_FOREIGN = (b"%PDF-", _GZIP, b"PK\x03\x04", b"BZh9", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_PIECE = 1 << 18  # bytes that are decompressed at a time

Blocks = Iterator[bytes | None]  # None: a live input idles


def shown(path: str | Path) -> str:
    """Return the name of an input as it may stand in a message."""
    if path == STDIN:
        return "standard input"
    return visible(os.fsencode(path).decode(errors="replace"))


def is_gzip(head: bytes) -> bool:
    """Return whether a file begins as a gzip file does."""
    return head.startswith(_GZIP)


def is_parquet(head: bytes) -> bool:
    """Return whether a file begins as a Parquet file does."""
    return head.startswith(_PARQUET)


def refuse_foreign(head: bytes, path: str | Path) -> None:
    """Raise UsageError where a file or stream that begins so is none that can be read as text."""
    name = shown(path)
    for magic, tool in _COMPRESSED.items():
        if re.match(magic, head):
            if path == STDIN:
                raise UsageError(f"{name} is compressed: pipe it through {tool}")
            plain = shlex.quote(visible(Path(path).stem))
            raise UsageError(f"{name} is compressed: {tool} {shlex.quote(name)} > {plain}")
    if is_parquet(head):
        raise UsageError(f"{name} is a Parquet file: name it .parquet, or give -I parquet")


def plain(stream: Blocks, path: str | Path, *, is_inner: bool = False) -> Blocks:
    """Yield the bytes of a stream as UTF-8: decompressed, without a byte-order mark.

    Args:
        stream: the bytes as they are read, cut anywhere.
        path: for messages; - is standard input.
        is_inner: these bytes were decompressed already.

    Raises:
        UsageError: it is no text, or a gzip file that is cut short.
    """
    head = b""
    for block in stream:
        if block is None:
            yield None
            continue
        head += block
        if len(head) >= _HEAD or b"\n" in head or b"\0" in head:
            break
    if is_gzip(head):
        if is_inner:
            raise UsageError(f"{shown(path)} is compressed twice")
        yield from plain(_gunzipped(chain([head], stream), shown(path)), path, is_inner=True)
        return
    if not is_inner and head and os.fspath(path).lower().endswith(".gz"):
        raise UsageError(f"{shown(path)}: no whole gzip file: it does not begin as one")
    refuse_foreign(head, path)
    if head := head.removeprefix(BOM):
        yield head
    yield from stream


def _gunzipped(stream: Iterable[bytes | None], name: str) -> Blocks:
    inflate = zlib.decompressobj(wbits=31)
    is_open = False  # inside a member; a file may have several
    try:
        for block in stream:
            if block is None:
                yield None
                continue
            while block:
                if not is_open:
                    block = block.lstrip(b"\0")  # as padding, gzip takes zeros after a member
                    is_open = bool(block)
                if piece := inflate.decompress(block, _PIECE):
                    yield piece
                block = inflate.unconsumed_tail
                if inflate.eof:
                    block = inflate.unused_data
                    inflate = zlib.decompressobj(wbits=31)
                    is_open = False
    except zlib.error as error:
        raise UsageError(f"{name}: no whole gzip file: {error}") from None
    if is_open:
        raise UsageError(f"{name}: no whole gzip file: it ends too early")


def is_binary(head: bytes) -> bool:
    """Return whether a file of a folder that begins so, with `LOOKED_AT` bytes, is no text."""
    if head.startswith(_UTF16):
        return False
    return b"\0" in head[:LOOKED_AT] or head.startswith(_FOREIGN)


def whole_text(data: bytes) -> tuple[str, bool]:
    """Return the text of a whole file, and whether all its bytes are text in its encoding.

    UTF-8, or UTF-16 where the file begins with its mark; what is neither becomes U+FFFD, and every
    end of a line is a newline.
    """
    data = data.removeprefix(BOM)
    encoding = "utf-16" if data.startswith(_UTF16) else "utf-8"
    is_whole = True
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        # The last character of a file that is being written may not be there yet.
        is_whole = error.start >= len(data) - 4
        text = data.decode(encoding, "replace")
    return (text.replace("\r\n", "\n") if "\r" in text else text), is_whole
