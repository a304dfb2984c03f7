"""Vectors of a list of texts that all must have one, and their progress on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gemb.arrays import Vectors
from gemb.embedding.pipeline import Embedder, embed
from gemb.errors import GembError
from gemb.io.progress import CountProgress
from gemb.texts.records import Record

if TYPE_CHECKING:
    from gemb.backend import Encoder


class Done(NamedTuple):
    """What was embedded since the last call."""

    texts: int
    tokens: int
    characters: int
    all_texts: int
    all_characters: int


ProgressCallback = Callable[[Done], None]


class NoVector(GembError):
    """The model gives no vector for a text that must have one."""


def text_vectors(
    records: Sequence[Record], encoder: Encoder, progress: ProgressCallback | None = None
) -> tuple[Vectors, int]:
    """Return unit vectors, float32 [N, dim], and how many texts were cut to what the model takes.

    Args:
        records: their ids are 0, 1, ..., N - 1; their texts have their prompt already.
        encoder: the open model.
        progress: called as texts are embedded.

    Raises:
        NoVector: a text has none.
    """
    profile = encoder.profile
    vectors = np.empty((len(records), profile.dim), np.float32)
    embedder = Embedder.of(encoder, "none")
    # Texts of one length share a batch; the longest come first, so that the time left, which is
    # estimated from characters, does not grow towards the end.
    ordered = sorted(records, key=lambda record: -len(record.text))
    characters = sum(len(record.text) for record in records)
    cut = 0
    for window in embed(ordered, embedder, live=False):
        for row in window.rows:
            if row.error:
                place, reason = row.record.place, row.error.message
                raise NoVector(f"a text of {place} has no vector: {reason}")
            cut += row.is_cut
        vectors[[int(row.record.id) for row in window.rows]] = window.vectors
        if progress:
            tokens = sum(row.tokens for row in window.rows)
            size = sum(len(row.record.text) for row in window.rows)
            progress(Done(len(window.rows), tokens, size, len(records), characters))
    return vectors, cut


@contextmanager
def text_progress(label: str) -> Iterator[ProgressCallback]:
    """Yield a function to call as texts get vectors; the bar appears at the first call.

    Args:
        label: what is embedded, in words.
    """
    bar: CountProgress | None = None

    def show(batch: Done) -> None:
        nonlocal bar
        if bar is None:
            bar = CountProgress(batch.all_texts, label, "texts", work=batch.all_characters)
        bar.add(batch.texts, batch.tokens, batch.characters)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()
