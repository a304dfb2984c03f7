"""Turn the sources of a search into passages; `gemb.search.passage_texts` reads their texts."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemb.arrays import Ints
from gemb.embedding.store import key_of
from gemb.errors import UsageError
from gemb.search.cache import (
    BINARY,
    DOCUMENT,
    FIELDS,
    UNDECODABLE,
    FileRow,
    PassageTable,
    unpacked,
)
from gemb.texts import inputs
from gemb.texts.contents import NoText
from gemb.texts.inputs import Reading
from gemb.texts.passages import split
from gemb.texts.records import Record
from gemb.texts.walk import Entry, Skipped, Walk, is_stream, open_text, walk

KEEP_S = 2.0  # seconds of splitting that a kill may cost
_KINDS = {BINARY: NoText.BINARY, DOCUMENT: NoText.DOCUMENT}
# Takes passages of one folder: their keys in a cache of vectors, and titles and texts.
TakePassages = Callable[[str, Sequence[bytes], Sequence[tuple[str | None, str]]], None]
LINE = re.compile(r"line (\d+)$")


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What is searched."""

    paths: tuple[str, ...]  # files, folders, -, pipes
    walk: Walk = field(default_factory=Walk)
    kind: str = "auto"  # how files are split: one of `gemb.texts.PASSAGE_KINDS`
    # How streams (-, pipes) are read: each line is a passage, or JSON lines, by their first line.
    stream: Reading = field(default_factory=Reading)
    # How files named by the user are read whose rows are passages (JSONL, CSV, Parquet); None:
    # all files are split.
    rows: Reading | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """Passages 0 to n - 1: those of files, in the order of the files, then rows and lines.

    Nothing in it changes. The texts of files are not in it.
    """

    kind: str  # how files were split
    files: Sequence[Entry]  # those that have passages
    firsts: Ints  # [files + 1]: number of each file's first passage, then of the first record
    table: NDArray[Any]  # of FIELDS: the files' passages
    titles: Mapping[int, Sequence[str]]  # by file: of those that were split just now
    records: Sequence[tuple[str | None, Record]]  # path (None: standard input), row or line
    keys: Sequence[bytes]  # [n]: of each passage in a cache of vectors
    same: NDArray[np.uint64]  # [n]: equal where texts are

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def copies(self) -> tuple[Ints, Ints]:
        """Equal numbers for passages with the same text, [n], and how many have each number.

        A row with an id of its own is a copy of none.
        """
        _, numbers, counts = np.unique(self.same, return_inverse=True, return_counts=True)
        numbers, counts = numbers.astype(np.int64), counts.astype(np.int64)
        own = [len(self.table) + at for at, (_, row) in enumerate(self.records) if _has_id(row)]
        numbers[own] = len(counts) + np.arange(len(own))
        return numbers, np.concatenate([counts, np.ones(len(own), np.int64)])

    def files_of(self, numbers: Ints) -> Ints:
        """Return the file of each passage, int64 [n]; that of a record is beyond all files."""
        return np.minimum(np.searchsorted(self.firsts, numbers, "right") - 1, len(self.files))

    def passages_of(self, file: int) -> range:
        """Return the numbers of a file's passages."""
        return range(int(self.firsts[file]), int(self.firsts[file + 1]))

    def number_at(self, path: str, line: int) -> int:
        """Return the number of the passage that holds a line of a file.

        Raises:
            UsageError: no such file was searched, or no passage has this line: it is blank, or
                beyond the file's end.
        """
        real = os.path.abspath(path)  # noqa: PTH100 - resolves no links
        for file, entry in enumerate(self.files):
            if entry.real == real:
                for number in self.passages_of(file):
                    row = self.table[number]
                    if row["line"] <= line <= row["last_line"]:
                        return number
                raise UsageError(f"{path}: no passage has line {line}; name a line with text")
        raise UsageError(f"{path} is not among the files that are searched")


def _has_id(record: Record) -> bool:
    """Return whether a row has an id of its own: it is not the number of its line."""
    match = LINE.search(record.place)
    return match is None or record.id != int(match[1])


def passage_key(title: str | None, text: str) -> bytes:
    """Return the key of a passage in a cache of vectors with one prompt, 16 bytes."""
    return key_of(f"{title or ''}\0{text}")


def text_number(text: str) -> int:
    """Return a number below 2^64 that passages of the same text share, whatever their titles."""
    return int.from_bytes(key_of(text)[:8], "little")


def gather(
    sources: Sources,
    table: PassageTable,
    skipped: Skipped,
    looked: Callable[[int], None] = lambda files: None,
    split_now: TakePassages = lambda folder, keys, passages: None,
) -> Corpus:
    """Return the passages of the sources.

    Files are walked, looked up in the table of earlier searches, and split where they are new or
    have changed; streams and tables are read.

    It needs no model: call it in a thread while the model is opened.

    Args:
        sources: what is searched.
        table: of the files that earlier searches split; new ones are put into it.
        skipped: counts what cannot be read.
        looked: called after each file with the number of files so far; an exception from it ends
            the walk, and what was split by then is kept.
        split_now: takes the passages of each file that is split, as they are at hand.

    Raises:
        UsageError: a stream or table cannot be read as `sources` says.
    """
    readings = [(path, _reading(path, sources)) for path in sources.paths]
    trees = [path for path, reading in readings if reading is None]
    files: list[Entry] = []
    passages: list[bytes] = []
    titles: dict[int, Sequence[str]] = {}
    for entry, row, is_new in _rows(trees, sources, table, skipped, looked, split_now):
        if kind := _KINDS.get(row.flags):
            skipped.file_without_text(kind)
        elif row.flags & UNDECODABLE:
            skipped.undecodable_file(entry.path)
        if row.passages:
            if is_new:
                titles[len(files)] = json.loads(row.titles)
            files.append(entry)
            passages.append(row.passages)
    records = [
        record
        for path, reading in readings
        if reading is not None
        for record in _records(path, reading, skipped)
    ]
    counts = [len(part) // FIELDS.itemsize for part in passages]
    all_passages = unpacked(b"".join(passages))
    keys: list[bytes] = all_passages["key"].tolist()
    keys += [passage_key(record.title, record.text) for _, record in records]
    of_records = np.array([text_number(record.text) for _, record in records], np.uint64)
    return Corpus(
        kind=sources.kind,
        files=files,
        firsts=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
        table=all_passages,
        titles=titles,
        records=records,
        keys=keys,
        same=np.concatenate([all_passages["same"], of_records]),
    )


def sources_name(sources: Sources) -> str:
    """Return what tells a search of files from others; empty where there are rows or lines."""
    if any(_reading(path, sources) for path in sources.paths):
        return ""
    real = [os.path.abspath(path) for path in sources.paths]  # noqa: PTH100
    return repr((sources.kind, sources.walk, real))


def _reading(path: str, sources: Sources) -> Reading | None:
    """Return how the rows or lines of a path are read, None where files are split."""
    if is_stream(path):
        return sources.stream
    return sources.rows if os.path.isfile(path) else None  # noqa: PTH113


def _rows(
    trees: Sequence[str],
    sources: Sources,
    table: PassageTable,
    skipped: Skipped,
    looked: Callable[[int], None],
    split_now: TakePassages,
) -> Iterator[tuple[Entry, FileRow, bool]]:
    """Yield the files under `trees` as rows of the table, and whether each was split just now."""
    known: dict[bytes, FileRow] = {}
    # Resolves no links.
    for root in dict.fromkeys(os.path.abspath(tree) for tree in trees):  # noqa: PTH100
        known |= table.under(root)
    unsaved: list[FileRow] = []
    saved_at = time.monotonic()
    try:
        for count, entry in enumerate(walk(trees, sources.walk, skipped), 1):
            row = known.pop(os.fsencode(entry.real), None)
            if row and row.stamp == entry.stamp:
                yield entry, row, False
            elif row := _split(entry, sources.kind, skipped, split_now):
                unsaved.append(row)
                yield entry, row, True
            if time.monotonic() - saved_at > KEEP_S:
                table.put(unsaved)
                unsaved, saved_at = [], time.monotonic()
            looked(count)
    finally:
        table.put(unsaved)
    table.forget([real for real in known if not os.path.lexists(real)])


def _split(entry: Entry, kind: str, skipped: Skipped, split_now: TakePassages) -> FileRow | None:
    """Return a file as a row of the table, None where it cannot be read."""
    file = open_text(entry)
    if file.text is None and not file.no_text:
        if file.failure:
            skipped.failure(entry.path, file.failure)
        return None
    text = file.text or ""
    flags = 0 if file.is_whole else UNDECODABLE
    if file.no_text:
        flags = next(flag for flag, kind in _KINDS.items() if kind is file.no_text)
    parts = split(text, entry.real, kind)
    passages = [(part.title or None, text[part.start : part.end]) for part in parts]
    keys = [passage_key(title, words) for title, words in passages]
    titles = list(dict.fromkeys(part.title or "" for part in parts))
    numbers = {title: number for number, title in enumerate(titles)}
    rows = np.array(
        [
            (
                part.start,
                part.end,
                part.line,
                part.last_line,
                numbers[part.title or ""],
                key,
                text_number(words),
            )
            for part, key, (_, words) in zip(parts, keys, passages, strict=True)
        ],
        FIELDS,
    )
    if keys:
        split_now(os.path.dirname(entry.path), keys, passages)  # noqa: PTH120
    real = os.fsencode(entry.real)
    return FileRow(real, *entry.stamp, flags, rows.tobytes(), json.dumps(titles))


def _records(path: str, reading: Reading, skipped: Skipped) -> Iterator[tuple[str | None, Record]]:
    """Yield the rows of a stream or table that have a text; count those that cannot be read."""
    inputs.check([path])
    name = None if path == "-" else path
    for record in inputs.read([path], replace(reading, live=False)):
        if record is None:
            continue
        if record.error is None:
            yield name, record
        elif record.error.code != "empty":
            skipped.failure(f"{name or 'standard input'}, {record.place}", record.error.message)
