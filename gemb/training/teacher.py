"""Teachers: whose vectors a student learns from, computed once and kept on disk for every run.

A teacher is any model reference, or files of vectors that `gemb embed --keep text` wrote
(`gemb.training.teachers` has both). Either way the vectors lie in a `VectorStore` by the words that
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


class TeacherText(NamedTuple):
    """A text whose vector is needed."""

    words: str  # with the teacher's prompt around it, as `Prompt.render` gives them
    place: str = ""  # for messages: pairs.jsonl:17

    def shown(self) -> str:
        """Return what a message calls it."""
        short = self.words if len(self.words) <= 60 else self.words[:57] + "..."
        return f"{self.place} ({short!r})" if self.place else repr(short)


class FillEstimate(NamedTuple):
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

    def fill(self, texts: Iterable[TeacherText]) -> int:
        """Compute the vectors that are missing, and return how many.

        Args:
            texts: repeats allowed. What can be iterated over again, as a list can, is
                counted first, so that the time left can be told.

        Raises:
            UsageError: a file of vectors lacks some of them.
            GembError: the teacher gives numbers that are not finite.
            OSError: the cache cannot be written; what was computed so far is kept.
        """
        raise NotImplementedError

    def predict(self, texts: Iterable[TeacherText]) -> FillEstimate:
        """Return what `fill` has to do; a few texts are embedded, and kept, to time it.

        Args:
            texts: can be iterated over again and again.

        Raises:
            UsageError, GembError: as `fill`.
        """
        raise NotImplementedError

    def absent(self, texts: Iterable[TeacherText]) -> Iterator[tuple[bytes, TeacherText]]:
        """Yield the key and each text that has no vector when it is its turn; repeats too."""
        source = iter(texts)
        while chunk := list(islice(source, CHUNK)):
            keys = [key_of(text.words) for text in chunk]
            for at in np.flatnonzero(self._store.find(keys) < 0).tolist():
                yield keys[at], chunk[at]

    def missing(self, texts: Iterable[TeacherText]) -> int:
        """Return how many different texts have no vector yet."""
        return self._missing(texts)[0]

    def _missing(self, texts: Iterable[TeacherText]) -> tuple[int, int]:
        """Return how many different texts have no vector yet, and their characters.

        24 bytes of memory for each.
        """
        keys, chars = bytearray(), array("q")
        for key, text in self.absent(texts):
            keys += key
            chars.append(len(text.words))
        different = np.unique(np.frombuffer(keys, f"S{KEY_BYTES}"), return_index=True)[1]
        return len(different), int(np.frombuffer(chars, np.int64)[different].sum())

    def rows(self, texts: Sequence[TeacherText]) -> NDArray[np.int64]:
        """Return where the vectors are, int64 [n], as `at` takes it.

        Raises:
            GembError: `fill` was not given one of them.
        """
        keys = [key_of(text.words) for text in texts]
        rows = self._store.find(keys)
        if (rows < 0).any():
            self._store.reload()  # another process may have filled them in
            rows = self._store.find(keys)
        absent = np.flatnonzero(rows < 0)
        if len(absent):
            first = texts[int(absent[0])].shown()
            raise GembError(
                f"{len(absent)} texts have no vector of the teacher {self.reference} in "
                f"{self.folder}, the first: {first}; was the cache removed during the run?"
            )
        return rows

    def at(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return unit vectors, float32 [n, dim], read from the disk."""
        return self._store.gather(rows)

    def vectors(self, texts: Sequence[TeacherText]) -> NDArray[np.float32]:
        """Return unit vectors, float32 [n, dim], of texts that `fill` has seen.

        Raises:
            GembError: one has no vector, or the cache is damaged.
        """
        return self.at(self.rows(texts))
