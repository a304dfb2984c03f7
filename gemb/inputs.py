"""Files and standard input as records: lines, NUL-ended texts, JSON lines, CSV, TSV, Parquet.

An iterator of records holds None where a live input idles: what is pending is then worked off.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import shlex
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemb.byte_records import LONGEST, Oversize, blocks, read_blocks, split
from gemb.errors import UsageError
from gemb.notes import note, warn
from gemb.records import Fields, Id, Record, RowError, from_fields, from_text, unfit

Parts = Iterator[bytes | Oversize | None]
Records = Iterator[Record | None]

SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
COMPRESSED = {  # first bytes, as a pattern -> what prints it
    rb"\x1f\x8b": "zcat",
    rb"\x28\xb5\x2f\xfd": "zstdcat",
    rb"BZh[1-9]1AY&SY": "bzcat",
    rb"\xfd7zXZ": "xzcat",
}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How inputs are read."""

    format: str = "auto"  # auto, lines, jsonl, csv, tsv, parquet
    separator: bytes = b"\n"
    fields: Fields = dataclasses.field(default_factory=Fields)
    live: bool = False  # mark where the input idles
    quiet: bool = False  # no notes


def from_texts(texts: Sequence[str]) -> Records:
    """Yield the texts of the command line, numbered from 1."""
    for number, text in enumerate(texts, 1):
        yield from_text(text, number, f"-e text {number}")


def check(paths: Sequence[str]) -> None:
    """Refuse what cannot be read, before a model is loaded. `-` is standard input.

    Raises:
        UsageError: standard input is closed, or a path is no file.
    """
    if paths.count("-") > 1:
        raise UsageError("standard input (-) is given twice; it can be read once")
    for path in paths:
        if path == "-":
            if sys.stdin is None:
                raise UsageError("standard input is closed; give a FILE or -e TEXT")
        else:
            _check_file(path)


def _check_file(path: str) -> None:
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)  # noqa: PTH116
        may_read = os.access(path, os.R_OK)
    except PermissionError:
        is_folder = may_read = False
    except OSError:  # also a whole text that is too long for a name
        raise UsageError(
            f"no such file: {path}; to embed the words: gemb embed -e {shlex.quote(path)}"
        ) from None
    if is_folder:
        raise UsageError(f"{path} is a folder; name its files: gemb embed {path.rstrip('/')}/*")
    if not may_read:
        raise UsageError(f"{path}: permission denied; check its permissions")


def total_size(paths: Sequence[str], reading: Reading) -> int | None:
    """Return the sum of all `Record.size` to come, or None where it is not known."""
    if not all(path != "-" and Path(path).is_file() for path in paths):
        return None
    if any(_format(path, reading) == "parquet" for path in paths):
        return None
    return sum(Path(path).stat().st_size for path in paths)


def read(paths: Sequence[str], reading: Reading) -> Records:
    """Yield the records of all files, in order. With several files an id is `path:number`."""
    for path in paths:
        label = _printable(path) if len(paths) > 1 else None
        if _format(path, reading) == "parquet":
            from gemb.tables import read_parquet

            yield from read_parquet(path, reading.fields, label)
        else:
            yield from _read_bytes(path, reading, label)


def _read_bytes(path: str, reading: Reading, label: str | None) -> Records:
    if path == "-":
        yield from _parse(_stdin(reading.live), path, reading, label)
        return
    with Path(path).open("rb", buffering=0) as file:
        live = reading.live and not stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        yield from _parse(blocks(file.fileno(), live=live), path, reading, label)


def _stdin(live: bool) -> Iterator[bytes | None]:
    try:
        fd = sys.stdin.fileno()
    except OSError:  # a test's or a notebook's stream
        return read_blocks(sys.stdin.buffer.read)
    return blocks(fd, live=live and not stat.S_ISREG(os.fstat(fd).st_mode))


def _parse(
    stream: Iterator[bytes | None], path: str, reading: Reading, label: str | None
) -> Records:
    parts = split(stream, reading.separator)
    name = "standard input" if path == "-" else _printable(path)
    form = _format(path, reading)
    for first in parts:
        if first is not None:
            break
        yield None
    else:
        return
    parts = itertools.chain([first], parts)
    _refuse_foreign(first, path, name, form)
    if reading.format == "auto" and reading.separator == b"\n" and form == "lines":
        form = _sniffed(first, path, name, reading)
    if form in ("csv", "tsv"):
        from gemb.tables import read_csv

        yield from read_csv(parts, reading.fields, name, label, "," if form == "csv" else "\t")
    elif form == "jsonl":
        fields = reading.fields
        fields = fields if fields.text else dataclasses.replace(fields, text=("text",))
        yield from _json_lines(parts, fields, name, label)
    else:
        if reading.fields.named():
            raise UsageError(
                f"{name}: plain lines have no field '{reading.fields.named()[0]}'; "
                "name the format with -I jsonl, csv, tsv or parquet"
            )
        is_lines = reading.separator == b"\n"
        yield from _each(parts, label, lambda *part: _from_line(is_lines, *part))


def _format(path: str, reading: Reading) -> str:
    if reading.format != "auto":
        return reading.format
    by_suffix = SUFFIXES.get(Path(path).suffix.lower(), "lines")
    return by_suffix if reading.separator == b"\n" else "lines"


def _refuse_foreign(first: bytes | Oversize, path: str, name: str, form: str) -> None:
    """Raise UsageError where the first bytes are those of a compressed or a Parquet file."""
    if not isinstance(first, bytes):
        return
    for magic, tool in COMPRESSED.items():
        if re.match(magic, first):
            if form == "lines":  # reviews.csv.gz
                form = SUFFIXES.get(Path(Path(path).stem).suffix.lower(), "lines")
            words = (
                f"{tool} | gemb embed"
                if path == "-"
                else f"{tool} {shlex.quote(name)} | gemb embed"
            )
            words += "" if form == "lines" else f" -I {form}"
            raise UsageError(f"{name} is compressed: {words}")
    if first.startswith(b"PAR1"):
        raise UsageError(f"{name} is a Parquet file: gemb embed -I parquet FILE")


def _sniffed(first: bytes | Oversize, path: str, name: str, reading: Reading) -> str:
    """Return the format that the first record shows.

    Raises:
        UsageError: it begins a JSON array of rows.
    """
    is_json = path.lower().endswith(".json")
    if not isinstance(first, bytes):
        if is_json:
            raise UsageError(f"{name}: its first line has {first.size} bytes; {_array_hint(path)}")
        return "lines"
    value = _json_value(first) if first.lstrip()[:1] in (b"{", b"[") else None
    is_rows = isinstance(value, list) and bool(value) and isinstance(value[0], dict)
    if is_rows or (is_json and first.lstrip().startswith(b"[")):
        raise UsageError(f"{name} is one JSON array; {_array_hint(path)}; -I lines takes it raw")
    if isinstance(value, dict):
        if not reading.quiet:
            note(f"{name} is read as JSON lines, for its first line is one; -I lines takes it raw")
        return "jsonl"
    if b"\0" in first and not reading.quiet:
        note(f"{name} holds NUL bytes; for texts that end in NUL: -0")
    return "lines"


def _array_hint(path: str) -> str:
    file = "" if path == "-" else f" {shlex.quote(_printable(path))}"
    return f"of an array make lines: jq -c '.[]'{file} | gemb embed"


def _json_value(line: bytes) -> object:
    """Return the value that the line is, None where it is no JSON."""
    import orjson

    try:
        value: object = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return value


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
            yield oversize(part, record_id, place)
        elif record := parse(part, record_id, place):
            yield record


def _json_lines(parts: Parts, fields: Fields, name: str, label: str | None) -> Records:
    """Yield the records of JSON lines; say at the end which field that was named no row had."""
    absent = {name for name in (fields.title, *fields.keep) if name in fields.named()}
    rows = 0
    for record in _each(parts, label, lambda *part: _from_json(fields, absent, *part)):
        rows += record is not None
        yield record
    for field in sorted(absent) if rows else ():
        warn(f"{name}: none of its {rows} rows has a field '{field}'")


def oversize(part: Oversize, record_id: Id, place: str) -> Record:
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


def _printable(path: str) -> str:
    return os.fsencode(path).decode(errors="replace")
