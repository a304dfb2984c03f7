"""Sign codes: one bit a component, from which a fast scan tells what is worth a closer look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]


@dataclass(frozen=True)
class Coder:
    """What turns vectors into codes. It is made once for an index and kept in its manifest."""

    dim: int

    @staticmethod
    def of(dim: int) -> Coder:
        """Return the coder that knows nothing of the vectors but their width."""
        return Coder(dim)

    @staticmethod
    def fit(sample: Floats) -> Coder:
        """Return the coder for vectors like these: unit rows [n, D], a few thousand are enough.

        Rows of NaN are passed over; equal input gives an equal coder; an empty sample is as `of`.
        """
        return Coder(sample.shape[1])

    @property
    def bytes(self) -> int:
        """Width B of a code: a multiple of 8."""
        return (self.dim + 63) // 64 * 8

    def codes(self, vectors: Floats) -> Codes:
        """Return codes uint8 [n, B] of unit rows [n, D]; a row of NaN gives zeros."""
        bits = np.packbits(vectors > 0, axis=1)
        return np.pad(bits, ((0, 0), (0, self.bytes - bits.shape[1])))

    def to_json(self) -> dict[str, object]:
        """Return what `from_json` reads, for the manifest."""
        return {"kind": "sign", "dim": self.dim}

    @staticmethod
    def from_json(entries: Mapping[str, object]) -> Coder:
        """Return the coder that `to_json` described.

        Raises:
            UsageError: it is none that this version can read.
        """
        from gemb.errors import UsageError

        match entries:
            case {"kind": "sign", "dim": int(dim)}:
                return Coder(dim)
        raise UsageError("the codes of this index are of a kind that this gemb does not know")
