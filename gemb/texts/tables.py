"""Rows of JSON lines, CSV, TSV and Parquet, with the numbers of their lines.

A row that cannot be read has an error, and spoils no other.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

from gemb.errors import Missing, UsageError
from gemb.io.lfs import check_no_pointer
from gemb.io.notes import note
from gemb.io.text import visible
from gemb.texts.contents import STDIN, shown
from gemb.texts.lines import LONGEST, Line, Lines, utf8
from gemb.texts.records import RowError

ROWS = 1024  # of a Parquet file at a time
DELIMITERS = {"csv": ",", "tsv": "\t"}
QUOTINGS = ("csv", "none")  # whether quotes hold a cell together, or are characters like others
_OTHER_DELIMITERS = ",;\t|^~¦\x1f\x01"
_MOSTLY = 0.8  # of these are alike
_PEEKED = 20  # lines by which another delimiter is told
# As Excel writes it, or with a tab in words.
_SEPARATOR_LINE = re.compile(r'"?sep=([^\w"\s]|\t| |\\t)"?', re.IGNORECASE)
_INVISIBLE = " \t\r\n\v\f\ufeff\u200b"


def json_value(data: bytes, *, lenient: bool = False) -> tuple[Any, RowError | None]:
    """Return the value of a line of JSON lines, or why it has none.

    Args:
        data: the line.
        lenient: take halves of characters, too. NaN and infinities, which Python's json writes, are
            always taken.
    """
    import orjson

    try:
        return orjson.loads(data), None
    except orjson.JSONDecodeError as failure:
        if lenient or b"NaN" in data or b"Infinity" in data:
            try:
                value = json.loads(data, parse_int=_whole_number)
                if not lenient:
                    orjson.dumps(value)  # else half a character, which no output can hold
                return value, None
            except (ValueError, RecursionError, TypeError):
                pass
        return None, utf8(data)[1] or RowError("bad_json", str(failure))


def _whole_number(digits: str) -> int | float:
    """Return an integer, a float where it is over 64 bits: so does orjson."""
    value = int(digits) if len(digits) < 24 else float(digits)
    return value if -(1 << 63) <= value < 1 << 64 else float(value)


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


def table_rows(lines: Lines, form: str, name: str, quoting: str = "") -> Iterator[Cells | None]:
    """Yield the rows of a file that is called CSV or TSV, the one with column names too.

    Where the first line says so (`sep=;`), or the columns are parted by another of
    `_OTHER_DELIMITERS` in every line that is looked at, that is the delimiter.

    Args:
        lines: of the table.
        form: csv or tsv.
        name: of the file in messages.
        quoting: of `QUOTINGS`; empty: csv for CSV, none for TSV.

    Raises:
        UsageError: the columns may be parted by several delimiters.
    """
    is_quoted = (quoting or {"csv": "csv", "tsv": "none"}[form]) == "csv"
    delimiter = DELIMITERS[form]
    peeked: list[Line | None] = []
    for first in lines:
        if first is None or not (first.error or first.data.strip()):
            yield None
            continue
        if first.data[:5].lstrip(b'"').lower().startswith(b"sep="):
            delimiter = _named_delimiter(first, name)
        else:
            peeked = [first]
            if _other_delimiters(first, delimiter, is_quoted=is_quoted):
                for line in lines:
                    peeked.append(line)
                    if line is None or len(peeked) == _PEEKED:
                        break
                delimiter = _delimiter_of(peeked, delimiter, name, is_quoted=is_quoted)
        break
    rows = cell_rows(chain(peeked, lines), delimiter, quoted=is_quoted)
    yield from rows if is_quoted or quoting else _watched(rows, name)


def _named_delimiter(line: Line, name: str) -> str:
    """Return the delimiter that a line `sep=;` names.

    Raises:
        UsageError: it names none of one character.
    """
    text = line.data.decode(errors="replace").strip(" ")
    match = _SEPARATOR_LINE.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{name}: its first line, {visible(text, 40)!r}, names no delimiter of one character; "
            "write it as sep=; or leave it out"
        )
    return "\t" if match[1] == "\\t" else match[1]


def column_name(cell: str) -> str:
    """Return the name of a column without blanks and marks around it."""
    return cell.strip().strip(_INVISIBLE).strip()


def refuse_twice(columns: Sequence[str], name: str) -> None:
    """Refuse a table of which two columns have the same name; several may have none.

    Raises:
        UsageError: it is so.
    """
    if twice := [column for column in columns if column and columns.count(column) > 1]:
        raise UsageError(f"{name}: two columns have the same name, '{visible(twice[0], 40)}'")


def _other_delimiters(line: Line, delimiter: str, *, is_quoted: bool) -> list[str]:
    """Return the delimiters that stand in a line outside of quotes, but for the usual one."""
    text = line.data.decode(errors="replace")
    if is_quoted:
        text = re.sub(r'"[^"]*"', "", text)
    return [other for other in _OTHER_DELIMITERS if other != delimiter and other in text]


def _delimiter_of(peeked: Sequence[Line | None], usual: str, name: str, *, is_quoted: bool) -> str:
    """Return the delimiter by which all lines have equally many cells, more than one.

    Raises:
        UsageError: several others do, or none, and there is one column by the usual one.
    """
    lines = [line for line in peeked if line is not None]
    widths: dict[str, list[int]] = {}
    for delimiter in (usual, *_other_delimiters(lines[0], usual, is_quoted=is_quoted)):
        rows = [
            len(row.cells) for row in cell_rows(iter(lines), delimiter, quoted=is_quoted) if row
        ]
        if is_quoted and len(peeked) == _PEEKED:
            rows = rows[:-1] or rows  # a quote may be open where the lines end
        widths[delimiter] = rows
    even = [sign for sign, rows in widths.items() if rows and rows[0] > 1 and len(set(rows)) == 1]
    if usual in even:
        return usual
    if not even and widths[usual] and widths[usual][0] <= 1:  # then a few rows may be wrong
        even = [sign for sign, rows in widths.items() if rows and _is_mostly_even(rows)]
    if len(even) == 1:
        note(f"{name}: its columns are parted by {_sign(even[0])}", once=True)
        return even[0]
    if not even and widths[usual] and widths[usual][0] > 1:
        return usual
    signs = even or [sign for sign, rows in widths.items() if rows and rows[0] > 1]
    raise UsageError(
        f"{name}: are its columns parted by {' or '.join(map(_sign, signs))}? "
        f"Write it with {_sign(usual)}; the name of a single column stands in quotes"
    )


def _is_mostly_even(widths: Sequence[int]) -> bool:
    return widths[0] > 1 and widths.count(widths[0]) >= _MOSTLY * len(widths)


def _sign(delimiter: str) -> str:
    if delimiter < " ":
        return "tabs" if delimiter == "\t" else f"U+{ord(delimiter):04X}"
    return f"'{delimiter}'"


def _watched(rows: Iterable[Cells | None], name: str) -> Iterator[Cells | None]:
    """Pass rows of unquoted cells through; say where they look like quoted ones."""
    is_noted = False
    for row in rows:
        if row is not None and not is_noted and any(map(_looks_quoted, row.cells)):
            is_noted = True
            note(
                f"{name}:{row.number}: quotes are taken as they stand, as in all TSV; "
                "if they hold cells together: --quoting csv, or name the file .csv",
                once=True,
            )
        yield row


def _looks_quoted(cell: str) -> bool:
    """Return whether a cell is written as CSV quotes it, in a way that no prose is."""
    if not cell.startswith('"'):
        return False
    is_whole = len(cell) > 1 and cell.endswith('"')
    return is_whole and not re.search(r'(?<!")"(?!")', cell[1:-1].replace('""', ""))


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
            text = line.data.decode(errors="surrogateescape")
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
            cells, error = [], RowError("bad_csv", str(failure))
        if cells is None:  # the input idles, or it has ended
            yield None
        elif error or cells:
            yield Cells(feed.first, cells, error, feed.size)


_LINE_END = re.compile(r"\r\n|\r|\n")


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
            line = self._number + 1 - len(_LINE_END.findall(cells[-1]))
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
            return (line.data + (line.end or b"\n")).decode(errors="surrogateescape")
        self.ended = True
        self._is_open = self.size > 0
        raise StopIteration


class ParquetFile:
    """A Parquet file that is open; a context manager.

    Raises:
        Missing: pyarrow is not installed.
        UsageError: it is no Parquet file, or it is damaged; so from `rows`, too.
    """

    def __init__(self, path: str | Path, file: IO[bytes] | None = None) -> None:
        """Open a path; or take a file that is open, which the path names in messages alone."""
        pyarrow, parquet = import_pyarrow()
        if file is None and (path == STDIN or not Path(path).is_file()):
            raise UsageError("Parquet is read from a file, not from a pipe: -I parquet FILE")
        self._name = shown(path)
        # Of ArrowException's kinds some are Python's: a text that is no UTF-8, a time beyond years.
        self._failures = (pyarrow.ArrowException, OSError, ValueError, OverflowError, LookupError)
        try:
            self._file = parquet.ParquetFile(path if file is None else file)
        except self._failures as error:
            with suppress(OSError, ValueError):  # a stream may be closed by now
                check_no_pointer(Path(path), file)
            raise self._unreadable(error) from None
        self.columns: list[str] = self._file.schema_arrow.names
        refuse_twice([column_name(column) for column in self.columns], self._name)

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
