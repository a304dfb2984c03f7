"""What the bytes of a file or stream are: compressed, text in which encoding, or no text at all.

Every command that reads texts asks here, so that one file is the same to all of them.
"""

from __future__ import annotations

import codecs
import os
import re
import shlex
import zlib
from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import chain
from pathlib import Path

from gemb.errors import UsageError
from gemb.io.text import visible
from gemb.texts.foreign import DOCUMENTS, OFFICE, foreign

LOOKED_AT = 8192  # bytes: a NUL in them makes a file of a folder binary, as for git and grep
DECODING = 3  # version of the rules by which bytes become text
BOM = b"\xef\xbb\xbf"
STDIN = "-"

_HEAD = 16  # bytes that tell what a stream is
_GZIP = b"\x1f\x8b"
_PARQUET = b"PAR1"
_MARKS = {  # the longer ones first: that of UTF-16 begins one of UTF-32
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_MAY_BE_MARK = b"\xff\xfe\xef\0"  # first bytes of a mark: four bytes decide
UNDECODED = "\udcff"  # stands for bytes that are not valid in their encoding
_UNMARKED_BYTES = 4096  # that are looked at for UTF-16 and UTF-32 without a mark
_NOT_TEXT = ("idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "utf_7")
_ISO_2022 = re.compile(rb"\x1b\$(?:[@B]|\)C)")
_CONTROLS = re.compile(rb"\0\0|[\x01-\x06\x0e-\x1a\x1c-\x1f]")
_UNSEEN = bytes((*range(33), 127))  # of ASCII
_FEW_CONTROLS = 0.005  # share of bytes: a binary header before a text has more
_NOISE = 0.3  # share of characters that are no UTF-8: less than in random bytes
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


def refuse_foreign(head: bytes, path: str | Path, *, is_inner: bool = False) -> None:
    """Raise UsageError where a file or stream that begins so is none that can be read as text.

    Args:
        head: the first bytes.
        path: for the message.
        is_inner: these bytes were decompressed.
    """
    name = shown(path)
    form = foreign(head)
    if is_inner and (form or is_parquet(head)):
        inner = form.name if form else "a Parquet file"
        raise UsageError(f"{name} holds {inner}, no lines of text: gunzip it first")
    if is_parquet(head):
        is_named = os.fspath(path).lower().endswith(".parquet")
        way = "it is no file of lines" if is_named else "name it .parquet, or give -I parquet"
        raise UsageError(f"{name} is a Parquet file: {way}")
    if form is None:
        return
    is_packed = form.name == "compressed"
    what = form.name if is_packed else f"{form.name}, not text"
    if path == STDIN:
        way = f"pipe it through {form.by_pipe}" if form.by_pipe else form.way
        if "{file}" in way:
            way = "name the file" if is_packed else "make text of it first"
    else:
        stem = shlex.quote(visible(_free_stem(Path(path))))
        way = form.way.replace("{file}", shlex.quote(name)).replace("{stem}", stem)
    raise UsageError(f"{name} is {what}: {way}")


def _free_stem(path: Path) -> str:
    """Return the name without its end; longer, where what is made of it would replace a file."""
    stem = path.stem
    while any(Path(stem + end).exists() for end in ("", ".txt", ".jsonl")):
        stem += "-text"
    return stem


def marked_encoding(head: bytes) -> str:
    """Return the encoding that a byte-order mark names: utf-16 or utf-32; empty: UTF-8 or none."""
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), "")


def is_plain(head: bytes, encoding: str = "") -> bool:
    """Return whether a file that begins so is read byte for byte: UTF-8, not compressed.

    Args:
        head: four bytes or more.
        encoding: as `checked_encoding` returns it.
    """
    return not (is_gzip(head) or marked_encoding(head) or (encoding and head[:3] != BOM))


def checked_encoding(name: str) -> str:
    """Return Python's name of a text encoding; empty for UTF-8.

    Raises:
        UsageError: there is no such encoding.
    """
    if not name:
        return ""
    try:
        b"a".decode(name, "ignore")  # a codec that makes no text of bytes is a LookupError here
        canonical = codecs.lookup(name).name
        if canonical.replace("-", "_") in _NOT_TEXT:
            raise LookupError
    except (LookupError, ValueError, UnicodeError):
        import difflib
        from encodings.aliases import aliases

        names = {*aliases, *aliases.values()}
        near = difflib.get_close_matches(name.lower().replace("-", "_"), sorted(names), 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else "for example cp1252, shift_jis, gb18030"
        raise UsageError(f"unknown encoding '{visible(name, 40)}'; {hint}") from None
    return "" if canonical == "utf-8" or canonical == "utf-8-sig" else canonical


def refuse_unmarked(head: bytes, path: str | Path, *, nul_ends: bool = False) -> None:
    """Raise UsageError where bytes are UTF-16 or UTF-32 without a mark.

    Args:
        head: the first bytes.
        path: for the message.
        nul_ends: texts end in NUL, so that NULs alone say nothing; a text that is a newline does.
    """
    encoding = _unmarked_encoding(head)
    if not encoding or (nul_ends and b"\n\0" not in head and b"\0\n" not in head):
        return
    raise UsageError(
        f"{shown(path)} is {encoding.upper()} without a byte-order mark: --encoding {encoding}, "
        f"or iconv -f {encoding} -t utf-8; if its texts end in NUL: -0"
    )


def _unmarked_encoding(head: bytes) -> str:
    """Return which UTF-16 or UTF-32 without a mark bytes are by their NULs; empty: none."""
    head = head[:_UNMARKED_BYTES]
    if b"\0" not in head or head.startswith(BOM):
        return ""
    whole = head[: len(head) // 4 * 4]
    for encoding in ("utf-32-le", "utf-32-be") if len(whole) >= 8 else ():
        try:
            if "\0" not in whole.decode(encoding):
                return encoding
        except UnicodeDecodeError:
            pass
    pairs = len(head) // 2
    for encoding, high, low in (("utf-16-le", 1, 0), ("utf-16-be", 0, 1)):
        # Scripts whose letters are in the first blocks have NUL or a control code in each pair.
        marks = sum(byte < 9 or 13 < byte < 32 for byte in head[high : 2 * pairs : 2])
        others = sum(byte < 9 or 13 < byte < 32 for byte in head[low : 2 * pairs : 2])
        if pairs >= 2 and marks >= 0.8 * pairs and others <= 0.3 * pairs:
            return encoding
        if _is_indic(head[: 2 * pairs], encoding) or _is_wide(head[: 2 * pairs], encoding):
            return encoding
    return ""


# East Asian letters, signs and emoji.
_WIDE = re.compile(
    "[\n\r\x20-\x7e\u2000-\u2bff\u3000-\u30ff\u4e00-\u9fff\uac00-\ud7a3\ufe00-\ufe0f\uff00-\uffef"
    "\U0001f000-\U0001faff\U00020000-\U0003ffff]"
)


def _is_wide(head: bytes, encoding: str) -> bool:
    """Return whether bytes that are no UTF-8 are Chinese, Japanese, Korean or emoji in UTF-16."""
    try:
        head[:-3].decode()
    except UnicodeDecodeError:
        text = head.decode(encoding, "replace")
        return len(_WIDE.findall(text)) > 0.9 * len(text)
    return False


def _is_indic(head: bytes, encoding: str) -> bool:
    """Return whether bytes are UTF-16 of a script of India, whose blocks begin with tab to CR."""
    text = head.decode(encoding, "replace")
    letters = sum("\u0900" <= sign <= "\u0dff" and sign.isprintable() for sign in text)
    others = sum(" " <= sign <= "~" or sign in "\n\r\u0964\u200c\u200d" for sign in text)
    return letters >= others and letters + others > 0.9 * len(text)


def _refuse_no_utf8(head: bytes, path: str | Path, *, nul_ends: bool) -> None:
    """Raise UsageError where bytes are no UTF-8 although they may be valid as such."""
    refuse_unmarked(head, path, nul_ends=nul_ends)
    _refuse_stateful(head, path)
    if not nul_ends:
        _refuse_binary(head, path)


def _refuse_stateful(head: bytes, path: str | Path) -> None:
    """Raise UsageError where bytes are a 7-bit encoding of East Asia, by its escapes."""
    if match := _ISO_2022.search(head[:LOOKED_AT]):
        encoding = "iso2022_kr" if match[0].endswith(b"C") else "iso2022_jp"
        name = encoding.upper().replace("ISO", "ISO-").replace("_", "-")
        iconv = f"iconv -f {name} -t utf-8"
        raise UsageError(f"{shown(path)} is {name}: --encoding {encoding}, or {iconv}")


def _refuse_binary(head: bytes, path: str | Path) -> None:
    """Raise UsageError where the first bytes have NULs, several in a row or among control codes.

    A lone NUL in a text is one more character, a few control codes among thousands of letters are a
    row of theirs, lines of nothing else are empty ones, and what a mark begins is text. The rows of
    what is mostly no UTF-8 fail one by one.
    """
    lines = head[:LOOKED_AT].split(b"\n")
    head = b"\n".join(line for line in lines if line.translate(None, _UNSEEN))
    if b"\0" not in head or head.startswith(BOM) or not _CONTROLS.search(head):
        return
    if sum(byte < 9 or 13 < byte < 32 for byte in head) < _FEW_CONTROLS * len(head):
        return
    text = head.decode(errors="replace")
    if text.count("\ufffd") < _NOISE * len(text):
        file = "" if path == STDIN else f" < {shlex.quote(shown(path))}"
        raise UsageError(
            f"{shown(path)} is binary, not text: it holds NUL and other control codes; "
            f"of a text with stray NULs: tr -d '\\000'{file} | gemb embed"
        )


def _undecoded(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError), "only decoders have this handler"
    return UNDECODED, error.end


codecs.register_error("gemb.undecoded", _undecoded)


def plain(
    stream: Blocks,
    path: str | Path,
    *,
    encoding: str = "",
    nul_ends: bool = False,
    is_inner: bool = False,
) -> Blocks:
    """Yield the bytes of a stream as UTF-8: decompressed, decoded, without a byte-order mark.

    Args:
        stream: the bytes as they are read, cut anywhere.
        path: for messages; - is standard input.
        encoding: as `checked_encoding` returns it; a byte-order mark overrules it.
        nul_ends: texts end in NUL.
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
        is_told = len(head) >= 4 or not head.startswith(tuple(bytes([b]) for b in _MAY_BE_MARK))
        if len(head) >= _HEAD or (is_told and (b"\n" in head or b"\0" in head)):
            break
    if is_gzip(head):
        if is_inner:
            raise UsageError(f"{shown(path)} is compressed twice")
        unpacked = _gunzipped(chain([head], stream), shown(path))
        yield from plain(unpacked, path, encoding=encoding, nul_ends=nul_ends, is_inner=True)
        return
    if not is_inner and head and os.fspath(path).lower().endswith(".gz"):
        raise UsageError(f"{shown(path)}: no whole gzip file: it does not begin as one")
    refuse_foreign(head, path, is_inner=is_inner)
    if not encoding or head.startswith(BOM) or marked_encoding(head):
        encoding = marked_encoding(head)
    if encoding:
        yield from _decoded(chain([head], stream), encoding)
        return
    _refuse_no_utf8(head, path, nul_ends=nul_ends)
    if head := head.removeprefix(BOM):
        yield head
    yield from stream


def _decoded(stream: Iterable[bytes | None], encoding: str) -> Blocks:
    """Yield the bytes of a stream of another encoding as UTF-8.

    What is not valid in it becomes `UNDECODED`, which is no valid UTF-8: its row fails alone.
    """
    decoder = codecs.getincrementaldecoder(encoding)("gemb.undecoded")
    for block in stream:
        if block is None:
            yield None
        elif text := decoder.decode(block):
            yield text.encode("utf-8", "surrogatepass")
    if text := decoder.decode(b"", final=True):
        yield text.encode("utf-8", "surrogatepass")


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


class NoText(StrEnum):
    """What a file of a folder is that is no text, for the count of those that are left out."""

    DOCUMENT = "document"  # PDF, Office and the like: a program makes text of it
    BINARY = "binary"


def no_text(head: bytes, encoding: str = "") -> NoText | None:
    """Return what a file of a folder is that begins so, with `LOOKED_AT` bytes; None: text."""
    if marked_encoding(head):
        return None
    form = foreign(head)
    if form and (form.name in DOCUMENTS or OFFICE.match(head)):
        return NoText.DOCUMENT
    is_nul_text = encoding.startswith(("utf-16", "utf-32"))
    is_binary = form or is_gzip(head) or is_parquet(head)
    is_binary = is_binary or (b"\0" in head[:LOOKED_AT] and not is_nul_text)
    return NoText.BINARY if is_binary else None


def whole_text(data: bytes, encoding: str = "") -> tuple[str, bool]:
    """Return the text of a whole file, and whether all its bytes are text in its encoding.

    The encoding is UTF-8, that of the file's byte-order mark, or the one that is given. What is not
    valid in it becomes U+FFFD, every end of a line is a newline, and a byte-order mark at the
    beginning of a line, where files were joined, is dropped.
    """
    if data.startswith(BOM):
        data, encoding = data[len(BOM) :], ""
    encoding = marked_encoding(data) or encoding or "utf-8"
    is_whole = True
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        # The last character of a file that is being written may not be there yet.
        is_whole = error.start >= len(data) - 4
        text = data.decode(encoding, "replace")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\ufeff" in text:
        text = text.removeprefix("\ufeff").replace("\n\ufeff", "\n")
    return text, is_whole
