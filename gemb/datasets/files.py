"""Rows of training data in tables: CSV and TSV with or without column names, Parquet by batches.

A cell of a TSV file is what stands between tabs, quotes and all (IANA, text/tab-separated-values).
"""

from __future__ import annotations

import gzip
import itertools
import os
import re
import shlex
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import orjson

from gemb.datasets.columns import ACCEPTED, known
from gemb.errors import UsageError
from gemb.io.text import visible
from gemb.texts.inputs import COMPRESSED, SUFFIXES
from gemb.texts.lines import BOM, LONGEST, Oversize, blocks, read_blocks, split
from gemb.texts.records import RowError
from gemb.texts.tables import CsvRow, csv_rows, import_pyarrow

BATCH = 1024  # rows of a Parquet file at a time
UNNAMED = ("query", "positive")  # columns of a table without names


@dataclass
class Table:
    """The rows of a table, and how its columns were found."""

    rows: Iterator[RawRow]
    note: str


def table_rows(parts: Parts, kind: str, where: str) -> Table:
    """Return the rows of a table. Blank lines are left out.

    The first row names the columns if its names are known; else two columns are query and positive,
    and it is a row like the others.

    Raises:
        UsageError: the first row cannot be read, or its columns fit neither way.
    """
    all_rows = csv_rows(parts, ",") if kind == "csv" else _tsv_rows(parts)
    rows = (row for row in all_rows if row)
    first = next(rows, None)
    if first is None:
        return Table(iter(()), "")
    if first.error:
        reason = first.error.message
        raise UsageError(f"{where}:{first.number}: the first row cannot be read: {reason}")
    names = [cell.strip().lower() for cell in first.cells]
    if known(names, where):
        if len(set(names)) < len(names):
            raise UsageError(f"{where}: two columns have the same name")
        return Table(_values(rows, names), "")
    if len(names) != len(UNNAMED):
        found = ", ".join(visible(cell, 40) for cell in first.cells[:12])
        raise UsageError(
            f"{where}: {len(names)} columns, and the first line names none known ({found}); "
            f"accepted: {ACCEPTED}; without names, two columns: query, positive"
        )
    line = " | ".join(visible(cell, 40) for cell in first.cells)
    note = f"; without column names, so its first line is a row: {line}"
    return Table(_values(itertools.chain([first], rows), UNNAMED), note)


def _tsv_rows(parts: Parts) -> Iterator[CsvRow]:
    for number, part in enumerate(parts, 1):
        if isinstance(part, Oversize):
            error = RowError("too_big", f"{part.size} bytes; a row may have {LONGEST}")
            yield CsvRow(number, [], error, part.size)
        elif part and not part.isspace():
            line = part.removesuffix(b"\r").decode(errors="surrogateescape")
            yield CsvRow(number, line.split("\t"), None, len(part))


def _values(rows: Iterable[CsvRow], names: Sequence[str]) -> Iterator[RawRow]:
    for number, cells, error, _ in rows:
        if error:
            yield RawRow(number, None, error.message)
        elif len(cells) != len(names):
            yield RawRow(number, None, f"{len(cells)} columns; the first line has {len(names)}")
        else:
            # An empty cell is how a table says that there is none.
            values = {name: cell or None for name, cell in zip(names, cells, strict=True)}
            yield RawRow(number, values)


def parquet_rows(path: Path) -> Iterator[RawRow]:
    """Yield the rows of a Parquet file, numbered from 1.

    Raises:
        Missing: pyarrow is not installed.
        UsageError: it cannot be read.
    """
    pyarrow, parquet = import_pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=BATCH):
                for values in batch.to_pylist():
                    number += 1
                    yield RawRow(number, values)
    except (pyarrow.ArrowException, OSError) as error:
        reason = visible(str(error).split("\n", 1)[0])
        raise UsageError(f"{shown(path)}: no readable Parquet file: {reason}") from None


# The rows of a file of training data as they stand: JSONL, CSV and TSV (gzip too), Parquet.


Parts = Iterator[bytes | Oversize | None]

GZIP = b"\x1f\x8b"
ARRAY = "rows are objects, one a line: jq -c '.[]' makes them of an array"
NAMES = {"jsonl": "JSONL", "csv": "CSV", "tsv": "TSV", "parquet": "Parquet"}


class RawRow(NamedTuple):
    """A row's values by column, or the reason why there are none, and where it stands."""

    number: int  # line of its beginning, or row of a Parquet file; from 1
    values: Mapping[str, object] | None
    reason: str = ""
    offset: int = 0  # bytes from the beginning of a plain JSONL file
    size: int = 0  # bytes of its line there


@dataclass
class TrainingFile:
    """A file whose rows can be read from the beginning, once."""

    path: Path
    kind: str  # jsonl, csv, tsv, parquet
    is_gzip: bool
    note: str = ""  # how its columns were found, once the first row is read

    @property
    def in_place(self) -> bool:
        """Whether a row can be read again from its offset and size."""
        return self.kind == "jsonl" and not self.is_gzip

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is read."""
        return (self.path,)

    @property
    def label(self) -> str:
        """Its name in messages."""
        return shown(Path(self.path.name))

    @property
    def name(self) -> str:
        """What the file is, in words."""
        return NAMES[self.kind] + (" (gzip)" if self.is_gzip else "")

    def rows(self) -> Iterator[RawRow]:
        """Yield all rows, bad ones too.

        Raises:
            Missing: Parquet without pyarrow.
            UsageError: the file is cut short, or is not what its name says.
        """
        if self.kind == "parquet":
            yield from parquet_rows(self.path)
            return
        try:
            yield from self._from_bytes()
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UsageError(f"{shown(self.path)}: no whole gzip file: {error}") from None

    def _from_bytes(self) -> Iterator[RawRow]:
        with self.path.open("rb", buffering=0) as file:
            if self.is_gzip:
                with gzip.GzipFile(fileobj=file) as unzipped:
                    yield from self._parsed(split(read_blocks(unzipped.read), b"\n"))
            elif self.kind == "jsonl":
                yield from json_lines(file.fileno())
            else:
                yield from self._parsed(split(blocks(file.fileno(), live=False), b"\n"))

    def _parsed(self, parts: Parts) -> Iterator[RawRow]:
        if self.kind == "jsonl":
            yield from _json_rows(parts, 0)
            return

        table = table_rows(parts, self.kind, shown(self.path))
        self.note = table.note
        yield from table.rows


def open_file(path: Path) -> TrainingFile:
    """Return the file with its kind, by its name, or by its first bytes.

    Raises:
        UsageError: it is none that can be read.
    """
    if not path.is_file():
        raise UsageError(f"{shown(path)} is no file and no folder: a source is read more than once")
    try:
        with path.open("rb") as file:
            head = file.read(1 << 12)
    except OSError as error:
        raise UsageError(f"{shown(path)} cannot be read: {error.strerror}") from None
    is_gzip = head.startswith(GZIP)
    name = path.name.lower().removesuffix(".gz") if is_gzip else path.name.lower()
    kind = SUFFIXES.get(Path(name).suffix, "")
    if head.startswith(b"PAR1"):
        kind = "parquet"
    elif kind == "parquet":
        raise UsageError(f"{shown(path)} is no Parquet file by its first bytes")
    for magic, tool in COMPRESSED.items():
        if not is_gzip and re.match(magic, head):
            plain = shlex.quote(visible(path.stem))
            raise UsageError(
                f"{shown(path)} is compressed: {tool} {shlex.quote(shown(path))} > {plain}"
            )
    if not kind and not is_gzip and head.removeprefix(BOM).lstrip()[:1] in (b"{", b"["):
        kind = "jsonl"
    if not kind:
        raise UsageError(
            f"{shown(path)}: what is it? Name it .jsonl, .csv or .tsv (.gz too), or .parquet"
        )
    return TrainingFile(path, kind, is_gzip)


def shown(path: Path) -> str:
    """Return the path as it may stand in a message."""
    return visible(os.fsencode(path).decode(errors="replace"))


def json_lines(fd: int) -> Iterator[RawRow]:
    """Yield the rows of a plain JSONL file that is open for reading."""
    start = len(BOM) if os.pread(fd, len(BOM), 0) == BOM else 0
    yield from _json_rows(split(blocks(fd, live=False), b"\n"), start)


def _json_rows(parts: Parts, start: int) -> Iterator[RawRow]:
    offset = start
    for number, part in enumerate(parts, 1):
        if isinstance(part, Oversize):
            yield RawRow(number, None, f"{part.size} bytes; a row may have {LONGEST}")
            offset += part.size + 1
            continue
        assert part is not None, "a file does not idle"
        size = len(part)
        if part and not part.isspace():
            yield json_row(part, number, offset)
        offset += size + 1


def json_row(line: bytes, number: int, offset: int) -> RawRow:
    """Return the row of a line of JSONL; a list of two or three texts is a pair or a triplet."""
    try:
        values = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return RawRow(number, None, _json_fault(line, error))
    if isinstance(values, list):  # as sentence-transformers ships them
        if not 2 <= len(values) <= 3 or not all(isinstance(one, str) for one in values):
            return RawRow(number, None, f"an array, but not of two or three texts; {ARRAY}")
        values = dict(zip(("query", "positive", "negative"), values, strict=False))
    if not isinstance(values, dict):
        return RawRow(number, None, "no JSON object")
    return RawRow(number, values, "", offset, len(line))


def _json_fault(line: bytes, error: ValueError) -> str:
    try:
        line.decode()
    except UnicodeDecodeError as fault:
        return f"byte {fault.start + 1} (0x{line[fault.start]:02x}) is no valid UTF-8"
    if line.strip() in (b"[", b"{"):
        return f"bad JSON; {ARRAY}"
    return f"bad JSON: {visible(str(error))}"
