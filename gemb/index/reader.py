"""An index as its readers see it: what was committed when it was opened, whoever writes meanwhile.

with Index.open(Path("docs.gemb")) as index:
    found = exact(queries, index.vectors, k=10, rows=index.alive)
    hits = index.hits(found.rows[0], found.scores[0])
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gemb.arrays import Rows
from gemb.embedding.vectors import VectorSpec, unpacked
from gemb.errors import GembError, UsageError
from gemb.index.codes import Coder
from gemb.index.hits import Hit
from gemb.index.manifest import (
    Manifest,
    codes_path,
    kept_paths,
    read_manifest,
    rows_path,
    shown_path,
    vectors_path,
)
from gemb.index.mapped import MappedRows, gathered
from gemb.index.ranking import StoredVectors
from gemb.index.schema import (
    COLUMNS,
    crc,
    id_columns,
    kept_fields,
    open_to_read,
    path_column,
    path_of,
    readable,
)
from gemb.io.text import visible

NUMBERS: dict[str, np.dtype[Any]] = {
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "int8": np.dtype("i1"),
}
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
    alive: Rows | None  # slots that can be found, ascending; None: all of them
    connection: sqlite3.Connection  # reads the tables of `gemb.index.schema` in this snapshot

    def __init__(self, folder: Path, manifest: Manifest, connection: sqlite3.Connection) -> None:
        """See `Index.open`."""
        self.folder = folder
        self.manifest = manifest
        self.spec = manifest.spec
        self.model = manifest.model
        self.connection = connection
        self._path = rows_path(folder, manifest.generation)
        with readable(self._path):
            slots = committed(connection)
            removed = [slot for (slot,) in connection.execute("SELECT slot FROM removed")]
            bare = connection.execute("SELECT 1 FROM blocks WHERE crc_codes IS NULL LIMIT 1")
            is_coded = bare.fetchone() is None
        self.count = slots - len(removed)
        self.alive = None
        if removed:
            is_alive = np.ones(slots, np.bool_)
            is_alive[removed] = False
            self.alive = np.flatnonzero(is_alive)
        path = vectors_path(folder, manifest.generation, self.spec.dtype)
        self.stored = mapped(path, NUMBERS[self.spec.dtype], slots, self.spec.dim)
        self.coder = Coder.from_json(manifest.coder) if manifest.coder else None
        self.codes = None
        if self.coder and is_coded:
            path = codes_path(folder, manifest.generation)
            self.codes = mapped(path, np.dtype("u1"), slots, self.coder.bytes)

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
        return StoredVectors(self.stored, self.spec.dtype, self.codes, self.coder)

    def hits(self, rows: Rows, scores: NDArray[np.float32]) -> list[Hit]:
        """Return what stands in these slots, in their order; a slot of -1 is left out.

        Paths are as the user would type them here, whatever folder the index was built in.

        Args:
            rows: int64 [n].
            scores: float32 [n].

        Raises:
            GembError: a row is damaged, or is not there.
        """
        pairs = zip(rows.tolist(), scores.tolist(), strict=True)
        return [self._hit(row, score) for row, score in pairs if row >= 0]

    def find(self, reference: str) -> int:
        """Return the slot of a row: its id, or FILE:LINE for the passage that holds the line.

        Raises:
            UsageError: there is none.
        """
        name, _, line = reference.rpartition(":")
        with readable(self._path):
            for row_id in id_columns(reference):
                row = self._last("id = ?", (row_id,))
                if row is not None:
                    return row
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

    def vector(self, row: int) -> NDArray[np.float32]:
        """Return the vector of a slot, float32 [dim], of length one."""
        stored = gathered(self.stored, np.array([row]))
        vector = unpacked(stored, self.spec.dtype, self.spec.dim)[0]
        unit: NDArray[np.float32] = vector / np.linalg.norm(vector)
        return unit

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

    @property
    def _base(self) -> str:
        return str(self.manifest.source.get("base", os.sep))

    def _last(self, where: str, values: tuple[Any, ...]) -> int | None:
        """Return the last slot that a condition of ours holds for."""
        query = f"SELECT slot FROM rows WHERE {where} ORDER BY line DESC, slot DESC LIMIT 1"
        row = self.connection.execute(query, values).fetchone()
        return int(row[0]) if row else None

    def _hit(self, row: int, score: float) -> Hit:
        with readable(self._path):
            query = f"SELECT {COLUMNS} FROM rows WHERE slot = ?"
            columns = self.connection.execute(query, (row,)).fetchone()
        if columns is None or crc(columns[:-1]) != columns[-1]:
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


def committed(connection: sqlite3.Connection) -> int:
    """Return the number of slots that are committed."""
    query = "SELECT first + count FROM blocks ORDER BY first DESC LIMIT 1"
    last = connection.execute(query).fetchone()
    return int(last[0]) if last else 0


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
    if size < needed:
        raise GembError(
            f"{visible(str(path))} is cut short ({size} of {needed} bytes); copy it again, or "
            "build the index anew: gemb index build -f"
        )
    return MappedRows.open(path, numbers, count, width)
