"""An index brought up to date with its source, or looked at for what would be done."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gemb.backend import Encoder
from gemb.embedding.vectors import VectorSpec
from gemb.errors import GembError, UsageError
from gemb.index.changes import Changes
from gemb.index.finish import finish
from gemb.index.manifest import Manifest, read_manifest, rows_path, vectors_path
from gemb.index.reader import Index, check_there
from gemb.index.row_changes import MayRemove
from gemb.index.source import STDIN, Source
from gemb.index.update import OpenEncoder, update
from gemb.index.update_state import State
from gemb.index.writer import Writer
from gemb.io.locks import locked_index
from gemb.io.notes import note
from gemb.io.text import visible


@dataclass(frozen=True, kw_only=True)
class Sync:
    """What is to be done."""

    folder: Path
    paths: tuple[str, ...] = ()  # other ones than the manifest names; empty: those
    base: str = "/"  # of these paths
    quiet: bool = False


class ModelOnce:
    """Opens the model of an index when it is needed, and refuses another one."""

    def __init__(self, spec: VectorSpec, folder: Path, open_model: OpenEncoder) -> None:
        self.encoder: Encoder | None = None
        self._spec = spec
        self._folder = folder
        self._open_model = open_model

    def __call__(self) -> Encoder:
        """Return the open model.

        Raises:
            UsageError: it is not the one that the index was built with.
        """
        if self.encoder is None:
            encoder = self._open_model()
            check_model(encoder.profile.fingerprint, self._spec, self._folder)
            self.encoder = encoder
        return self.encoder


def check_model(fingerprint: str, spec: VectorSpec, folder: Path) -> None:
    """Refuse a model that did not make the vectors of an index.

    Raises:
        UsageError: its fingerprint is another one.
    """
    if fingerprint != spec.model:
        shown = visible(str(folder))
        raise UsageError(
            f"{shown} was built with another model (fingerprint {spec.model}, not {fingerprint}); "
            f"leave -m out, or build it anew: gemb index build -f {shown}"
        )


def sync(job: Sync, open_model: OpenEncoder, may_remove: MayRemove) -> Changes:
    """Bring an index up to date.

    Raises:
        UsageError: the source cannot be read or must be given again, the model is another one, or
            `may_remove` forbids.
        GembError: the index is damaged, or the model fails.
        OSError: the disk is full; what was committed is there.
    """
    with writing(job.folder) as (manifest, writer):
        manifest = dataclasses.replace(manifest, source=_source(job, manifest).to_json())
        model = ModelOnce(manifest.spec, job.folder, open_model)
        writer.make_lookups()
        state = State(manifest, writer.connection, writer.slots, writer, quiet=job.quiet)
        before = writer.slots
        try:
            changes = update(
                state,
                manifest.spec,
                open_encoder=model,
                may_remove=may_remove,
                quiet=job.quiet,
            )
        except BaseException:
            if writer.committed > before:
                note(
                    f"{visible(str(job.folder))} keeps what was done "
                    f"({writer.committed - before:,} new rows); gemb index sync goes on from there"
                )
            raise
        finish(job.folder, manifest, writer, model.encoder)
        return changes


def look(job: Sync) -> Changes:
    """Return what a sync would do. Nothing is written, and no model is opened.

    Raises:
        UsageError: as `sync`.
        GembError: as `sync`.
    """
    with Index.open(job.folder) as index:
        manifest = dataclasses.replace(
            index.manifest, source=_source(job, index.manifest).to_json()
        )
        state = State(manifest, index.connection, len(index.stored), None, quiet=job.quiet)
        return update(
            state,
            manifest.spec,
            open_encoder=_no_model,
            may_remove=lambda *counts: None,
            quiet=job.quiet,
        )


@contextmanager
def writing(folder: Path) -> Iterator[tuple[Manifest, Writer]]:
    """Be the one who writes an index that is there.

    Raises:
        UsageError: the folder is no index.
        GembError: the index is damaged.
        OSError: it cannot be written to.
    """
    read_manifest(folder)  # before a lock is made in a folder that is none of ours
    with locked_index(folder):
        manifest = read_manifest(folder)  # as the writer that this one waited for left it
        rows = rows_path(folder, manifest.generation)
        check_there(rows)
        if not rows.stat().st_size:  # SQLite would take it for a new one
            raise GembError(
                f"{visible(str(rows))} is empty; copy it again, or build the index anew: "
                "gemb index build -f"
            )
        check_there(vectors_path(folder, manifest.generation, manifest.spec.dtype))
        writer = Writer(folder, manifest)
        try:
            yield manifest, writer
        finally:
            writer.close()


def _source(job: Sync, manifest: Manifest) -> Source:
    """Return the source to read.

    Raises:
        UsageError: it was standard input, and is not given again.
    """
    source = Source.from_json(manifest.source)
    shown = visible(str(job.folder))
    if job.paths:
        source = dataclasses.replace(source, paths=job.paths, base=job.base)
    elif source.is_stdin:
        raise UsageError(
            f"{shown} was built from standard input; give it again: ... | gemb index sync {shown} -"
        )
    for path in source.real():
        if path != STDIN and not os.path.exists(path):  # noqa: PTH110
            raise UsageError(
                f"{visible(path)} is not there: nothing was changed; for other files: gemb index "
                f"sync {shown} FILE|DIR"
            )
    return source


def _no_model() -> Encoder:
    raise AssertionError("a dry run embeds nothing")
