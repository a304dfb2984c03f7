"""Search of files, folders and standard input without an index.

    corpus = gather(Sources(paths=("docs/",)), words=["how do I cancel an order"])   # no model
    for answer in corpus.search(query_vectors, encoder, spec, k=10):                 # best so far
        ...
    corpus.skipped.say(); exit code 2 if corpus.skipped.failed

`gather` needs no model: call it in a thread while the model is opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gemb.inputs import Reading
from gemb.search.hits import Hit
from gemb.search.skipped import Skipped
from gemb.search.tree import Walk
from gemb.vectors import VectorSpec

if TYPE_CHECKING:
    from gemb.backend import Encoder

Vectors = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What is searched."""

    paths: tuple[str, ...]  # files, folders, -, pipes
    walk: Walk = field(default_factory=Walk)
    kind: str = "auto"  # how files become passages: one of `gemb.search.passages.KINDS`
    # How streams (-, pipes) are read: one line is a passage, or JSON lines, by their first line.
    stream: Reading = field(default_factory=Reading)
    # Not None: files named by the user are read so, too: a row of JSONL, CSV, Parquet is a passage.
    rows: Reading | None = None


@dataclass(frozen=True)
class Answer:
    """What was found so far."""

    hits: list[list[Hit]]  # for each query, best first, at most k
    done: int  # passages that have a vector, and were compared
    total: int
    tokens: int  # embedded in this run
    is_last: bool


class Corpus:
    """The passages of all sources, in order."""

    skipped: Skipped

    def __len__(self) -> int:
        """Return the number of passages."""
        raise NotImplementedError

    def missing(self, spec: VectorSpec) -> int:
        """Return how many passages have no vector in the cache yet."""
        raise NotImplementedError

    def search(
        self,
        queries: Vectors,
        encoder: Encoder,
        spec: VectorSpec,
        *,
        k: int | None = 10,
        floor: float = -1.0,
        every_s: float = 0.5,
    ) -> Iterator[Answer]:
        """Yield what was found, better and better; the last answer is that of all passages.

        What is in the cache is compared first; the others are embedded, most promising first,
        and cached every few seconds. An interrupt (any exception, or closing the iterator) keeps
        what was computed. Hits of the last answer are checked against their files: a file that
        changed since gives what it holds now, or none.

        Args:
            queries: unit vectors [Q, spec.dim].
            encoder: embeds the passages, under `spec.prompt`.
            spec: of the passages' vectors; its dtype is f16, as they are stored.
            k: hits of a query; None: all that reach the floor.
            floor: the least score.
            every_s: seconds between two answers. With k=None only the last has hits.

        Raises:
            GembError: the model fails on every passage.
        """
        raise NotImplementedError

    def sample(self, count: int, spec: VectorSpec) -> Vectors:
        """Return the vectors of so many passages that have one, spread evenly, float32 [n, dim]."""
        raise NotImplementedError

    def at(self, path: str, line: int) -> Hit:
        """Return the passage that holds a line of a file (score 1), for --like FILE:LINE.

        Raises:
            UsageError: no such file among the sources, or no passage has this line.
        """
        raise NotImplementedError


def gather(
    sources: Sources,
    *,
    words: Sequence[str] = (),
    cache: Path | None = None,
    quiet: bool = False,
) -> Corpus:
    """Walk, read what has changed since the last search, and return the passages.

    Args:
        sources: what is searched.
        words: the queries as texts: passages that share words with them are embedded first.
        cache: its folder, `gemb.caches.search_cache()`; None: nothing is kept.
        quiet: no notes and no progress.

    Raises:
        UsageError: a table or stream cannot be read as `sources` says.
    """
    raise NotImplementedError
