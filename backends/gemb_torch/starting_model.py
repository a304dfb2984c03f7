"""The model folder that training starts from: `init: {from, keep_layers, vocab}` of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gemb import models
from gemb.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gemb.backend import Runtime
    from gemb.recipe import Init
    from gemb_torch.cut_texts import Texts

    # Pairs (task of gemb.prompts, text) -> unit vectors, float32 [pairs, width].
    Teacher = Callable[[Sequence[tuple[str, str]]], NDArray[np.float32]]


def starting_folder(
    init: Init,
    work: Path,
    *,
    texts: Sequence[Texts],
    runtime: Runtime,
    seed: int = 0,
    teacher: Teacher | None = None,
) -> Path:
    """Return a plain model folder; `init.model` itself where nothing of it is to be changed.

    Args:
        init: the model, and what to keep of it.
        work: where what is made is kept, and found again: unpacked/, layers.json, start/. One
            process at a time.
        texts: the training texts, source by source, without prompts; read only where something is
            cut.
        runtime: of the model, where layers are removed by their worth.
        seed: of the choice of texts by which layers are removed.
        teacher: whose vectors the layers' worth is measured against, where its width is the
            model's; None: the whole model's own.

    Raises:
        UsageError: the model is none, or has not what is to be kept.
        Missing: it is not here.
    """
    source = models.resolve(init.model)
    if not source.is_dir():
        raise UsageError(f"{source}: training from a .gguf is not there yet")
    if init.keep_layers != "all" or init.vocab:
        raise UsageError("init: keep_layers and vocab are not there yet")
    return source
