"""A new index: written beside its place, and renamed when it is whole.

A build that was stopped leaves NAME.part; the same build goes on with it, as a sync would.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gemb import __version__
from gemb import plugins as backends
from gemb.backend import Encoder
from gemb.embedding.formats.base import Description
from gemb.embedding.formats.read import holds_vectors
from gemb.embedding.pipeline import Embedder
from gemb.embedding.vectors import VectorSpec
from gemb.errors import GembError, UsageError
from gemb.index.manifest import HALF, Manifest, is_index, read_manifest, write_manifest
from gemb.index.source import PASSAGES, ROWS, STDIN, VECTORS, Source, described
from gemb.index.state import Changes, State
from gemb.index.sync import finish, now, update
from gemb.index.vector_source import described_vectors
from gemb.index.writer import Writer
from gemb.io.atomic import sync_folder
from gemb.io.locks import LOCK, locked_index
from gemb.io.notes import note
from gemb.io.paths import check_folder_of
from gemb.io.text import visible
from gemb.models import prompts
from gemb.models import references as models
from gemb.models.prompts import Prompt
from gemb.texts import inputs

if TYPE_CHECKING:
    pass


DTYPES = ("f16", "int8", "f32")


@dataclass(frozen=True, kw_only=True)
class Building:
    """What is to be built."""

    target: Path
    source: Source
    spec: VectorSpec
    model: str  # reference; a path made absolute
    task: str
    overwrite: bool


Fill = Callable[[Writer, Manifest], Changes]


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


def build(job: Building, fill: Fill, encoder: Encoder | None) -> Changes:
    """Build an index and return what it has.

    Args:
        job: what.
        fill: writes the rows of `job.source`.
        encoder: the model, if it is open.

    Raises:
        UsageError: the target is taken, or the source has no row.
        GembError: the disk is full, or the model fails.
    """
    # A link stays a link.
    target = Path(os.path.realpath(job.target)) if job.target.is_symlink() else job.target
    part = part_of(target)
    while True:
        check_target(target, overwrite=job.overwrite)
        part.mkdir(exist_ok=True)
        try:
            with locked_index(part):
                changes = _filled(job, part, fill, encoder)
                _replace(part, target)
                return changes
        except FileNotFoundError:
            if part.exists():
                raise  # else the process that this one waited for has finished the same index


def part_of(target: Path) -> Path:
    """Return the folder of an index that is not whole yet."""
    return target.with_name(target.name + ".part")


def is_part(part: Path) -> bool:
    """Return whether a folder is what a stopped build left."""
    if not part.is_dir() or is_index(part):
        return part.is_dir()
    return all(path.name == LOCK or path.name.startswith(HALF) for path in part.iterdir())


def _filled(job: Building, part: Path, fill: Fill, encoder: Encoder | None) -> Changes:
    """Fill the folder of the part."""
    manifest = _manifest(job, part)
    writer = Writer(part, manifest)
    try:
        changes = fill(writer, manifest)
        if not changes.rows:
            raise UsageError(
                f"{visible(described(job.source.paths))}: nothing to index"
                + (f"; {changes.failed} rows failed" if changes.failed else "")
            )
        finish(part, manifest, writer, encoder)
    except UsageError:
        if not writer.slots:
            writer.close()
            shutil.rmtree(part)
        raise
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


def _manifest(job: Building, part: Path) -> Manifest:
    """Return the manifest of the part; what another build left is removed."""
    manifest = Manifest(
        spec=job.spec,
        model=job.model,
        task=job.task,
        source=job.source.to_json(),
        made_by=__version__,
        built=now(),
        synced=now(),
    )
    if is_index(part):
        try:
            found = read_manifest(part)
        except GembError:
            found = None
        if found and (found.spec, Source.from_json(found.source)) == (job.spec, job.source):
            return found
        note(f"{visible(str(part))}, what another build left, is removed")
    for path in part.iterdir():
        if path.name != LOCK:
            path.unlink()
    write_manifest(part, manifest)
    return manifest


def _replace(part: Path, target: Path) -> None:
    """Give the index its name."""
    with ExitStack() as stack:
        old = target.with_name(f".{target.name}.{os.getpid()}.old")
        if target.exists():
            if is_index(target):
                stack.enter_context(locked_index(target))
            target.replace(old)
        try:
            part.replace(target)
        except OSError:
            if old.exists():
                old.replace(target)
            raise
        sync_folder(target)
        sync_folder(target.parent)
        for path in target.parent.iterdir():  # and what a kill at this place left before
            if path.name.startswith(f".{target.name}.") and path.name.endswith(".old"):
                shutil.rmtree(path, ignore_errors=True)


# One run of `gemb index build`: from a source and a model to a whole index.


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

    Raises:
        UsageError: the source, the target or the model does not fit.
        GembError: the disk is full, or the model fails.
    """
    encoder: Encoder | None = None
    words = prompts.custom(prompt) if prompt is not None else None
    if source.kind == VECTORS:
        if dim is not None:
            raise UsageError("--dim: vectors that are there keep their width; leave it out")
        found = described_vectors(source.real()[0]).description
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
        has_titles = bool(source.title)
        spec = Embedder.of(
            encoder, words or task, dim=dim, dtype=dtype or "f16", has_titles=has_titles
        ).spec
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
            note(f"{writer.rows:,} rows of a stopped build are there; it goes on from them")
            writer.make_lookups()
        elif source.id is not None:
            writer.make_lookups("id")
        state = State(manifest, writer.connection, writer.slots, writer)
        return update(
            state,
            spec,
            open_encoder=lambda: encoder or open_encoder(),
            may_remove=lambda *counts: None,
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
    found: Description, path: str, model: str, model_is_named: bool, words: Prompt | None
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


def chosen_kind(source: Source, *, wants_passages: bool) -> Source:
    """Return the source with its kind, and check what can be checked before a model is loaded.

    Args:
        source: as the options describe it.
        wants_passages: also of files that could be rows.

    Raises:
        UsageError: a path cannot be read, or options do not go together.
    """
    for path in source.paths:
        if path != STDIN and not os.path.exists(path):  # noqa: PTH110
            raise UsageError(f"no such file or folder: {visible(path)}")
    is_folder = [path != STDIN and os.path.isdir(path) for path in source.paths]  # noqa: PTH112
    named = source.fields.named() or source.null or source.format != "auto"
    if any(is_folder) or wants_passages:
        if source.is_stdin:
            raise UsageError("standard input has rows, not files; name files or folders")
        if named:
            raise UsageError(
                "-I, -0 and --...-field are for rows of FILEs, not for passages of files"
            )
        return dataclasses.replace(source, kind=PASSAGES)
    inputs.check(source.paths)
    vectors = [path != STDIN and holds_vectors(Path(path)) for path in source.paths]
    if any(vectors) and source.format == "auto":
        if not all(vectors):
            plain = source.paths[vectors.index(False)]
            raise UsageError(f"{visible(plain)} has texts, other files have vectors: not together")
        return dataclasses.replace(source, kind=VECTORS)
    return dataclasses.replace(source, kind=ROWS)
