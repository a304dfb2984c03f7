"""Rows of training data in tables: CSV and TSV with or without column names, Parquet by batches.

A cell of a TSV file is what stands between tabs, quotes and all (IANA, text/tab-separated-values).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemb.errors import UsageError
from gemb.io.text import visible
from gemb.texts.lines import LONGEST, Oversize
from gemb.texts.records import RowError
from gemb.texts.tables import CsvRow, csv_rows, import_pyarrow
from gemb.training_files import Parts, RawRow, shown
from gemb.training_formats import ACCEPTED, known

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
