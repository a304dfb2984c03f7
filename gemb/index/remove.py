"""Rows taken out of an index: by id, by path, by a filter."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from gemb.errors import UsageError
from gemb.index import places
from gemb.index.changes import Changes
from gemb.index.finish import finish
from gemb.index.manifest import Manifest
from gemb.index.reader import Index
from gemb.index.row_changes import MayRemove
from gemb.index.rows import id_columns, path_column
from gemb.index.sync import writing
from gemb.index.where import condition_for, matching
from gemb.io.text import visible


def remove(
    folder: Path,
    references: Sequence[str],
    where: str | None,
    may_remove: MayRemove | None,
) -> Changes:
    """Remove rows, or only count them.

    Args:
        folder: of the index.
        references: ids, files, folders.
        where: a filter.
        may_remove: asked first; None: only count.

    Raises:
        UsageError: a reference names nothing, the filter is none, or `may_remove` forbids.
        GembError: the index is damaged.
    """
    if may_remove is None:
        with Index.open(folder) as index:
            slots = _slots(index.connection, index.manifest, references, where)
            return Changes(unit="rows", removed=len(slots))
    with writing(folder) as (manifest, writer):
        slots = _slots(writer.connection, manifest, references, where)
        count = writer.rows
        may_remove(len(slots), count)
        # A file that lost a passage is read again by the next sync; one that lost all is new.
        writer.run("CREATE TEMP TABLE out_of(path)")
        for slot in slots:
            writer.run("INSERT INTO out_of SELECT path FROM rows WHERE slot = ?", (slot,))
        writer.run("UPDATE files SET mtime_ns = -1 WHERE path IN (SELECT path FROM out_of)")
        writer.remove(slots)
        writer.run(
            "DELETE FROM files WHERE path IN (SELECT path FROM out_of) "
            "AND path NOT IN (SELECT path FROM rows WHERE path IS NOT NULL)"
        )
        writer.commit()
        finish(folder, manifest, writer, None)
        return Changes(unit="rows", removed=len(slots), rows=count - len(slots))


def _slots(
    connection: sqlite3.Connection, manifest: Manifest, references: Sequence[str], where: str | None
) -> list[int]:
    """Return the slots that are meant, ascending."""
    slots: set[int] = set()
    for reference in references:
        found = _named(connection, manifest, reference)
        if not found:
            raise UsageError(f"no row and no file '{visible(reference, 80)}'; nothing was removed")
        slots |= found
    if where is not None:
        slots.update(matching(connection, condition_for(connection, where)).tolist())
    return sorted(slots)


def _named(connection: sqlite3.Connection, manifest: Manifest, reference: str) -> set[int]:
    """Return the slots of an id, of a file, or of all files in a folder."""
    ids = id_columns(reference)
    found = connection.execute(
        f"SELECT slot FROM rows WHERE id IN ({', '.join('?' * len(ids))})",
        ids,
    ).fetchall()
    for path in places.kept(reference, str(manifest.source.get("base", "/"))):
        column = path_column(path)
        found += connection.execute("SELECT slot FROM rows WHERE path = ?", (column,)).fetchall()
        # All that begin with the folder and its slash; `0` follows `/`. A path that is no UTF-8 is
        # stored as bytes, which SQLite compares with bytes alone.
        query = "SELECT slot FROM rows WHERE path >= ? AND path < ?"
        if isinstance(column, str):
            found += connection.execute(query, (column + "/", column + "0")).fetchall()
        data = os.fsencode(path)
        found += connection.execute(query, (data + b"/", data + b"0")).fetchall()
    return {slot for (slot,) in found}
