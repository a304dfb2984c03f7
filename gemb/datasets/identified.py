"""Texts that others name by their ids: the lines of a corpus.jsonl or a queries.jsonl.

Their names are BEIR's (_id, title, text), and those of Pyserini and Tevatron (id or docid,
contents).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import orjson

from gemb.datasets.files import open_file
from gemb.errors import UsageError
from gemb.texts.contents import shown
from gemb.texts.records import TEXT_NAMES

ID_NAMES = ("_id", "id", "docid")  # the first that a line has


def text_of(row: Mapping[str, object]) -> object:
    """Return the text of a line of corpus.jsonl or queries.jsonl, None where it has none."""
    return next((row[name] for name in TEXT_NAMES if name in row), None)


def text_id(row: Mapping[str, object]) -> str | None:
    """Return the id of a line of corpus.jsonl or queries.jsonl, None where it has none."""
    return as_id(next((row[name] for name in ID_NAMES if name in row), None))


def as_id(value: object) -> str | None:
    """Return an id as text, None where it is none: a text or a whole number."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


class IdentifiedTexts:
    """Those of a file's texts that are asked for, by id; each is read when it is asked for.

    Memory grows with the ids that are asked for, not with the file.
    """

    def __init__(self, path: Path, ids: Collection[str]) -> None:
        """Find the lines; of an id that stands there twice, the first counts.

        Args:
            path: JSON lines.
            ids: of what will be read.

        Raises:
            UsageError: the file cannot be read in place.
        """
        file = open_file(path)
        if not file.in_place:
            raise UsageError(
                f"{shown(path)} is compressed, not UTF-8 or no JSON lines; its lines are read in "
                "place: gunzip it, iconv -t utf-8, or write it as JSONL"
            )
        self._places: dict[str, tuple[int, int]] = {}  # id -> offset and size of its line
        for row in file.rows():
            if row.values is None:
                continue  # if somebody names it, that is missed by its id
            key = text_id(row.values)
            if key is not None and key in ids and key not in self._places:
                self._places[key] = (row.offset, row.size)
        self._fd = os.open(path, os.O_RDONLY)

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        os.close(self._fd)

    def __contains__(self, key: str) -> bool:
        """Return whether the file has this id, which was asked for."""
        return key in self._places

    def __getitem__(self, key: str) -> dict[str, object]:
        """Return text and title, as they stand in the file.

        Raises:
            KeyError: it is not there.
        """
        offset, size = self._places[key]
        line: dict[str, object] = orjson.loads(os.pread(self._fd, size, offset))
        return {"text": text_of(line), "title": line.get("title")}
