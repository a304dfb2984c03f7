"""The passages' vectors: those on the disk, and those that could not be written there."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemb.embedding.store import Rows, VectorStore
from gemb.embedding.vectors import VectorSpec
from gemb.errors import GembError
from gemb.io.machine import cores
from gemb.io.notes import note

IN_MEMORY = 1 << 48  # rows from here on are in memory
BLOCK = 1 << 18  # numbers that are widened to float32 at once: 1 MB stays in a core's cache
FEW = 8  # queries that are multiplied one by one
HIGHEST = 1.01  # what no cosine of float16 vectors reaches

Vectors = NDArray[np.float32]


class VectorCache:
    """Vectors of one `VectorSpec` by key; one thread at a time."""

    def __init__(self, folder: Path | None, spec: VectorSpec, *, quiet: bool = False) -> None:
        """Open what the folder holds.

        Args:
            folder: of all specs' vectors; None: nothing is kept.
            spec: whose vectors are meant; its fingerprint is the name of their folder.
            quiet: no note where they cannot be kept.

        Raises:
            UsageError: the folder holds something else.
        """
        self._spec = spec
        self._quiet = quiet
        self._store = (
            VectorStore(folder / spec.fingerprint, spec.dim) if folder else None
        )  # its length may be 0
        self._may_write = self._store is not None
        self._rows: dict[bytes, int] = {}  # of those in memory
        self._blocks: list[NDArray[np.float16]] = []
        self._memory: NDArray[np.float16] = np.zeros((0, spec.dim), np.float16)

    def find(self, keys: Sequence[bytes]) -> Rows:
        """Return the row of each key, int64 [len(keys)], -1 where it is not here."""
        rows = (
            self._store.find(keys) if self._store is not None else np.full(len(keys), -1, np.int64)
        )
        if self._rows:
            for place in np.flatnonzero(rows < 0).tolist():
                rows[place] = self._rows.get(keys[place], -1)
        return rows

    def gather(self, rows: Rows) -> Vectors:
        """Return the vectors of these rows, float32 [n, dim], of length one.

        Raises:
            GembError: the file of vectors is damaged.
        """
        if not self._rows:
            assert self._store is not None, "rows of a store"
            return self._store.gather(rows)
        vectors = np.empty((len(rows), self._spec.dim), np.float32)
        here = rows >= IN_MEMORY
        vectors[here] = self._in_memory()[rows[here] - IN_MEMORY]
        if self._store is not None and not here.all():
            vectors[~here] = self._store.gather(rows[~here])
        return vectors

    def scores(self, rows: Rows, queries: Vectors) -> Vectors:
        """Return the cosines of these rows with unit queries [Q, dim], float32 [n, Q].

        Raises:
            GembError: the file of vectors is damaged.
        """
        found = np.empty((len(rows), len(queries)), np.float32)
        on_disk = rows < IN_MEMORY
        if self._store is not None and on_disk.any():
            found[on_disk] = _scores(self._store.stored, rows[on_disk], queries)
            if not (np.abs(found[on_disk]) < HIGHEST).all():
                raise GembError(
                    f"{self._store.folder / 'vectors.f16'} is damaged; "
                    f"remove the folder {self._store.folder}"
                )
        if not on_disk.all():
            found[~on_disk] = _scores(self._in_memory(), rows[~on_disk] - IN_MEMORY, queries)
        return found

    def _in_memory(self) -> NDArray[np.float16]:
        if self._blocks:
            self._memory = np.concatenate([self._memory, *self._blocks])
            self._blocks = []
        return self._memory

    def add(self, keys: Sequence[bytes], vectors: Vectors) -> None:
        """Keep vectors, [len(keys), dim], of distinct keys; what is here already stays."""
        if self._store is not None and self._may_write:
            try:
                self._append(self._store, keys, vectors)
                return
            except OSError as error:
                self._may_write = False
                if not self._quiet:
                    words = (error.strerror or str(error)).lower()
                    note(
                        f"vectors cannot be kept in {self._store.folder} ({words}); "
                        "the next search computes them again"
                    )
        first = len(self._rows)
        new = np.flatnonzero(self.find(keys) < 0)
        self._rows.update(
            (keys[place], IN_MEMORY + first + row) for row, place in enumerate(new.tolist())
        )
        self._blocks.append(vectors[new].astype(np.float16))

    def _append(self, store: VectorStore, keys: Sequence[bytes], vectors: Vectors) -> None:
        with store.locked():
            if store.is_shorter():  # what was read may be another's by now
                raise FileNotFoundError(2, "it was removed meanwhile", str(store.folder))
            if not store.describes():
                store.describe(spec=self._spec.to_json())
            new = np.flatnonzero(store.find(keys) < 0)  # another search may have been here
            if len(new):
                store.append([keys[place] for place in new.tolist()], vectors[new])


def scores_of(vectors: NDArray[np.float16], queries: Vectors) -> Vectors:
    """Return the cosines of vectors as they are stored, [n, dim], with queries: float32 [n, Q]."""
    wide = vectors.astype(np.float32)
    if len(queries) <= FEW:
        # The threads of a matrix library take ten times as long over so little, and its sums
        # differ with the number of rows.
        return np.stack([np.einsum("nd,d->n", wide, query) for query in queries], axis=1)
    found: Vectors = np.round(wide @ queries.T, 6)  # a second search would swap equals
    return found


def _scores(stored: NDArray[np.float16], rows: Rows, queries: Vectors) -> Vectors:
    """Return `scores_of` these rows, on all cores: numpy leaves Python's lock while it computes."""
    step = max(1, BLOCK // stored.shape[1])
    share = max(step, -(-len(rows) // cores()))

    def part(start: int) -> Vectors:
        end = min(start + share, len(rows))
        firsts = range(start, end, step)
        return np.concatenate(
            [scores_of(stored[rows[at : min(at + step, end)]], queries) for at in firsts]
        )

    starts = range(0, len(rows), share)
    with ThreadPoolExecutor(len(starts)) as pool:
        return np.concatenate(list(pool.map(part, starts)))
