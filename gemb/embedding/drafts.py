"""Draft models: which one makes drafts of which model's vectors, and how it is opened.

The vectors of a draft lie in the space of its model, and are made a hundred times as fast: a
question's vector by the model says roughly which passages the model itself would rank first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gemb.arrays import Vectors
from gemb.backend import Narrowing, Runtime
from gemb.embedding.engine import open_engine
from gemb.embedding.pipeline import by_halves, shortened
from gemb.embedding.vectors import VectorSpec, are_units
from gemb.errors import GembError, Missing, UsageError
from gemb.io.notes import note
from gemb.models.prompts import Prompt, for_task
from gemb.models.references import resolve
from gemb.models.static import check_draft
from gemb.plugins import backends, describe
from gemb.texts.records import RowError

if TYPE_CHECKING:
    from gemb.arrays import TokenIds
    from gemb.backend import Encoder

LONGEST = 1 << 15  # characters of a text, of which its draft is
WIDTH = 256  # of draft vectors at most: 0.5 kB a passage in the cache
BUNDLED = Path(__file__).parents[1] / "data" / "draft"
NONE = "none"
DraftOpener = Callable[[str], "Encoder | None"]  # by the fingerprint of a model; None: no draft


def open_draft(fingerprint: str) -> Encoder | None:
    """Open the draft of a model: the one that comes with gemb, or what GEMB_DRAFT names.

    Args:
        fingerprint: of the model.

    Returns:
        None where no draft says that it is one of this model, or GEMB_DRAFT is `none`.

    Raises:
        UsageError: GEMB_DRAFT names no model, or its files are broken.
        Missing: what GEMB_DRAFT names is not here.
    """
    named = os.environ.get("GEMB_DRAFT", "")
    if named == NONE or not (named or BUNDLED.is_dir()):
        return None
    path = resolve(named, download=False) if named else BUNDLED
    try:
        draft_of = describe(path).draft_of
        if fingerprint not in draft_of:
            if named:
                _say_other(draft_of, fingerprint, named)
            return None
        # GEMB_BACKEND is for the model, not for its draft.
        opener = next(name for name, backend in backends().items() if backend.can_open(path))
        return open_engine(path, Runtime(), opener).encoder
    except (Missing, UsageError) as error:
        if named:
            raise
        note(f"words alone choose what gets a vector: {error}", once=True)
        return None


def _say_other(draft_of: Sequence[str], fingerprint: str, name: str) -> None:
    try:
        check_draft(draft_of, fingerprint, name)
    except UsageError as error:
        note(f"GEMB_DRAFT: {error}", once=True)


@dataclass(frozen=True, kw_only=True)
class DraftModel:
    """An open model that makes drafts of another one's vectors."""

    encoder: Encoder
    spec: VectorSpec

    @staticmethod
    def of(encoder: Encoder, dim: int) -> DraftModel | None:
        """Return the drafts for real vectors of `dim` components; None: they have no width."""
        widths = [width for width in encoder.profile.matryoshka_dims if width <= min(dim, WIDTH)]
        if not widths:
            return None
        prompt = for_task("document", encoder.profile.prompts)
        spec = VectorSpec.of(encoder.profile, prompt, dim=max(widths), dtype="f16")
        if isinstance(encoder, Narrowing):
            encoder = encoder.narrowed(spec.dim)
        return DraftModel(encoder=encoder, spec=spec)

    def vectors(self, passages: Sequence[tuple[str | None, str]]) -> Vectors:
        """Return the drafts of passages, titles and texts, [n, dim]; NaN where the model fails."""
        prompt = Prompt(self.spec.prompt)
        # A draft takes texts as they are, below their titles.
        texts = [
            prompt.render((f"{title}\n{text}" if title else text)[:LONGEST])
            for title, text in passages
        ]
        try:
            return self._vectors(texts)
        except GembError:  # it fails on every text of these; words rank them
            return np.full((len(passages), self.spec.dim), np.nan, np.float32)

    def _vectors(self, texts: Sequence[str]) -> Vectors:
        profile = self.encoder.profile
        ids = by_halves(self.encoder.tokenize, texts)
        read = [row for row, tokens in enumerate(ids) if not isinstance(tokens, RowError)]
        batch: list[TokenIds] = [profile.cut(ids[row]) for row in read]  # type: ignore[arg-type]
        results = by_halves(self.encoder.encode, batch)
        made = {
            row: result
            for row, result in zip(read, results, strict=True)
            if not isinstance(result, RowError)
        }
        vectors = np.full((len(texts), self.spec.dim), np.nan, np.float32)
        if made:
            vectors[list(made)] = shortened(np.stack(list(made.values())), self.spec.dim)
        vectors[~are_units(vectors, "f32", self.spec.dim)] = np.nan
        return vectors
