"""Turn the sources of a search into passages; their texts stay on the disk."""

from __future__ import annotations

import json
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemb.arrays import Ints
from gemb.embedding.store import key_of
from gemb.errors import UsageError
from gemb.index.hits import Hit
from gemb.io.text import visible
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
from gemb.texts.passages import Passage, split
from gemb.texts.records import Record
from gemb.texts.walk import Entry, Skipped, Walk, is_stream, open_text, walk

KEEP_S = 2.0  # seconds of splitting that a kill may cost
HELD = 1 << 24  # characters of files' texts that are held for the next passage
_KINDS = {BINARY: NoText.BINARY, DOCUMENT: NoText.DOCUMENT}
_LINE = re.compile(r"line (\d+)$")


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

    Nothing in it changes. The texts of files are not in it: `PassageTexts` reads them.
    """

    kind: str  # how files were split
    files: Sequence[Entry]  # those that have passages
    firsts: Ints  # [files + 1]: number of each file's first passage, then of the first record
    table: NDArray[Any]  # of FIELDS: the files' passages
    titles: Mapping[int, Sequence[str]]  # by file: of those that were split just now
    records: Sequence[tuple[str | None, Record]]  # path (None: standard input), row or line
    keys: Sequence[bytes]  # [n]: of each passage in a cache of vectors
    same: NDArray[np.uint64]  # [n]: equal where texts are
    sources: str = ""  # what they were gathered from

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
    match = _LINE.search(record.place)
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

    Raises:
        UsageError: a stream or table cannot be read as `sources` says.
    """
    readings = [(path, _reading(path, sources)) for path in sources.paths]
    trees = [path for path, reading in readings if reading is None]
    files: list[Entry] = []
    passages: list[bytes] = []
    titles: dict[int, Sequence[str]] = {}
    for entry, row, is_new in _rows(trees, sources, table, skipped, looked):
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
        sources=repr((sources.kind, sources.walk, [os.path.abspath(tree) for tree in trees])),  # noqa: PTH100
    )


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
            elif row := _split(entry, sources.kind, skipped):
                unsaved.append(row)
                yield entry, row, True
            if time.monotonic() - saved_at > KEEP_S:
                table.put(unsaved)
                unsaved, saved_at = [], time.monotonic()
            looked(count)
    finally:
        table.put(unsaved)
    table.forget([real for real in known if not os.path.lexists(real)])


def _split(entry: Entry, kind: str, skipped: Skipped) -> FileRow | None:
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
    titles = list(dict.fromkeys(part.title or "" for part in parts))
    numbers = {title: number for number, title in enumerate(titles)}
    passages = np.array(
        [
            (
                part.start,
                part.end,
                part.line,
                part.last_line,
                numbers[part.title or ""],
                passage_key(part.title, text[part.start : part.end]),
                text_number(text[part.start : part.end]),
            )
            for part in parts
        ],
        FIELDS,
    )
    real = os.fsencode(entry.real)
    return FileRow(real, *entry.stamp, flags, passages.tobytes(), json.dumps(titles))


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


class PassageTexts:
    """The texts of a corpus, read from its files when they are needed; a few are held."""

    def __init__(self, corpus: Corpus, table: PassageTable, skipped: Skipped) -> None:
        """Read nothing yet.

        Args:
            corpus: the passages.
            table: of the files that were split by earlier searches: it has their titles.
            skipped: counts files that cannot be read any more, and passages that are gone.
        """
        self.corpus = corpus
        self._table = table
        self.skipped = skipped
        self._titles = dict(corpus.titles)
        self._held: OrderedDict[int, str] = OrderedDict()
        self._held_size = 0  # characters
        self._sizes: dict[int, int] = {}  # of files that have changed since they were gathered
        self._refused: set[int] = set()  # files that cannot be read any more, as was said

    def of_file(self, file: int) -> str | None:
        """Return all of a file's text, None where it has none any more."""
        if file in self._held:
            self._held.move_to_end(file)
            return self._held[file]
        entry = self.corpus.files[file]
        size = self._sizes.get(file, entry.size)
        entry = entry._replace(stamp=entry.stamp._replace(size=size))
        # A file that is known from an earlier search was not opened in this one so far.
        text, *_, failure = open_text(entry)
        if failure and file not in self._refused:
            self._refused.add(file)
            self.skipped.failure(entry.path, failure)
        if text is not None:
            self._held[file] = text
            self._held_size += len(text)
            while self._held_size > HELD and len(self._held) > 1:
                _, dropped = self._held.popitem(last=False)
                self._held_size -= len(dropped)
        return text

    def forget(self) -> None:
        """Drop all texts; files are read again when they are needed."""
        self._held.clear()
        self._held_size = 0

    def record(self, number: int) -> Record | None:
        """Return a passage as a record whose id is its number, None where its file has changed."""
        corpus = self.corpus
        if number >= len(corpus.table):
            path, record = corpus.records[number - len(corpus.table)]
            return replace(record, id=number, place=f"{path or 'standard input'}, {record.place}")
        file, row = self._row(number)
        text, title = self._passage(file, row)
        if text is None:
            return None
        return Record(number, f"{corpus.files[file].path}:{row['line']}", text, title)

    def folder(self, number: int) -> str:
        """Return the folder of a passage's file as it was typed, empty for a record."""
        if number >= len(self.corpus.table):
            return ""
        return os.path.dirname(self.corpus.files[self._row(number)[0]].path)  # noqa: PTH120

    def hit(self, number: int, score: float) -> Hit | None:
        """Return a passage as a hit, None where it is not there any more.

        Where its file has changed since it was gathered, its lines are those of now.
        """
        corpus = self.corpus
        if number >= len(corpus.table):
            path, record = corpus.records[number - len(corpus.table)]
            match = _LINE.search(record.place)
            at = int(match[1]) if match else None
            return Hit(
                score=score,
                text=record.text,
                path=path,
                line=at,
                last_line=at,
                title=record.title,
                id=record.id,
                kept=record.kept,
            )
        file, row = self._row(number)
        text, title = self._passage(file, row)
        line, last_line = int(row["line"]), int(row["last_line"])
        if text is None:
            moved = self._moved(file, bytes(row["key"]))
            if moved is None:
                return None
            passage, text = moved
            title, line, last_line = passage.title, passage.line, passage.last_line
        path = corpus.files[file].path
        return Hit(score=score, text=text, path=path, line=line, last_line=last_line, title=title)

    def hits(
        self,
        ranked: Iterable[tuple[int, float]],
        k: int | None,
        *,
        is_last: bool = True,
        once: bool = False,
    ) -> list[Hit]:
        """Return the first k passages of a ranking that are still there: see `numbered_hits`."""
        return [hit for _, hit in self.numbered_hits(ranked, k, is_last=is_last, once=once)]

    def numbered_hits(
        self,
        ranked: Iterable[tuple[int, float]],
        k: int | None,
        *,
        is_last: bool = True,
        once: bool = False,
    ) -> list[tuple[int, Hit]]:
        """Return the first k passages of a ranking that are still there, with their numbers.

        Args:
            ranked: numbers and scores, best first.
            k: how many; None: all.
            is_last: count those that are gone.
            once: of passages without ids that have the same text only the first is a hit; it says
                how many there are.
        """
        hits: list[tuple[int, Hit]] = []
        seen: set[int] = set()
        same, counts = self.corpus.copies
        for number, score in ranked:
            if k is not None and len(hits) == k:
                break
            text = int(same[number])
            if once and text in seen:
                continue
            hit = self.hit(number, score)
            if hit is None:
                if is_last:
                    self.lose(number)
                continue
            if once:
                seen.add(text)
                hit = replace(hit, copies=int(counts[text]))
            hits.append((number, hit))
        return hits

    def hit_at(self, path: str, line: int) -> Hit:
        """Return the passage that holds a line of a file, as a hit with score 1.

        Raises:
            UsageError: no such file was searched, no passage has this line, or the file cannot be
                read any more.
        """
        hit = self.hit(self.corpus.number_at(path, line), 1.0)
        if hit is None:
            raise UsageError(
                f"{visible(path)}: it cannot be read any more, or has changed just now"
            )
        return hit

    def lose(self, number: int) -> None:
        """Count a passage that is not there any more, unless its file was counted."""
        is_of_file = number < len(self.corpus.table)
        if not is_of_file or self._row(number)[0] not in self._refused:
            self.skipped.changed_passage()

    def _row(self, number: int) -> tuple[int, Any]:
        """Return a passage's file and its row of FIELDS."""
        file = int(np.searchsorted(self.corpus.firsts, number, "right")) - 1
        return file, self.corpus.table[number]

    def _passage(self, file: int, row: Any) -> tuple[str | None, str | None]:  # noqa: ANN401
        """Return text and title of a passage; no text where its file has changed."""
        whole = self.of_file(file)
        if whole is None:
            return None, None
        text = whole[int(row["start"]) : int(row["end"])]
        title = self._title(file, int(row["title"]))
        return (text, title) if passage_key(title, text) == bytes(row["key"]) else (None, None)

    def _title(self, file: int, number: int) -> str | None:
        if file not in self._titles:
            self._titles[file] = self._table.titles(self.corpus.files[file].real)
        titles = self._titles[file]
        return (titles[number] or None) if number < len(titles) else None

    def _moved(self, file: int, key: bytes) -> tuple[Passage, str] | None:
        """Return the passage where it is now in its file, and its text."""
        real = self.corpus.files[file].real
        try:
            self._sizes[file] = os.stat(real).st_size  # noqa: PTH116
        except OSError:
            return None
        self._held_size -= len(self._held.pop(file, ""))
        whole = self.of_file(file) or ""
        for passage in split(whole, real, self.corpus.kind):
            text = whole[passage.start : passage.end]
            if passage_key(passage.title, text) == key:
                return passage, text
        return None
