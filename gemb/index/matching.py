"""Which stored rows the rows of a source are: by id, or by what the model sees."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gemb.index.rows import LARGEST
from gemb.texts.records import Id


class Known(NamedTuple):
    """A stored row."""

    slot: int
    digest: bytes
    crc: int


class Matcher:
    """Finds stored rows, each claimed once. What is left at the end is no longer in the source.

    Rows that are appended meanwhile are found, too: they are claimed from the beginning. A byte,
    and for a text that stands in several rows a number, of memory for each stored row.
    """

    def __init__(self, connection: sqlite3.Connection, slots: int) -> None:
        """Look at the first `slots` slots; `make_lookups` was called where there are any."""
        self._connection = connection
        self._claimed = np.zeros(slots, np.bool_)
        self._claimed[[slot for (slot,) in connection.execute("SELECT slot FROM removed")]] = True
        self._last: dict[bytes, int] = {}  # digest -> the last slot that was claimed with it
        self.slots = slots
        self.count = slots - int(self._claimed.sum())

    def with_id(self, row_id: Id) -> Known | None:
        """Return the row of this id, claimed or not."""
        if isinstance(row_id, int) and abs(row_id) > LARGEST:
            row_id = str(row_id)
        query = "SELECT slot, digest, crc FROM rows WHERE id = ? ORDER BY slot DESC LIMIT 1"
        return self._one(query, row_id)

    def with_digest(self, digest: bytes) -> Known | None:
        """Return the first row of this digest that nobody has claimed."""
        if not self.slots:
            return None  # nor is there anything to look it up with
        query = "SELECT slot, digest, crc FROM rows WHERE digest = ? AND slot > ? ORDER BY slot"
        after = self._last.get(digest, -1)
        while found := self._one(query, digest, after):
            if not self.is_claimed(found.slot):
                return found
            after = self._last[digest] = found.slot
        return None

    def twin(self, digest: bytes) -> int | None:
        """Return the first row of this digest, claimed or not: its vector is the same."""
        if not self.slots:
            return None
        query = "SELECT slot, digest, crc FROM rows WHERE digest = ? ORDER BY slot LIMIT 1"
        found = self._one(query, digest)
        return found.slot if found else None

    def of_path(self, path: str | bytes | None) -> list[Known]:
        """Return the rows of a file, in the order of their slots."""
        query = "SELECT slot, digest, crc FROM rows WHERE path = ? ORDER BY slot"
        return [Known(*row) for row in self._connection.execute(query, (path,))]

    def claim(self, slot: int) -> None:
        """Say that a stored row is one of the source's."""
        self._claimed[slot] = True

    def is_claimed(self, slot: int) -> bool:
        """Return whether a row is one of the source's."""
        return slot >= self.slots or bool(self._claimed[slot])

    def left(self) -> Iterator[int]:
        """Yield the slots that nobody claimed."""
        yield from np.flatnonzero(~self._claimed).tolist()

    def left_count(self) -> int:
        """Return how many nobody claimed."""
        return int((~self._claimed).sum())

    def _one(self, query: str, *values: object) -> Known | None:
        cursor = self._connection.execute(query, values)
        found = cursor.fetchone()
        cursor.close()  # an open one would hold the transaction
        return Known(*found) if found else None
