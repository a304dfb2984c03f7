"""Queries about everything: hardly a corpus answers more than a few of them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gemb.io.atomic import new_file
from gemb.io.caches import search_cache
from gemb.models.prompts import for_task
from gemb.texts.records import Record

if TYPE_CHECKING:
    from gemb.backend import Encoder

PROBES = (
    "how long to boil an egg",
    "symptoms of iron deficiency",
    "offside rule in football explained",
    "what causes thunder",
    "sort a list of dictionaries by key",
    "can a landlord keep my deposit",
    "how do vaccines work",
    "mortgage interest rates",
    "interpretation of Hamlet's soliloquy",
    "distance from the earth to the moon",
    "chords of Let It Be",
    "train from Vienna to Prague",
    "which trees lose their leaves",
    "population of Indonesia",
    "how does a heat pump heat a house",
    "meaning of the word serendipity",
    "who painted the Night Watch",
    "how are black holes formed",
    "treatment of a sprained ankle",
    "memory leak in a server",
    "life cycle of a butterfly",
    "replace the battery of a phone",
    "speed of light in water",
    "birds that cannot fly",
    "Wie backt man einen Apfelkuchen",
    "horaires du musée du Louvre",
    "cómo aprender a tocar la guitarra",
    "как вырастить помидоры",
    "如何学习游泳",
    "京都の紅葉の見頃",
    "cos'è l'effetto serra",
    "como renovar o passaporte",
)


def probe_vectors(encoder: Encoder) -> NDArray[np.float32]:
    """Return unit vectors of `PROBES` with the model's prompt for queries, float32 [probes, dim].

    They are kept in $XDG_CACHE_HOME/gemb/search, where that can be written to: a search that needs
    them has no second to spare.

    Raises:
        GembError: the model fails on them.
    """
    from gemb.embedding.store import key_of

    prompt = for_task("query", encoder.profile.prompts)
    texts = [prompt.render(probe) for probe in PROBES]
    key = key_of("\0".join((encoder.profile.fingerprint, *texts))).hex()
    path = search_cache() / f"probes-{key}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError), path.open("rb") as file:
        kept = np.lib.format.read_array(file, allow_pickle=False)
        if kept.shape == (len(PROBES), encoder.profile.dim) and kept.dtype == np.float32:
            return kept
    from gemb.embedding.pipeline import text_vectors

    records = [Record(number, f"probe {number}", text) for number, text in enumerate(texts)]
    vectors, _ = text_vectors(records, encoder)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as part, part.open("wb") as file:
            np.save(file, vectors)
    return vectors
