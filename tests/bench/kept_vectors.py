"""An encoder whose vectors are kept in a file, so that a measurement that was stopped goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from gemb.arrays import TokenIds
    from gemb.backend import Encoder

Vectors = NDArray[np.float32]


class KeptVectors:
    """A gemb `Encoder` in front of another one; a sequence of ids is computed once.

    The file holds records of 16 bytes, the digest of the ids, and the vector, float32 [D]. A record
    cut short by the end of a process is dropped.
    """

    def __init__(self, encoder: Encoder, path: Path) -> None:
        self.profile = encoder.profile
        self.tokenize = encoder.tokenize
        self._encode = encoder.encode
        self._path = path
        self._record = np.dtype([("key", "V16"), ("vector", np.float32, self.profile.dim)])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        whole = path.stat().st_size // self._record.itemsize
        with path.open("r+b") as file:
            file.truncate(whole * self._record.itemsize)
        read = np.fromfile(path, self._record)
        keys = (key.tobytes() for key in read["key"])
        self._known = dict(zip(keys, read["vector"], strict=True))

    def encode(self, batch: Sequence[TokenIds]) -> Vectors:
        """Return unit vectors, float32 [len(batch), D]; what is new is written to the file."""
        keys = [hashlib.blake2b(ids.tobytes(), digest_size=16).digest() for ids in batch]
        new = [row for row, key in enumerate(keys) if key not in self._known]
        if new:
            vectors = self._encode([batch[row] for row in new])
            records = np.empty(len(new), self._record)
            records["key"] = [np.void(keys[row]) for row in new]
            records["vector"] = vectors
            with self._path.open("ab") as file:
                file.write(records.tobytes())
            self._known.update(zip((keys[row] for row in new), vectors, strict=True))
        return np.stack([self._known[key] for key in keys])
