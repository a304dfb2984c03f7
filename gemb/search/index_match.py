"""Whether a query can be put to an index: same model, prompts that belong together, one size."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from gemb.errors import UsageError
from gemb.index.reader import Index
from gemb.io.text import visible

if TYPE_CHECKING:
    from gemb.backend import Encoder

# Queries that were trained against documents; all other tasks go with themselves.
ASYMMETRIC = ("query", "code", "qa", "fact")


def check_asked(index: Index, folder: Path, *, task: str | None, dim: int | None) -> None:
    """Refuse what the index was not built for, before a model is opened.

    Raises:
        UsageError: it has another width, or vectors for another task.
    """
    shown = visible(str(folder))
    if dim is not None and dim != index.spec.dim:
        raise UsageError(
            f"--dim {dim}: the vectors of {shown} have {index.spec.dim}; leave --dim out, or "
            f"build another index: gemb index build OTHER SOURCE... --dim {dim}"
        )
    own = own_task(index)
    if task is None or task == own or (task in ASYMMETRIC and own in ASYMMETRIC):
        return
    raise UsageError(
        f"--task {task}: {shown} was built with --task {index.manifest.task}, which goes with "
        f"--task {own}; leave it out, or build another index"
    )


def own_task(index: Index) -> str:
    """Return the task of queries that goes with the task of an index's vectors."""
    manifest = index.manifest
    return manifest.query_task if manifest.task in ("document", "custom") else manifest.task


def check_model(index: Index, folder: Path, encoder: Encoder, *, given: str, force: bool) -> None:
    """Refuse a model that is not the index's.

    Args:
        index: an open index.
        folder: its name.
        encoder: the open model.
        given: the model that the user named; empty: none, so that it is the index's own.
        force: take another model of the same width all the same.

    Raises:
        UsageError: it is another one.
    """
    profile, spec = encoder.profile, index.spec
    shown = visible(str(folder))
    rebuild = f"gemb index build -f {shlex.quote(shown)} SOURCE..."
    if profile.fingerprint == spec.model:
        return
    if force and spec.dim in profile.matryoshka_dims:
        return
    if force:
        raise UsageError(
            f"--force: {shown} has vectors of {spec.dim} components, and the model gives "
            f"{', '.join(map(str, profile.matryoshka_dims))}"
        )
    if given:
        own = f" ({visible(index.model)})" if index.model else ""
        mend = f"leave -m out, or {rebuild} -m {shlex.quote(given)}" if index.model else rebuild
        raise UsageError(f"{shown} holds vectors of another model{own}, not of {given}: {mend}")
    if not index.model:
        raise UsageError(f"{shown} does not say by which model its vectors are; name it with -m")
    raise UsageError(
        f"the model of {shown}, {visible(index.model)}, is not what it was when the index was "
        f"built: {rebuild}"
    )
