"""Teachers: whose vectors a student learns from, computed once and kept on disk for every run.

A teacher is any model reference (`teacher_model.py`), or files of vectors that `gemb embed --keep
text` wrote (`teacher_files.py`). Either way the vectors lie in a `VectorStore` by the words that
the teacher sees, so that runs with other data, orders or seeds share them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemb.embedding.store import KEY_BYTES, VectorStore, key_of
from gemb.errors import GembError

CHUNK = 1024  # texts that are looked up together


class Wanted(NamedTuple):
    """A text whose vector is wanted."""

    words: str  # with the teacher's prompt around it, as `Prompt.render` gives them
    place: str = ""  # for messages: pairs.jsonl:17

    def shown(self) -> str:
        """Return what a message calls it."""
        short = self.words if len(self.words) <= 60 else self.words[:57] + "..."
        return f"{self.place} ({short!r})" if self.place else repr(short)


class Filling(NamedTuple):
    """What a fill has to do."""

    texts: int  # that have no vector
    seconds: float  # about


class Teacher:
    """Unit vectors of texts. Any number of threads and processes may read; one thread fills."""

    reference: str  # as the user wrote it
    dim: int  # width of a vector
    fingerprint: str  # 16 hex digits of all that decides the vectors; name of the cache's folder
    prompts: Mapping[str, str]  # the model's dictionary; empty for files
    licence: str = ""  # of the model, as its files say
    _store: VectorStore

    @property
    def folder(self) -> Path:
        """Where its vectors are kept."""
        return self._store.folder

    def fill(self, wanted: Iterable[Wanted]) -> int:
        """See to it that every text has a vector, and return how many were computed.

        Args:
            wanted: texts, repeats allowed. What can be iterated over again, as a list can, is
                counted first, so that the time left can be told.

        Raises:
            UsageError: a file of vectors lacks some of them.
            GembError: the teacher gives numbers that are not finite.
            OSError: the cache cannot be written; what was computed so far is kept.
        """
        raise NotImplementedError

    def predict(self, wanted: Iterable[Wanted]) -> Filling:
        """Return what `fill` has to do; a few texts are embedded, and kept, to time it.

        Args:
            wanted: can be iterated over again and again.

        Raises:
            UsageError, GembError: as `fill`.
        """
        raise NotImplementedError

    def absent(self, wanted: Iterable[Wanted]) -> Iterator[tuple[bytes, Wanted]]:
        """Yield the key and each text that has no vector when it is its turn; repeats too."""
        source = iter(wanted)
        while chunk := list(islice(source, CHUNK)):
            keys = [key_of(one.words) for one in chunk]
            for place in np.flatnonzero(self._store.find(keys) < 0).tolist():
                yield keys[place], chunk[place]

    def missing(self, wanted: Iterable[Wanted]) -> int:
        """Return how many different texts have no vector yet."""
        return self._missing(wanted)[0]

    def _missing(self, wanted: Iterable[Wanted]) -> tuple[int, int]:
        """Return how many different texts have no vector yet, and their characters.

        24 bytes of memory for each.
        """
        keys, chars = bytearray(), array("q")
        for key, one in self.absent(wanted):
            keys += key
            chars.append(len(one.words))
        different = np.unique(np.frombuffer(keys, f"S{KEY_BYTES}"), return_index=True)[1]
        return len(different), int(np.frombuffer(chars, np.int64)[different].sum())

    def rows(self, wanted: Sequence[Wanted]) -> NDArray[np.int64]:
        """Return where the vectors are, int64 [n], as `at` takes it.

        Raises:
            GembError: `fill` was not given one of them.
        """
        keys = [key_of(one.words) for one in wanted]
        rows = self._store.find(keys)
        if (rows < 0).any():
            self._store.reload()  # another process may have filled them in
            rows = self._store.find(keys)
        absent = np.flatnonzero(rows < 0)
        if len(absent):
            first = wanted[int(absent[0])].shown()
            raise GembError(
                f"{len(absent)} texts have no vector of the teacher {self.reference} in "
                f"{self.folder}, the first: {first}; was the cache removed during the run?"
            )
        return rows

    def at(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return unit vectors, float32 [n, dim], read from the disk."""
        return self._store.gather(rows)

    def vectors(self, wanted: Sequence[Wanted]) -> NDArray[np.float32]:
        """Return unit vectors, float32 [n, dim], of texts that `fill` has seen.

        Raises:
            GembError: one has no vector, or the cache is damaged.
        """
        return self.at(self.rows(wanted))
