"""The texts of the passages of a search, read from their files when they are needed."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from gemb.errors import UsageError
from gemb.index.hits import Hit
from gemb.io.text import visible
from gemb.search.cache import PassageTable
from gemb.search.corpus import LINE, Corpus, passage_key
from gemb.texts.passages import Passage, split
from gemb.texts.records import Record
from gemb.texts.walk import Skipped, open_text

HELD = 1 << 24  # characters of files' texts that are held for the next passage


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
            match = LINE.search(record.place)
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
