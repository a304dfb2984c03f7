"""An index as its readers see it: what was committed when it was opened, whoever writes meanwhile.

with Index.open(Path("docs.gemb")) as index:
    found = exact(queries, index.vectors, k=10, rows=index.alive)
    hits = index.hits(found.rows[0], found.scores[0])
"""

from __future__ import annotations

import datetime
import os
import sqlite3
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from gemb.arrays import Rows, Vectors
from gemb.embedding.vectors import VectorSpec, are_units, unpacked
from gemb.errors import GembError, UsageError
from gemb.index.codes import Coder
from gemb.index.drafts import draft_slots, have_failed, kept_drafts, misplaced_draft, want
from gemb.index.hits import Hit
from gemb.index.manifest import (
    NAME,
    Manifest,
    codes_path,
    kept_paths,
    read_manifest,
    rows_path,
    shown_path,
    vectors_path,
    wanted_path,
)
from gemb.index.mapped import MappedRows, gathered
from gemb.index.ranking import StoredVectors, damaged_vector
from gemb.index.schema import (
    COLUMNS,
    TO_READ_AGAIN,
    are_of_row,
    check_has_drafts,
    crc,
    damaged,
    explained,
    id_columns,
    kept_fields,
    open_to_read,
    path_column,
    path_of,
    readable,
    stored_files,
)
from gemb.index.words import version_of_words
from gemb.io.lfs import LONGEST, check_no_pointer
from gemb.io.stamps import Stamp
from gemb.io.text import visible
from gemb.texts.records import Id
from gemb.texts.words import VERSION

NUMBERS: dict[str, np.dtype[Any]] = {
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "int8": np.dtype("i1"),
}
GONE, CHANGED = "gone", "changed"  # the file of a hit, since it was indexed
SECOND_NS = 10**9  # of which the manifest keeps its times
LOOKED_THROUGH = 16 << 20  # bytes of a file
TRIES = 3  # a compaction replaces the files that the manifest named a moment ago


class Index:
    """A snapshot of an index. It can be closed, and is a context manager; one thread at a time."""

    folder: Path
    manifest: Manifest
    spec: VectorSpec  # of the stored vectors
    model: str  # reference of the model; empty: nobody named it
    count: int  # rows that can be found: the slots without the removed ones
    stored: NDArray[Any]  # memmap [slots, dim], f32, f16 or int8, as `vectors.packed` made it
    codes: NDArray[np.uint8] | None  # memmap [slots, bytes]; None: they are not all there: scan
    coder: Coder | None  # that made the codes
    removed: Sequence[int]  # slots that cannot be found, ascending
    alive: Rows | None  # slots that can be found, ascending; None: all of them
    drafts: Rows  # slots whose vectors are drafts, ascending
    connection: sqlite3.Connection  # reads the tables of `gemb.index.schema` in this snapshot

    def __init__(self, folder: Path, manifest: Manifest, connection: sqlite3.Connection) -> None:
        """See `Index.open`."""
        self.folder = folder
        self.manifest = manifest
        self.spec = manifest.spec
        self.model = manifest.model
        self.connection = connection
        self._path = rows_path(folder, manifest.generation)
        slots = read_slots(connection, self._path, least=manifest.slots)
        path = vectors_path(folder, manifest.generation, self.spec.dtype)
        self.stored = mapped(path, NUMBERS[self.spec.dtype], slots.committed, self.spec.dim)
        self.count = slots.committed - len(slots.removed)
        self.removed = slots.removed
        self.alive = None
        if slots.removed:
            is_alive = np.ones(slots.committed, np.bool_)
            is_alive[slots.removed] = False
            self.alive = np.flatnonzero(is_alive)
        with readable(self._path):
            if manifest.draft:
                check_has_drafts(connection, self._path)
            self.drafts = draft_slots(connection)
        self.coder = coder_of(folder, manifest)
        self.codes = None
        if self.coder and slots.is_coded:
            path = codes_path(folder, manifest.generation)
            self.codes = mapped(path, np.dtype("u1"), slots.committed, self.coder.bytes)

    @staticmethod
    def open(folder: Path) -> Index:
        """Return the index of a folder.

        Raises:
            UsageError: it is no index, one that is not whole yet, or one of a newer gemb.
            GembError: a file of it is missing, cut short or damaged.
        """
        for tries in range(TRIES):
            manifest = read_manifest(folder)
            path = rows_path(folder, manifest.generation)
            try:
                check_there(path)
                connection = open_to_read(path)
                try:
                    return Index(folder, manifest, connection)
                except BaseException:
                    connection.close()
                    raise
            except GembError:
                if tries + 1 == TRIES or read_manifest(folder).generation == manifest.generation:
                    raise
        raise AssertionError("the last try returns or raises")

    @property
    def vectors(self) -> StoredVectors:
        """The stored vectors and their codes, to be ranked."""
        return StoredVectors(self.stored, self.spec.dtype, self.codes, self.coder, str(self.folder))

    def hits(self, rows: Rows, scores: NDArray[np.float32]) -> list[Hit]:
        """Return what stands in these slots, in their order; a slot of -1 is left out.

        Paths are as the user would type them here, whatever folder the index was built in.

        Args:
            rows: int64 [n].
            scores: float32 [n].

        Raises:
            GembError: a row or its vector is damaged, or is not there.
        """
        self._units(rows[rows >= 0])
        pairs = zip(rows.tolist(), scores.tolist(), strict=True)
        return [self._hit(row, score) for row, score in pairs if row >= 0]

    def find(self, reference: str) -> int:
        """Return the slot of a row: its id, or FILE:LINE for the passage that holds the line.

        Raises:
            UsageError: there is none, or several rows have the id.
        """
        name, _, line = reference.rpartition(":")
        with readable(self._path):
            slots = slots_of_id(self.connection, reference)
            if len(slots) > 1:
                raise UsageError(
                    f"{len(slots)} rows of {visible(str(self.folder))} have the id "
                    f"'{visible(reference, 80)}': a search cannot be like all of them"
                )
            if slots:
                return slots[0]
            if name and line.isascii() and line.isdigit() and len(line) < 19:
                paths = [path_column(path) for path in kept_paths(name, self._base)]
                # Of two passages with that line the later one begins with it.
                row = self._last(
                    "path IN (?, ?) AND line <= ? AND coalesce(last_line, line) >= ?",
                    (*paths, int(line), int(line)),
                )
                if row is not None:
                    return row
                shown = f"{visible(name)} has no passage with line {line}"
                if self._last("path IN (?, ?)", tuple(paths)) is not None:
                    raise UsageError(f"{shown} in {visible(str(self.folder))}")
        raise UsageError(
            f"no row '{visible(reference, 80)}' in {visible(str(self.folder))}; "
            "name an id, or FILE:LINE"
        )

    def copies(self, text: str) -> Rows | None:
        """Return the slots of the rows with this text; None where they cannot be looked up."""
        with readable(self._path):
            if not self._has_lookup("copies"):
                return None
            slots = self.connection.execute(
                "SELECT slot FROM rows WHERE length(text) = length(?1) "
                "AND substr(text, -16) = substr(?1, -16) AND text = ?1 ORDER BY slot",
                (text,),
            )
            return np.fromiter((slot for (slot,) in slots), np.int64)

    def kept_drafts(self, slots: Sequence[int]) -> Mapping[int, Vectors]:
        """Return the drafts of those of these rows that have a real vector, too, float32 [width].

        Raises:
            GembError: one is damaged.
        """
        with readable(self._path):
            return kept_drafts(self.connection, slots, self.manifest.draft_width)

    def check_drafts(self) -> None:
        """Refuse drafts that are of no row.

        Raises:
            GembError: there is one.
        """
        slot = misplaced_draft(self.drafts, self.removed, len(self.stored))
        if slot is not None:
            raise damaged(self._path, f"row {slot} is a draft, and not there")

    def want(self, slots: Sequence[int]) -> None:
        """Say that a search wishes these drafts, best first, were real vectors."""
        if slots:
            want(wanted_path(self.folder, self.manifest.generation), slots)

    @property
    def has_old_words(self) -> bool:
        """Whether an earlier version made its words: names of several words are not taken apart."""
        with readable(self._path):
            return version_of_words(self.connection) != VERSION

    def unit_vectors(self, rows: Rows) -> NDArray[np.float32]:
        """Return the vectors of slots, float32 [n, dim], of length one; NaN: a draft that failed.

        Raises:
            GembError: one is damaged.
        """
        vectors = unpacked(self._units(rows), self.spec.dtype, self.spec.dim)
        with np.errstate(invalid="ignore"):
            units: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return units

    def stale(self, hit: Hit) -> str | None:
        """Return whether the file of a hit is `GONE` or has `CHANGED` since; None: neither.

        Of a file of rows there is but the time of the last sync.
        """
        if hit.path is None:
            return None
        try:
            now = Stamp.of(os.stat(hit.path))  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            return GONE
        except (OSError, ValueError):
            return None
        then = self._stamp(hit.path)
        if then is None or then.mtime_ns == TO_READ_AGAIN:  # the latter by version 0.1.0
            return CHANGED if now.mtime_ns > self._synced_ns + SECOND_NS else None
        if (now.size, now.mtime_ns) != (then.size, then.mtime_ns):
            return CHANGED
        # A file that was copied with its time is the same, and so may one be that has another mode.
        is_same = TO_READ_AGAIN in then or now.inode != then.inode or now == then
        return None if is_same or _holds(hit.path, hit.text) else CHANGED

    def close(self) -> None:
        """Let go of the database; the arrays go with whoever holds them."""
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        if isinstance(error, sqlite3.Error):
            raise explained(self._path, error) from None

    @property
    def _base(self) -> str:
        return str(self.manifest.source.get("base", os.sep))

    @cached_property
    def _synced_ns(self) -> int:
        """When the index was last known to be as its source, ns since the epoch."""
        try:
            then = datetime.datetime.fromisoformat(self.manifest.synced).timestamp()
        except (ValueError, OverflowError):
            then = 0.0
        return int(then) * SECOND_NS

    def _stamp(self, path: str) -> Stamp | None:
        """Return the stamp of a file as it was read for passages; None: it was not."""
        columns = [path_column(form) for form in kept_paths(path, self._base)]
        with readable(self._path):
            for file in stored_files(self.connection, columns):
                return file.stamp
        return None

    def _units(self, rows: Rows) -> NDArray[Any]:
        """Return stored vectors, [n, dim] as they are stored.

        Raises:
            GembError: one is not of length 1, and no draft that failed: no model made it.
        """
        stored = gathered(self.stored, rows)
        bad = ~self.are_whole(rows, stored)
        if bad.any():
            raise damaged_vector(str(self.folder), int(rows[np.argmax(bad)]))
        return stored

    def are_whole(self, rows: Rows, stored: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which vectors may be as they were written, [n]: units, and drafts that failed.

        Args:
            rows: their slots, [n].
            stored: of the slots, [n, dim].
        """
        are_good = are_units(stored, self.spec.dtype, self.spec.dim)
        if self.manifest.draft and not are_good.all():
            may_fail = np.isin(rows, self.drafts) | np.isin(rows, self.removed)
            are_good |= have_failed(stored) & may_fail
        return are_good

    def _has_lookup(self, name: str) -> bool:
        query = "SELECT 1 FROM sqlite_schema WHERE type = 'index' AND name = ?"
        return self.connection.execute(query, (f"rows_{name}",)).fetchone() is not None

    def _last(self, where: str, values: tuple[Any, ...]) -> int | None:
        """Return the last slot that a condition of ours holds for."""
        query = f"SELECT slot FROM rows WHERE {where} ORDER BY line DESC, slot DESC LIMIT 1"
        row = self.connection.execute(query, values).fetchone()
        return int(row[0]) if row else None

    def _hit(self, row: int, score: float) -> Hit:
        with readable(self._path):
            query = f"SELECT {COLUMNS} FROM rows WHERE slot = ?"
            columns = self.connection.execute(query, (row,)).fetchone()
        if columns is None or crc(columns[:-1]) != columns[-1] or not are_of_row(columns):
            what = "is not there" if columns is None else "is damaged"
            folder = visible(str(self.folder))
            raise GembError(f"row {row} of {folder} {what}; gemb index verify {folder} says more")
        row_id, path, line, last_line, title, text, kept, _, _ = columns
        path = path_of(path)
        return Hit(
            score=score,
            text=text,
            path=path and shown_path(path, self._base),
            line=line,
            last_line=last_line,
            title=title,
            id=row_id,
            kept=kept_fields(kept),
        )


class Slots(NamedTuple):
    """The slots of an index."""

    committed: int
    removed: list[int]  # ascending
    is_coded: bool  # the codes of all are there


def read_slots(connection: sqlite3.Connection, path: Path, *, least: int) -> Slots:
    """Return which slots a database has.

    Args:
        connection: to it.
        path: of it.
        least: how many there were when the manifest was written.

    Raises:
        GembError: blocks do not follow one another, slots have gone, or one is removed that is
            none.
    """
    count, is_coded = 0, True
    removed: list[int] = []
    with readable(path):
        blocks = connection.execute("SELECT first, count, crc_codes FROM blocks ORDER BY first")
        for first, length, crc_codes in blocks:
            if first != count or not isinstance(length, int) or length < 1:
                raise damaged(path, f"no block begins at row {count}")
            count += length
            is_coded = is_coded and crc_codes is not None
        if count < least:
            raise damaged(path, f"{count} of {least} rows are left")
        for (slot,) in connection.execute("SELECT slot FROM removed ORDER BY slot"):
            if not (removed[-1] if removed else -1) < slot < count:
                raise damaged(path, f"row {slot} is removed, and there are {count}")
            removed.append(slot)
        for table, column in (("rows", "slot"), ("words_docsize", "id")):
            ends = f"SELECT min({column}), max({column}) FROM {table}"
            for slot in connection.execute(ends).fetchone():
                if slot is not None and not (isinstance(slot, int) and 0 <= slot < count):
                    raise damaged(path, f"row {slot} is in {table}, and there are {count}")
    return Slots(count, removed, is_coded)


def slots_of_id(connection: sqlite3.Connection, row_id: Id) -> list[int]:
    """Return the slots of an id, ascending: the one rule for all that name a row.

    Only version 0.1.0 and sources without an id field have several rows of one id.
    """
    columns = id_columns(row_id)
    marks = ", ".join("?" * len(columns))
    rows = connection.execute(f"SELECT slot FROM rows WHERE id IN ({marks}) ORDER BY slot", columns)
    return [slot for (slot,) in rows]


def coder_of(folder: Path, manifest: Manifest) -> Coder | None:
    """Return the coder of an index, None where there are no codes yet.

    Raises:
        GembError: it is damaged, or this version does not know it.
    """
    if not manifest.coder:
        return None
    path = visible(str(folder / NAME))
    try:
        coder = Coder.from_json(manifest.coder)
    except UsageError as error:
        raise GembError(f"{path}: {error}") from None
    if coder.dim != manifest.spec.dim:
        raise GembError(
            f"{path} is damaged: its codes are of vectors of another width; build the index anew: "
            "gemb index build -f"
        )
    return coder


def _holds(path: str, text: str) -> bool:
    """Return whether a text stands in a file; True where the file cannot be read."""
    try:
        if not os.path.isfile(path):  # noqa: PTH113 - a pipe would hold the search up
            return False
        with Path(path).open("rb") as file:
            data = file.read(LOOKED_THROUGH)
    except OSError:
        return True
    return text.encode("utf-8", "surrogateescape") in data


def check_there(path: Path) -> None:
    """Refuse a file of the index that is not there.

    Raises:
        GembError: it is not.
    """
    if not path.is_file():
        raise GembError(
            f"{visible(str(path))} is missing; copy all of the folder, or build the index anew: "
            "gemb index build -f"
        )


def mapped(path: Path, numbers: np.dtype[Any], count: int, width: int) -> NDArray[Any]:
    """Return the first `count` rows of a file, [count, width], read as they are used.

    Raises:
        GembError: the file is not there, or has fewer.
    """
    check_there(path)
    if not count:
        return np.zeros((0, width), numbers)
    size, needed = path.stat().st_size, count * width * numbers.itemsize
    if size < needed or size <= LONGEST:
        check_no_pointer(path)
    if size < needed:
        raise GembError(
            f"{visible(str(path))} is cut short ({size} of {needed} bytes); copy it again, or "
            "build the index anew: gemb index build -f"
        )
    return MappedRows.open(path, numbers, count, width)
