"""A stream of bytes as records that end in a newline or a NUL, with a mark where the input idles.

Memory stays flat: a record is held only up to `LONGEST`, and a longer one is skipped to its end.
"""

from __future__ import annotations

import json
import os
import select
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gemb.io.notes import warn
from gemb.texts.records import Fields, Id, Record, RowError, from_fields, unfit

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


# Byte records as records: a text each, or a JSON object each. A broken one spoils no other.
#
# An iterator holds None where a live input idles.


Parts = Iterator[bytes | Oversize | None]
Records = Iterator[Record | None]


def text_records(parts: Parts, label: str | None, *, are_lines: bool) -> Records:
    """Yield a record for each part; of a line, without the CR before its end.

    Args:
        parts: the bytes between separators.
        label: of the file, for ids and places; None: they are numbers alone.
        are_lines: the separator is a line's end.
    """
    yield from _each(parts, label, lambda *part: _from_line(are_lines, *part))


def _each(
    parts: Parts, label: str | None, parse: Callable[[bytes, Id, str], Record | None]
) -> Records:
    """Yield what `parse(part, id, place)` makes of each part; its None is left out."""
    number = 0
    for part in parts:
        if part is None:
            yield None
            continue
        number += 1
        place = f"{label}:{number}" if label else f"line {number}"
        record_id: Id = place if label else number
        if isinstance(part, Oversize):
            yield _oversize(part, record_id, place)
        elif record := parse(part, record_id, place):
            yield record


def json_records(parts: Parts, fields: Fields, name: str, label: str | None) -> Records:
    """Yield the records of JSON lines; say at the end which field that was named no row had."""
    absent = {name for name in (fields.title, *fields.keep) if name in fields.named()}
    rows = 0
    for record in _each(parts, label, lambda *part: _from_json(fields, absent, *part)):
        rows += record is not None
        yield record
    for field in sorted(absent) if rows else ():
        warn(f"{name}: none of its {rows} rows has a field '{field}'")


def _oversize(part: Oversize, record_id: Id, place: str) -> Record:
    """Return the record of a row that was skipped for its length."""
    message = f"{part.size} bytes; a row may have {LONGEST}"
    return Record(record_id, place, error=RowError("too_big", message), size=part.size)


def _from_line(is_lines: bool, part: bytes, record_id: Id, place: str) -> Record:
    size = len(part) + 1
    if is_lines:
        part = part.removesuffix(b"\r")
    try:
        text = part.decode()
    except UnicodeDecodeError as error:
        return Record(record_id, place, error=_no_utf8(part, error), size=size)
    return Record(record_id, place, text, error=unfit(text), size=size)


def _from_json(
    fields: Fields, absent: set[str], part: bytes, record_id: Id, place: str
) -> Record | None:
    import orjson

    size = len(part) + 1
    if not part or part.isspace():
        return None  # as every reader of JSON lines takes it
    try:
        value = orjson.loads(part)
    except orjson.JSONDecodeError as failure:
        try:
            part.decode()
            error = RowError("bad_json", str(failure))
        except UnicodeDecodeError as undecodable:
            error = _no_utf8(part, undecodable)
        return Record(record_id, place, error=error, size=size)
    if isinstance(value, dict):
        absent.difference_update(value)
        if fields.id and isinstance(value.get(fields.id), float):
            # orjson makes a float of an integer over 64 bits: its digits are in the line.
            try:
                value[fields.id] = json.loads(part, parse_float=str, parse_int=str)[fields.id]
            except RecursionError:
                error = RowError("bad_json", "nested too deep")
                return Record(record_id, place, error=error, size=size)
        return from_fields(value, fields, record_id, place, size)
    if isinstance(value, str) and not fields.named()[1:]:
        return Record(record_id, place, value, error=unfit(value), size=size)
    error = RowError("bad_json", "not an object")
    return Record(record_id, place, error=error, size=size)


def _no_utf8(part: bytes, error: UnicodeDecodeError) -> RowError:
    byte = f"0x{part[error.start]:02x}"
    return RowError("invalid_utf8", f"byte {error.start + 1} ({byte}) is no valid UTF-8")
