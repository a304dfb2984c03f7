"""Queries as vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gemb.embedding.pipeline import embed, plain_embedder
from gemb.errors import GembError
from gemb.io.notes import note
from gemb.models.prompts import Prompt
from gemb.search.queries import Query
from gemb.texts.records import Record

if TYPE_CHECKING:
    from gemb.backend import Encoder


def embedded(
    queries: Sequence[Query], encoder: Encoder, prompt: Prompt, dim: int, *, quiet: bool = False
) -> NDArray[np.float32]:
    """Return the unit vectors of the queries, float32 [len(queries), dim].

    A query that is longer than the model takes is cut, and counted in a note.

    Raises:
        GembError: the model fails on one of them.
    """
    records = [Record(query.id, query.place, query.text) for query in queries]
    return _vectors(records, encoder, prompt, dim, quiet=quiet)


def passage_vector(
    text: str, title: str | None, encoder: Encoder, prompt: Prompt, dim: int
) -> NDArray[np.float32]:
    """Return the unit vector of a passage, float32 [1, dim]: what is like it is looked for."""
    return _vectors([Record(1, "the passage", text, title)], encoder, prompt, dim, quiet=True)


def _vectors(
    records: Sequence[Record], encoder: Encoder, prompt: Prompt, dim: int, *, quiet: bool
) -> NDArray[np.float32]:
    vectors = np.zeros((len(records), dim), np.float32)
    first = cut = 0
    for window in embed(records, plain_embedder(encoder, prompt, dim), live=False):
        for row in window.rows:
            if row.error:
                raise GembError(f"{row.record.place}: {row.error.message}")
            cut += row.is_cut
        vectors[first : first + len(window.rows)] = window.vectors
        first += len(window.rows)
    if cut and not quiet:
        whose = "the query is" if len(records) == 1 else f"{cut:,} queries are"
        note(f"{whose} longer than the model takes ({encoder.profile.max_tokens} tokens), and cut")
    return vectors
