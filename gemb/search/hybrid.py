"""By meaning and by words: what both rankings have in common for files and for an index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gemb.index.hits import Hit, fused
from gemb.search.queries import Query, QueryHits, Wanted, has_all
from gemb.texts.words import wanted_stems

if TYPE_CHECKING:
    from gemb.embedding.vectors import VectorSpec
    from gemb.search.passage_search import Corpus
    from gemb.texts.records import Id


DEPTH = 100  # ranks of each ranking that are fused


def depth(wanted: Wanted, most: int) -> int:
    """Return how many hits a ranking by meaning is to have; `most`: where all are wanted."""
    k = most if wanted.k is None else wanted.k
    return max(k, DEPTH) if wanted.is_hybrid else k


def chosen(
    query: Query, vector: NDArray[np.float32], hits: Sequence[Hit], floor: float, wanted: Wanted
) -> QueryHits:
    """Return the best hits of a fused ranking; their scores are cosines all the same.

    What has all the words of the query answers it, whatever its cosine.
    """
    stems = wanted_stems(query.text)
    kept = [hit for hit in hits if wanted.is_weak or hit.score >= floor or has_all(hit, stems)]
    below = [] if kept else [hit.score for hit in hits]
    return QueryHits(
        query=query,
        vector=vector,
        hits=kept[: wanted.k],
        floor=floor,
        best_below=max(below, default=None),
    )


def with_words(
    corpus: Corpus,
    query: Query,
    vector: NDArray[np.float32],
    by_meaning: Sequence[Hit],
    spec: VectorSpec,
) -> list[Hit]:
    """Return the hits of both rankings, fused: `by_meaning`, and the passages' words (BM25)."""
    from gemb.index.bm25 import word_scores

    records = (corpus.record(number) for number in range(len(corpus)))
    scores = word_scores(
        query.text, (f"{one.title or ''}\n{one.text}" if one else "" for one in records)
    )
    order = np.argsort(-scores, kind="stable")[:DEPTH]
    order = order[scores[order] > 0]
    keys = corpus.keys()
    store = corpus.vectors(spec)
    rows = store.find([keys[number] for number in order.tolist()])
    order, rows = order[rows >= 0], rows[rows >= 0]
    cosines = (store.gather(rows) @ vector).tolist() if len(rows) else []
    found = zip(order.tolist(), cosines, strict=True)
    by_words = [hit for number, cosine in found if (hit := corpus.hit(number, cosine))]
    places: dict[tuple[str | None, Id | None, int | None, str], int] = {}
    hits: list[Hit] = []
    rankings: list[NDArray[np.int64]] = []
    for ranking in (by_meaning, by_words):
        numbers: list[int] = []
        for hit in ranking:
            key = hit.path, hit.id, hit.line, hit.text
            if key not in places:
                places[key] = len(hits)
                hits.append(hit)
            numbers.append(places[key])
        rankings.append(np.array(numbers, np.int64))
    return [hits[place] for place in fused(rankings).rows.tolist()]
