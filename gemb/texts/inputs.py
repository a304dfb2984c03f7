"""Files and standard input as records: lines, NUL-ended texts, JSON lines, CSV, TSV, Parquet.

An iterator of records holds None where a live input idles: what is pending is then worked off.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import shlex
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemb.errors import UsageError
from gemb.io.notes import note
from gemb.texts.lines import (
    Oversize,
    Records,
    blocks,
    json_records,
    read_blocks,
    split,
    text_records,
)
from gemb.texts.records import Fields, from_text

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
    names_options: bool = True  # notes name -I and -0, which not all commands have


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
            from gemb.texts.tables import read_parquet

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
        from gemb.texts.tables import read_csv

        yield from read_csv(parts, reading.fields, name, label, "," if form == "csv" else "\t")
    elif form == "jsonl":
        fields = reading.fields
        fields = fields if fields.text else dataclasses.replace(fields, text=("text",))
        yield from json_records(parts, fields, name, label)
    else:
        if reading.fields.named():
            raise UsageError(
                f"{name}: plain lines have no field '{reading.fields.named()[0]}'; "
                "name the format with -I jsonl, csv, tsv or parquet"
            )
        yield from text_records(parts, label, are_lines=reading.separator == b"\n")


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
        if reading.names_options:
            note(f"{name} is read as JSON lines, for its first line is one; -I lines takes it raw")
        return "jsonl"
    if b"\0" in first and reading.names_options:
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


def _printable(path: str) -> str:
    return os.fsencode(path).decode(errors="replace")
