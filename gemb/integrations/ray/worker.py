"""A worker: records to vectors to a part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

import gemb
from gemb.backend import Runtime
from gemb.embedding.formats.base import FileLayout
from gemb.embedding.formats.table import FORMATS
from gemb.embedding.model import open_model
from gemb.embedding.pipeline import Embedder
from gemb.embedding.run import Tally
from gemb.embedding.vectors import VectorSpec
from gemb.errors import GembError, UsageError
from gemb.integrations.ray import failures
from gemb.integrations.ray.cluster import FEWER
from gemb.integrations.ray.embedder import computed
from gemb.integrations.ray.ids import hashes
from gemb.integrations.ray.parts import PartCounts, PartFolder, PartKey
from gemb.io import notes
from gemb.texts.records import Id, Record

TRIES = 4  # that a part has: each but the last ended with its worker


@dataclass(frozen=True, kw_only=True)
class PartJob:
    """What workers are told. It can be pickled."""

    model: str  # reference
    backend: str
    runtime: Runtime
    spec: VectorSpec
    task: str  # name of the prompt, for people
    on_long: str
    on_error: str
    text_ids: bool
    hashes_ids: bool
    folder: PartFolder
    version: str = gemb.__version__


class Attempts:
    """Counts how often each part was begun: Ray gives a part to worker after worker without end.

    One actor for all workers; a part that ends the process of each, as a text that needs too much
    memory does, ends the run.
    """

    def __init__(self) -> None:
        """None was begun."""
        self._begun: Counter[tuple[int, int]] = Counter()

    def begin(self, file: int, part: int) -> int:
        """Count one more, and return how many there are."""
        self._begun[file, part] += 1
        return self._begun[file, part]


class PartWorker:
    """Embeds parts and writes them. Ray makes one in each process, and calls it part by part."""

    def __init__(self, job: PartJob, attempts: Any) -> None:  # noqa: ANN401 - an actor's handle
        """Open nothing yet: an error of the first part is told better than one of the start."""
        self._job = job
        self._attempts = attempts
        self._embedder: Embedder | None = None

    def __call__(self, batch: Any) -> Any:  # noqa: ANN401 - an Arrow table
        """Return a row with the counts of the part that is the batch's one row, or its failure."""
        import pyarrow

        (row,) = batch.to_pylist()
        result: dict[str, Any] = {"counts": "", "notes": "[]", "ids": b"", "failure": ""}
        if row["failure"]:
            result["failure"] = row["failure"]
        else:
            try:
                result |= self._done(row)
            except failures.PORTABLE as error:
                result["failure"] = failures.to_json(error)
        return pyarrow.table({name: [value] for name, value in result.items()})

    def _done(self, row: Mapping[str, Any]) -> dict[str, Any]:
        key = PartKey(row["file"], row["part"])
        with notes.captured() as said:
            said += [tuple(line) for line in msgspec.json.decode(row["notes"])]
            self._begin(key)
            embedder = self._embedder = self._embedder or self._opened()
            records = msgspec.msgpack.decode(row["records"], type=list[Record])
            counts, ids = write_part(key, records, embedder, self._job, is_last=row["is_last"])
        return {
            "counts": counts.to_json().decode(),
            "notes": msgspec.json.encode(said).decode(),
            "ids": hashes(ids).tobytes() if self._job.hashes_ids else b"",
        }

    def _begin(self, key: PartKey) -> None:
        import ray

        try:
            attempts = ray.get(self._attempts.begin.remote(key.file, key.part))
        except ray.exceptions.RayError:  # its node is gone; a new one counts from the start
            return
        if attempts > TRIES:
            raise GembError(
                f"{TRIES} workers were killed, one after the other, at part {key.part + 1} of "
                f"input file {key.file + 1}; {FEWER}"
            )

    def _opened(self) -> Embedder:
        job = self._job
        if job.version != gemb.__version__:
            raise UsageError(
                f"a worker has gemb {gemb.__version__}, and this is gemb {job.version}; "
                "install one version on all nodes"
            )
        encoder = open_model(job.model, job.backend, job.runtime).encoder
        if encoder.profile.fingerprint != job.spec.model:
            raise UsageError(
                f"{job.model} is another model on a worker: its fingerprint is "
                f"{encoder.profile.fingerprint}, not {job.spec.model}; copy the model to all nodes"
            )
        return Embedder(encoder, job.spec, on_long=job.on_long)


class _Memory:
    """An output in memory."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> None:
        """Take the data."""
        self.data += data

    def commit(self) -> None:
        """Nothing is left to do."""

    def abandon(self) -> None:
        """Nothing is left behind."""


def write_part(
    key: PartKey, records: Sequence[Record], embedder: Embedder, job: PartJob, *, is_last: bool
) -> tuple[PartCounts, list[Id]]:
    """Embed records, write their part, and return its counts and the ids of the rows in it.

    Raises:
        SomeRowsFailed: a row has an error, and `on_error` is fail.
        OSError: the store refuses the part.
    """
    rows, vectors = computed(records, embedder)
    tally = Tally(job.spec.max_tokens)
    written = tally.sort(rows, on_long=job.on_long, on_error=job.on_error)
    counts = PartCounts(
        key=key,
        is_last=is_last,
        rows=tally.rows,
        failed=tally.failed,
        kinds=dict(tally.kinds),
        first=tally.first,
        tokens=sum(row.tokens for row in rows),
        size=sum(row.record.size for row in rows),
        engine=embedder.profile.engine,
    )
    layout = FileLayout(
        spec=job.spec,
        task=job.task,
        engine=counts.engine,
        text_ids=job.text_ids,
        described={"part": msgspec.to_builtins(counts)},
    )
    output = _Memory()
    writer = FORMATS["parquet"].new_writer(output, layout)
    writer.write([rows[index] for index in written], vectors[written])
    writer.finish()
    job.folder.write(key.name, bytes(output.data))
    return counts, [rows[index].record.id for index in written]
