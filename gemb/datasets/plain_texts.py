"""Texts without their pairs: what adaptation reads, and what a smaller vocabulary is chosen by.

A line of a .txt or .md file is a text. Of JSONL, CSV, TSV and Parquet (.gz too) adaptation reads
the column `text`; where there is none, the query and its positives, one under the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from gemb.datasets.columns import BadRow, Layout, known
from gemb.datasets.files import AS_USUAL, RawRow, Written, open_file
from gemb.datasets.rows import KEPT_BAD, bad_row_stops
from gemb.datasets.sources import Readable, name_of, open_readable, written_as
from gemb.errors import UsageError
from gemb.io.text import visible
from gemb.recipe.names import resolve_data
from gemb.recipe.schema import Source
from gemb.texts.contents import is_gzip, shown
from gemb.texts.inputs import format_by_name
from gemb.texts.json_files import is_json_object, refuse_pretty
from gemb.texts.lines import Line, file_lines
from gemb.texts.records import has_visible
from gemb.texts.tables import json_value, table_rows

LINES = (".txt", ".text", ".md")  # names of files whose lines are texts
COUNTED = ("query", "positive", "negative", "title", "text")  # fields of JSON lines
TABLES = ("csv", "tsv", "parquet")
BATCH_CHARACTERS = 2_000_000


@dataclass(frozen=True)
class Texts:
    """A source of texts, which can be read more than once."""

    name: str  # in messages
    read: Callable[[], Iterator[str]]

    def batches(self) -> Iterator[list[str]]:
        """Yield the texts, some megabytes at a time.

        Raises:
            UsageError: there is no text, or what `read` raises.
        """
        batch: list[str] = []
        size = count = 0
        for text in self.read():
            batch.append(text)
            size += len(text)
            if size > BATCH_CHARACTERS:
                yield batch
                count += len(batch)
                batch, size = [], 0
        if not batch and not count:
            raise UsageError(f"{self.name}: no text in it (fields: {', '.join(COUNTED)})")
        if batch:
            yield batch


def counted_texts(path: Path, encoding: str = "") -> Texts:
    """Return the texts of a file whose tokens are counted: its lines, or of rows `COUNTED`.

    Reading raises UsageError where the file is missing or broken.

    Args:
        path: the file.
        encoding: as `checked_encoding` returns it.
    """
    return Texts(str(path), lambda: _counted(path, encoding))


def _counted(path: Path, encoding: str) -> Iterator[str]:
    form = format_by_name(path)
    if form in TABLES:
        yield from _counted_cells(path, encoding)
        return
    lines, is_json = (
        _told(path, encoding) if form != "jsonl" else (file_lines(path, encoding), True)
    )
    for line in lines:
        if line.error:
            raise UsageError(f"{shown(path)}:{line.number}: {line.error.message}")
        if not line.data or line.data.isspace():
            continue
        if is_json:
            row, error = json_value(line.data, lenient=True)
            if error or not isinstance(row, dict):
                reason = f": {error.message}" if error else ""
                raise UsageError(f"{shown(path)}:{line.number}: no JSON object{reason}")
            yield from _fields_counted(row)
        else:
            yield line.data.decode(errors="replace")


def _counted_cells(path: Path, encoding: str) -> Iterator[str]:
    """Yield the texts of a table's rows: of `COUNTED` columns, or of the only one."""
    if format_by_name(path) != "parquet":
        cells = table_rows(file_lines(path, encoding), format_by_name(path), shown(path))
        rows = (row for row in cells if row)
        first = next(rows, None)
        if first and not first.error and len(first.cells) == 1:
            for row in rows:
                if row.error or len(row.cells) != 1:
                    reason = row.error.message if row.error else f"{len(row.cells)} columns, not 1"
                    raise UsageError(f"{shown(path)}:{row.number}: {reason}")
                yield _whole(row.cells[0])
            return
    for raw in open_file(path, Written(encoding)).rows():
        if raw.values is None:
            raise UsageError(f"{shown(path)}:{raw.number}: {raw.reason}")
        yield from _fields_counted(raw.values)


def _fields_counted(values: Mapping[str, object]) -> Iterator[str]:
    texts = [values.get(name) for name in COUNTED]
    yield from (_whole(text) for text in texts if isinstance(text, str) and text)


def _told(path: Path, encoding: str) -> tuple[Iterator[Line], bool]:
    """Return the lines of a file, and whether they are JSON lines by the first one.

    Raises:
        UsageError: they are JSON that is none of one object a line.
    """
    lines = file_lines(path, encoding)
    peeked = _until_line(lines)
    if not peeked:
        return lines, False
    first = peeked[-1]
    if first.data.strip() in (b"{", b"["):
        peeked += _until_line(lines)
        refuse_pretty(first, peeked[-1], str(path), names_options=False)
    is_json = is_json_object(first, str(path), names_options=False)
    return chain(peeked, lines), is_json


def _until_line(lines: Iterator[Line]) -> list[Line]:
    """Return the next line that is not blank, and those before it."""
    taken: list[Line] = []
    for line in lines:
        taken.append(line)
        if line.error or line.data.strip():
            break
    return taken


def _whole(text: str) -> str:
    """Return the text; what is half a character, or no UTF-8 in a table, is `?`."""
    return text.encode("utf-8", "replace").decode("utf-8")


@dataclass
class PlainTexts:
    """A source of adaptation; `read` goes through it once, and counts what it leaves out."""

    source: Source
    strict: bool = False  # a bad row is an error
    path: Path = field(init=False)
    name: str = field(init=False)
    format: str = ""  # what was recognised, in words, once it is read
    bad_count: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)  # place and reason of the first
    _layout: Layout | None = None
    _written: Written = AS_USUAL

    def __post_init__(self) -> None:
        """Find the file.

        Raises:
            UsageError: it is not there, or is none that can be read.
        """
        self.path = resolve_data(self.source.path)
        self.name = name_of(self.source)
        if not self.path.exists():
            raise UsageError(f"{shown(self.path)}: no such file or folder of texts")
        self._written = written_as(self.source)

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is read."""
        return (self.path,) if self._is_lines() else self._readable().files

    def read(self) -> Iterator[str]:
        """Yield the texts.

        Raises:
            UsageError: the file is broken or has no column of texts; if strict, a bad row.
        """
        self.bad_count, count = 0, 0
        self.bad.clear()
        for row in self._lines() if self._is_lines() else self._rows():
            if isinstance(row, RawRow):
                self._leave_out(row)
                continue
            count += 1
            yield row
            if count == self.source.rows:
                return
        if not count:
            why = ": ".join(self.bad[0]) if self.bad else "it is empty"
            raise UsageError(f"{shown(self.path)} has no text; {why}")

    def _readable(self) -> Readable:
        return open_readable(self.source, self.path, self._written)

    def _is_lines(self) -> bool:
        plain = self.path.name.lower().removesuffix(".gz")
        return self.path.is_file() and plain.endswith(LINES)

    def _lines(self) -> Iterator[str | RawRow]:
        with self.path.open("rb") as file:
            self.format = "lines" + " (gzip)" * is_gzip(file.read(2))
        for line in file_lines(self.path, self._written.encoding):
            text, error = line.text()
            if error:
                yield RawRow(line.number, None, error.message)
            elif has_visible(text):
                yield text

    def _rows(self) -> Iterator[str | RawRow]:
        file = self._readable()
        for raw in file.rows():
            if raw.values is None:
                yield raw
                continue
            if not self.format:
                self._recognise(raw.values, file)
            try:
                yield self._text(raw.values)
            except BadRow as fault:
                yield raw._replace(reason=str(fault))

    def _recognise(self, columns: Mapping[str, object], file: Readable) -> None:
        if "text" in columns:
            self.format = f"{file.name} (text)"
            return
        self._layout = known(list(columns), file.label)
        if self._layout is None:
            names = ", ".join(visible(str(name), 40) for name in list(columns)[:12])
            raise UsageError(
                f"{file.label}: no text by its columns ({names}); name one 'text', or give query "
                "and positive"
            )
        self.format = f"{file.name} ({self._layout.query} + {self._layout.positive})"

    def _text(self, values: Mapping[str, object]) -> str:
        if self._layout is None:
            text = values.get("text")
            if not isinstance(text, str):
                raise BadRow("no 'text'" if "text" not in values else "'text' is not text")
        else:
            query, positives, _ = self._layout.row(values)
            text = "\n".join([query, *(positive.text for positive in positives)])
        if not has_visible(text):
            raise BadRow("'text' is empty")
        return _whole(text)

    def _leave_out(self, row: RawRow) -> None:
        place = f"{shown(self.path.name)}:{row.number}"
        if self.strict:
            raise bad_row_stops(place, row.reason)
        self.bad_count += 1
        if len(self.bad) < KEPT_BAD:
            self.bad.append((place, row.reason))
