"""Rows of files and of standard input against what an index holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gemb.index.matching import Known
from gemb.index.rows import IndexRow, path_of
from gemb.index.source import SourceRow
from gemb.index.update_state import New, State
from gemb.texts.records import Record, RowError

DUPLICATE = RowError("duplicate_id", "a row before it has this id")
AHEAD = 4096  # rows that may wait for their vectors; the pipeline looks less far

MayRemove = Callable[[int, int], None]  # (how many, of how many); raises where it must not be


def row_changes(state: State, rows: Iterator[SourceRow], may_remove: MayRemove) -> Iterator[Record]:
    """Yield the records that must be embedded, and do what needs no vector.

    Rows with an id of their own are told apart by it. Of others the text is what they are: one that
    has moved keeps its vector. A row that is new where another one was has changed.
    """
    ids = _Ids(state) if state.source.id is not None else None
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
        old = ids.old(row) if ids else state.matcher.with_digest(row.digest)
        if old:
            state.matcher.claim(old.slot)
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
            if state.matcher.count and not ids:
                places.add((row.path, row.id))
        if state.needs_vector(New(row, old.slot if old else None, source_row.stored)):
            if ids:
                ids.take(row)
            yield record
    _remove_left(state, places, may_remove)


class _Ids:
    """The rows of a source by their ids."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._waiting: set[object] = set()  # of rows that may not be in the database yet

    def old(self, row: IndexRow) -> Known | None:
        """Return the stored row of this id."""
        assert row.id is not None, "a row of a source with ids has one"
        return self._state.matcher.with_id(row.id)

    def is_taken(self, row: IndexRow) -> bool:
        """Return whether an earlier row of the source has this id."""
        old = self.old(row)
        return row.id in self._waiting or (
            old is not None and self._state.matcher.is_claimed(old.slot)
        )

    def take(self, row: IndexRow) -> None:
        """Remember the id of a row that waits."""
        if len(self._waiting) > 2 * AHEAD:
            self._waiting = {new.row.id for new in self._state.waiting if isinstance(new, New)}
        self._waiting.add(row.id)


def _remove_left(state: State, places: set[tuple[object, object]], may_remove: MayRemove) -> None:
    """Remove the rows that are not in the source any more."""
    matcher, changes = state.matcher, state.changes
    count = matcher.left_count()
    if not count:
        return
    replaced = 0
    if places:
        query = "SELECT path, id FROM rows WHERE slot = ?"
        for slot in matcher.left():
            path, row_id = state.connection.execute(query, (slot,)).fetchone()
            replaced += (path_of(path), row_id) in places
    changes.changed += replaced
    changes.added -= replaced
    changes.removed = count - replaced
    if state.writer:
        may_remove(changes.removed, matcher.count)
        state.writer.remove(matcher.left())
