"""What differs between a source and its index: rows by id or text, files and their passages."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator

from gemb.index.schema import TO_READ_AGAIN, IndexRow, path_of, stored_files
from gemb.index.source import PassageSource, SourceRow, entries, is_gone, passage_rows
from gemb.index.state import File, Known, New, State
from gemb.io.notes import note
from gemb.texts.passages import VERSION
from gemb.texts.records import Record, RowError
from gemb.texts.walk import Entry, read_text

DUPLICATE = RowError("duplicate_id", "a row before it has this id")
AHEAD = 4096  # rows that may wait for their vectors; the pipeline looks less far

MayRemove = Callable[[int, int], None]  # (how many, of how many); raises where it must not be


def row_changes(
    state: State, rows: Iterator[SourceRow], may_remove: MayRemove, *, have_ids: bool
) -> Iterator[Record]:
    """Yield the records that must be embedded, and do what needs no vector.

    Rows with an id of their own are told apart by it. Of others the text is what they are: one that
    has moved keeps its vector. A row that is new where another one was has changed.
    """
    ids = _Ids(state) if have_ids else None
    places: set[tuple[object, object]] = set()  # of new rows
    for source_row in rows:
        record = source_row.record
        if record.error:
            state.fail(record, record.error)
            continue
        row = state.row(source_row)
        if ids and ids.is_taken(row):
            state.fail(record, DUPLICATE)
            continue
        old = ids.old(row) if ids else state.lookup.with_digest(row.digest)
        if old:
            state.lookup.claim(old.slot)
        if old and old.digest == row.digest:
            is_other = state.keep(old, row)
            # The same text on another line has moved; under its own id it has other fields.
            state.changes.changed += is_other and ids is not None
            state.changes.same += not is_other or ids is None
            continue
        if old:
            state.changes.changed += 1
        else:
            state.changes.added += 1
            if state.lookup.count and not ids:
                places.add((row.path, row.id))
        if state.needs_vector(New(row, old.slot if old else None, source_row.stored)):
            if ids:
                ids.take(row)
            yield record
    _remove_left(state, places, may_remove)


class _Ids:
    """The rows of a source by their ids; a number and its digits are one id."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._waiting: set[str] = set()  # of rows that may not be in the database yet

    def old(self, row: IndexRow) -> Known | None:
        """Return the stored row of this id."""
        assert row.id is not None, "a row of a source with ids has one"
        return self._state.lookup.with_id(row.id)

    def is_taken(self, row: IndexRow) -> bool:
        """Return whether an earlier row of the source has this id."""
        old = self.old(row)
        return str(row.id) in self._waiting or (
            old is not None and self._state.lookup.is_claimed(old.slot)
        )

    def take(self, row: IndexRow) -> None:
        """Remember the id of a row that waits."""
        if len(self._waiting) > 2 * AHEAD:
            waiting = self._state.waiting
            self._waiting = {str(new.row.id) for new in waiting if isinstance(new, New)}
        self._waiting.add(str(row.id))


def _remove_left(state: State, places: set[tuple[object, object]], may_remove: MayRemove) -> None:
    """Remove the rows that are not in the source any more."""
    lookup, changes = state.lookup, state.changes
    count = lookup.left_count()
    if not count:
        return
    replaced = 0
    if places:
        query = "SELECT path, id FROM rows WHERE slot = ?"
        for slot in lookup.left():
            row = state.connection.execute(query, (slot,)).fetchone()
            if row is None:
                raise sqlite3.DatabaseError(f"row {slot} is not there")
            path, row_id = row
            replaced += (path_of(path), row_id) in places
    changes.changed += replaced
    changes.added -= replaced
    changes.removed = count - replaced
    if state.writer:
        may_remove(changes.removed, lookup.count)
        state.writer.remove(lookup.left())


def file_changes(state: State, source: PassageSource, may_remove: MayRemove) -> Iterator[Record]:
    """Yield the records that must be embedded, and do what needs no vector.

    A file with the `Stamp` that it had is not opened, unless the rules of splitting have changed.
    Of one that is opened, the passages that it had before keep their vectors, wherever they are
    now.
    """
    began_ns = time.time_ns()
    files = entries(source, state.skipped)
    stored = {path_of(file.path): file for file in stored_files(state.connection)}
    had = {path: file.passages for path, file in stored.items()}
    seen = {entry.path for entry in files}
    gone = [
        path
        for path in stored
        if path and path not in seen and is_gone(path, source, state.skipped)
    ]
    state.changes.removed = sum(had[path] > 0 for path in gone)
    if state.writer and gone:
        may_remove(state.changes.removed, sum(count > 0 for count in had.values()))
    is_outdated = bool(stored) and state.splitting != VERSION
    if is_outdated:
        note("the rules by which files become passages have changed: all files are split again")
        if state.writer:  # one that cannot be read now is read when it can be
            state.writer.read_again()
    opened = []
    for entry in files:
        known = stored.get(entry.path)
        if known and known.stamp == entry.stamp and not is_outdated:
            state.changes.same += had[entry.path] > 0
        else:
            opened.append(entry)
    state.total = sum(entry.size for entry in opened)
    for entry in opened:
        if not entry.stamp.is_settled(began_ns):
            entry = entry._replace(stamp=entry.stamp._replace(ctime_ns=TO_READ_AGAIN))
        yield from _file(state, source, entry, had=had.get(entry.path, 0))
    state.skipped.say()
    if state.writer:
        for path in gone:
            slots = [old.slot for old in state.of_path(path)]
            state.waiting.append(File(path, None, gone=slots))


def _file(state: State, source: PassageSource, entry: Entry, *, had: int) -> Iterator[Record]:
    """Yield what must be embedded of a file that is new, was written to, or is split again.

    Args:
        state: of the pass.
        source: of the index.
        entry: the file.
        had: how many passages it had before.
    """
    failed = state.skipped.failed
    text = read_text(entry, state.skipped)
    if text is None and state.skipped.failed > failed:
        state.changes.same += had > 0
        return  # it cannot be read now: its rows stay
    here: dict[bytes, list[Known]] = {}
    for old in state.of_path(entry.path):
        here.setdefault(old.digest, []).append(old)
    file = File(entry.path, entry.stamp)
    is_other = False
    for source_row in passage_rows(text, entry.path, source) if text else ():
        record = source_row.record
        if record.error:
            continue  # there are no blank passages, and U+FFFD stands for what is no UTF-8
        file.passages += 1
        row = state.row(source_row)
        same = here.get(row.digest)
        if same:
            is_other |= state.keep(same.pop(0), row)
            continue
        is_other = True
        if state.needs_vector(New(row, file=file)):
            yield record
    file.gone = [old.slot for olds in here.values() for old in olds]
    is_other = is_other or bool(file.gone)
    if had:
        state.changes.changed += is_other
        state.changes.same += not is_other
    else:
        state.changes.added += file.passages > 0
    if state.writer:
        state.waiting.append(file)
