"""Draft models: which one makes drafts of which model's vectors, and how it is opened.

The vectors of a draft lie in the space of its model, and are made a hundred times as fast: a
question's vector by the model says roughly which passages the model itself would rank first.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from gemb.backend import Runtime
from gemb.embedding.engine import open_engine
from gemb.errors import Missing, UsageError
from gemb.io.notes import note
from gemb.models.references import resolve
from gemb.plugins import backends, describe

if TYPE_CHECKING:
    from gemb.backend import Encoder
    from gemb.models.profile import ModelProfile

BUNDLED = Path(__file__).parents[1] / "data" / "draft"
NONE = "none"


def open_draft(model: ModelProfile) -> Encoder | None:
    """Open the draft of a model: the one that comes with gemb, or what GEMB_DRAFT names.

    Args:
        model: an open one.

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
        if model.fingerprint not in describe(path).draft_of:
            return None
        # GEMB_BACKEND is for the model, not for its draft.
        opener = next(name for name, backend in backends().items() if backend.can_open(path))
        return open_engine(path, Runtime(), opener).encoder
    except (Missing, UsageError) as error:
        if named:
            raise
        note(f"words alone choose what gets a vector: {error}", once=True)
        return None
