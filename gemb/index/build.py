"""A new index: written beside its place, and renamed when it is whole.

A build that was stopped leaves NAME.part; the same build goes on with it, as a sync would.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from gemb import __version__
from gemb.backend import Encoder
from gemb.embedding.vectors import VectorSpec
from gemb.errors import GembError, UsageError
from gemb.index.changes import Changes
from gemb.index.finish import finish, now
from gemb.index.manifest import HALF, Manifest, is_index, read_manifest, write_manifest
from gemb.index.source import Source, described
from gemb.index.writer import Writer
from gemb.io.locks import locked_index
from gemb.io.notes import note
from gemb.io.paths import check_folder_of
from gemb.io.text import visible

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
    return all(path.name == "lock" or path.name.startswith(HALF) for path in part.iterdir())


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
        if path.name != "lock":
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
        _sync_folder(target)
        _sync_folder(target.parent)
        for path in target.parent.iterdir():  # and what a kill at this place left before
            if path.name.startswith(f".{target.name}.") and path.name.endswith(".old"):
                shutil.rmtree(path, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
