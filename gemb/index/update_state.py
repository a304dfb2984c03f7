"""What a pass over a source has done so far, and the rows that wait for their vectors."""

from __future__ import annotations

import sqlite3
from collections import deque
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from numpy.typing import NDArray

from gemb.embedding.pipeline import Row
from gemb.embedding.run import Tally
from gemb.embedding.store import KEY_BYTES, key_of
from gemb.index.changes import Changes
from gemb.index.manifest import Manifest
from gemb.index.matching import Known, Matcher
from gemb.index.rows import IndexRow, kept_json, path_column
from gemb.index.source import PASSAGES, Source, SourceRow
from gemb.index.writer import Writer
from gemb.models.prompts import Prompt
from gemb.texts.records import Record, RowError
from gemb.texts.walk import Entry, Skipped


@dataclass
class File:
    """A file that is up to date when all its rows are written."""

    entry: Entry
    passages: int = 0
    gone: list[int] = field(default_factory=list)  # slots of passages that it no longer has
    is_whole: bool = True  # all its passages have a vector
    is_gone: bool = False  # it is no part of the source any more


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
        writer: Writer | None,
        *,
        quiet: bool,
    ) -> None:
        """Look at what the index holds: `slots` slots, of which the connection knows the rows."""
        self.source = Source.from_json(manifest.source)
        self.prompt = Prompt(manifest.spec.prompt)
        self.changes = Changes(unit="files" if self.source.kind == PASSAGES else "rows")
        self.tally = Tally(manifest.spec.max_tokens)
        self.skipped = Skipped(quiet=quiet)
        self.connection = connection
        self.writer = writer
        self.matcher = Matcher(connection, slots)
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
        return self.matcher.of_path(path_column(path))

    def fail(self, record: Record, error: RowError) -> None:
        """Count a row that gets no vector."""
        self.tally.sort([Row(record, error=error)], on_long="error", on_error="skip")

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
        twin = self.matcher.twin(new.row.digest)
        if twin is not None and (self.writer is None or self.writer.has_stored(twin)):
            self.changes.copied += 1
            self._write(new, self.writer.stored(twin) if self.writer else None)
            return False
        self.changes.embedded += 1
        if self.writer:
            self.waiting.append(new)
        return self.writer is not None

    def _write(self, new: New, stored: NDArray[Any] | None) -> None:
        self.tally.rows += 1
        if self.writer and stored is not None:
            self.writer.add_stored(new.row, stored)
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
        path, _, size, mtime_ns, inode, _ = file.entry
        column = path_column(path)
        if file.is_gone:
            self.writer.run("DELETE FROM files WHERE path = ?", (column,))
        else:
            stamp = (size, mtime_ns if file.is_whole else -1, inode, file.passages)
            statement = "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)"
            self.writer.run(statement, (column, *stamp))
        self.writer.tick()
