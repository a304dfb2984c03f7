"""Tables as records: CSV and TSV with real line numbers, Parquet by batches."""

from __future__ import annotations

import csv
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gemb.errors import Missing, UsageError
from gemb.texts.lines import LONGEST, Oversize
from gemb.texts.records import Fields, Id, Record, RowError, from_fields, unfit

ROWS = 1024  # of a Parquet file at a time
RETURN_INSIDE = "a carriage return stands inside the line"


def read_csv(
    parts: Iterator[bytes | Oversize | None],
    fields: Fields,
    name: str,
    label: str | None,
    delimiter: str,
) -> Iterator[Record | None]:
    """Yield the rows of a table whose first row names its columns. Blank lines are left out.

    A row's number is that of the line on which it begins: the first row's is 2. Quotes are read as
    leniently as spreadsheets do: `"a"b` is the cell `ab`.

    Raises:
        UsageError: the row of column names cannot be read, or a column that was named is not there.
    """
    columns: list[str] | None = None
    for row in csv_rows(parts, delimiter):
        if row is None:
            yield None
        elif columns is None:
            columns = _header(row.cells, row.error, name)
            fields = resolved(fields, columns, name)
        else:
            yield _row(row, columns, fields, label)


class CsvRow(NamedTuple):
    """The cells of a row as they stand, or why they cannot be read."""

    number: int  # of the line on which it begins, from 1
    cells: list[str]  # bytes that are no UTF-8 are surrogates
    error: RowError | None
    size: int  # bytes


def csv_rows(parts: Iterator[bytes | Oversize | None], delimiter: str) -> Iterator[CsvRow | None]:
    """Yield the rows, the one with column names too, but no blank lines; None where input idles."""
    csv.field_size_limit(LONGEST)
    lines = _Lines(parts)
    reader = csv.reader(lines, delimiter=delimiter)
    while not lines.ended:
        lines.begin()
        try:
            cells = next(reader, None)
            error = lines.fault(cells or [])
        except csv.Error as failure:
            cells, error = [], RowError("bad_csv", _reason(failure))
        if cells is None:  # the input idles, or it has ended
            yield None
        elif error or cells:
            yield CsvRow(lines.first, cells, error, lines.size)


def _header(cells: list[str], error: RowError | None, name: str) -> list[str]:
    """Return the names of the columns.

    Raises:
        UsageError: they cannot be read.
    """
    if error:
        hint = "; if all lines end so: tr '\\r' '\\n'" if error.message == RETURN_INSIDE else ""
        raise UsageError(f"{name}: the row of column names cannot be read: {error.message}{hint}")
    columns = [cell.removeprefix("\ufeff") for cell in cells]
    if unfit("-", *columns):
        raise UsageError(f"{name}: the row of column names is no valid UTF-8; iconv converts it")
    return columns


def _reason(failure: csv.Error) -> str:
    """Return the message, without csv's advice to programmers."""
    return RETURN_INSIDE if "new-line character" in str(failure) else str(failure)


def _row(row: CsvRow, columns: list[str], fields: Fields, label: str | None) -> Record:
    place = f"{label}:{row.number}" if label else f"line {row.number}"
    record_id: Id = place if label else row.number
    error = row.error
    if not error and len(row.cells) != len(columns):
        error = RowError("bad_csv", f"{len(row.cells)} columns; the header has {len(columns)}")
    if error:
        return Record(record_id, place, error=error, size=row.size)
    values = dict(zip(columns, row.cells, strict=True))
    return from_fields(values, fields, record_id, place, row.size)


class _Lines:
    """Lines for `csv.reader`. Where the input idles between two rows the iterator ends for once."""

    def __init__(self, parts: Iterator[bytes | Oversize | None]) -> None:
        self._parts = parts
        self._number = 0
        self.ended = False
        self.begin()

    def begin(self) -> None:
        """Say that a row begins."""
        self.first = self._number + 1  # line number, from 1
        self.size = 0  # bytes of the row
        self._oversize = False
        self._open = False  # the input ended inside the row, which only a quote makes possible

    def fault(self, cells: list[str]) -> RowError | None:
        """Return what is wrong with the lines of the row that has just been read."""
        if self._oversize:
            return RowError("too_big", f"a row may have {LONGEST} bytes")
        if self._open:
            line = self._number + 1 - cells[-1].count("\n")
            return RowError("bad_csv", f"a quote opened on line {line} is never closed")
        return None

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        for part in self._parts:
            if part is None:
                if self.size == 0:
                    raise StopIteration
                continue  # in the middle of a quoted field
            self._number += 1
            if isinstance(part, Oversize):
                self.size += part.size
                self._oversize = True
                return "\n"
            self.size += len(part) + 1
            return part.decode(errors="surrogateescape") + "\n"
        self.ended = True
        self._open = self.size > 0
        raise StopIteration


def read_parquet(path: str, fields: Fields, label: str | None) -> Iterator[Record]:
    """Yield the rows of a Parquet file, numbered from 1.

    Raises:
        Missing: pyarrow is not installed.
        UsageError: it is no Parquet file, or a column that was named is not there.
    """
    pyarrow, parquet = import_pyarrow()
    if path == "-" or not Path(path).is_file():
        raise UsageError("Parquet is read from a file, not from a pipe: gemb embed -I parquet FILE")
    try:
        file = parquet.ParquetFile(path)
        fields = resolved(fields, file.schema_arrow.names, path)
        columns = None if fields.keep_all else list(dict.fromkeys(fields.named()))
        batches = file.iter_batches(batch_size=ROWS, columns=columns)
        rows: Iterator[Mapping[str, object]] = itertools.chain.from_iterable(
            batch.to_pylist() for batch in batches
        )
        for number, values in enumerate(rows, 1):
            place = f"{label}:{number}" if label else f"row {number}"
            yield from_fields(values, fields, place if label else number, place, 1)
    except pyarrow.ArrowException as error:
        raise UsageError(f"{path}: no readable Parquet file: {_one_line(error)}") from None


def resolved(fields: Fields, columns: Sequence[str], name: str) -> Fields:
    """Return the fields with the text column settled, every one found among the columns.

    Raises:
        UsageError: one is not there, or the text column is not clear.
    """
    if not fields.text:
        if "text" in columns:
            fields = dataclasses.replace(fields, text=("text",))
        elif len(columns) == 1:
            fields = dataclasses.replace(fields, text=(columns[0],))
        else:
            raise UsageError(f"{name}: which column is the text? --text-field {_list(columns)}")
    if fields.title_may_lack:
        title = fields.title if fields.title in columns else None
        fields = dataclasses.replace(fields, title=title, title_may_lack=False)
    for wanted in fields.named():
        if wanted not in columns:
            raise UsageError(f"{name}: no column '{wanted}'; it has: {_list(columns)}")
    return fields


def import_pyarrow() -> tuple[Any, Any]:
    """Return the modules pyarrow and pyarrow.parquet.

    Raises:
        Missing: they are not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise Missing("Parquet needs pyarrow: pip install 'gemb[parquet]'") from None
    return pyarrow, pyarrow.parquet


def _list(columns: Sequence[str]) -> str:
    shown = ", ".join(column[:40] for column in columns[:8])
    return shown + (f", ... ({len(columns)} in all)" if len(columns) > 8 else "")


def _one_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]
