"""The drafts of passages, which later searches find in the cache."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gemb.arrays import Floats, Rows, Vectors
from gemb.embedding.drafts import DraftModel
from gemb.embedding.pipeline import shortened
from gemb.errors import GembError
from gemb.io.notes import note
from gemb.io.text import visible
from gemb.search.cache import VectorCache

KEEP_S = 2.0  # seconds of drafting that a kill may cost
OLD_S = 30 * 86400.0  # after which drafts of another draft model are removed


class Drafts:
    """Drafts by the keys of passages; one thread at a time."""

    def __init__(self, model: DraftModel, folder: Path | None) -> None:
        """Open what is kept, and remove what other draft models left long ago.

        Args:
            model: makes drafts.
            folder: of the drafts of all models; None: nothing is kept.
        """
        self.model = model
        self.made = 0
        self._folder = folder
        if folder:
            _remove_old(folder, model.spec.fingerprint)
        self._unsaved: dict[bytes, Vectors] = {}
        self._saved_at = time.monotonic()
        try:
            self._cache = VectorCache(folder, model.spec, is_said=True)
        except GembError:
            self._begin_anew()

    def _begin_anew(self) -> None:
        """Throw damaged drafts away."""
        assert self._folder, "vectors in memory are not damaged"
        own = self._folder / self.model.spec.fingerprint
        note(f"the drafts in {visible(str(own))} are damaged; they are made anew")
        shutil.rmtree(own, ignore_errors=True)
        self._cache = VectorCache(self._folder, self.model.spec, is_said=True)

    def make(self, keys: Sequence[bytes], passages: Sequence[tuple[str | None, str]]) -> None:
        """Make the drafts that are missing of passages, titles and texts."""
        rows = self._cache.find(keys).tolist()
        missing = {
            key: passage
            for key, row, passage in zip(keys, rows, passages, strict=True)
            if row < 0 and key not in self._unsaved
        }
        if not missing:
            return
        vectors = self.model.vectors(list(missing.values()))
        good = ~np.isnan(vectors[:, 0])  # where the model fails there is none
        self._unsaved.update(
            (key, vector)
            for key, vector, is_good in zip(missing, vectors, good, strict=True)
            if is_good
        )
        self.made += int(good.sum())
        if time.monotonic() - self._saved_at > KEEP_S:
            self.save()

    def save(self) -> None:
        """Put what was made into the cache."""
        if self._unsaved:
            self._cache.add(list(self._unsaved), np.stack(list(self._unsaved.values())))
            self._unsaved.clear()
        self._saved_at = time.monotonic()

    def find(self, keys: Sequence[bytes]) -> Rows:
        """Return the row of each passage's draft, [n]; -1: it has none."""
        self.save()
        return self._cache.find(keys)

    def whole(self, keys: Sequence[bytes]) -> Rows:
        """Return the row of each passage's draft, as `find`; damaged drafts are thrown away."""
        rows = self.find(keys)
        try:
            self.scores(rows, np.full(self.model.spec.dim, self.model.spec.dim**-0.5, np.float32))
            return rows
        except GembError:
            self._begin_anew()
            return self.find(keys)

    def scores(self, rows: Rows, query: Vectors) -> Floats:
        """Return the cosines of drafts with a query of any width, [n]; NaN: no draft.

        Raises:
            GembError: the cache is damaged.
        """
        scores = np.full(len(rows), np.nan, np.float32)
        has_draft = rows >= 0
        short = shortened(query[None], self.model.spec.dim)
        scores[has_draft] = self._cache.scores(rows[has_draft], short)[:, 0]
        return scores


def _remove_old(folder: Path, current: str) -> None:
    """Remove drafts of other draft models that nobody has used for long."""
    with contextlib.suppress(OSError):
        for other in folder.iterdir():
            vectors = other / "vectors.f16"
            if other.name == current or not vectors.is_file():
                continue
            if time.time() - vectors.stat().st_atime > OLD_S:
                shutil.rmtree(other, ignore_errors=True)
