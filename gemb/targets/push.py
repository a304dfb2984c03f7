"""Bring a target up to date with a source: what is new or has changed is written, in parts.

The state of a load is the target itself: each part is committed as a whole, and rows whose hash is
there are passed over. So a push that was killed, on either side, goes on where it was, and a push
of what is there writes nothing. While one part is written, the next one is read.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemb.errors import NegativeAnswer, UsageError
from gemb.io.notes import note
from gemb.io.progress import CountProgress
from gemb.io.text import visible
from gemb.targets.base import Content, Part, Rows, Target, content_hashes
from gemb.targets.readback import ReadBack, Sample, read_back
from gemb.targets.sources import Source

MayRemove = Callable[[int, int], None]  # raises, if so many of so many rows may not be removed


@dataclass(frozen=True, kw_only=True)
class PushJob:
    """How a target is brought up to date."""

    content: Content  # of the target
    with_index: bool  # for search, after the load
    may_remove: MayRemove | None  # None: rows that are not in the source stay
    min_recall: float | None = None  # the least recall@10


@dataclass(kw_only=True)
class Pushed:
    """What a push did."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    failed: int = 0  # rows of the source without a vector
    rows: int = 0  # in the target, after it
    others: int = 0  # of these, not in the source
    load_s: float = 0.0
    index_s: float = 0.0
    checked: ReadBack | None = None

    def to_json(self) -> dict[str, object]:
        """Return it as one JSON document."""
        values = {**vars(self), "load_s": round(self.load_s, 3), "index_s": round(self.index_s, 3)}
        values["rows_per_s"] = round(self.rate)
        values["checked"] = self.checked and vars(self.checked)
        return values

    @property
    def rate(self) -> float:
        """Rows written in a second, before the index was made."""
        return (self.added + self.changed) / max(1e-9, self.load_s)

    def line(self, name: str) -> str:
        """Return it in one line."""
        words = f"+{self.added:,} ~{self.changed:,} -{self.removed:,} rows ({self.rows:,} in {name}"
        if self.added + self.changed:
            words += f"; {self.rate:,.0f} rows/s, index {self.index_s:.0f} s"
        return f"{words}){self.checked.words() if self.checked else ''}"


def push(source: Source, target: Target, job: PushJob) -> Pushed:
    """Write what the target has not, and check what it has.

    Raises:
        UsageError: there is no row, the target holds other vectors, or an id repeats.
        GembError: the target refuses or fails.
        NegativeAnswer: what is there is not what was written, or recall is too low.
    """
    content = job.content
    parts = _parts(source, target.part_rows)
    target.prepare(content, with_index=job.with_index)
    pushed, sample = Pushed(), Sample()
    keys = _Keys(must_differ=not source.has_unique_ids)
    began = time.monotonic()
    is_new = not target.count()
    bar = CountProgress(source.count, "pushing", "rows")
    try:
        with _writer(target) as writer:
            written: Future[None] | None = None
            for rows, vectors in parts:
                stored = content.stored(vectors)
                part = Part(rows, stored, content_hashes(rows, stored), is_new)
                keys.add(rows.ids)
                sample.add(part)
                if written:
                    written.result()
                written = writer.submit(_write, part, target, pushed)
                bar.add(len(rows.ids))
            if written:
                written.result()
    finally:
        bar.close()
    pushed.failed = source.failed
    pushed.load_s = time.monotonic() - began
    if not keys.count:
        raise _no_row(source)
    if job.may_remove:
        pushed.removed = _remove(target, keys, source.failed_ids, job.may_remove)
    began = time.monotonic()
    target.finish(with_index=job.with_index)
    pushed.index_s = time.monotonic() - began
    pushed.rows = target.count()
    pushed.others = pushed.rows - keys.count
    _check(target, job, pushed, sample)
    return pushed


def _parts(source: Source, size: int) -> Iterator[tuple[Rows, NDArray[Any]]]:
    """Return the parts of a source that is not empty.

    Raises:
        UsageError: no row of it has a vector.
    """
    parts = source.parts(size)
    if source.is_pipe:  # so that a target that refuses does it before all is embedded
        return parts
    first = next(parts, None)
    if first is None:
        raise _no_row(source)
    return chain(iter([first]), parts)  # which lets go of the first part


def _no_row(source: Source) -> UsageError:
    why = f": all {source.failed:,} have no vector" if source.failed else ""
    return UsageError(f"{source.name} has no row to push{why}")


@contextmanager
def _writer(target: Target) -> Iterator[ThreadPoolExecutor]:
    """Give a thread that writes; a signal does not wait for what the database waits for."""
    with ThreadPoolExecutor(1, thread_name_prefix="gemb-push") as writer:
        try:
            yield writer
        except BaseException as error:
            if not isinstance(error, Exception):  # else what is at work is written to its end
                writer.shutdown(wait=False, cancel_futures=True)
                target.cancel()
            raise


class _Keys:
    """The ids of a source, as 64 bits each."""

    def __init__(self, *, must_differ: bool) -> None:
        self._hashes = array("q")
        self._known: set[int] | None = set() if must_differ else None

    @property
    def count(self) -> int:
        return len(self._hashes)

    def add(self, ids: Sequence[str]) -> None:
        numbers = array("q", map(hash, ids))
        self._hashes.extend(numbers)
        if self._known is None:
            return
        for number, row_id in zip(numbers, ids, strict=True):
            if number in self._known:
                raise UsageError(
                    f"several rows have the id '{visible(row_id, 80)}', and a table has each "
                    "once; what came before it is written"
                )
            self._known.add(number)

    def absent(self, ids: list[str], ordered: NDArray[np.int64]) -> list[str]:
        """Return those ids that are not here."""
        numbers = np.fromiter(map(hash, ids), np.int64, len(ids))
        places = np.minimum(np.searchsorted(ordered, numbers), len(ordered) - 1)
        missing = np.flatnonzero(ordered[places] != numbers)
        return [ids[n] for n in missing.tolist()]

    def ordered(self) -> NDArray[np.int64]:
        """Return them in ascending order."""
        return np.sort(np.frombuffer(self._hashes, np.int64))


def _write(part: Part, target: Target, pushed: Pushed) -> None:
    """Write the rows of a part that the target has not, or has otherwise."""
    ids = part.rows.ids
    assert target.content is not None, "it is prepared"
    content = target.content.with_fields_of(part.rows.kept)
    if content != target.content:
        target.describe(content)
    there = {} if part.is_new else target.hashes(ids)
    wanted = [
        number
        for number, (row_id, digest) in enumerate(zip(ids, part.hashes, strict=True))
        if there.get(row_id) != digest
    ]
    changed = sum(ids[number] in there for number in wanted)
    if wanted:
        chosen = part if len(wanted) == len(ids) else part.at(wanted)
        target.upsert(chosen._replace(is_new=not changed))
    pushed.changed += changed
    pushed.added += len(wanted) - changed
    pushed.unchanged += len(ids) - len(wanted)


def _remove(target: Target, keys: _Keys, failed: set[str], may_remove: MayRemove) -> int:
    """Remove the rows that the source has not, not even without a vector; return how many."""
    ordered = keys.ordered()
    gone: list[str] = []
    count = 0
    for ids in target.ids():
        count += len(ids)
        gone += [row_id for row_id in keys.absent(ids, ordered) if row_id not in failed]
    may_remove(len(gone), count)
    for first in range(0, len(gone), target.part_rows):
        target.delete(gone[first : first + target.part_rows])
    return len(gone)


def _check(target: Target, job: PushJob, pushed: Pushed, sample: Sample) -> None:
    """Read rows back, and search for some.

    Raises:
        NegativeAnswer: a row is lost or not what was written, or recall is too low.
    """
    if pushed.others < 0:
        raise NegativeAnswer(
            f"{target.name} has {pushed.rows:,} rows, {-pushed.others:,} fewer than were written: "
            "does something else remove them? the same command writes what is missing"
        )
    if pushed.others and not job.may_remove:
        note(
            f"{pushed.others:,} rows of {target.name} were not pushed now; --delete removes those "
            "that are not in the source"
        )
    checked = pushed.checked = read_back(target, job.content, sample)
    if checked.wrong:
        raise NegativeAnswer(
            f"{target.name}: {checked.wrong} of {checked.read} vectors that were read back are not "
            "what was written: does something else write there? push into another --table"
        )
    if job.min_recall is not None and checked.recall < job.min_recall:
        raise NegativeAnswer(
            f"{target.name}: recall@{checked.k} is {checked.recall:.3f}, under --min-recall "
            f"{job.min_recall:g}"
        )
