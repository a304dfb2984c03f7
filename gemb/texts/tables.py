"""Rows of JSON lines, CSV, TSV and Parquet, with the numbers of their lines.

A row that cannot be read has an error, and spoils no other.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gemb.errors import Missing, UsageError
from gemb.io.text import visible
from gemb.texts.contents import STDIN, shown
from gemb.texts.lines import LONGEST, Lines, utf8
from gemb.texts.records import RowError

ROWS = 1024  # of a Parquet file at a time
RETURN_INSIDE = "a carriage return stands inside the line"


def json_value(data: bytes, *, lenient: bool = False) -> tuple[Any, RowError | None]:
    """Return the value of a line of JSON lines, or why it has none.

    Args:
        data: the line.
        lenient: take what Python's json writes, too: NaN, infinities, halves of characters.
    """
    import orjson

    try:
        return orjson.loads(data), None
    except orjson.JSONDecodeError as failure:
        if lenient:
            try:
                return json.loads(data), None
            except (ValueError, RecursionError):
                pass
        return None, utf8(data)[1] or RowError("bad_json", str(failure))


class Cells(NamedTuple):
    """The cells of a row of CSV or TSV as they stand, or why they cannot be read."""

    number: int  # of the line on which it begins, from 1
    cells: list[str]  # bytes that are no UTF-8 are surrogates
    error: RowError | None
    size: int  # bytes

    def by_name(self, columns: Sequence[str]) -> tuple[dict[str, str], RowError | None]:
        """Return the cells by the names of their columns, or why that cannot be."""
        if self.error:
            return {}, self.error
        if len(self.cells) != len(columns):
            message = f"{len(self.cells)} columns; the first line has {len(columns)}"
            return {}, RowError("bad_csv", message)
        return dict(zip(columns, self.cells, strict=True)), None


def cell_rows(lines: Lines, delimiter: str, *, quoted: bool = True) -> Iterator[Cells | None]:
    """Yield the rows, the one with column names too, but no blank lines; None where input idles.

    Args:
        lines: of the table.
        delimiter: between cells.
        quoted: a cell in quotes may hold delimiters and newlines, and `"a"b` is the cell `ab`, as
            spreadsheets have it. Else a cell is what stands between delimiters, quotes and all
            (IANA, text/tab-separated-values).
    """
    return _quoted(lines, delimiter) if quoted else _unquoted(lines, delimiter)


def _unquoted(lines: Lines, delimiter: str) -> Iterator[Cells | None]:
    for line in lines:
        if line is None:
            yield None
        elif line.error:
            yield Cells(line.number, [], line.error, line.size)
        elif line.data and not line.data.isspace():
            text = line.data.removesuffix(b"\r").decode(errors="surrogateescape")
            yield Cells(line.number, text.split(delimiter), None, line.size)


def _quoted(lines: Lines, delimiter: str) -> Iterator[Cells | None]:
    csv.field_size_limit(LONGEST)
    feed = _Feed(lines)
    reader = csv.reader(feed, delimiter=delimiter)
    while not feed.ended:
        feed.begin()
        try:
            cells = next(reader, None)
            error = feed.fault(cells or [])
        except csv.Error as failure:
            cells, error = [], RowError("bad_csv", _reason(failure))
        if cells is None:  # the input idles, or it has ended
            yield None
        elif error or cells:
            yield Cells(feed.first, cells, error, feed.size)


def _reason(failure: csv.Error) -> str:
    """Return the message, without csv's advice to programmers."""
    return RETURN_INSIDE if "new-line character" in str(failure) else str(failure)


class _Feed:
    """Lines for `csv.reader`. Where the input idles between two rows the iterator ends for once."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._number = 0
        self.ended = False
        self.begin()

    def begin(self) -> None:
        """Begin a row."""
        self.first = self._number + 1  # line number, from 1
        self.size = 0  # bytes of the row
        self._is_too_big = False
        self._is_open = False  # the input ended inside the row, which only a quote makes possible

    def fault(self, cells: list[str]) -> RowError | None:
        """Return what is wrong with the lines of the row that has just been read."""
        if self._is_too_big:
            return RowError("too_big", f"a row may have {LONGEST} bytes")
        if self._is_open:
            line = self._number + 1 - cells[-1].count("\n")
            return RowError("bad_csv", f"a quote opened on line {line} is never closed")
        return None

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        for line in self._lines:
            if line is None:
                if self.size == 0:
                    raise StopIteration
                continue  # in the middle of a quoted field
            self._number = line.number
            self.size += line.size
            self._is_too_big |= line.error is not None
            return line.data.decode(errors="surrogateescape") + "\n"
        self.ended = True
        self._is_open = self.size > 0
        raise StopIteration


class ParquetFile:
    """A Parquet file that is open; a context manager.

    Raises:
        Missing: pyarrow is not installed.
        UsageError: it is no Parquet file, or it is damaged; so from `rows`, too.
    """

    def __init__(self, path: str | Path) -> None:
        pyarrow, parquet = import_pyarrow()
        if path == STDIN or not Path(path).is_file():
            raise UsageError("Parquet is read from a file, not from a pipe: -I parquet FILE")
        self._name = shown(path)
        self._failures = (pyarrow.ArrowException, OSError)
        try:
            self._file = parquet.ParquetFile(path)
        except self._failures as error:
            raise self._unreadable(error) from None
        self.columns: list[str] = self._file.schema_arrow.names

    def __enter__(self) -> ParquetFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[Mapping[str, object]]:
        """Yield the values of each row by column, those of these columns; None: of all."""
        try:
            for batch in self._file.iter_batches(batch_size=ROWS, columns=columns):
                yield from batch.to_pylist()
        except self._failures as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> UsageError:
        reason = visible(str(error).split("\n", 1)[0])
        return UsageError(f"{self._name}: no readable Parquet file: {reason}")


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
