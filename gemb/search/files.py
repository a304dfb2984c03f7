"""Search of files and standard input: what answers, and what is better than chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gemb.embedding.vectors import VectorSpec
from gemb.index.floor import measure
from gemb.index.hits import Hit
from gemb.search.hybrid import chosen, depth, with_words
from gemb.search.passage_search import Answer, Corpus
from gemb.search.queries import NO_FLOOR, Query, QueryHits, Wanted, above

if TYPE_CHECKING:
    from gemb.backend import Encoder


SAMPLE = 4096  # vectors from which chance is told


def search_files(
    corpus: Corpus,
    queries: Sequence[Query],
    vectors: NDArray[np.float32],
    encoder: Encoder,
    spec: VectorSpec,
    wanted: Wanted,
    *,
    seen: Callable[[Answer], None],
    like: Hit | None = None,
) -> list[QueryHits]:
    """Return the answers to each query, in order.

    Args:
        corpus: the passages.
        queries: as texts.
        vectors: of the queries, unit rows [Q, dim].
        encoder: the open model.
        spec: of the passages' vectors.
        wanted: what is wanted of them.
        seen: is called with each answer on the way.
        like: the passage that the only query is; it is no answer to itself, and there is no floor
            but one that was asked for.

    Raises:
        GembError: the model fails on every passage.
    """
    is_auto = wanted.min_score is None and like is None and not wanted.is_weak
    given = NO_FLOOR if wanted.min_score is None or wanted.is_weak else wanted.min_score
    floor = given
    k = None if wanted.k is None else depth(wanted, 0) + (like is not None)
    words = [query.text for query in queries]
    # Where all that reach a floor are wanted, which the vectors tell, each passage gets its vector
    # first. Else what is under the floor is found as well: a user may ask how far it was.
    first_k = 1 if k is None and is_auto else k
    least = given if k is None else NO_FLOOR
    last: Answer | None = None
    for last in corpus.search(vectors, encoder, spec, words=words, k=first_k, floor=least):
        seen(last)
    if is_auto and len(corpus):
        floor = measure(corpus.sample(SAMPLE, spec), "f32", spec, encoder).floor(len(corpus))
        if k is None:
            for last in corpus.search(vectors, encoder, spec, k=None, floor=floor):
                seen(last)
    hits = last.hits if last else [[] for _ in queries]
    if like is not None:
        hits = [[hit for hit in one if not _is_same(hit, like)][: wanted.k] for one in hits]
    found: list[QueryHits] = []
    for query, vector, some in zip(queries, vectors, hits, strict=True):
        if wanted.is_hybrid:
            fused = with_words(corpus, query, vector, some, spec)
            found.append(chosen(query, vector, fused, floor, wanted))
        else:
            found.append(above(query, vector, some, floor, wanted))
    return found


def _is_same(hit: Hit, other: Hit) -> bool:
    return (hit.path, hit.id, hit.line, hit.text) == (other.path, other.id, other.line, other.text)
