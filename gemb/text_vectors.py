"""The vectors of many texts at once, those of one length together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gemb.errors import GembError
from gemb.models.prompts import Prompt
from gemb.pipeline import Vectors, embed, plain_embedder
from gemb.texts.records import Record

if TYPE_CHECKING:
    from gemb.backend import Encoder


class Done(NamedTuple):
    """What was embedded since the last time."""

    texts: int
    tokens: int
    characters: int
    all_texts: int
    all_characters: int


Progress = Callable[[Done], None]


def text_vectors(
    records: Sequence[Record], encoder: Encoder, progress: Progress | None = None
) -> tuple[Vectors, int]:
    """Return unit vectors, float32 [N, dim], and how many texts were cut to what the model takes.

    Args:
        records: their ids are 0, 1, ..., N - 1; their texts have their prompt already.
        encoder: the open model.
        progress: called as texts are embedded.

    Raises:
        GembError: a text has no vector.
    """
    profile = encoder.profile
    vectors = np.empty((len(records), profile.dim), np.float32)
    embedder = plain_embedder(encoder, Prompt("{text}"), profile.dim)
    # Texts of one length share a batch; the longest come first, so that the time left, which is
    # told by characters, does not grow towards the end.
    ordered = sorted(records, key=lambda record: -len(record.text))
    characters = sum(len(record.text) for record in records)
    cut = 0
    for window in embed(ordered, embedder, live=False):
        for row in window.rows:
            if row.error:
                raise GembError(
                    f"no score: a text of {row.record.place} has no vector: {row.error.message}"
                )
            cut += row.is_cut
        vectors[[int(row.record.id) for row in window.rows]] = window.vectors
        if progress:
            tokens = sum(row.tokens for row in window.rows)
            size = sum(len(row.record.text) for row in window.rows)
            progress(Done(len(window.rows), tokens, size, len(records), characters))
    return vectors, cut
