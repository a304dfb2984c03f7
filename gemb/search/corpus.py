"""The passages of files and streams by number, with their texts where they are: on the disk."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemb.embedding.store import key_of
from gemb.errors import UsageError
from gemb.index.hits import Hit
from gemb.search.cache import FIELDS, PassageTable, unpacked
from gemb.texts.passages import Passage, split
from gemb.texts.records import Record
from gemb.texts.walk import Entry, Skipped, read_text

HELD = 1 << 24  # characters of files' texts that are held for the next passage
_LINE = re.compile(r"line (\d+)$")


def passage_key(title: str | None, text: str) -> bytes:
    """Return what stands for a passage in a store of one prompt's vectors."""
    return key_of(f"{title or ''}\0{text}")


class Passages:
    """Numbers 0 to n - 1: the files' passages in the order of the files, then those of streams."""

    def __init__(self, kind: str, skipped: Skipped, known: PassageTable | None) -> None:
        self.skipped = skipped
        self.entries: list[Entry] = []
        self.records: list[tuple[str | None, Record]] = []  # path of the stream or table
        self.table: NDArray[Any] = np.zeros(0, FIELDS)  # of the files' passages
        self._kind = kind
        self.known = known  # what earlier searches saw
        self._firsts: NDArray[np.int64] = np.zeros(1, np.int64)  # of each file's passages
        self._titles: dict[int, Sequence[str]] = {}
        self._keys: list[bytes] = []
        self._held: OrderedDict[int, str] = OrderedDict()
        self._refused: set[int] = set()  # files that cannot be read any more, as was said

    def fill(
        self,
        files: Sequence[tuple[Entry, bytes]],
        titles: dict[int, Sequence[str]],
        records: list[tuple[str | None, Record]],
    ) -> None:
        """Take the passages.

        Args:
            files: each with its passages, of FIELDS, as bytes.
            titles: of some files' passages, by the file's number; the others' are in the table.
            records: of streams and tables, with their paths.
        """
        self.entries = [entry for entry, _ in files]
        counts = [len(part) // FIELDS.itemsize for _, part in files]
        self._firsts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self.table = unpacked(b"".join(part for _, part in files))
        self._titles = titles
        self.records = records

    def __len__(self) -> int:
        return len(self.table) + len(self.records)

    def keys(self) -> list[bytes]:
        """Return each passage's key."""
        if len(self._keys) != len(self):
            of_files: list[bytes] = self.table["key"].tolist()
            of_records = [passage_key(record.title, record.text) for _, record in self.records]
            self._keys = of_files + of_records
        return self._keys

    def file_of(self, number: int) -> int:
        """Return the number of a passage's file; that of a stream's is beyond all files'."""
        if number >= len(self.table):
            return len(self.entries)
        return int(np.searchsorted(self._firsts, number, "right")) - 1

    def files_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return `file_of` each, int64 [n]."""
        files: NDArray[np.int64] = np.searchsorted(self._firsts, numbers, "right") - 1
        return np.minimum(files, len(self.entries))

    def of_file(self, file: int) -> range:
        """Return the numbers of a file's passages."""
        return range(int(self._firsts[file]), int(self._firsts[file + 1]))

    def record(self, number: int) -> Record | None:
        """Return a passage as a record whose id is its number, None where its file has changed."""
        if number >= len(self.table):
            path, record = self.records[number - len(self.table)]
            return replace(record, id=number, place=f"{path or 'standard input'}, {record.place}")
        file = self.file_of(number)
        row = self.table[number]
        text, title = self._passage(file, row)
        if text is None:
            return None
        return Record(number, f"{self.entries[file].path}:{row['line']}", text, title)

    def text_of(self, file: int) -> str | None:
        """Return all of a file's text, None where it has none any more."""
        if file in self._held:
            self._held.move_to_end(file)
            return self._held[file]
        # A file that is known from an earlier search was not opened in this one so far.
        own = Skipped(silent=True)
        text = read_text(self.entries[file], own)
        if own.failed and file not in self._refused:
            self._refused.add(file)
            self.skipped.adopt(own)
        if text is not None:
            self._held[file] = text
            while sum(map(len, self._held.values())) > HELD and len(self._held) > 1:
                self._held.popitem(last=False)
        return text

    def drop_texts(self) -> None:
        """Hold no texts any more: files are read again."""
        self._held.clear()

    def hit(self, number: int, score: float) -> Hit | None:
        """Return a passage as what was found, None where it is there no longer."""
        if number >= len(self.table):
            path, record = self.records[number - len(self.table)]
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
        file = self.file_of(number)
        row = self.table[number]
        text, title = self._passage(file, row)
        line, last_line = int(row["line"]), int(row["last_line"])
        if text is None:
            moved = self._moved(file, bytes(row["key"]))
            if moved is None:
                return None
            passage, text = moved
            title, line, last_line = passage.title, passage.line, passage.last_line
        path = self.entries[file].path
        return Hit(score=score, text=text, path=path, line=line, last_line=last_line, title=title)

    def lose(self, number: int) -> None:
        """Count a passage that is no longer where it was found, if nothing was said of its file."""
        if self.file_of(number) not in self._refused:
            self.skipped.changed += 1

    def _passage(self, file: int, row: Any) -> tuple[str | None, str | None]:  # noqa: ANN401
        """Return text and title of a passage; no text where its file has changed."""
        whole = self.text_of(file)
        if whole is None:
            return None, None
        text = whole[int(row["start"]) : int(row["end"])]
        title = self._title(file, int(row["title"]))
        return (text, title) if passage_key(title, text) == bytes(row["key"]) else (None, None)

    def _title(self, file: int, number: int) -> str | None:
        if file not in self._titles:
            known = self.known.titles(self.entries[file].real) if self.known else []
            self._titles[file] = known
        titles = self._titles[file]
        return (titles[number] or None) if number < len(titles) else None

    def _moved(self, file: int, key: bytes) -> tuple[Passage, str] | None:
        """Return the passage where it is now in its file, and its text."""
        entry = self.entries[file]
        try:
            size = os.stat(entry.real).st_size  # noqa: PTH116
        except OSError:
            return None
        self.entries[file] = entry._replace(size=size)
        self._held.pop(file, None)
        whole = self.text_of(file)
        for passage in split(whole or "", entry.real, self._kind):
            text = (whole or "")[passage.start : passage.end]
            if passage_key(passage.title, text) == key:
                return passage, text
        return None

    def number_at(self, path: str, line: int) -> int:
        """Return the number of the passage that holds a line of a file.

        Raises:
            UsageError: no such file was searched, or the line is blank or beyond its end.
        """
        real = os.path.abspath(path)  # noqa: PTH100 - resolves no links
        for file, entry in enumerate(self.entries):
            if entry.real == real:
                for number in self.of_file(file):
                    row = self.table[number]
                    if row["line"] <= line <= row["last_line"]:
                        return number
                raise UsageError(f"{path}: no passage has line {line}; name a line with text")
        raise UsageError(f"{path} is not among the files that are searched")
