"""Search of files, folders and standard input without an index.

    corpus = gather(Sources(paths=("docs/",)), cache=search_cache())     # needs no model
    for answer in corpus.search(queries, encoder, spec, words=[query]):  # the best so far
        ...
    corpus.skipped.say()  # and exit code 2 if corpus.skipped.failed

`gather` needs no model: call it in a thread while the model is opened. The search then compares
what is in the cache, and embeds the rest, most promising first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gemb.embedding.vectors import VectorSpec
from gemb.errors import UsageError
from gemb.index.hits import Hit
from gemb.io.text import visible
from gemb.search.corpus import Passages
from gemb.search.gathering import Sources, gather_into
from gemb.search.passage_search import Answer, PassageSearch
from gemb.search.passage_table import PassageTable
from gemb.search.vector_cache import VectorCache
from gemb.texts.walk import Skipped
from gemb.texts.words import Promise

if TYPE_CHECKING:
    from gemb.backend import Encoder

__all__ = ["Answer", "Corpus", "Sources", "gather"]

Vectors = NDArray[np.float32]


class Corpus(Passages):
    """The passages of all sources, in order, and the search in them."""

    def __init__(self, kind: str, cache: Path | None, *, quiet: bool = False) -> None:
        known = PassageTable(cache, kind) if cache else None
        super().__init__(kind, Skipped(quiet=quiet), known)
        self._cache = cache
        self._vectors: tuple[VectorSpec, VectorCache] | None = None

    def vectors(self, spec: VectorSpec) -> VectorCache:
        """Return the cache of these vectors."""
        if not self._vectors or self._vectors[0] != spec:
            is_said = self.known is not None and self.known.has_failed
            self._vectors = spec, VectorCache(self._cache, spec, quiet=is_said)
        return self._vectors[1]

    def missing(self, spec: VectorSpec) -> int:
        """Return how many passages have no vector in the cache yet."""
        return int((self.vectors(spec).find(self.keys()) < 0).sum())

    def sample(self, count: int, spec: VectorSpec) -> Vectors:
        """Return the vectors of so many passages that have one, spread evenly, float32 [n, dim]."""
        rows = self.vectors(spec).find(self.keys())
        rows = rows[rows >= 0]
        chosen = np.unique(np.linspace(0, max(0, len(rows) - 1), min(count, len(rows)), dtype=int))
        if not len(chosen):
            return np.zeros((0, spec.dim), np.float32)
        return self.vectors(spec).gather(rows[chosen])

    def at(self, path: str, line: int) -> Hit:
        """Return the passage that holds a line of a file (score 1), for --like FILE:LINE.

        Raises:
            UsageError: no such file among the sources, no passage has this line, or the file
                cannot be read.
        """
        hit = self.hit(self.number_at(path, line), 1.0)
        if hit is None:
            raise UsageError(
                f"{visible(path)}: it cannot be read any more, or has changed just now"
            )
        return hit

    def search(
        self,
        queries: Vectors,
        encoder: Encoder,
        spec: VectorSpec,
        *,
        words: Sequence[str] = (),
        k: int | None = 10,
        floor: float = -1.0,
        every_s: float = 0.5,
    ) -> Iterator[Answer]:
        """Yield what was found, better and better; the last answer is that of all passages.

        What is in the cache is compared first; the others are embedded, most promising first,
        and cached every few seconds. A hit is checked against its file: where that has changed
        since, its lines are those of now, and it is left out if it is gone.

        An interrupt (any exception, or closing the iterator) keeps what was computed. Another
        thread may be at work with the encoder for one more window then: nobody else may use it.

        Args:
            queries: unit vectors [Q, spec.dim].
            encoder: embeds the passages, under `spec.prompt`.
            spec: of the passages' vectors; its dtype is f16, as they are stored.
            words: the queries as texts; passages that share words with them are embedded first.
            k: hits of a query; None: all that reach the floor.
            floor: the least score.
            every_s: seconds between two answers. With k=None only the last one has hits.

        Raises:
            GembError: the model fails on every passage, or the cache is damaged.
        """
        assert spec.dtype == "f16", "vectors are cached in float16"
        assert np.isfinite(queries).all(), "a query without a vector"
        cache = self.vectors(spec)
        found = PassageSearch(self, cache, queries, encoder, spec, k=k, floor=floor)
        try:
            found.compare_known()
            if not found.is_done:
                if found.done:
                    yield found.answer(is_last=False)
                shown = time.monotonic()
                for _ in found.embed_missing(Promise.of(words)):
                    if time.monotonic() - shown >= every_s:
                        yield found.answer(is_last=False)
                        shown = time.monotonic()
        finally:
            found.keep()
        yield found.answer(is_last=True)


def gather(
    sources: Sources,
    *,
    cache: Path | None = None,
    quiet: bool = False,
    looked: Callable[[int], None] | None = None,
) -> Corpus:
    """Walk, read what has changed since the last search, and return the passages.

    Args:
        sources: what is searched.
        cache: its folder, `gemb.caches.search_cache()`; None: nothing is kept.
        quiet: no notes.
        looked: called after each file with the number of files so far; what it raises ends the
            walk, and what was split by then is kept.

    Raises:
        UsageError: a table or stream cannot be read as `sources` says.
    """
    corpus = Corpus(sources.kind, cache, quiet=quiet)
    gather_into(corpus, sources, looked)
    return corpus
