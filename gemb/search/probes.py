"""Queries about everything: hardly a corpus answers more than a few of them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gemb.atomic import new_file
from gemb.caches import search_cache
from gemb.prompts import for_task
from gemb.records import Record

if TYPE_CHECKING:
    from gemb.backend import Encoder

PROBES = (
    "how long to boil an egg",
    "best time of year to plant tulip bulbs",
    "symptoms of iron deficiency",
    "who won the battle of Hastings",
    "offside rule in football explained",
    "how to change a bicycle tyre",
    "what causes thunder",
    "difference between a viola and a violin",
    "sort a list of dictionaries by key",
    "cheap flights to Lisbon in May",
    "can a landlord keep my deposit",
    "knitting pattern for baby socks",
    "how do vaccines work",
    "average rainfall in the Atacama desert",
    "mortgage interest rates",
    "why do cats purr",
    "interpretation of Hamlet's soliloquy",
    "remove red wine from a carpet",
    "distance from the earth to the moon",
    "how to write a cover letter",
    "chords of Let It Be",
    "is it safe to eat raw salmon",
    "train from Vienna to Prague",
    "laws of thermodynamics",
    "which trees lose their leaves",
    "how to train a puppy not to bite",
    "population of Indonesia",
    "exercises for lower back pain",
    "how does a heat pump heat a house",
    "inheritance tax for siblings",
    "meaning of the word serendipity",
    "mount a network drive",
    "who painted the Night Watch",
    "recipe for sourdough bread",
    "how are black holes formed",
    "rules of chess castling",
    "treatment of a sprained ankle",
    "history of the Silk Road",
    "memory leak in a server",
    "how to ask for a pay rise",
    "life cycle of a butterfly",
    "causes of the First World War",
    "replace the battery of a phone",
    "what to wear to a wedding",
    "speed of light in water",
    "signs of a broken gearbox",
    "birds that cannot fly",
    "minimum wage in France",
    "Wie backt man einen Apfelkuchen",
    "Fristen für die Steuererklärung",
    "horaires du musée du Louvre",
    "comment soigner un rhume",
    "cómo aprender a tocar la guitarra",
    "capital de Mongolia",
    "как вырастить помидоры",
    "расписание электричек",
    "如何学习游泳",
    "感冒吃什么药",
    "京都の紅葉の見頃",
    "確定申告の期限",
    "cos'è l'effetto serra",
    "previsão do tempo para amanhã",
    "como renovar o passaporte",
    "hoe maak ik erwtensoep",
)


def probe_vectors(encoder: Encoder) -> NDArray[np.float32]:
    """Return unit vectors of `PROBES` with the model's prompt for queries, float32 [probes, dim].

    They are kept in $XDG_CACHE_HOME/gemb/search, where that can be written to: a search that needs
    them has no second to spare.

    Raises:
        GembError: the model fails on them.
    """
    from gemb.vector_store import key_of

    prompt = for_task("query", encoder.profile.prompts)
    texts = [prompt.render(probe) for probe in PROBES]
    key = key_of("\0".join((encoder.profile.fingerprint, *texts))).hex()
    path = search_cache() / f"probes-{key}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError), path.open("rb") as file:
        kept = np.lib.format.read_array(file, allow_pickle=False)
        if kept.shape == (len(PROBES), encoder.profile.dim) and kept.dtype == np.float32:
            return kept
    from gemb.text_vectors import text_vectors

    records = [Record(number, f"probe {number}", text) for number, text in enumerate(texts)]
    vectors, _ = text_vectors(records, encoder)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as part, part.open("wb") as file:
            np.save(file, vectors)
    return vectors
