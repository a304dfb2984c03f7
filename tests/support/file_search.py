"""The stages of a search of files, put together for tests without a command line."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemb.embedding.drafts import DraftModel
from gemb.embedding.vectors import VectorSpec
from gemb.index.hits import Hit
from gemb.io.caches import search_cache
from gemb.search.cache import PassageTable, VectorCache
from gemb.search.corpus import Sources, gather, sources_name
from gemb.search.first import first_ranking
from gemb.search.first_reading import FirstReader
from gemb.search.kept_drafts import Drafts
from gemb.search.kept_words import KnownWords, words_path
from gemb.search.passage_texts import PassageTexts
from gemb.search.scoring import Ranking, SearchProgress, nearest_first, scored, split_known
from gemb.texts.walk import Skipped
from word_encoder import WordEncoder


class Found(NamedTuple):
    """What a search has at one moment."""

    hits: list[list[Hit]]  # of each query
    done: int
    total: int
    tokens: int


class GatheredFiles:
    """Gathered files, and searches in them."""

    def __init__(
        self,
        *paths: str,
        cache: Path | None = None,
        looked: Callable[[int], None] = lambda files: None,
        **sources: Any,
    ) -> None:
        """Gather the passages; `sources` are further fields of `Sources`."""
        self.skipped = Skipped()
        chosen = Sources(paths=paths, **sources)
        self._folder = cache
        self._sources = sources_name(chosen)
        self._table = PassageTable(cache, chosen.kind)
        self.corpus = gather(chosen, self._table, self.skipped, looked)
        self.texts = PassageTexts(self.corpus, self._table, self.skipped)
        self._caches: dict[VectorSpec, VectorCache] = {}

    def __len__(self) -> int:
        return len(self.corpus)

    def cache(self, spec: VectorSpec) -> VectorCache:
        """Return the cache of these vectors."""
        if spec not in self._caches:
            self._caches[spec] = VectorCache(self._folder, spec, is_said=self._table.has_failed)
        return self._caches[spec]

    def reader(self, draft: WordEncoder | None = None, dim: int = 0) -> FirstReader:
        """Return what reads the passages, with a draft model of vectors of this width."""
        model = DraftModel.of(draft, dim) if draft else None
        folder = self._folder
        words = words_path(search_cache() if folder else None, self._sources)
        return FirstReader(
            lambda: KnownWords(words),
            lambda: Drafts(model, folder and search_cache() / "drafts") if model else None,
        )

    def missing(self, spec: VectorSpec) -> int:
        """Return how many passages have no vector."""
        known, _ = split_known(self.corpus, self.cache(spec))
        return len(self.corpus) - len(known.numbers)

    def steps(
        self,
        queries: NDArray[np.float32],
        encoder: WordEncoder,
        words: Sequence[str] = (),
        k: int | None = 10,
        floor: float = -1.0,
        seconds: float | None = None,
    ) -> Generator[SearchProgress, None, None]:
        """Yield the one ranking as it gets better; passages get vectors by their words."""
        cache = self.cache(encoder.spec)
        known, missing = split_known(self.corpus, cache)
        order: list[int] = []
        if missing:
            first = first_ranking(self.texts, self.reader())
            scores = [first.scores(text, queries[0]).fused for text in words or [""]]
            order = nearest_first(missing, scores)
        yield from scored(
            *(known, missing, self.texts, cache, queries, encoder),
            ranking=Ranking(len(queries), k, floor),
            order=order,
            seconds=seconds,
        )

    def found(self, progress: SearchProgress, *, is_last: bool = False) -> Found:
        """Return the hits of a ranking."""
        if is_last:
            self.texts.forget()
        ranking = progress.ranking
        hits = [
            self.texts.hits(ranking.best(query), ranking.k, is_last=is_last)
            for query in range(ranking.queries)
        ]
        return Found(hits, ranking.count, progress.total, progress.tokens)

    def search(
        self,
        queries: NDArray[np.float32],
        encoder: WordEncoder,
        words: Sequence[str] = (),
        k: int | None = 10,
        floor: float = -1.0,
    ) -> Found:
        """Return the hits of all passages."""
        *_, last = self.steps(queries, encoder, words, k, floor)
        return self.found(last, is_last=True)
