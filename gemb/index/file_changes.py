"""Files and their passages against what an index holds."""

from __future__ import annotations

import time
from collections.abc import Iterator

from gemb.index.matching import Known
from gemb.index.passage_source import entries, is_gone, passage_rows
from gemb.index.row_changes import MayRemove
from gemb.index.rows import path_of
from gemb.index.update_state import File, New, State
from gemb.texts.records import Record
from gemb.texts.walk import Entry, read_text

SETTLED_NS = 2 * 10**9  # a file may be written to twice within one tick of its disk's clock


def file_changes(state: State, may_remove: MayRemove) -> Iterator[Record]:
    """Yield the records that must be embedded, and do what needs no vector.

    A file with the size, time and inode that it had is not opened. Of one that was written to, the
    passages that it had before keep their vectors, wherever they are now.
    """
    began_ns = time.time_ns()
    found = entries(state.source, state.skipped)
    query = "SELECT path, size, mtime_ns, inode, passages FROM files"
    stamps = {path_of(row[0]): row[1:] for row in state.connection.execute(query).fetchall()}
    seen = {entry.path for entry in found}
    gone = [
        path
        for path in stamps
        if path and path not in seen and is_gone(path, state.source, state.skipped)
    ]
    state.changes.removed = sum(stamps[path][-1] > 0 for path in gone)
    if state.writer and gone:
        may_remove(state.changes.removed, sum(stamp[-1] > 0 for stamp in stamps.values()))
    new = [
        entry
        for entry in found
        if stamps.get(entry.path, ())[:3] != (entry.size, entry.mtime_ns, entry.inode)
    ]
    state.changes.same = sum(
        stamps[entry.path][-1] > 0 for entry in found if entry.path in stamps
    ) - sum(stamps[entry.path][-1] > 0 for entry in new if entry.path in stamps)
    state.total = sum(entry.size for entry in new)
    for entry in new:
        if entry.mtime_ns > began_ns - SETTLED_NS:
            entry = entry._replace(mtime_ns=-1)  # look again next time
        yield from _file(state, entry, had=stamps.get(entry.path, (0,))[-1])
    state.skipped.say()
    if state.writer:
        for path in gone:
            slots = [old.slot for old in state.of_path(path)]
            state.waiting.append(File(Entry(path, "", 0, 0, 0, False), gone=slots, is_gone=True))


def _file(state: State, entry: Entry, had: int) -> Iterator[Record]:
    """Yield what must be embedded of a file that is new or was written to.

    Args:
        state: of the pass.
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
    file = File(entry)
    is_other = False
    for source_row in passage_rows(text, entry.path, state.source) if text else ():
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
