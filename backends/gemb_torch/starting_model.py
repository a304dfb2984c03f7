"""The model folder that training starts from: `init: {from, keep_layers, vocab}` of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gemb import models
from gemb.atomic import new_folder
from gemb.checkpoint import open_checkpoint
from gemb.errors import UsageError
from gemb.model_json import read_json
from gemb_torch.model_folder import write_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gemb.backend import Runtime
    from gemb.recipe import Init
    from gemb_torch.cut_texts import Texts

    # Pairs (task of gemb.prompts, text) -> unit vectors, float32 [pairs, width].
    Teacher = Callable[[Sequence[tuple[str, str]]], NDArray[np.float32]]

_MADE_FROM = "made_from.json"  # in a folder of ours: what it was made from


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
        source = _unpacked(source, work)
    if init.keep_layers != "all" or init.vocab:
        raise UsageError("init: keep_layers and vocab are not there yet")
    open_checkpoint(source)
    return source


def _unpacked(source: Path, work: Path) -> Path:
    """Return the GGUF file as a folder, named as the file is."""
    from gemb.gguf_folder import unpack
    from gemb.gguf_model import open_gguf

    model = open_gguf(source)
    target = work / "unpacked" / source.stem
    made_from = {"model": model.fingerprint()}
    if not _is_made(target, made_from):
        target.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(target) as part:
            unpack(model, part)
            open_checkpoint(part)
            write_json(part / _MADE_FROM, made_from)
    return target


def _is_made(folder: Path, made_from: Mapping[str, object]) -> bool:
    path = folder / _MADE_FROM
    return path.is_file() and read_json(path) == made_from
