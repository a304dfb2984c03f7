"""Real vectors for the rows of an index that have drafts: first those that searches want."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from sqlite3 import Connection

from gemb.embedding.pipeline import Embedder, embed, embed_for
from gemb.embedding.run import Tally
from gemb.errors import GembError
from gemb.index.drafts import draft_copies, draft_slots, keep_wanted, misplaced_draft, wanted
from gemb.index.manifest import Manifest, rows_path, wanted_path
from gemb.index.schema import damaged
from gemb.index.source import source_from_json
from gemb.index.state import counted
from gemb.index.sync import ModelOnce, OpenEncoder, finish, writing
from gemb.index.writer import Writer
from gemb.io.notes import note
from gemb.io.progress import CountProgress
from gemb.io.text import visible
from gemb.texts.records import Record


@dataclass(frozen=True, kw_only=True)
class Refined:
    """What a refinement did."""

    embedded: int  # rows that got a real vector
    drafts: int  # rows that have none yet
    rows: int  # of the index
    failed: int  # on which the model failed: they keep their drafts

    def line(self) -> str:
        """Return the counts in short: +512 vectors (5,344 of 5,856 rows are drafts)."""
        are = "is a draft" if self.drafts == 1 else "are drafts"
        return f"+{counted(self.embedded, 'vector')} ({self.drafts:,} of {self.rows:,} rows {are})"

    def to_json(self) -> dict[str, object]:
        """Return the counts by name."""
        return asdict(self)


def refine(folder: Path, open_model: OpenEncoder, seconds: float | None = None) -> Refined:
    """Give rows that have drafts real vectors.

    What was done stays done when it is stopped, and the next run goes on from there.

    Args:
        folder: of the index.
        open_model: opens its model.
        seconds: of embedding; None: until all rows have a real vector.

    Raises:
        UsageError: the folder is no index, or the model is another one.
        GembError: the index is damaged, or the model fails.
        OSError: the disk is full; what was committed is there.
    """
    with writing(folder) as (manifest, writer):
        slots = draft_slots(writer.connection)
        if (wrong := misplaced_draft(slots, writer.removed, writer.slots)) is not None:
            path = rows_path(folder, manifest.generation)
            raise damaged(path, f"row {wrong} is a draft, and not there")
        drafts = set(slots.tolist())
        if not drafts:
            return Refined(embedded=0, drafts=0, rows=writer.rows, failed=0)
        model = ModelOnce(manifest.spec, folder, open_model)
        path = wanted_path(folder, manifest.generation)
        tally = Tally(manifest.spec.max_tokens)
        embedded, before = 0, writer.committed
        try:
            for slot in _refined(manifest, writer, model, drafts, path, seconds, tally):
                embedded += 1
                drafts.discard(slot)
        except BaseException:
            with contextlib.suppress(GembError, OSError):
                writer.commit()
            if kept := writer.committed - before:
                shown = visible(str(folder))
                note(
                    f"{shown} keeps what was done ({counted(kept, 'vector')}); gemb index "
                    "refine goes on from there"
                )
            raise
        tally.say()
        if tally.failed > 1 and not embedded:
            raise GembError(
                f"the model fails on all of {tally.failed:,} rows of {visible(str(folder))}; "
                "gemb doctor tries it"
            )
        finish(folder, manifest, writer, model.encoder)
        keep_wanted(path, [slot for slot in wanted(path) if slot in drafts])
        return Refined(embedded=embedded, drafts=len(drafts), rows=writer.rows, failed=tally.failed)


def _refined(
    manifest: Manifest,
    writer: Writer,
    model: ModelOnce,
    drafts: set[int],
    path: Path,
    seconds: float | None,
    tally: Tally,
) -> Iterator[int]:
    """Embed rows and write their vectors; yield the slots of the drafts that they replace.

    A row whose text is that of another one gets its vector with it. Rows on which the model fails
    are passed over, so that they hold up no others, however many they are.
    """
    source = source_from_json(manifest.source)
    writer.make_lookups("digest")
    embedder = Embedder(model(), manifest.spec, on_long=source.on_long, passes_over=True)
    records = _records(writer.connection, sorted(drafts), path)
    windows = (
        embed(records, embedder, live=False)
        if seconds is None
        else embed_for(records, embedder, seconds)
    )
    progress = CountProgress(len(drafts), "refining", "rows")
    with closing(progress), closing(windows):
        for window in windows:
            slots = [int(row.record.id) for row in window.rows]
            good = tally.sort(window.rows, on_long=source.on_long, on_error="skip")
            done = len(slots) - len(good)  # on the others the model failed
            for index in good:
                if slots[index] not in drafts:
                    continue  # it got its vector with a copy
                for copy in [slots[index], *draft_copies(writer.connection, slots[index])]:
                    writer.refine(copy, window.vectors[index], manifest.draft_width)
                    done += 1
                    yield copy
            writer.tick()
            progress.add(done, tokens=window.tokens)
    writer.commit()


def _records(connection: Connection, drafts: list[int], path: Path) -> Iterator[Record]:
    """Yield the rows, the most wanted ones first; what is wanted meanwhile comes next."""
    left, others = set(drafts), iter(drafts)
    first: list[int] = []
    looked_at = 0.0
    while left:
        if path.exists() and (changed := path.stat().st_mtime) != looked_at:
            looked_at = changed
            first = [slot for slot in reversed(wanted(path)) if slot in left]
        slot = first.pop() if first else next(others)
        if slot not in left:
            continue
        left.remove(slot)
        query = "SELECT title, text FROM rows WHERE slot = ?"
        for title, text in connection.execute(query, (slot,)).fetchall():
            yield Record(slot, f"row {slot}", text, title)
