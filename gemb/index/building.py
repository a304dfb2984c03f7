"""One run of `gemb index build`: from a source and a model to a whole index."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from gemb import plugins as backends
from gemb.backend import Encoder
from gemb.embedding.run import width
from gemb.embedding.vectors import VectorSpec
from gemb.errors import GembError, UsageError
from gemb.index.build import DTYPES, Building, build
from gemb.index.changes import Changes
from gemb.index.manifest import Manifest
from gemb.index.source import VECTORS, Source
from gemb.index.update import update
from gemb.index.update_state import State
from gemb.index.vector_source import Described, describe
from gemb.index.writer import Writer
from gemb.io.notes import note
from gemb.io.text import visible
from gemb.models import prompts
from gemb.models import references as models
from gemb.models.prompts import Prompt


def build_index(
    target: Path,
    source: Source,
    *,
    open_encoder: Callable[[], Encoder],
    model: str,
    model_is_named: bool,
    dim: int | None,
    dtype: str | None,
    task: str,
    prompt: str | None,
    overwrite: bool,
    quiet: bool,
) -> Changes:
    """Build an index and return what it has.

    Args:
        target: the folder to come.
        source: of its rows.
        open_encoder: opens `model`.
        model: a reference.
        model_is_named: the user named it, it is not the default.
        dim: width of the vectors; None: the model's.
        dtype: of the stored numbers; None: f16, or that of the source's vectors.
        task: name of the documents' prompt.
        prompt: the user's own one.
        overwrite: replace an index that is there.
        quiet: no progress and no notes.

    Raises:
        UsageError: the source, the target or the model does not fit.
        GembError: the disk is full, or the model fails.
    """
    encoder: Encoder | None = None
    words = prompts.custom(prompt) if prompt is not None else None
    if source.kind == VECTORS:
        if dim is not None:
            raise UsageError("--dim: vectors that are there keep their width; leave it out")
        found = describe(source.real()[0])
        if found.dtype not in DTYPES:
            raise UsageError(
                f"{visible(source.paths[0])} has sign bits alone, which rank nothing exactly; "
                "gemb embed without --dtype ubinary"
            )
        spec, model = _spec(found, source.paths[0], model, model_is_named, words)
        spec = dataclasses.replace(spec, dtype=dtype or _stored_dtype(found.dtype))
        task = found.task or _task(spec.prompt, model)
    else:
        encoder = open_encoder()
        profile = encoder.profile
        around = words or prompts.for_task(task, profile.prompts)
        if source.title and not around.takes_title:
            raise UsageError(
                f"--title-field: the prompt {around.template!r} has no place for a title; "
                "--task document has one, and so has a --prompt with {title}"
            )
        spec = VectorSpec(
            model=profile.fingerprint,
            prompt=around.template,
            dim=width(encoder, dim),
            dtype=dtype or "f16",
            max_tokens=profile.max_tokens,
        )
    job = Building(
        target=target,
        source=source,
        spec=spec,
        model=kept_reference(model),
        task="custom" if words else task,
        overwrite=overwrite,
    )

    def fill(writer: Writer, manifest: Manifest) -> Changes:
        if writer.slots:
            if not quiet:
                note(f"{writer.rows:,} rows of a stopped build are there; it goes on from them")
            writer.make_lookups()
        elif source.id is not None:
            writer.make_lookups("id")
        state = State(manifest, writer.connection, writer.slots, writer, quiet=quiet)
        return update(
            state,
            spec,
            open_encoder=lambda: encoder or open_encoder(),
            may_remove=lambda *counts: None,
            quiet=quiet,
        )

    return build(job, fill, encoder)


def _task(template: str, model: str) -> str:
    """Return the name of a prompt of a model; custom where it has none of these words."""
    known = backends.describe(models.resolve(model, download=False)).prompts if model else {}
    names = [task for task in prompts.TASKS if prompts.for_task(task, known).template == template]
    return names[0] if names else "custom"


def _stored_dtype(dtype: str) -> str:
    """Return how vectors that came in a type are stored: f16 where nobody chose another."""
    return "f16" if dtype == "f32" else dtype


def kept_reference(model: str) -> str:
    """Return a model reference that means the same in another folder."""
    if not model or model in models.names():
        return model
    target = models.locate(model)
    return os.path.abspath(target) if isinstance(target, Path) else model  # noqa: PTH100


def _spec(
    found: Described, path: str, model: str, model_is_named: bool, words: Prompt | None
) -> tuple[VectorSpec, str]:
    """Return what the vectors of a file are, and the reference of their model, empty if unknown.

    Raises:
        UsageError: they are not of the model that was named, or only a named model could tell.
    """
    try:
        described = backends.describe(models.resolve(model, download=False))
    except GembError:
        if model_is_named:
            raise
        described = None
    if found.spec:
        if described and found.spec.model == described.fingerprint:
            return found.spec, model
        if model_is_named:
            raise UsageError(
                f"{visible(path)} has vectors of another model (fingerprint {found.spec.model}) "
                f"than {model}"
            )
        note(
            f"{visible(path)} has vectors of a model with fingerprint {found.spec.model}, which is "
            f"not {model}: a search needs -m"
        )
        return found.spec, ""
    if described:
        known = found.task in prompts.TASKS
        around = words or (prompts.for_task(found.task, described.prompts) if known else None)
        spec = VectorSpec(
            model=described.fingerprint,
            prompt=around.template if around else "",
            dim=found.dim,
            dtype=found.dtype,
            max_tokens=described.max_tokens,
        )
        if spec.fingerprint == found.fingerprint:
            return spec, model
    raise UsageError(
        f"{visible(path)}: its vectors are not those of {model or 'the model'} with the prompt "
        f"of task '{visible(found.task)}'; name their model with -m, and words of your own with "
        "--prompt"
    )
