"""A folder of unit vectors by key, made once and read by many: the cache of a teacher's vectors.

    store.json    what the vectors are, for people and for a check
    vectors.f16   float16 [n, dim], little-endian
    keys.bin      16 bytes for each vector, in the same order
    lock          held by the process that appends

Both files only grow. A vector is on the disk before its key is written, so a vector without its
key, or half a key, is left from a killed process: nobody reads it, and the next writer drops it.

float16 holds a component to 2^-11 of itself: the cosine of a unit vector and its stored form is
1 - 2e-8 at 768 components (measured; 3e-8 at most), at half the disk and half the reading of
float32.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemb.arrays import Rows
from gemb.embedding.vectors import LENGTH_ERROR
from gemb.errors import GembError, UsageError
from gemb.io.atomic import naming, new_file, write_all
from gemb.io.caches import writable
from gemb.io.locks import LOCK, locked, waiting

FORMAT = 1
KEY_BYTES = 16  # two texts of 10^12 share a key with odds of 1e-15
RECENT = 1 << 16  # new keys that are held in a dictionary before they are sorted in


def key_of(text: str) -> bytes:
    """Return the key of a text, 16 bytes."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES)
    return digest.digest()


class VectorStore:
    """The vectors of one folder. About 24 bytes of memory a vector; one thread at a time."""

    def __init__(self, folder: Path, dim: int) -> None:
        """Read the keys; the folder need not exist.

        Raises:
            UsageError: the folder holds vectors of another width, or gemb did not write it.
        """
        self._settle(folder)
        self.dim = dim
        described = self.describes()
        if described.get("dim", dim) != dim:
            raise UsageError(
                f"{folder} holds vectors of width {described['dim']}, not {dim}; remove that folder"
            )
        self._count = 0  # rows that can be read
        self._rows = np.zeros(0, np.int64)  # of the sorted keys
        self._high = np.zeros(0, np.uint64)  # first half of each key, ascending
        self._low = np.zeros(0, np.uint64)
        self._recent: dict[bytes, int] = {}
        self._array: NDArray[np.float16] = np.zeros((0, dim), np.float16)
        self.reload()

    def __len__(self) -> int:
        return self._count

    def describes(self) -> Mapping[str, object]:
        """Return what store.json says, empty where there is none.

        Raises:
            UsageError: gemb did not write it.
        """
        path = self.folder / "store.json"
        if not path.is_file():
            return {}
        try:
            document = json.loads(path.read_bytes())
            if document["gemb vectors"] == FORMAT:
                return dict(document)
        except (ValueError, KeyError, TypeError):
            pass
        raise UsageError(f"{path} is not what gemb wrote there; remove that folder")

    def describe(self, **entries: object) -> None:
        """Write store.json: its format, the width, and these entries."""
        with new_file(self.folder / "store.json") as part:
            part.write_text(json.dumps({"gemb vectors": FORMAT, "dim": self.dim, **entries}) + "\n")

    def find(self, keys: Sequence[bytes]) -> Rows:
        """Return the row of each key, int64 [len(keys)], -1 where it is not here."""
        halves = _halves(b"".join(keys))
        rows = np.full(len(keys), -1, np.int64)
        at = np.searchsorted(self._high, halves[:, 0])
        open_ = np.arange(len(keys))
        while len(open_):
            position = at[open_]
            inside = position < len(self._high)
            open_, position = open_[inside], position[inside]
            same = self._high[position] == halves[open_, 0]
            open_, position = open_[same], position[same]
            is_same = self._low[position] == halves[open_, 1]
            rows[open_[is_same]] = self._rows[position[is_same]]
            open_ = open_[~is_same]  # two keys with one first half
            at[open_] += 1
        if self._recent:
            for row in np.flatnonzero(rows < 0).tolist():
                rows[row] = self._recent.get(keys[row], -1)
        return rows

    def gather(self, rows: Rows) -> NDArray[np.float32]:
        """Return the vectors of these rows, float32 [n, dim], of length one.

        Raises:
            GembError: a row holds no unit vector: the file is damaged.
        """
        vectors = self._array[rows].astype(np.float32)
        lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
        if not (np.abs(lengths - 1) < LENGTH_ERROR).all():
            raise GembError(f"{self._vectors} is damaged; remove the folder {self.folder}")
        vectors /= lengths[:, None]
        return vectors

    @property
    def stored(self) -> NDArray[np.float16]:
        """The vectors as they are on the disk, [n, dim], for a scan of many; not checked."""
        return np.asarray(self._array)

    def append(self, keys: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        """Write vectors and their keys, none of which is here, to the disk. Needs `locked`.

        Args:
            keys: distinct.
            vectors: [len(keys), dim], of length one.
        """
        assert vectors.shape == (len(keys), self.dim), "one vector of the store's width a key"
        assert len(set(keys)) == len(keys), "a key twice in one call"
        assert (self.find(keys) < 0).all(), "a key that is here already"
        # What a killed process left incomplete lies behind the rows that count.
        _write(self._vectors, self._count * self.dim * 2, vectors.astype("<f2").tobytes())
        _write(self._keys, self._count * KEY_BYTES, b"".join(keys))
        self._recent.update(zip(keys, range(self._count, self._count + len(keys)), strict=True))
        self._count += len(keys)
        if len(self._recent) > max(RECENT, self._count // 8):
            self._sort_in(b"".join(self._recent))
        self._map()

    def reload(self) -> None:
        """See what other processes have appended."""
        size_keys, size_vectors = (
            path.stat().st_size if path.is_file() else 0 for path in (self._keys, self._vectors)
        )
        count = min(size_keys // KEY_BYTES, size_vectors // (2 * self.dim))
        if count <= self._count:
            return
        first = self._count - len(self._recent)  # the recent ones are sorted in, too
        with self._keys.open("rb") as file:
            file.seek(first * KEY_BYTES)
            self._sort_in(file.read((count - first) * KEY_BYTES))
        self._count = count
        self._map()

    def is_shorter(self) -> bool:
        """Return whether the files hold less than was read: another process has removed them."""
        size = self._keys.stat().st_size if self._keys.is_file() else 0
        return size < self._count * KEY_BYTES

    @contextmanager
    def locked(self, *, may_move: bool = False) -> Iterator[None]:
        """Make the folder and be the only one who appends; wait, with a note, for another one.

        Args:
            may_move: where the folder cannot be written to, a temporary one takes its place.

        Raises:
            OSError: the folder cannot be made or written to.
        """
        if may_move:
            self._settle(writable(self.folder, with_content=True))
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / LOCK, waiting(f"is filling {self.folder}")):
            self.reload()
            yield

    def _settle(self, folder: Path) -> None:
        self.folder = folder
        self._keys = folder / "keys.bin"
        self._vectors = folder / "vectors.f16"

    def _sort_in(self, keys: bytes) -> None:
        """Sort keys of the rows that follow the sorted ones in."""
        halves = _halves(keys)
        first = len(self._rows)
        rows = np.concatenate([self._rows, np.arange(first, first + len(halves))])
        high = np.concatenate([self._high, halves[:, 0]])
        order = np.argsort(high, kind="stable")
        self._rows, self._high = rows[order], high[order]
        self._low = np.concatenate([self._low, halves[:, 1]])[order]
        self._recent.clear()

    def _map(self) -> None:
        shape = (self._count, self.dim)
        self._array = np.memmap(self._vectors, "<f2", "r", shape=shape)


def _halves(keys: bytes) -> NDArray[np.uint64]:
    return np.frombuffer(keys, "<u8").reshape(-1, 2)


def _write(path: Path, start: int, data: bytes) -> None:
    """Make the file `start` bytes and then the data, on the disk."""
    # A pipe would hold us up, and what a link leads to would be written over.
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise OSError(errno.EINVAL, "no regular file", str(path))
    with naming(path), path.open("ab", buffering=0) as file:
        file.truncate(start)
        write_all(file.write, data)
        os.fsync(file.fileno())
