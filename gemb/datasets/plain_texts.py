"""The texts of a source of which no pairs are asked: what adaptation reads.

A line of a .txt or .md file is a text. Of JSONL, CSV, TSV and Parquet (.gz too) it is the column
`text`; where there is none, the query and its positives, one under the other.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gemb.datasets.beir import open_folder
from gemb.datasets.columns import BadRow, Layout, known
from gemb.datasets.files import GZIP, Parts, RawRow, open_file, shown
from gemb.datasets.rows import KEPT_BAD, Readable, bad_row_stops, name_of
from gemb.errors import UsageError
from gemb.io.text import visible
from gemb.recipe.names import resolve_data
from gemb.recipe.schema import Source
from gemb.texts.lines import Oversize, blocks, read_blocks, split

LINES = (".txt", ".text", ".md")  # names of files whose lines are texts


@dataclass
class PlainTexts:
    """A source; `read` goes through it once, and counts what it leaves out."""

    source: Source
    strict: bool = False  # a bad row is an error
    path: Path = field(init=False)
    name: str = field(init=False)
    format: str = ""  # what was recognised, in words, once it is read
    bad_count: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)  # place and reason of the first
    _layout: Layout | None = None

    def __post_init__(self) -> None:
        """Find the file.

        Raises:
            UsageError: it is not there, or is none that can be read.
        """
        self.path = resolve_data(self.source.path)
        self.name = name_of(self.source)
        if not self.path.exists():
            raise UsageError(f"{shown(self.path)}: no such file or folder of texts")

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is read."""
        return open_folder(self.path).files if self.path.is_dir() else (self.path,)

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

    def _is_lines(self) -> bool:
        plain = self.path.name.lower().removesuffix(".gz")
        return self.path.is_file() and plain.endswith(LINES)

    def _lines(self) -> Iterator[str | RawRow]:
        with self.path.open("rb", buffering=0) as file:
            is_gzip = file.read(len(GZIP)) == GZIP
            file.seek(0)
            self.format = "lines" + " (gzip)" * is_gzip
            if not is_gzip:
                yield from _decoded(split(blocks(file.fileno(), live=False), b"\n"))
                return
            try:
                with gzip.GzipFile(fileobj=file) as unzipped:
                    yield from _decoded(split(read_blocks(unzipped.read), b"\n"))
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise UsageError(f"{shown(self.path)}: no whole gzip file: {error}") from None

    def _rows(self) -> Iterator[str | RawRow]:
        file: Readable = open_folder(self.path) if self.path.is_dir() else open_file(self.path)
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
            text = "\n".join([query, *(one.text for one in positives)])
        if not text.strip():
            raise BadRow("'text' is empty")
        # A lone surrogate (an escape in JSON) is no character.
        return text.encode("utf-8", "replace").decode("utf-8")

    def _leave_out(self, row: RawRow) -> None:
        place = f"{shown(Path(self.path.name))}:{row.number}"
        if self.strict:
            raise bad_row_stops(place, row.reason)
        self.bad_count += 1
        if len(self.bad) < KEPT_BAD:
            self.bad.append((place, row.reason))


def _decoded(parts: Parts) -> Iterator[str | RawRow]:
    """Yield the lines that are not empty."""
    for number, part in enumerate(parts, 1):
        if isinstance(part, Oversize):
            yield RawRow(number, None, f"{part.size} bytes in a line")
        elif part and part.strip():
            try:
                yield part.decode().rstrip("\r")
            except UnicodeDecodeError as error:
                yield RawRow(number, None, f"byte {error.start + 1} is no valid UTF-8")
