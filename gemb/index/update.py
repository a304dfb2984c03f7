"""A source and an index: what is new is embedded, what is there stays, what is gone is removed."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

from gemb.backend import Encoder
from gemb.embedding.pipeline import Window, embed, plain_embedder
from gemb.embedding.vectors import VectorSpec
from gemb.errors import GembError
from gemb.index.changes import Changes
from gemb.index.file_changes import file_changes
from gemb.index.row_changes import MayRemove, row_changes
from gemb.index.source import PASSAGES, VECTORS, SourceRow, source_rows, total_size
from gemb.index.update_state import State
from gemb.io.progress import CountProgress, Progress
from gemb.texts.records import Record

BAR_EVERY = 1024  # rows

OpenEncoder = Callable[[], Encoder]


def update(
    state: State,
    spec: VectorSpec,
    *,
    open_encoder: OpenEncoder,
    may_remove: MayRemove,
    quiet: bool,
) -> Changes:
    """Bring an index up to date with its source; without a writer only count.

    What was done stays done when it is stopped, and the next run goes on from there.

    Args:
        state: of the index.
        spec: of its vectors.
        open_encoder: called when the first text needs a vector.
        may_remove: asked before rows (of files: files) are removed.
        quiet: no progress and no notes.

    Raises:
        UsageError: the source cannot be read, or `may_remove` forbids.
        GembError: the model fails, or the index is damaged.
        OSError: the disk is full; what was committed is there.
    """
    writer = state.writer
    if state.source.kind == PASSAGES:
        records = file_changes(state, may_remove)
    elif state.source.kind == VECTORS:
        records = row_changes(state, _taken(state, spec, quiet=quiet), may_remove)
    else:
        state.total = total_size(state.source)
        records = row_changes(state, source_rows(state.source, quiet=quiet), may_remove)
    try:
        _embed(state, spec, records, open_encoder, quiet=quiet)
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


def _taken(state: State, spec: VectorSpec, *, quiet: bool) -> Iterator[SourceRow]:
    """Yield the rows of files of vectors, with a bar."""
    from gemb.index.vector_source import count, vector_rows

    total = count(state.source.real())
    progress = CountProgress(total, "indexing", "rows", quiet=quiet or not state.writer)
    try:
        for number, row in enumerate(vector_rows(state.source, spec), 1):
            yield row
            if number % BAR_EVERY == 0:
                progress.add(BAR_EVERY)
    finally:
        progress.close()


def _embed(
    state: State,
    spec: VectorSpec,
    records: Iterator[Record],
    open_encoder: OpenEncoder,
    *,
    quiet: bool,
) -> None:
    """Give the records vectors, and write the rows that wait for them."""
    first = next(records, None)
    if first is not None:
        embedder = plain_embedder(
            open_encoder(),
            state.prompt,
            spec.dim,
            max_tokens=spec.max_tokens,
            on_long=state.source.on_long,
        )
        progress = Progress(state.total, wanted=not quiet)
        try:
            for window in embed(itertools.chain([first], records), embedder, live=False):
                _write(state, window)
                progress.add(window.rows)
        finally:
            progress.close()
    state.drain()


def _write(state: State, window: Window) -> None:
    writer = state.writer
    assert writer, "a dry run embeds nothing"
    on_long = state.source.on_long
    good = set(state.tally.sort(window.rows, on_long=on_long, on_error="skip"))
    for place, vector in enumerate(window.vectors):
        new = state.next_new()
        if place in good:
            writer.add(new.row, vector)
        else:
            state.changes.embedded -= 1
            if new.file:
                new.file.is_whole = False
        state.replace(new)
    writer.tick()
