"""The thread that writes a part while the next one is made: errors and signals in either."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest

from gemb.embedding.vectors import VectorSpec
from gemb.errors import GembError, UsageError
from gemb.targets.base import Content, Part, PushRow, Rows
from gemb.targets.push import PushJob, push

DIM = 8
WAIT_S = 60


class Parts:
    """A source of parts of one row, with these ids; an exception in their place is raised."""

    name = "parts"
    count = None
    is_pipe = False
    failed = 0
    has_unique_ids = False
    content = Content(
        spec=VectorSpec(model="m", prompt="{text}", dim=DIM, dtype="f32", max_tokens=32),
        kind="vector",
        model="",
        task="document",
    )

    def __init__(self, *parts: str | BaseException) -> None:
        self._parts = parts
        self.failed_ids: set[str] = set()

    def parts(self, size: int) -> Iterator[tuple[Rows, np.ndarray]]:
        for part in self._parts:
            if isinstance(part, BaseException):
                raise part
            row = PushRow(part, None, None, None, None, "", "{}")
            yield Rows.of([row]), np.full((1, DIM), DIM**-0.5, np.float32)


class Table:
    """A target in memory; from its `fails_at`-th part on it fails, and a locked one waits."""

    name = "table docs"
    part_rows = 1
    content: Content | None = None

    def __init__(self, *, fails_at: int = 100, is_locked: bool = False) -> None:
        self.ids: list[str] = []
        self._fails_at = fails_at
        self._is_locked = is_locked
        self.cancelled = threading.Event()

    def prepare(self, content: Content, *, with_index: bool) -> None:
        self.content = content

    def count(self) -> int:
        return len(self.ids)

    def hashes(self, ids: Sequence[str]) -> Mapping[str, bytes]:
        return {}

    def upsert(self, part: Part) -> None:
        if self._is_locked:
            self.cancelled.wait(WAIT_S)
            raise GembError("cancelled")
        if len(self.ids) >= self._fails_at:
            raise GembError("no space left")
        self.ids += part.rows.ids

    def cancel(self) -> None:
        self.cancelled.set()


def pushed(target: Table, *parts: str | BaseException) -> None:
    source = Parts(*parts)
    push(source, target, PushJob(content=source.content, with_index=False, may_remove=None))


def test_a_part_that_is_not_written_ends_the_push() -> None:
    target = Table(fails_at=2)
    with pytest.raises(GembError, match="no space left"):
        pushed(target, *"abcdef")
    assert target.ids == ["a", "b"]
    target = Table(fails_at=2)
    with pytest.raises(GembError, match="no space left"):
        pushed(target, *"abc")  # the last one
    assert target.ids == ["a", "b"]


def test_what_comes_before_a_row_that_is_wrong_is_written() -> None:
    target = Table()
    with pytest.raises(UsageError, match="several rows have the id 'a'"):
        pushed(target, *"abac")
    assert target.ids == ["a", "b"]
    target = Table()
    with pytest.raises(GembError, match="cut short"):
        pushed(target, "a", "b", GembError("cut short"))
    assert target.ids == ["a", "b"]


def test_a_signal_does_not_wait_for_a_lock() -> None:
    target = Table(is_locked=True)
    with pytest.raises(KeyboardInterrupt):
        pushed(target, "a", KeyboardInterrupt())
    assert target.cancelled.is_set()
    assert target.ids == []
