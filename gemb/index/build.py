"""A new index: from a source and a model, written beside its place, renamed when it is whole.

A build that was stopped leaves NAME.part; the same build goes on with it, as a sync would.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sqlite3
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gemb import __version__
from gemb import plugins as backends
from gemb.backend import Encoder
from gemb.embedding.drafts import DraftModel, open_draft
from gemb.embedding.formats.base import Description
from gemb.embedding.pipeline import Embedder
from gemb.embedding.vectors import VectorSpec
from gemb.errors import GembError, UsageError
from gemb.index.manifest import (
    DTYPES,
    HALF,
    TASK_OF_ITS_OWN,
    Manifest,
    is_index,
    read_manifest,
    rows_path,
    write_manifest,
)
from gemb.index.schema import explained
from gemb.index.source import (
    PassageSource,
    RowSource,
    Source,
    VectorSource,
    described,
    source_from_json,
)
from gemb.index.state import Changes, State
from gemb.index.sync import OpenEncoder, described_draft, finish, kept_reference, now, update
from gemb.index.vector_source import described_vectors
from gemb.index.writer import Writer
from gemb.io.atomic import remove_left_beside, sync_folder, take_name
from gemb.io.locks import LOCK, locked_index
from gemb.io.notes import note
from gemb.io.paths import check_folder_of
from gemb.io.text import visible
from gemb.models import prompts
from gemb.models import references as models
from gemb.models.prompts import Prompt
from gemb.texts.passages import VERSION


@dataclass(frozen=True, kw_only=True)
class BuildJob:
    """What is to be built."""

    target: Path  # the folder to come
    source: Source
    model: str  # a reference
    model_is_named: bool  # the user named it, it is not the default
    dim: int | None = None  # width of the vectors; None: the model's
    dtype: str | None = None  # one of `DTYPES`; None: f16, or that of the source's vectors
    task: str = "document"  # name of the documents' prompt
    prompt: str | None = None  # a template of the user's own in its place
    overwrite: bool = False  # replace an index that is there
    drafts: bool = False  # rows get drafts of their vectors, and real ones by `gemb index refine`


def build_index(job: BuildJob, open_encoder: OpenEncoder) -> Changes:
    """Build an index and return what it has.

    Raises:
        UsageError: the source has no row, or it, the target or the model does not fit.
        GembError: the disk is full, or the model fails.
    """
    encoder: Encoder | None = None
    draft: DraftModel | None = None
    if isinstance(job.source, VectorSource):
        if job.drafts:
            raise UsageError("--draft: these rows come with their vectors; leave it out")
        identity = _of_vectors(job, job.source)
    else:
        encoder = open_encoder()
        identity = _of_texts(job, encoder)
        draft = _draft(job, identity.spec) if job.drafts else None
    manifest = Manifest(
        spec=identity.spec,
        model=kept_reference(identity.model),
        task=identity.task,
        source=job.source.to_json(),
        draft=described_draft(draft) if draft else None,
        splitting=VERSION,
        made_by=__version__,
        built=now(),
        synced=now(),
    )
    # A link stays a link.
    target = Path(os.path.realpath(job.target)) if job.target.is_symlink() else job.target
    part = part_of(target)
    remove_left_beside(target)
    while True:
        check_target(target, overwrite=job.overwrite)
        part.mkdir(exist_ok=True)
        try:
            with locked_index(part):
                manifest = _resumed(part, manifest)
                changes = _fill(part, manifest, encoder, open_encoder, draft)
                _replace(part, target)
                return changes
        except FileNotFoundError:
            if part.exists():
                raise  # else the process that this one waited for has finished the same index


def _draft(job: BuildJob, spec: VectorSpec) -> DraftModel:
    """Open the draft model.

    Raises:
        UsageError: there is none for these vectors.
    """
    encoder = open_draft(spec.model)
    draft = DraftModel.of(encoder, spec.dim) if encoder else None
    if draft is None:
        raise UsageError(
            f"--draft: there is no draft of {visible(job.model)} with {spec.dim} components or "
            "fewer; gemb train draft makes one, and GEMB_DRAFT=FOLDER names it"
        )
    return draft


class Identity(NamedTuple):
    """What vectors are."""

    spec: VectorSpec
    model: str  # a reference; empty: unknown
    task: str  # name of the documents' prompt; custom where it is the user's own


def _of_texts(job: BuildJob, encoder: Encoder) -> Identity:
    """Return what the vectors of a model are.

    Raises:
        UsageError: the prompt has no place for a title, or the model has no such width.
    """
    own = prompts.custom(job.prompt) if job.prompt is not None else None
    embedder = Embedder.of(
        encoder,
        own or job.task,
        dim=job.dim,
        dtype=job.dtype or "f16",
        has_titles=isinstance(job.source, RowSource) and bool(job.source.title),
    )
    return Identity(embedder.spec, job.model, TASK_OF_ITS_OWN if own else job.task)


def _of_vectors(job: BuildJob, source: VectorSource) -> Identity:
    """Return what the vectors of a file are.

    Raises:
        UsageError: they are not of the model that was named, or only a named model could tell.
    """
    if job.dim is not None:
        raise UsageError("--dim: vectors that are there keep their width; leave it out")
    description = described_vectors(source.real()[0]).description
    if description.dtype not in DTYPES:
        raise UsageError(
            f"{visible(source.paths[0])} has sign bits alone, which rank nothing exactly; "
            "gemb embed without --dtype ubinary"
        )
    identity = identity_of(description, job)
    usual = "f16" if description.dtype == "f32" else description.dtype
    return identity._replace(spec=dataclasses.replace(identity.spec, dtype=job.dtype or usual))


def identity_of(description: Description, job: BuildJob) -> Identity:
    """Return what described vectors are.

    Raises:
        UsageError: they are not of the model that was named, or only a named model could tell.
    """
    own = prompts.custom(job.prompt) if job.prompt is not None else None
    spec, model = _made_by(description, job, own)
    if own:
        task = TASK_OF_ITS_OWN
    elif description.task in prompts.TASKS:
        task = description.task
    else:
        task = _task(spec.prompt, model)
    return Identity(spec, model, task)


def _made_by(description: Description, job: BuildJob, own: Prompt | None) -> tuple[VectorSpec, str]:
    """Return what the vectors of a file are, and the reference of their model, empty if unknown.

    Raises:
        UsageError: they are not of the model that was named, or only a named model could tell.
    """
    path = visible(job.source.paths[0])
    try:
        model = backends.describe(models.resolve(job.model, download=False))
    except GembError:
        if job.model_is_named:
            raise
        model = None
    if description.spec:
        if model and description.spec.model == model.fingerprint:
            return description.spec, job.model
        if job.model_is_named:
            raise UsageError(
                f"{path} has vectors of another model (fingerprint {description.spec.model}) "
                f"than {job.model}"
            )
        note(
            f"{path} has vectors of a model with fingerprint {description.spec.model}, which is "
            f"not {job.model}: a search needs -m"
        )
        return description.spec, ""
    if model:
        is_known = description.task in prompts.TASKS
        prompt = own or (prompts.for_task(description.task, model.prompts) if is_known else None)
        spec = VectorSpec(
            model=model.fingerprint,
            prompt=prompt.template if prompt else "",
            dim=description.dim,
            dtype=description.dtype,
            max_tokens=model.max_tokens,
        )
        if spec.fingerprint == description.fingerprint:
            return spec, job.model
    raise UsageError(
        f"{path}: its vectors are not those of {job.model or 'the model'} with the prompt "
        f"of task '{visible(description.task)}'; name their model with -m, and words of your own "
        "with --prompt"
    )


def _task(template: str, model: str) -> str:
    """Return the name of a prompt of a model; custom where it has none of these words."""
    known = backends.describe(models.resolve(model, download=False)).prompts if model else {}
    names = [task for task in prompts.TASKS if prompts.for_task(task, known).template == template]
    return names[0] if names else TASK_OF_ITS_OWN


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse a place for a new index.

    Raises:
        UsageError: something is there that must not be replaced, or nothing can be written there.
    """
    shown = visible(str(target))
    part = part_of(target)
    check_folder_of(target)
    if os.path.lexists(part) and not is_part(part):
        raise UsageError(
            f"{visible(str(part))} is no unfinished index, and its name is needed; move it"
        )
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise UsageError(f"{shown} is a file; name a folder for the index: {shown}.gemb")
    if is_index(target):
        if not overwrite:
            raise UsageError(
                f"{shown} is an index already; gemb index sync {shown} brings it up to date, "
                "-f builds it anew"
            )
    elif any(target.iterdir()):
        raise UsageError(
            f"{shown} is a folder with other files; name the index first: "
            f"gemb index build {shown.rstrip('/')}.gemb {shown}"
        )


def part_of(target: Path) -> Path:
    """Return the folder of an index that is not whole yet."""
    return target.with_name(target.name + ".part")


def is_part(part: Path) -> bool:
    """Return whether a folder is what a stopped build left."""
    if not part.is_dir() or is_index(part):
        return part.is_dir()
    return all(path.name == LOCK or path.name.startswith(HALF) for path in part.iterdir())


def _resumed(part: Path, manifest: Manifest) -> Manifest:
    """Return the manifest of what a stopped build of the same index left, else the new one.

    What another build left is removed.
    """
    if is_index(part):
        try:
            left = read_manifest(part)
            source, spec = source_from_json(left.source), left.spec
        except GembError:
            pass
        else:
            same = (manifest.spec, source_from_json(manifest.source), manifest.draft)
            if (spec, source, left.draft) == same:
                return left
        note(f"{visible(str(part))}, what another build left, is removed")
    for path in part.iterdir():
        if path.name != LOCK:
            path.unlink()
    write_manifest(part, manifest)
    return manifest


def _fill(
    part: Path,
    manifest: Manifest,
    encoder: Encoder | None,
    open_encoder: OpenEncoder,
    draft: DraftModel | None,
) -> Changes:
    """Write the rows of the source, and what readers need beside them.

    Args:
        part: the folder.
        manifest: of the part.
        encoder: the model, if it is open.
        open_encoder: opens it, if rows without a vector turn up.
        draft: makes drafts instead.

    Raises:
        UsageError: the source has no row.
        GembError: the disk is full, or the model fails.
    """
    writer = Writer(part, manifest)
    source = source_from_json(manifest.source)
    try:
        if writer.slots:
            note(f"{writer.rows:,} rows of a stopped build are there; it goes on from them")
            writer.make_lookups()
        elif not isinstance(source, PassageSource) and source.id is not None:
            writer.make_lookups("id")
        state = State(manifest, writer.connection, writer.slots, writer.removed, writer, draft)
        changes = update(state, lambda: encoder or open_encoder(), lambda *counts: None)
        if not changes.rows:
            raise UsageError(
                f"{visible(described(source.paths))}: nothing to index"
                + (f"; {changes.failed} rows failed" if changes.failed else "")
            )
        finish(part, dataclasses.replace(manifest, splitting=VERSION), writer, encoder)
    except UsageError:
        if not writer.slots:
            writer.close()
            shutil.rmtree(part)
        raise
    except sqlite3.Error as error:
        raise explained(rows_path(part, manifest.generation), error) from None
    except BaseException:
        if writer.committed:
            note(
                f"{visible(str(part))} keeps what was done ({writer.committed:,} rows): the same "
                "gemb index build goes on from there"
            )
        raise
    finally:
        writer.close()
    return changes


def _replace(part: Path, target: Path) -> None:
    """Give the index its name."""
    with ExitStack() as stack:
        if is_index(target):
            stack.enter_context(locked_index(target))
        take_name(part, target)
        sync_folder(target)
        sync_folder(target.parent)
