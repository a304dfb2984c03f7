"""Rows of an index whose vectors are drafts, and those that searches wish had real ones.

A draft stands in the place of a row's vector, with zeros behind it: so it is as long as the others,
and its product with a query is that of the draft. Where the draft model fails all are zeros, as no
vector is. The table `drafts` names such rows. When a row
gets its real vector, in a slot of its own, the table keeps the draft: from rows that have both a
search tells what the drafts of the others are worth.

`wanted.bin` has the slots, int64, that searches ranked high by drafts: each search appends -1 and
its slots, best first.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemb.arrays import Bools, Ints, Vectors
from gemb.errors import UsageError
from gemb.io.atomic import new_file
from gemb.io.foreign import open_regular

DRAFTS = """CREATE TABLE drafts(
    slot INTEGER PRIMARY KEY,
    vector BLOB                 -- float16; NULL: it stands in the place of the row's vector
)"""
NUMBERS = np.dtype("<f2")
MOST_WANTED = 1 << 20  # bytes; more is not appended
WANTED = 64  # slots of a query that are appended
# The index may be somebody else's: no link is followed, and no pipe waited for.
_APPENDING = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def has_drafts(connection: sqlite3.Connection) -> bool:
    """Return whether there is the table; an index of an earlier version has none."""
    query = "SELECT 1 FROM sqlite_schema WHERE name = 'drafts'"
    return connection.execute(query).fetchone() is not None


def draft_slots(connection: sqlite3.Connection) -> Ints:
    """Return the slots whose vectors are drafts, ascending."""
    if not has_drafts(connection):
        return np.empty(0, np.int64)
    rows = connection.execute("SELECT slot FROM drafts WHERE vector IS NULL ORDER BY slot")
    return np.fromiter((slot for (slot,) in rows), np.int64)


def misplaced_draft(drafts: Ints, removed: Sequence[int], slots: int) -> int | None:
    """Return the first slot of a draft that is no row's, None where all are.

    Args:
        drafts: slots, ascending.
        removed: slots that are no rows' any more.
        slots: how many there are.
    """
    outside = drafts[(drafts < 0) | (drafts >= slots) | np.isin(drafts, removed)]
    return int(outside[0]) if len(outside) else None


def draft_copies(connection: sqlite3.Connection, slot: int) -> list[int]:
    """Return the other slots with the text of one, whose vectors are drafts, ascending."""
    rows = connection.execute(
        "SELECT slot FROM rows JOIN drafts USING (slot) WHERE vector IS NULL AND slot <> ?1 "
        "AND digest = (SELECT digest FROM rows WHERE slot = ?1) ORDER BY slot",
        (slot,),
    )
    return [copy for (copy,) in rows]


def is_draft(connection: sqlite3.Connection, slot: int) -> bool:
    """Return whether the vector of a slot is a draft."""
    query = "SELECT 1 FROM drafts WHERE slot = ? AND vector IS NULL"
    return has_drafts(connection) and connection.execute(query, (slot,)).fetchone() is not None


def kept_drafts(
    connection: sqlite3.Connection, slots: Iterable[int], width: int
) -> Mapping[int, Vectors]:
    """Return the drafts of those of these slots that have a real vector, too, float32 [width].

    Raises:
        DatabaseError: one is not as it was written.
    """
    kept: dict[int, Vectors] = {}
    for slot in slots:
        query = "SELECT vector FROM drafts WHERE slot = ? AND vector IS NOT NULL"
        for (data,) in connection.execute(query, (slot,)).fetchall():
            kept[slot] = draft_of(data, width)
    return kept


def draft_of(data: object, width: int) -> Vectors:
    """Return a draft of the table, float32 [width].

    Raises:
        DatabaseError: it is not as it was written.
    """
    if not isinstance(data, bytes) or len(data) != width * NUMBERS.itemsize:
        raise sqlite3.DatabaseError("a draft is not as it was written")
    vector: Vectors = np.frombuffer(data, NUMBERS).astype(np.float32)
    return vector


def padded(drafts: Vectors, dim: int) -> Vectors:
    """Return drafts, [n, width], as vectors of the index, [n, dim]; of a row of NaN all zeros."""
    vectors = np.zeros((len(drafts), dim), np.float32)
    vectors[:, : drafts.shape[1]] = drafts
    vectors[np.isnan(drafts).any(axis=1)] = 0
    return vectors


def have_failed(stored: NDArray[Any]) -> Bools:
    """Return which drafts, [n, dim] as they are stored, the draft model could not make, [n]."""
    return np.asarray(~stored.any(axis=1))


def want(path: Path, slots: Sequence[int]) -> None:
    """Say that a search wishes these slots, best first, had real vectors; nobody waits for it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, _APPENDING, 0o666)
        try:
            if os.fstat(descriptor).st_size < MOST_WANTED:
                os.write(descriptor, _search(slots[:WANTED]))
        finally:
            os.close(descriptor)


def wanted(path: Path) -> list[int]:
    """Return the slots that searches want: those first that many searches ranked high."""
    try:
        with open_regular(path) as file:
            data = file.read(MOST_WANTED)
    except (OSError, UsageError):
        return []
    weights: dict[int, float] = {}
    rank = 0
    for slot in np.frombuffer(data[: len(data) // 8 * 8], "<i8").tolist():
        rank = 0 if slot < 0 else rank + 1
        if rank:
            weights[slot] = weights.get(slot, 0.0) + 1 / rank
    return sorted(weights, key=lambda slot: -weights[slot])


def keep_wanted(path: Path, slots: Sequence[int]) -> None:
    """Replace what is wanted, the most wanted first; nothing: the file goes."""
    with contextlib.suppress(OSError):
        if not slots:
            path.unlink(missing_ok=True)
            return
        with new_file(path) as part:
            part.write_bytes(_search(slots))


def _search(slots: Sequence[int]) -> bytes:
    """Return the slots of a search as the file has them."""
    return np.array([-1, *slots], "<i8").tobytes()
