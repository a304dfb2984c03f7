"""One row of an index, as the database holds it."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gemb.texts.records import Id

# In the order of `IndexRow.columns`.
COLUMNS = "id, path, line, last_line, title, text, kept, digest, crc"
Column = int | str | bytes | None
LARGEST = (1 << 63) - 1  # integer of SQLite; an id beyond it is kept as its digits


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRow:
    """What is known of a row beside its vector."""

    id: Id | None  # None: a passage of a file
    path: str | None  # None: it came from no file
    line: int | None
    last_line: int | None
    title: str | None
    text: str
    kept: str  # a JSON object, as `kept_json` writes it
    digest: bytes  # 16 bytes

    def columns(self) -> tuple[Column, ...]:
        """Return the values of `COLUMNS`."""
        values: tuple[Column, ...] = (
            str(self.id) if isinstance(self.id, int) and abs(self.id) > LARGEST else self.id,
            path_column(self.path),
            self.line,
            self.last_line,
            self.title,
            self.text,
            self.kept,
            self.digest,
        )
        return (*values, crc(values))


def crc(values: tuple[Column, ...]) -> int:
    """Return the CRC-32 of the columns before the last one, types and all."""
    return zlib.crc32(repr(values).encode("utf-8", "surrogatepass"))


def kept_json(kept: Mapping[str, object]) -> str:
    """Return kept fields as a JSON object; dates and the like become texts."""
    return orjson.dumps(kept, str, orjson.OPT_NON_STR_KEYS).decode() if kept else "{}"


def kept_fields(text: str) -> Mapping[str, object]:
    """Return what `kept_json` wrote."""
    fields: dict[str, Any] = orjson.loads(text)
    return fields


def path_column(path: str | None) -> str | bytes | None:
    """Return a path as the database takes it: bytes, where its name is no UTF-8."""
    if path is None or path.isascii():
        return path
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return path


def id_columns(reference: str) -> list[Column]:
    """Return the forms in which an id that is typed may be stored: its text, and its number."""
    columns: list[Column] = [path_column(reference)]  # bytes, which no id is: it is no UTF-8
    if reference.isascii() and reference.isdigit() and len(reference) < 19:
        columns.append(int(reference))
    return columns


def path_of(column: str | bytes | None) -> str | None:
    """Return the path that `path_column` stored."""
    return os.fsdecode(column) if isinstance(column, bytes) else column
