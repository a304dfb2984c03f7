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

from gemb.datasets.files import AS_USUAL, Written, open_file
from gemb.io.text import visible
from gemb.texts.contents import shown
from gemb.texts.records import TEXT_NAMES
from gemb.texts.tables import json_value

ID_NAMES = ("_id", "id", "docid")  # the first that a line has


def text_of(row: Mapping[str, object]) -> object:
    """Return the text of a line of corpus.jsonl or queries.jsonl, None where it has none."""
    return next((row[name] for name in TEXT_NAMES if name in row), None)


def text_id(row: Mapping[str, object]) -> str | None:
    """Return the id of a line of corpus.jsonl or queries.jsonl, None where it has none."""
    return id_of(next((row[name] for name in ID_NAMES if name in row), None))


def id_of(value: object) -> str | None:
    """Return an id as text, None where it is none: a text or a whole number."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


class IdentifiedTexts:
    """Those of a file's texts that are asked for, by id; each is read when it is asked for.

    Memory grows with the ids that are asked for, not with the file; of a file that cannot be read
    in place (gzip, Parquet, another encoding) also with their texts.
    """

    def __init__(self, path: Path, ids: Collection[str], written: Written = AS_USUAL) -> None:
        """Find the lines; of an id that stands there twice, the first counts.

        Args:
            path: JSON lines, or another file of rows.
            ids: of what will be read.
            written: how its texts are written.

        Raises:
            UsageError: the file cannot be read.
        """
        file = open_file(path, written)
        self._name = shown(path.name)
        self._unread = ""  # where the first line that cannot be read is, and why
        self._texts: dict[str, dict[str, object]] = {}
        self._places: dict[str, tuple[int, int]] = {}  # id -> offset and size of its line
        for row in file.rows():
            if row.values is None:
                self._unread = self._unread or f"{self._name}:{row.number}: {row.reason}"
                continue
            key = text_id(row.values)
            if key is None or key not in ids or key in self:
                continue
            if file.in_place:
                self._places[key] = (row.offset, row.size)
            else:
                self._texts[key] = _text_and_title(row.values)
        self._fd = os.open(path, os.O_RDONLY)

    def absent(self, key: str) -> str:
        """Return in words that a text is not there, and why that may be."""
        why = f"; a line of it cannot be read ({self._unread})" if self._unread else ""
        return f"'{visible(key, 40)}' is not in {self._name}{why}"

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
        return key in self._places or key in self._texts

    def __getitem__(self, key: str) -> dict[str, object]:
        """Return text and title, as they stand in the file.

        Raises:
            KeyError: it is not there.
        """
        if key in self._texts:
            return self._texts[key]
        offset, size = self._places[key]
        line, _ = json_value(os.pread(self._fd, size, offset))
        return _text_and_title(line)


def _text_and_title(row: Mapping[str, object]) -> dict[str, object]:
    return {"text": text_of(row), "title": row.get("title")}
