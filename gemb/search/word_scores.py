"""BM25 of texts that are in no index: one pass over them, for a query's words alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def word_scores(query: str, texts: Iterable[str]) -> NDArray[np.float32]:
    """Return the BM25 of each text for a query, float32 [n]; 0 where they share no word.

    The formula is that of FTS5 (k1 1.2, b 0.75), words are compared without regard to case.

    Args:
        query: as the user wrote it, without a prompt.
        texts: the passages; they are read once, and not kept.
    """
    raise NotImplementedError
