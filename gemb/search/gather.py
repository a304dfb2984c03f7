"""What is searched, as passages: walked, looked up in the table, and split where it is new."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from gemb.search.cache import BINARY, FIELDS, UNDECODABLE, PassageTable, Row
from gemb.search.corpus import Passages, passage_key
from gemb.texts import inputs
from gemb.texts.inputs import Reading
from gemb.texts.passages import split
from gemb.texts.records import Record
from gemb.texts.walk import Entry, Skipped, Walk, is_stream, read_text, walk

if TYPE_CHECKING:
    from collections.abc import Callable


KEEP_S = 2.0  # seconds of splitting that a kill may cost


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What is searched."""

    paths: tuple[str, ...]  # files, folders, -, pipes
    walk: Walk = field(default_factory=Walk)
    kind: str = "auto"  # how files become passages: one of `gemb.search.passages.KINDS`
    # How streams (-, pipes) are read: one line is a passage, or JSON lines, by their first line.
    stream: Reading = field(default_factory=Reading)
    # Not None: files named by the user are read so, too: a row of JSONL, CSV, Parquet is a passage.
    rows: Reading | None = None


def gather_into(
    passages: Passages,
    sources: Sources,
    looked: Callable[[int], None] | None,
) -> None:
    """Fill in the passages of the sources.

    Args:
        passages: empty so far; what is new is put into their table of what searches saw.
        sources: what is searched.
        looked: called after each file with the number of files so far; what it raises ends the
            walk, and what was split by then is kept.

    Raises:
        UsageError: a stream or table cannot be read as `sources` says.
    """
    is_table = [sources.rows is not None and os.path.isfile(path) for path in sources.paths]  # noqa: PTH113
    trees = [
        path
        for path, is_one in zip(sources.paths, is_table, strict=True)
        if not is_one and not is_stream(path)
    ]
    files = _Files(passages.skipped, sources.kind, passages.known)
    try:
        for count, entry in enumerate(walk(trees, sources.walk, passages.skipped), 1):
            files.look(entry, trees)
            if looked:
                looked(count)
    finally:
        files.keep()
    files.forget_vanished()
    records: list[tuple[str | None, Record]] = []
    for path, is_one in zip(sources.paths, is_table, strict=True):
        if is_one or is_stream(path):
            reading = sources.rows if is_one and sources.rows else sources.stream
            records += _records(path, reading, passages.skipped)
    passages.fill(files.found, files.titles, records)


def _records(path: str, reading: Reading, skipped: Skipped) -> list[tuple[str | None, Record]]:
    inputs.check([path])
    name = None if path == "-" else path
    found: list[tuple[str | None, Record]] = []
    for record in inputs.read([path], replace(reading, live=False)):
        if record is None:
            continue
        if record.error is None:
            found.append((name, record))
        elif record.error.code != "empty":
            skipped.failure(f"{name or 'standard input'}, {record.place}", record.error.message)
    return found


class _Files:
    """The files' passages so far."""

    def __init__(self, skipped: Skipped, kind: str, known: PassageTable | None) -> None:
        self.found: list[tuple[Entry, bytes]] = []
        self.titles: dict[int, Sequence[str]] = {}
        self._skipped = skipped
        self._kind = kind
        self._known = known
        self._rows: dict[bytes, Row] = {}  # of the table, not yet seen
        self._asked: set[str] = set()
        self._new: list[Row] = []
        self._kept_at = time.monotonic()

    def look(self, entry: Entry, roots: Sequence[str]) -> None:
        """Add a file: as it is known, or split."""
        self._ask(roots)
        row = self._rows.pop(os.fsencode(entry.real), None)
        is_same = row and (row.size, row.mtime_ns, row.inode) == entry[2:5]
        if row is None or not is_same:
            row = self._split(entry)
            if row is None:
                return
        if row.flags & BINARY:
            self._skipped.binary_file(entry.path, is_named=entry.is_named)
        elif row.flags & UNDECODABLE:
            self._skipped.undecodable.append(entry.path)
        if row.passages:
            self.found.append((entry, row.passages))

    def _ask(self, roots: Sequence[str]) -> None:
        if self._known and not self._asked:
            for root in roots:
                real = os.path.abspath(root)  # noqa: PTH100 - resolves no links
                if real not in self._asked:
                    self._asked.add(real)
                    self._rows.update(self._known.under(real))

    def _split(self, entry: Entry) -> Row | None:
        """Return a file that is new or has changed, None where it cannot be read."""
        own = Skipped(silent=True)
        text = read_text(entry, own)
        flags = 0
        if text is None and not own.binary:
            self._skipped.adopt(own)
            return None
        if own.binary:
            flags = BINARY
        elif own.undecodable:
            flags = UNDECODABLE
        text = text or ""
        parts = split(text, entry.real, self._kind)
        titles = list(dict.fromkeys(part.title or "" for part in parts))
        numbers = {title: number for number, title in enumerate(titles)}
        table = np.array(
            [
                (
                    part.start,
                    part.end,
                    part.line,
                    part.last_line,
                    numbers[part.title or ""],
                    passage_key(part.title, text[part.start : part.end]),
                )
                for part in parts
            ],
            FIELDS,
        )
        row = Row(os.fsencode(entry.real), *entry[2:5], flags, table.tobytes(), json.dumps(titles))
        if parts:
            self.titles[len(self.found)] = titles
        self._new.append(row)
        if time.monotonic() - self._kept_at > KEEP_S:
            self.keep()
        return row

    def keep(self) -> None:
        """Put what is new into the table."""
        if self._known:
            self._known.put(self._new)
        self._new = []
        self._kept_at = time.monotonic()

    def forget_vanished(self) -> None:
        """Drop files from the table that are no longer there."""
        if self._known:
            self._known.forget([real for real in self._rows if not os.path.lexists(real)])
