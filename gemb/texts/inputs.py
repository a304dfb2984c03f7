"""Files and standard input as records: lines, NUL-ended texts, JSON lines, CSV, TSV, Parquet.

An iterator of records holds None where a live input idles: what is pending is then worked off.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shlex
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gemb.errors import UsageError
from gemb.io.notes import note, warn
from gemb.texts.contents import STDIN, is_plain, plain, shown
from gemb.texts.json_files import RAW, is_json_object, refuse_pretty
from gemb.texts.lines import Line, Lines, read_blocks, read_lines, split
from gemb.texts.records import (
    TEXT_NAMES,
    Fields,
    Id,
    Record,
    RowError,
    field_value,
    from_fields,
    from_text,
    has_field,
    unfit,
)
from gemb.texts.tables import (
    DELIMITERS,
    Cells,
    ParquetFile,
    column_name,
    json_value,
    refuse_twice,
    table_rows,
)

SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}

Records = Iterator[Record | None]
_BLANK_LINES = 1000  # before the line that tells the format, in memory at a time


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How inputs are read."""

    format: str = "auto"  # auto, lines, jsonl, csv, tsv, parquet
    separator: bytes = b"\n"
    fields: Fields = dataclasses.field(default_factory=Fields)
    live: bool = False  # mark where the input idles
    encoding: str = ""  # of texts without a byte-order mark, as `checked_encoding` returns it
    quoting: str = ""  # of tables, one of `gemb.texts.tables.QUOTINGS`; empty: as their kind has it
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
    if paths.count(STDIN) > 1:
        raise UsageError("standard input (-) is given twice; it can be read once")
    for path in paths:
        if path == STDIN:
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
    total = 0
    for path in paths:
        if path == STDIN or not Path(path).is_file() or format_of(path, reading) == "parquet":
            return None
        with Path(path).open("rb") as file:
            if not is_plain(file.read(4), reading.encoding):
                return None
            total += os.fstat(file.fileno()).st_size
    return total


def format_of(path: str | Path, reading: Reading) -> str:
    """Return the format in which an input is read, by its name: `lines` where that says nothing."""
    if reading.format != "auto":
        return reading.format
    return format_by_name(path) or "lines" if reading.separator == b"\n" else "lines"


def format_by_name(path: str | Path) -> str:
    """Return the format that a file's name says, that of a compressed file too; else nothing."""
    return SUFFIXES.get(Path(os.fspath(path).lower().removesuffix(".gz")).suffix, "")


def read(paths: Sequence[str], reading: Reading) -> Records:
    """Yield the records of all files, in order. With several files an id is `path:number`.

    Raises:
        UsageError: an input is no text, or a field that was named cannot be there.
        Missing: Parquet without pyarrow.
    """
    for path in paths:
        label = os.fsencode(path).decode(errors="replace") if len(paths) > 1 else None
        if format_of(path, reading) == "parquet":
            yield from _parquet_records(ParquetFile(path), path, reading.fields, label)
        else:
            lines = read_lines(
                path,
                separator=reading.separator,
                live=reading.live,
                encoding=reading.encoding,
            )
            yield from _records(lines, path, reading, label)


def read_opened(file: IO[bytes], path: str, reading: Reading, label: str | None) -> Records:
    """Yield the records of a file that is open, on any file system.

    Args:
        file: at its beginning; of Parquet, it can seek.
        path: its name, for messages; the suffix may name the format.
        reading: how it is read; not `live`.
        label: before the number in an id; None: the number alone is the id.

    Raises:
        UsageError: it is no text, or a field that was named cannot be there.
        Missing: Parquet without pyarrow.
    """
    if format_of(path, reading) == "parquet":
        yield from _parquet_records(ParquetFile(path, file), path, reading.fields, label)
    else:
        nul_ends = reading.separator == b"\0"
        stream = plain(read_blocks(file.read), path, encoding=reading.encoding, nul_ends=nul_ends)
        yield from _records(split(stream, reading.separator), path, reading, label)


def _records(lines: Lines, path: str, reading: Reading, label: str | None) -> Records:
    peeked: list[Line | None] = []
    yield from _until_line(lines, peeked)
    if not peeked:
        return
    first = peeked[-1]
    assert first is not None, "it is a line"
    name, form = shown(path), format_of(path, reading)
    if reading.separator == b"\n" and (form == "jsonl" or reading.format == "auto"):
        if first.data.strip() in (b"{", b"["):
            before = len(peeked)
            yield from _until_line(lines, peeked)
            if len(peeked) > before or path.lower().endswith(".json"):
                refuse_pretty(first, peeked[-1], path, names_options=reading.names_options)
        if form == "lines":
            form = _format_by_line(first, path, reading)
    lines = itertools.chain(peeked, lines)
    if form in DELIMITERS:
        rows = table_rows(lines, form, name, reading.quoting)
        yield from table_records(rows, reading.fields, name, label)
    elif form == "jsonl":
        yield from _json_records(lines, reading.fields, name, label)
    elif reading.fields.named():
        raise UsageError(
            f"{name}: plain lines have no field '{reading.fields.named()[0]}'; "
            "name the format with -I jsonl, csv, tsv or parquet"
        )
    else:
        yield from _text_records(lines, label)


def _until_line(lines: Lines, peeked: list[Line | None]) -> Records:
    """Add the next line that is not blank, and those before it; yield None where input idles."""
    most = len(peeked) + _BLANK_LINES
    for line in lines:
        if line is None:
            yield None
            continue
        peeked.append(line)
        if line.data.strip() or len(peeked) > most:
            return


def _format_by_line(first: Line, path: str, reading: Reading) -> str:
    """Return the format that the first line shows: lines or jsonl.

    Raises:
        UsageError: it begins JSON that is none of one object a line.
    """
    has_options = reading.names_options
    if is_json_object(first, path, names_options=has_options):
        if has_options:
            note(f"{shown(path)} is read as JSON lines, for its first line is one; {RAW}")
        return "jsonl"
    if b"\0" in first.data and has_options:
        note(f"{shown(path)} holds NUL bytes; for texts that end in NUL: -0")
    return "lines"


def _text_records(lines: Lines, label: str | None) -> Records:
    """Yield a record for each text."""
    for line in lines:
        if line is None:
            yield None
            continue
        record_id, place = _place(line.number, label)
        text, error = line.text()
        yield Record(record_id, place, text, error=error or unfit(text), size=line.size)


def _place(number: int, label: str | None, what: str = "line") -> tuple[Id, str]:
    """Return the id of a row that names none, and its place for messages."""
    if label is None:
        return number, f"{what} {number}"
    return f"{label}:{number}", f"{label}:{number}"


def _json_records(lines: Lines, fields: Fields, name: str, label: str | None) -> Records:
    """Yield the records of JSON lines; say at the end which field that was named no row had."""
    absent = {field for field in (fields.title, *fields.keep) if field in fields.named()}
    rows = 0
    for line in lines:
        if line is None:
            yield None
        elif line.error or (line.data and not line.data.isspace()):
            rows += 1
            yield _json_record(line, fields, absent, *_place(line.number, label))
    for field in sorted(absent) if rows else ():
        warn(f"{name}: none of its {rows} rows has a field '{field}'")


def _json_record(line: Line, fields: Fields, absent: set[str], record_id: Id, place: str) -> Record:
    value, error = (None, line.error) if line.error else json_value(line.data)
    if isinstance(value, dict):
        absent.difference_update([name for name in absent if has_field(value, name)])
        if not fields.text:
            name = next((name for name in TEXT_NAMES if name in value), TEXT_NAMES[0])
            fields = dataclasses.replace(fields, text=(name,))
        if fields.id and isinstance(field_value(value, fields.id), float):
            # orjson makes a float of an integer over 64 bits: its digits are in the line.
            try:
                numbers = json.loads(line.data, parse_float=str, parse_int=str)
            except RecursionError:
                error = RowError("bad_json", "nested too deep")
                return Record(record_id, place, error=error, size=line.size)
            value[fields.id] = field_value(numbers, fields.id)
        return from_fields(value, fields, record_id, place, line.size)
    if isinstance(value, str) and not [name for name in fields.named() if name not in fields.text]:
        return Record(record_id, place, value, error=unfit(value), size=line.size)
    error = error or RowError("bad_json", "not an object")
    return Record(record_id, place, error=error, size=line.size)


def table_records(
    rows: Iterator[Cells | None], fields: Fields, name: str, label: str | None
) -> Records:
    """Yield the rows of a table whose first row names its columns.

    A row's number is that of the line on which it begins: the first row's is 2.

    Raises:
        UsageError: the row of column names cannot be read, or a column that was named is not there.
    """
    columns: list[str] | None = None
    for row in rows:
        if row is None:
            yield None
        elif columns is None:
            columns = _as_named(_column_names(row, name), fields)
            fields = _settled(fields, columns, name)
        else:
            record_id, place = _place(row.number, label)
            values, error = row.by_name(columns)
            if error:
                yield Record(record_id, place, error=error, size=row.size)
            else:
                yield from_fields(values, fields, record_id, place, row.size)


def _column_names(row: Cells, name: str) -> list[str]:
    if row.error:
        reason = row.error.message
        raise UsageError(f"{name}: the row of column names cannot be read: {reason}")
    if unfit("-", *row.cells):
        raise UsageError(
            f"{name}: the row of column names is no valid UTF-8; --encoding names another encoding"
        )
    columns = [column_name(cell) for cell in row.cells]
    refuse_twice(columns, name)
    return columns


def _as_named(columns: Sequence[str], fields: Fields) -> list[str]:
    """Return the names of columns; one that differs from a field's in case has the field's name."""
    named = list(columns)
    defaults = (*TEXT_NAMES, fields.title) if not fields.text else (fields.title,)
    for field in filter(None, (*fields.named(), *defaults)):
        like = [place for place, column in enumerate(named) if column.lower() == field.lower()]
        if field not in named and len(like) == 1:
            named[like[0]] = field
    return named


def _parquet_records(table: ParquetFile, path: str, fields: Fields, label: str | None) -> Records:
    """Yield the rows of a Parquet file, numbered from 1, and close it.

    Raises:
        UsageError: a column that was named is not there.
    """
    with table:
        stripped = [column_name(column) for column in table.columns]
        named = _as_named(stripped, fields)
        fields = _settled(fields, named, shown(path))
        is_renamed = named != table.columns
        actual = dict(zip(named, table.columns, strict=True))
        outer = (_column_of(field, named) for field in fields.named())
        columns = None if fields.keep_all else [actual[name] for name in dict.fromkeys(outer)]
        names = dict(zip(table.columns, named, strict=True))
        for number, values in enumerate(table.rows(columns), 1):
            if is_renamed:
                values = {names[column]: value for column, value in values.items()}
            yield from_fields(values, fields, *_place(number, label, "row"), 1)


def _settled(fields: Fields, columns: Sequence[str], name: str) -> Fields:
    """Return the fields with the text column settled, every one found among the columns.

    Raises:
        UsageError: one is not there, or the text column is not clear.
    """
    if not fields.text:
        if known := [name for name in TEXT_NAMES if name in columns]:
            fields = dataclasses.replace(fields, text=(known[0],))
        elif len(columns) == 1:
            fields = dataclasses.replace(fields, text=(columns[0],))
        else:
            raise UsageError(f"{name}: which column is the text? --text-field {_list(columns)}")
    if fields.title_may_lack:
        title = fields.title if fields.title in columns else None
        fields = dataclasses.replace(fields, title=title, title_may_lack=False)
    for field in fields.named():
        if not _column_of(field, columns):
            raise UsageError(f"{name}: no column '{field}'; it has: {_list(columns)}")
    return fields


def _column_of(field: str, columns: Sequence[str]) -> str:
    """Return the column that holds a field, whose name may be `column.field`; empty: none."""
    if field in columns:
        return field
    parts = field.split(".")
    outers = (".".join(parts[:count]) for count in range(1, len(parts)))
    return next((outer for outer in outers if outer in columns), "")


def _list(columns: Sequence[str]) -> str:
    names = ", ".join(column[:40] for column in columns[:8])
    return names + (f", ... ({len(columns)} in all)" if len(columns) > 8 else "")
