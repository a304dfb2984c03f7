"""The one thread that computes: requests wait in a queue, and share batches by tokens.

A batch is drawn from the requests in turn, each its share, so that a large one holds up no small
one: before a request is done, each other one has had about as many tokens, not more. By the sum of
these it is admitted or refused, too. Where several clients are at work, the first request waits a
few milliseconds for the others; a single client's never does.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gemb.arrays import Vectors
from gemb.embedding.pipeline import Embedder, OutputRow
from gemb.errors import GembError
from gemb.serving.refusals import Refused

if TYPE_CHECKING:
    from gemb.backend import Encoder
    from gemb.serving.limits import Limits
    from gemb.texts.records import Record

SMOOTHING = 0.2  # share of a new batch in the rate of tokens
FIRST_RATE = 1000.0  # tokens a second, until a batch was computed


@dataclass(eq=False)
class Job:
    """The texts of one request."""

    records: Sequence[Record]  # with their prompts
    sizes: Sequence[int]  # tokens, estimated
    vectors: Vectors  # [n, dim of the model]
    done: asyncio.Future[Job]
    waiting: int  # tokens, estimated, of the texts that are not drawn yet
    rows: dict[int, OutputRow] = field(default_factory=dict)
    drawn: int = 0  # texts that are computed, or being computed
    is_cancelled: bool = False

    @property
    def tokens(self) -> int:
        """Of all texts, before any cut."""
        return sum(row.tokens for row in self.rows.values())


@dataclass(frozen=True)
class Batch:
    """What was computed together, for the metrics."""

    texts: int
    tokens: int
    seconds: float


class Batcher:
    """A queue in front of an encoder, and the thread that empties it."""

    def __init__(
        self,
        encoder: Encoder,
        limits: Limits,
        on_batch: Callable[[Batch], None] = lambda batch: None,
    ) -> None:
        """Start the thread.

        Args:
            encoder: the open model.
            limits: of the queue and of a batch.
            on_batch: called in that thread after each batch.
        """
        self._embedder = Embedder.of(encoder, "none", dim=encoder.profile.dim)
        self._limits = limits
        self._on_batch = on_batch
        self._jobs: deque[Job] = deque()
        self._drawn = 0  # tokens, estimated, of the batch that is computed
        self._company = 1  # requests of the last batch
        self._rate = FIRST_RATE
        self._is_closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="gemb-encoder", daemon=True)
        self._thread.start()

    @property
    def queued_tokens(self) -> int:
        """Estimated, that wait or are being computed."""
        with self._changed:
            return self._drawn + sum(job.waiting for job in self._jobs)

    @property
    def is_alive(self) -> bool:
        """Whether the thread computes; False would be a bug, and nothing would be answered."""
        return self._thread.is_alive()

    def submit(self, records: Sequence[Record], sizes: Sequence[int]) -> Job:
        """Put texts into the queue; `Job.done` is set when all have a vector or an error.

        Args:
            records: with their prompts.
            sizes: of each, as `estimated_tokens` has it.

        Raises:
            Refused: 429: too many tokens would be computed before its own.
        """
        tokens = sum(sizes)
        with self._changed:
            before = self._drawn + sum(min(job.waiting, tokens) for job in self._jobs)
            if before > self._limits.queued_tokens:
                raise self._full(before)
            vectors = np.empty((len(records), self._embedder.spec.dim), np.float32)
            done = asyncio.get_running_loop().create_future()
            job = Job(records, sizes, vectors, done, tokens)
            self._jobs.append(job)
            self._changed.notify()
        return job

    def cancel(self, job: Job) -> None:
        """Give the place of a request free, if it has not been answered: its client has gone."""
        with self._changed:
            job.is_cancelled = True
            if job in self._jobs:
                self._jobs.remove(job)

    def close(self) -> None:
        """End the thread after the batch that it computes."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    def _full(self, before: int) -> Refused:
        seconds = max(1, math.ceil(before / self._rate))
        return Refused(
            429,
            f"the queue is full: {before:,} tokens are before these; try again in {seconds} s",
            code="queue_full",
            headers={"retry-after": str(seconds)},
        )

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._is_closing:
                    self._changed.wait()
                if self._is_closing:
                    return
                self._wait_for_company()
                batch = self._next_batch()
            if batch:
                self._compute(batch)

    def _wait_for_company(self) -> None:
        """Wait a little for as many requests as came together last time."""
        until = time.monotonic() + self._limits.window_s
        while len(self._jobs) < self._company:
            left = until - time.monotonic()
            is_full = sum(job.waiting for job in self._jobs) >= self._limits.batch_tokens
            if is_full or left <= 0 or not self._changed.wait(left):
                return

    def _next_batch(self) -> list[tuple[Job, int]]:
        """Return the texts of the next batch, the longest first: the request and the index."""
        batch: list[tuple[Job, int]] = []
        room = self._limits.batch_tokens
        self._company = max(1, len(self._jobs))
        while self._jobs and (room > 0 or not batch):
            share = max(1, room // len(self._jobs))
            for _ in range(len(self._jobs)):
                job = self._jobs.popleft()
                taken = 0
                while job.drawn < len(job.records) and (taken < share or not batch):
                    taken += job.sizes[job.drawn]
                    batch.append((job, job.drawn))
                    job.drawn += 1
                job.waiting -= taken
                room -= taken
                if job.drawn < len(job.records):
                    self._jobs.append(job)
                if room <= 0:
                    break
        self._drawn = sum(job.sizes[index] for job, index in batch)
        batch.sort(key=lambda item: -item[0].sizes[item[1]])
        return batch

    def _compute(self, batch: list[tuple[Job, int]]) -> None:
        began = time.monotonic()
        failure: GembError | None = None
        computed: Batch | None = None
        try:
            window = self._embedder.window([job.records[index] for job, index in batch])
        except Exception as error:  # a native library may raise anything
            kind = "" if isinstance(error, GembError) else f"{type(error).__name__}: "
            failure = GembError(f"{kind}{error}")
        else:
            for (job, index), row, vector in zip(batch, window.rows, window.vectors, strict=True):
                job.rows[index] = row
                job.vectors[index] = vector
            seconds = max(1e-6, time.monotonic() - began)
            self._rate += SMOOTHING * (window.tokens / seconds - self._rate)
            computed = Batch(len(batch), window.tokens, seconds)
        with self._changed:
            self._drawn = 0
            jobs = list(dict.fromkeys(job for job, _ in batch))
            if failure:
                self._jobs = deque(job for job in self._jobs if job not in jobs)
        for job in jobs:
            if failure or len(job.rows) == len(job.records):
                _tell(job, failure)
        if computed:
            self._on_batch(computed)


def _tell(job: Job, failure: GembError | None) -> None:
    """Set the future of a request, in its loop."""

    def tell() -> None:
        if job.done.done():
            return
        if failure:
            job.done.set_exception(failure)
        else:
            job.done.set_result(job)

    if not job.is_cancelled:
        job.done.get_loop().call_soon_threadsafe(tell)
