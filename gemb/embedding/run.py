"""What became of the rows, counted, and what is said of it at the end."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemb.backend import Encoder
from gemb.embedding.formats.base import Layout, Writer
from gemb.embedding.formats.table import FORMATS
from gemb.embedding.journal import Header, Journal
from gemb.embedding.output import check_sidecar, describes_vectors, journal_of
from gemb.embedding.pipeline import Compute, Embedder, Plan, Row, Window, computing, embed
from gemb.embedding.vectors import VectorSpec, sidecar
from gemb.errors import SomeRowsFailed
from gemb.io.atomic import new_file
from gemb.io.notes import note, warn
from gemb.io.paths import is_stream
from gemb.io.progress import InputProgress
from gemb.io.streams import AtomicFile, Output, Stream
from gemb.models.prompts import Prompt
from gemb.texts.records import Fields, Record


class Tally:
    """Counts of rows, with the first place of each kind."""

    def __init__(self, max_tokens: int) -> None:
        self.rows = 0
        self.failed = 0
        self._max_tokens = max_tokens
        self._kinds: Counter[str] = Counter()  # cut, long, or an error's code
        self._first: dict[str, str] = {}  # kind -> place

    def sort(self, rows: Sequence[Row], *, on_long: str, on_error: str) -> list[int]:
        """Count the rows, and return the places of those that are to be written.

        Raises:
            SomeRowsFailed: a row has an error, and `on_error` is fail.
        """
        written = []
        for place, row in enumerate(rows):
            self.rows += 1
            if row.is_cut:
                self._count("cut", row)
            if row.error is None:
                written.append(place)
            elif row.error.code == "too_long" and on_long == "skip":
                self._count("long", row)
            else:
                self.failed += 1
                self._count(row.error.code, row)
                if on_error == "fail":
                    message = f"{row.record.place}: {row.error.message}; stopped (--on-error fail)"
                    raise SomeRowsFailed(message)
                if on_error == "inline":
                    written.append(place)
        return written

    def _count(self, kind: str, row: Row) -> None:
        self._kinds[kind] += 1
        self._first.setdefault(kind, row.record.place)

    def say(self) -> None:
        """Say on stderr what is not as the user may think, a line for each kind."""
        for kind, count in self._kinds.items():
            which = f"{count} of {self.rows} rows"
            first = f"(first: {self._first[kind]})"
            if kind == "cut":
                warn(f"{which} were cut at {self._max_tokens} tokens {first}; see --on-long")
            elif kind == "long":
                warn(f"{which} had over {self._max_tokens} tokens and were left out {first}")
            else:
                warn(f"{which} have no vector: {kind} {first}")

    def check(self, where: str) -> None:
        """Raise where rows failed.

        Args:
            where: what became of them: have an error in the place of a vector.

        Raises:
            SomeRowsFailed: at least one did.
        """
        if self.failed:
            raise SomeRowsFailed(f"{self.failed} of {self.rows} rows failed: they {where}")


# One run of `gemb embed`: records through a model into an output, whole or resumable.


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a run is to do."""

    prompt: Prompt
    task: str  # name of the prompt
    dim: int | None  # None: the model's
    dtype: str
    on_long: str  # truncate, error, skip
    on_error: str  # inline, skip, fail
    fields: Fields
    text_ids: bool
    format: str  # a key of FORMATS
    output: Path | None  # no link; None: standard output
    resume: bool
    total: int | None  # sum of all `Record.size`, None: not known

    @property
    def is_live(self) -> bool:
        """Whether rows are to come out as soon as they can, rather than the same in every run."""
        return is_stream(self.output)


def run(job: Job, records: Iterator[Record | None], encoder: Encoder, backend: str) -> None:
    """Embed the records.

    Raises:
        SomeRowsFailed: all was written, and some rows have no vector.
        UsageError: what is resumed is not this run, or `job.dim` was not trained.
        GembError: another run is writing this file.
    """
    profile = encoder.profile
    spec = VectorSpec.of(profile, job.prompt, dim=job.dim, dtype=job.dtype)
    dim = spec.dim
    plan = Plan(
        prompt=job.prompt,
        dim=dim,
        max_tokens=profile.max_tokens,
        closing_tokens=profile.closing_tokens,
        on_long=job.on_long,
    )
    compute: Compute = computing(encoder, dim)
    journal: Journal | None = None
    output: Output
    if job.output is None or is_stream(job.output):
        output = Stream(job.output)
    else:
        header = Header(spec=spec.fingerprint, backend=backend, arithmetic=profile.dtype, dim=dim)
        path = journal_of(job.output)
        compute = journal = Journal(path, header, compute, resume=job.resume)
        _say_of_journal(journal, job)
        output = AtomicFile(job.output, replace_part=journal.is_older)
    tally = Tally(profile.max_tokens)
    progress = InputProgress(job.total, shown=job.format != "preview")
    windows = embed(records, Embedder(encoder, plan, compute), live=job.is_live)
    try:
        _write(windows, output, job, spec, tally, progress)
        if journal:
            journal.check_used_up()
        _commit(output, job, spec, tally)
    except BaseException:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C is final
        progress.close()
        output.abandon()
        if journal:
            _leave_journal(journal)
        raise
    progress.close()
    if journal:
        journal.remove()
    if not tally.rows:
        note("no text came in, so no vector goes out")
    tally.say()
    tally.check(_fate(job))


def _fate(job: Job) -> str:
    """Return what became of rows that failed."""
    if job.on_error == "skip":
        return "were left out"
    if not FORMATS[job.format].holds_fields:
        return "are NaN" if job.dtype in ("f32", "f16") else "are all zeros"
    return "have an error in the place of a vector"


def _say_of_journal(journal: Journal, job: Job) -> None:
    if journal.replaced:
        note(f"{journal.path} of an unfinished run is overwritten; --resume would have gone on")
    elif job.resume and not journal.is_resumed:
        note(
            f"{journal.path} is not there: nothing to resume, so this run starts from the beginning"
        )


def _write(
    windows: Iterator[Window],
    output: Output,
    job: Job,
    spec: VectorSpec,
    tally: Tally,
    progress: InputProgress,
) -> None:
    """Write all windows."""
    writer: Writer | None = None
    for window in windows:
        writer = writer or FORMATS[job.format].new_writer(output, _layout(job, spec, window))
        written = tally.sort(window.rows, on_long=job.on_long, on_error=job.on_error)
        if len(written) == len(window.rows):
            writer.write(window.rows, window.vectors)
        elif written:
            writer.write([window.rows[place] for place in written], window.vectors[written])
        progress.add(len(window.rows), tokens=window.tokens, size=window.size)
    writer = writer or FORMATS[job.format].new_writer(output, _layout(job, spec, None))
    writer.finish()


def _layout(job: Job, spec: VectorSpec, first: Window | None) -> Layout:
    """Return the layout; with --keep all the columns are those that the first window has."""
    kept = list(job.fields.keep)
    if job.fields.keep_all and first:
        kept = list(dict.fromkeys(name for row in first.rows for name in row.record.kept))
    return Layout(spec=spec, task=job.task, text_ids=job.text_ids, kept=kept)


def _commit(output: Output, job: Job, spec: VectorSpec, tally: Tally) -> None:
    """Give the output its name, and its description beside it where the format holds none."""
    if not isinstance(output, AtomicFile):
        output.commit()
        return
    beside = sidecar(output.path)
    check_sidecar(output.path, job.format)
    # Never an old description beside new vectors, wherever a crash falls.
    if describes_vectors(beside):
        beside.unlink()
    output.commit()
    if FORMATS[job.format].needs_sidecar:
        text = spec.to_json(task=job.task, rows=tally.rows, failed=tally.failed)
        with new_file(beside) as part:
            part.write_text(text + "\n", encoding="utf-8")


def _leave_journal(journal: Journal) -> None:
    """Keep what was computed, and say how to go on; nothing is no journal."""
    if not journal.rows and not journal.is_resumed:
        journal.path.unlink(missing_ok=True)
        return
    size = os.path.getsize(journal.path)  # noqa: PTH202
    note(
        f"{journal.path} ({size / 1e6:.1f} MB) keeps what was computed: "
        "the same command with --resume goes on from there"
    )
