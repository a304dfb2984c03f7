"""The passages' vectors: those on the disk, and those that could not be written there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemb.notes import note
from gemb.vector_store import Rows, VectorStore
from gemb.vectors import VectorSpec

IN_MEMORY = 1 << 48  # rows from here on are in memory

Vectors = NDArray[np.float32]


def as_stored(vectors: NDArray[np.floating]) -> Vectors:
    """Return unit vectors as they come back from the cache: a second search scores the same."""
    stored: Vectors = vectors.astype(np.float16).astype(np.float32)
    stored /= np.sqrt(np.einsum("nd,nd->n", stored, stored))[:, None]
    return stored


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
        if self._blocks:
            self._memory = np.concatenate([self._memory, *self._blocks])
            self._blocks = []
        vectors = np.empty((len(rows), self._spec.dim), np.float32)
        here = rows >= IN_MEMORY
        vectors[here] = as_stored(self._memory[rows[here] - IN_MEMORY])
        if self._store is not None and not here.all():
            vectors[~here] = self._store.gather(rows[~here])
        return vectors

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
            if not store.describes():
                store.describe(spec=self._spec.to_json())
            new = np.flatnonzero(store.find(keys) < 0)  # another search may have been here
            if len(new):
                store.append([keys[place] for place in new.tolist()], vectors[new])
