"""One pass over a source of training data: its rows indexed, its bad rows named.

The index is three or four files: `rows.bin` (`ROW`, 34 bytes a row), `texts.bin` (`TEXT`, 13 bytes
a text), `about.json`, and, unless a plain JSONL file is indexed in place, `lines.jsonl`: a line
[query, [[positive, title], ...], [[negative, title], ...]] for each line of the source. Nothing
grows in memory with the source.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Protocol

import numpy as np
import orjson

from gemb.errors import UsageError
from gemb.texts.examples import digest, folded
from gemb.training_files import RawRow
from gemb.training_formats import MOST_POSITIVES, BadRow, Layout, Row, recognise

VERSION = 3  # of the files in the cache
KEPT_BAD = 20  # bad rows that are named; all are counted
COLUMNS = 64  # names of columns that are remembered
ROW = np.dtype(
    [
        ("offset", "<u8"),  # bytes from the beginning of the JSON lines
        ("size", "<u4"),  # bytes
        ("number", "<u4"),  # line of the source, from 1; row of a Parquet file
        ("positive", "<u2"),  # which of the line's positives, from 0
        ("query_id", "<u8"),
        ("positive_id", "<u8"),
    ]
)
TEXT = np.dtype(
    [
        ("id", "<u8"),  # hash of the folded text
        ("row", "<u4"),  # of the first positive of the line that it stands in
        ("is_document", "?"),  # positive or negative
    ]
)

_PLACE = Struct("<QIIH")
_ROW_OF_TEXT = Struct("<I?")


class Readable(Protocol):
    """A file, or a folder, of training data."""

    note: str  # how its columns were found
    path: Path

    @property
    def label(self) -> str:
        """Its name in messages."""

    @property
    def name(self) -> str:
        """What it is, in words."""

    @property
    def in_place(self) -> bool:
        """Whether a row can be read again from its offset and size."""

    def rows(self) -> Iterator[RawRow]:
        """Yield all rows, bad ones too."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What the index says of itself."""

    stamp: str  # of the source as it was read
    label: str  # the file's name in messages
    lines: str  # the JSONL file that is indexed in place; empty: lines.jsonl of the index
    layout: Mapping[str, str]  # of the lines that are indexed in place; empty: our own
    format: str
    sizes: Mapping[str, int]  # bytes of the index's other files
    bad_count: int
    bad: list[tuple[str, str]]


def write_index(file: Readable, folder: Path, stamp: str, *, rows: int, strict: bool) -> None:
    """Read a source once, and fill the folder of its index.

    Args:
        file: the source.
        folder: empty.
        stamp: what the index is of.
        rows: stop after so many good rows; 0: never.
        strict: refuse a bad row.

    Raises:
        UsageError: as `open_source`.
    """
    label = file.label
    with ExitStack() as stack:
        writer = _Writer(label, folder, stack, in_place=file.in_place, strict=strict)
        for raw in file.rows():
            writer.add(raw, rows - writer.count if rows else MOST_POSITIVES)
            if 0 < rows <= writer.count:
                break
        layout = writer.layout
        if layout is None or not writer.count:
            first = ": ".join(writer.bad[0]) if writer.bad else "it is empty"
            raise UsageError(f"{label} has no good row; {first}")
    maker = f"{layout.maker} " if layout.maker else ""
    about = About(
        stamp=stamp,
        label=label,
        lines=str(file.path.resolve()) if file.in_place else "",
        layout=dataclasses.asdict(layout) if file.in_place else {},
        format=f"{maker}{file.name} {layout.words(writer.columns)}{file.note}",
        sizes=sizes(folder),
        bad_count=writer.bad_count,
        bad=writer.bad,
    )
    (folder / "about.json").write_bytes(orjson.dumps(about))


def sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of the files of an index, but for what it says of itself."""
    files = [folder / name for name in ("rows.bin", "texts.bin", "lines.jsonl")]
    return {file.name: file.stat().st_size for file in files if file.is_file()}


def bad_row_stops(place: str, reason: str) -> UsageError:
    """Return the error of a bad row where none is allowed."""
    return UsageError(f"{place}: {reason}; without --strict such rows are counted and left out")


class _Writer:
    """Writes the rows of an index as they come."""

    def __init__(
        self, label: str, folder: Path, stack: ExitStack, *, in_place: bool, strict: bool
    ) -> None:
        self.label = label
        self.layout: Layout | None = None
        self.columns: dict[str, None] = {}  # all that were seen, in order
        self.count = 0
        self.bad_count = 0
        self.bad: list[tuple[str, str]] = []
        self._strict = strict
        self._rows = stack.enter_context((folder / "rows.bin").open("wb"))
        self._texts = stack.enter_context((folder / "texts.bin").open("wb"))
        self._lines = None if in_place else stack.enter_context((folder / "lines.jsonl").open("wb"))
        self._offset = 0  # bytes of `lines.jsonl`

    def add(self, raw: RawRow, most: int) -> None:
        """Take a row of the source: as many of its positives as asked for at most."""
        if raw.values is None:
            self._leave_out(raw, raw.reason)
            return
        if self.layout is None:
            self.layout = recognise(list(raw.values), self.label)
        if len(self.columns) < COLUMNS:
            self.columns.update(dict.fromkeys(raw.values))
        try:
            row = self.layout.row(raw.values)
            query_id = digest(row[0])
            positive_ids = [digest(text) for text, _ in row[1]]
            folded_ids = _folded_ids(row)
        except BadRow as fault:
            self._leave_out(raw, str(fault))
            return
        except UnicodeEncodeError:
            self._leave_out(raw, "a text is no valid UTF-8")
            return
        offset, size = self._line(row) if self._lines else (raw.offset, raw.size)
        document = _ROW_OF_TEXT.pack(self.count, True)
        self._texts.write(folded_ids[0] + _ROW_OF_TEXT.pack(self.count, False))
        self._texts.write(b"".join(one + document for one in folded_ids[1:]))
        for which, positive_id in enumerate(positive_ids[:most]):
            place = _PLACE.pack(offset, size, raw.number, which)
            self._rows.write(place + query_id + positive_id)
        self.count += len(positive_ids[:most])

    def _line(self, row: Row) -> tuple[int, int]:
        """Write the texts of a row, and return where."""
        assert self._lines, "a file that is indexed in place has no lines of ours"
        query, positives, negatives = row
        line = orjson.dumps((query, list(map(tuple, positives)), list(map(tuple, negatives))))
        self._lines.write(line + b"\n")
        place = self._offset, len(line)
        self._offset += len(line) + 1
        return place

    def _leave_out(self, raw: RawRow, reason: str) -> None:
        place = f"{self.label}:{raw.number}"
        if self._strict:
            raise bad_row_stops(place, reason)
        self.bad_count += 1
        if len(self.bad) < KEPT_BAD:
            self.bad.append((place, reason))


def _folded_ids(row: Row) -> list[bytes]:
    query, positives, negatives = row
    texts = [query, *(text for text, _ in positives), *(text for text, _ in negatives)]
    return [digest(folded(text)) for text in texts]
