"""Which scores are no better than chance: the floor of `--min-score auto`.

A query that has nothing to do with a corpus still has a nearest passage, and the more passages
there are, the nearer it is. The background says how near, for this model and these vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gemb.backend import Encoder
    from gemb.vectors import VectorSpec


@dataclass(frozen=True, kw_only=True)
class Background:
    """How queries score that a corpus does not answer."""

    def floor(self, count: int, query: NDArray[np.float32] | None = None) -> float:
        """Return the cosine below which a best score among `count` rows is no answer.

        Args:
            count: rows that were searched, after any filter.
            query: the query's unit vector, float32 [dim]; with it the floor is the query's own,
                which tells more.
        """
        raise NotImplementedError

    def to_json(self) -> dict[str, object]:
        """Return what `from_json` takes: for a manifest."""
        raise NotImplementedError

    @staticmethod
    def from_json(entries: object) -> Background:
        """Return the background in a manifest.

        Raises:
            UsageError: it is none of ours.
        """
        raise NotImplementedError


def measure(
    stored: NDArray[Any], dtype: str, spec: VectorSpec, encoder: Encoder | None = None
) -> Background:
    """Return the background of a corpus, from a sample of its vectors.

    Args:
        stored: vectors as `gemb.vectors.packed` makes them, [n, dim], a memory map too; at most a
            few thousand rows are read, spread over all of it. Rows of NaN or zeros are passed over.
        dtype: of `stored`: f32, f16 or int8.
        spec: of the vectors.
        encoder: the open model; None: what the vectors alone tell.
    """
    raise NotImplementedError
