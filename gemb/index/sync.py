"""An index brought up to date with its source, or looked at for what that would do."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gemb import plugins as backends
from gemb.backend import Encoder
from gemb.embedding.drafts import DraftModel, open_draft
from gemb.embedding.pipeline import Embedder, OutputRow, Window, embed
from gemb.embedding.vectors import VectorSpec
from gemb.errors import GembError, UsageError
from gemb.index.differences import MayRemove, file_changes, row_changes
from gemb.index.drafts import padded
from gemb.index.floor import SAMPLE, measure
from gemb.index.manifest import (
    Manifest,
    check_own,
    read_manifest,
    rows_path,
    vectors_path,
    write_manifest,
)
from gemb.index.reader import NUMBERS, Index, check_there, mapped
from gemb.index.schema import check_has_drafts, explained, open_to_read, readable
from gemb.index.source import (
    STDIN,
    PassageSource,
    RowSource,
    Source,
    SourceRow,
    VectorSource,
    source_from_json,
    source_rows,
    total_size,
)
from gemb.index.state import Changes, State
from gemb.index.vector_source import count, vector_rows
from gemb.index.writer import Writer
from gemb.io.locks import locked_index
from gemb.io.notes import note
from gemb.io.progress import CountProgress, InputProgress
from gemb.io.text import visible
from gemb.models import references as models
from gemb.texts.passages import VERSION
from gemb.texts.records import Record

BAR_EVERY = 1024  # rows
DRAFTED, AHEAD = 256, 4  # rows that get drafts together, and how many such chunks may wait
GROWN = 2  # times as many rows as when the background was measured: measure it again

OpenEncoder = Callable[[], Encoder]


@dataclass(frozen=True, kw_only=True)
class SyncJob:
    """Which index is brought up to date, and with what."""

    folder: Path
    paths: tuple[str, ...] = ()  # other ones than the manifest names; empty: those
    base: str = "/"  # of these paths
    model: str = ""  # a reference that names the index's model from now on; empty: the manifest's


def sync(job: SyncJob, open_model: OpenEncoder, may_remove: MayRemove) -> Changes:
    """Bring an index up to date.

    Raises:
        UsageError: the source cannot be read or must be given again, the model is another one, or
            `may_remove` forbids.
        GembError: the index is damaged, or the model fails.
        OSError: the disk is full; what was committed is there.
    """
    with writing(job.folder) as (manifest, writer):
        manifest = dataclasses.replace(manifest, source=_source(job, manifest).to_json())
        if job.model:
            description = backends.describe(models.resolve(job.model))
            check_model(description.fingerprint, manifest.spec, job.folder)
            manifest = dataclasses.replace(manifest, model=kept_reference(job.model))
        model = ModelOnce(manifest.spec, job.folder, open_model)
        writer.make_lookups()
        draft = draft_for(manifest)
        state = State(manifest, writer.connection, writer.slots, writer.removed, writer, draft)
        before = writer.slots
        try:
            changes = update(state, model, may_remove)
        except BaseException:
            if writer.committed > before:
                note(
                    f"{visible(str(job.folder))} keeps what was done "
                    f"({writer.committed - before:,} new rows); gemb index sync goes on from there"
                )
            raise
        manifest = dataclasses.replace(manifest, splitting=VERSION)
        finish(job.folder, manifest, writer, model.encoder)
        return changes


def look(job: SyncJob) -> Changes:
    """Return what a sync would do. Nothing is written; the draft model alone is opened.

    Raises:
        UsageError: as `sync`.
        GembError: as `sync`.
    """
    with Index.open(job.folder) as index:
        source = _source(job, index.manifest)
        manifest = dataclasses.replace(index.manifest, source=source.to_json())
        draft = draft_for(manifest)
        state = State(manifest, index.connection, len(index.stored), index.removed, None, draft)
        return update(state, _no_model, lambda *counts: None)


def _no_model() -> Encoder:
    raise AssertionError("a dry run embeds nothing")


def _source(job: SyncJob, manifest: Manifest) -> Source:
    """Return the source to read.

    Raises:
        UsageError: it was standard input, and is not given again.
    """
    source = source_from_json(manifest.source)
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
        is_streamed = path != STDIN and not os.path.isfile(path) and not os.path.isdir(path)  # noqa: PTH112, PTH113
        if is_streamed and not job.paths:  # an index may be somebody else's
            raise UsageError(
                f"{visible(path)} is a pipe or a device; name it, if you mean it: gemb index sync "
                f"{shown} {visible(path)}"
            )
    return source


def draft_for(manifest: Manifest) -> DraftModel | None:
    """Open the draft model of an index; None where it has none, or it is not here: a note."""
    if manifest.draft is None:
        return None
    encoder = open_draft(manifest.spec.model)
    draft = DraftModel.of(encoder, manifest.spec.dim) if encoder else None
    if draft and manifest.draft == described_draft(draft):
        return draft
    note("the draft model of this index is not here; new rows get real vectors at once")
    return None


def described_draft(draft: DraftModel) -> Mapping[str, object]:
    """Return what a manifest says of a draft model."""
    return {"model": draft.spec.model, "width": draft.spec.dim}


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


def update(
    state: State,
    open_encoder: OpenEncoder,
    may_remove: MayRemove,
) -> Changes:
    """Bring an index up to date with its source; without a writer only count.

    What was done stays done when it is stopped, and the next run goes on from there.

    Args:
        state: of the index.
        open_encoder: called when the first text needs a vector.
        may_remove: asked before rows (of files: files) are removed.

    Raises:
        UsageError: the source cannot be read, or `may_remove` forbids.
        GembError: the model fails, or the index is damaged.
        OSError: the disk is full; what was committed is there.
    """
    writer = state.writer
    match state.source:
        case PassageSource() as source:
            records = file_changes(state, source, may_remove)
        case VectorSource() as source:
            rows = _vector_rows(state, source)
            records = row_changes(state, rows, may_remove, have_ids=source.id is not None)
        case RowSource() as source:
            state.total = total_size(source)
            rows = source_rows(source)
            records = row_changes(state, rows, may_remove, have_ids=source.id is not None)
    try:
        _embed(state, records, open_encoder)
        if writer:
            writer.commit()
    except OSError:
        raise
    except BaseException:
        with contextlib.suppress(GembError, OSError):
            if writer:
                writer.commit()
        raise
    if writer:
        state.tally.say()
    state.changes.failed = state.tally.failed
    state.changes.unreadable = state.skipped.failed
    state.changes.rows = writer.rows if writer else None
    return state.changes


def _vector_rows(state: State, source: VectorSource) -> Iterator[SourceRow]:
    """Yield the rows of files of vectors, with a bar."""
    total = count(source.real())
    progress = CountProgress(total, "indexing", "rows", shown=state.writer is not None)
    try:
        for number, row in enumerate(vector_rows(source, state.spec), 1):
            yield row
            if number % BAR_EVERY == 0:
                progress.add(BAR_EVERY)
    finally:
        progress.close()


def _embed(state: State, records: Iterator[Record], open_encoder: OpenEncoder) -> None:
    """Give the records vectors, or drafts, and write the rows that wait for them."""
    first = next(records, None)
    if first is not None and state.draft:
        _draft(state, itertools.chain([first], records), state.draft)
    elif first is not None:
        embedder = Embedder(open_encoder(), state.spec, on_long=state.source.on_long)
        progress = InputProgress(state.total)
        try:
            for window in embed(itertools.chain([first], records), embedder, live=False):
                _write(state, window)
                progress.add(len(window.rows), tokens=window.tokens, size=window.size)
        finally:
            progress.close()
    state.drain()


def _draft(state: State, records: Iterator[Record], draft: DraftModel) -> None:
    """Give the records drafts, in another thread, and write the rows that wait for them."""

    def drafted(chunk: Sequence[Record]) -> Window:
        vectors = draft.vectors([(record.title, record.text) for record in chunk])
        rows = [OutputRow(record) for record in chunk]
        return Window(rows, padded(vectors, state.spec.dim))

    progress = InputProgress(state.total)
    pool = ThreadPoolExecutor(1, thread_name_prefix="gemb-drafts")
    pending: deque[Future[Window]] = deque()

    def write_next() -> None:
        window = pending.popleft().result()
        _write(state, window, is_draft=True)
        progress.add(len(window.rows), tokens=0, size=window.size)

    try:
        while chunk := list(itertools.islice(records, DRAFTED)):
            pending.append(pool.submit(drafted, chunk))
            if len(pending) > AHEAD:
                write_next()
        while pending:
            write_next()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        progress.close()


def _write(state: State, window: Window, *, is_draft: bool = False) -> None:
    writer = state.writer
    assert writer, "a dry run embeds nothing"
    on_long = state.source.on_long
    good = set(state.tally.sort(window.rows, on_long=on_long, on_error="skip"))
    for number, vector in enumerate(window.vectors):
        new = state.next_new()
        if number in good:
            writer.add(new.row, vector, is_draft=is_draft)
        else:
            state.changes.embedded -= 1
            if new.file:
                new.file.is_whole = False
        state.replace(new)
    writer.tick()


@contextmanager
def writing(folder: Path) -> Iterator[tuple[Manifest, Writer]]:
    """Be the one who writes an index that is there.

    Raises:
        UsageError: the folder is no index.
        GembError: the index is damaged.
        OSError: it cannot be written to.
    """
    # Before a lock is made in a folder that is none of ours.
    check_own(folder, read_manifest(folder))
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
        if manifest.draft:  # a writer would make the table that is not there, empty
            with closing(open_to_read(rows)) as connection, readable(rows):
                check_has_drafts(connection, rows)
        writer = Writer(folder, manifest)
        try:
            yield manifest, writer
        except sqlite3.Error as error:
            raise explained(rows, error) from None
        finally:
            writer.close()


def finish(folder: Path, manifest: Manifest, writer: Writer, encoder: Encoder | None) -> None:
    """Write what readers need beside the rows: lookups, codes, the manifest as it is now.

    Raises:
        GembError: the database cannot be written.
        OSError: a file cannot be written.
    """
    writer.make_lookups()
    writer.drop_dead_words()
    writer.make_codes()
    assert writer.coder, "it was made with the codes"
    background, measured = manifest.background, manifest.background_rows
    slots = writer.slots_with_vectors() if manifest.draft else np.arange(writer.slots)
    if background is None or (encoder is not None and len(slots) >= max(1, GROWN * measured)):
        spec = manifest.spec
        path = vectors_path(folder, manifest.generation, spec.dtype)
        stored = mapped(path, NUMBERS[spec.dtype], writer.slots, spec.dim)
        if manifest.draft:
            stored = stored[slots[:: max(1, len(slots) // SAMPLE)]]
        is_known = encoder is not None and len(slots) > 0
        background = measure(stored, spec.dtype, spec, encoder if is_known else None).to_json()
        measured = len(slots) if is_known else 0
    engine = encoder.profile.engine if encoder is not None and len(slots) else ""
    manifest = dataclasses.replace(
        manifest,
        engines=tuple(sorted({*manifest.engines, *filter(None, [engine])})),
        coder=manifest.coder or writer.coder.to_json(),
        background=background,
        background_rows=measured,
        slots=writer.slots,
        synced=now(),
    )
    write_manifest(folder, manifest)


def kept_reference(model: str) -> str:
    """Return a model reference that means the same in another folder."""
    if not model or model in models.names():
        return model
    target = models.locate(model)
    return os.path.abspath(target) if isinstance(target, Path) else model  # noqa: PTH100


def now() -> str:
    """Return date and time, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
