"""A pass over the source of an index: what it has done, and the rows that wait for vectors."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemb.embedding.drafts import DraftModel
from gemb.embedding.pipeline import OutputRow
from gemb.embedding.run import Tally
from gemb.embedding.store import KEY_BYTES, key_of
from gemb.index.drafts import is_draft
from gemb.index.manifest import Manifest
from gemb.index.reader import slots_of_id
from gemb.index.schema import TO_READ_AGAIN, IndexRow, StoredFile, kept_json, path_column
from gemb.index.source import PassageSource, SourceRow, source_from_json
from gemb.index.writer import Writer
from gemb.io.stamps import Stamp
from gemb.models.prompts import Prompt
from gemb.texts.records import Id, Record, RowError
from gemb.texts.walk import Skipped


@dataclass(kw_only=True)
class Changes:
    """Counts; of files, where the source is files, else of rows."""

    unit: str  # rows, files
    added: int = 0
    changed: int = 0
    removed: int = 0
    same: int = 0
    embedded: int = 0  # rows that got a new vector; in a dry run, would get one
    copied: int = 0  # new rows whose text was there already, with its vector
    drafted: int = 0  # rows that got a draft of a vector; in a dry run, would get one
    taken: int = 0  # new rows that came with their vector
    failed: int = 0  # rows of the source that have no vector
    unreadable: int = 0  # files or folders; what the index had of them stays
    rows: int | None = None  # of the index, afterwards; None: nothing was done

    def line(self) -> str:
        """Return the counts in short: +12 ~3 -1 files (41 passages embedded; 512 in all)."""
        what = "passage" if self.unit == "files" else "row"
        done = self.rows is not None
        more = [f"{counted(self.embedded, what)} {'embedded' if done else 'to embed'}"]
        if self.drafted:
            more = [f"{counted(self.drafted, what)} {'drafted' if done else 'to draft'}"]
        if self.taken:
            more = [f"{counted(self.taken, 'vector')} taken over"]
        if self.copied:
            more.append(f"{self.copied:,} had their vector already")
        if self.rows is not None:
            more.append(f"{self.rows:,} in all")
        counts = f"+{self.added:,} ~{self.changed:,} -{self.removed:,}"
        return f"{counts} {self.unit} ({'; '.join(more)})"

    def to_json(self) -> dict[str, object]:
        """Return the counts by name."""
        return asdict(self)


def counted(count: int, what: str) -> str:
    """Return a count with its noun: 1 row, 2 rows."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


class Known(NamedTuple):
    """A stored row."""

    slot: int
    digest: bytes
    crc: int


class RowLookup:
    """Finds stored rows, each claimed once. What is left at the end is no longer in the source.

    Rows that are appended meanwhile are found, too: they are claimed from the beginning. A byte,
    and for a text that stands in several rows a number, of memory for each stored row.
    """

    def __init__(self, connection: sqlite3.Connection, slots: int, removed: Sequence[int]) -> None:
        """Look at the first `slots` slots; `make_lookups` was called where there are any."""
        self._connection = connection
        self._claimed = np.zeros(slots, np.bool_)
        self._claimed[list(removed)] = True
        self._last: dict[bytes, int] = {}  # digest -> the last slot that was claimed with it
        self.slots = slots
        self.count = slots - int(self._claimed.sum())

    def with_id(self, row_id: Id) -> Known | None:
        """Return the last row of this id, claimed or not."""
        slots = slots_of_id(self._connection, row_id)
        query = "SELECT slot, digest, crc FROM rows WHERE slot = ?"
        return self._first(query, slots[-1]) if slots else None

    def with_digest(self, digest: bytes) -> Known | None:
        """Return the first row of this digest that nobody has claimed."""
        if not self.slots:
            return None  # nor is there anything to look it up with
        query = "SELECT slot, digest, crc FROM rows WHERE digest = ? AND slot > ? ORDER BY slot"
        after = self._last.get(digest, -1)
        while row := self._first(query, digest, after):
            if not self.is_claimed(row.slot):
                return row
            after = self._last[digest] = row.slot
        return None

    def twin(self, digest: bytes, committed: int) -> int | None:
        """Return the last of the committed rows of this digest, claimed or not.

        Its vector is the same, and a real one where any of them has one: real vectors come later
        than drafts, and all drafts of a text are refined together.
        """
        if not self.slots:
            return None
        query = (
            "SELECT slot, digest, crc FROM rows WHERE digest = ? AND slot < ? "
            "ORDER BY slot DESC LIMIT 1"
        )
        row = self._first(query, digest, committed)
        return row.slot if row else None

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

    def _first(self, query: str, *values: object) -> Known | None:
        cursor = self._connection.execute(query, values)
        row = cursor.fetchone()
        cursor.close()  # an open one would hold the transaction
        return Known(*row) if row else None


@dataclass
class File:
    """A file that is up to date when all its rows are written."""

    path: str
    stamp: Stamp | None  # None: it is no part of the source any more
    passages: int = 0
    gone: list[int] = field(default_factory=list)  # slots of passages that it no longer has
    is_whole: bool = True  # all its passages have a vector


@dataclass
class New:
    """A row that waits for its vector."""

    row: IndexRow
    replaces: int | None = None  # slot
    stored: NDArray[Any] | None = None  # its vector, where the source has it
    file: File | None = None


class State:
    """An index that is brought up to date; without a writer it is only looked at."""

    def __init__(
        self,
        manifest: Manifest,
        connection: sqlite3.Connection,
        slots: int,
        removed: Sequence[int],
        writer: Writer | None,
        draft: DraftModel | None,
    ) -> None:
        """Look at what the index holds.

        Args:
            manifest: of the index.
            connection: to its rows.
            slots: how many there are, of which the connection knows the rows.
            removed: slots that are no rows' any more.
            writer: None: the index is only looked at.
            draft: makes drafts for new rows; None: these get real vectors.
        """
        self.spec = manifest.spec
        self.splitting = manifest.splitting
        self.source = source_from_json(manifest.source)
        self.prompt = Prompt(manifest.spec.prompt)
        self.changes = Changes(unit="files" if isinstance(self.source, PassageSource) else "rows")
        self.draft = draft
        self.tally = Tally(manifest.spec.max_tokens)
        self.skipped = Skipped()
        self.connection = connection
        self.writer = writer
        self.lookup = RowLookup(connection, slots, removed)
        self.waiting: deque[New | File] = deque()
        self.total: int | None = None  # sum of all `Record.size` that may get a vector, for the bar

    def row(self, source_row: SourceRow) -> IndexRow:
        """Return a row as the index keeps it."""
        record, row_id, path, line, last_line, stored = source_row
        return IndexRow(
            id=row_id,
            path=path,
            line=line,
            last_line=last_line,
            title=record.title,
            text=record.text,
            kept=kept_json(record.kept),
            digest=key_of(self.prompt.render(record.text, record.title))
            if stored is None
            else blake2b(stored.tobytes(), digest_size=KEY_BYTES).digest(),
        )

    def of_path(self, path: str) -> list[Known]:
        """Return the stored rows of a file."""
        return self.lookup.of_path(path_column(path))

    def fail(self, record: Record, error: RowError) -> None:
        """Count a row that gets no vector."""
        self.tally.sort([OutputRow(record, error=error)], on_long="error", on_error="skip")

    def keep(self, old: Known, row: IndexRow) -> bool:
        """Give a row that has its vector its fields; return whether they are other ones."""
        self.tally.rows += 1
        if old.crc == row.columns()[-1]:
            return False
        if self.writer:
            self.writer.update(old.slot, row)
            self.writer.tick()
        return True

    def needs_vector(self, new: New) -> bool:
        """Write a new row with the vector of one that has the same text, or let it wait."""
        if new.stored is not None:
            self.changes.taken += 1
            self._write(new, new.stored)
            return False
        committed = self.writer.committed if self.writer else self.lookup.slots
        twin = self.lookup.twin(new.row.digest, committed)
        if twin is not None:
            is_twin_draft = is_draft(self.connection, twin)
            if self.draft or not is_twin_draft:
                self.changes.copied += 1
                stored = self.writer.stored(twin) if self.writer else None
                self._write(new, stored, is_draft=is_twin_draft)
                return False
        if self.draft:
            self.changes.drafted += 1
        else:
            self.changes.embedded += 1
        if self.writer:
            self.waiting.append(new)
        return self.writer is not None

    def _write(self, new: New, stored: NDArray[Any] | None, *, is_draft: bool = False) -> None:
        self.tally.rows += 1
        if self.writer and stored is not None:
            self.writer.add_stored(new.row, stored, is_draft=is_draft)
            self.replace(new)
            self.writer.tick()

    def replace(self, new: New) -> None:
        """Remove the row in whose place a new one stands."""
        if self.writer and new.replaces is not None:
            self.writer.remove([new.replaces])

    def next_new(self) -> New:
        """Return the row that waits longest; write the files before it that are done."""
        while isinstance(waiting := self.waiting.popleft(), File):
            self._settle(waiting)
        return waiting

    def drain(self) -> None:
        """Write the files that are done, after the last row."""
        while self.waiting:
            waiting = self.waiting.popleft()
            assert isinstance(waiting, File), "a row was not given its vector"
            self._settle(waiting)

    def _settle(self, file: File) -> None:
        assert self.writer, "nothing waits in a dry run"
        self.writer.remove(file.gone)
        column = path_column(file.path)
        if file.stamp is None:
            self.writer.run("DELETE FROM files WHERE path = ?", (column,))
        else:
            stamp = file.stamp
            if not file.is_whole:
                stamp = stamp._replace(ctime_ns=TO_READ_AGAIN)
            assert column is not None, "a file has a path"
            self.writer.put_file(StoredFile(column, stamp, file.passages))
        self.writer.tick()
