"""One run of `gemb embed`: records through a model into an output, whole or resumable."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gemb.embedding.formats.base import FileLayout, VectorWriter
from gemb.embedding.formats.table import Format
from gemb.embedding.journal import Header, Journal
from gemb.embedding.output import Target, describes_vectors
from gemb.embedding.pipeline import Embedder, OutputRow, embed
from gemb.errors import SomeRowsFailed
from gemb.io.atomic import new_file
from gemb.io.notes import note, warn
from gemb.io.progress import InputProgress
from gemb.io.streams import AtomicFile, Output, Stream
from gemb.io.text import size_in_words
from gemb.texts.records import Fields, Record


@dataclass(frozen=True, kw_only=True)
class EmbedJob:
    """What a run is to do."""

    target: Target
    task: str  # name of the prompt, for people
    on_error: str  # inline, skip, fail
    fields: Fields
    text_ids: bool  # ids are texts, not row numbers
    resume: bool
    backend: str  # name of what runs the model
    total: int | None  # sum of all `Record.size`, None: not known


def run(job: EmbedJob, records: Iterator[Record | None], embedder: Embedder) -> None:
    """Embed the records.

    Raises:
        SomeRowsFailed: all was written, and some rows have no vector.
        UsageError: the journal is of another run.
        GembError: another run is writing this file.
    """
    output, journal = _opened(job, embedder)
    tally = Tally(embedder.spec.max_tokens)
    progress = InputProgress(job.total, shown=not job.target.form.is_for_people)
    try:
        _write(job, records, embedder, output, tally, progress)
        if journal:
            journal.check_used_up()
        _commit(job, output, embedder, tally)
    except BaseException:
        progress.close()
        output.abandon()
        if journal:
            _leave_journal(journal)
        raise
    progress.close()
    if journal:
        journal.remove()
    if not tally.rows:
        note("the input has no text, so there are no vectors")
    tally.say()
    tally.check(fate(job.on_error, job.target.form, embedder.spec.dtype))


def _opened(job: EmbedJob, embedder: Embedder) -> tuple[Output, Journal | None]:
    """Open the output; if it is a file, put its journal in front of the encoder."""
    target, spec = job.target, embedder.spec
    if target.is_stream:
        return Stream(target.path), None
    header = Header(
        spec=spec.fingerprint,
        backend=job.backend,
        arithmetic=embedder.profile.dtype,
        dim=spec.dim,
    )
    journal = Journal(target.journal, header, embedder.compute, resume=job.resume)
    embedder.compute = journal
    if journal.replaced:
        note(f"{journal.path} of an unfinished run is overwritten; --resume would have gone on")
    elif job.resume and not journal.is_resumed:
        note(
            f"{journal.path} is not there: nothing to resume, so this run starts from the beginning"
        )
    return AtomicFile(target.file, replace_part=journal.is_older), journal


def fate(on_error: str, form: Format, dtype: str) -> str:
    """Return what became of rows that failed."""
    if on_error == "skip":
        return "were left out"
    if not form.holds_fields:
        return "are NaN" if dtype in ("f32", "f16") else "are all zeros"
    return "have an error in the place of a vector"


def _write(
    job: EmbedJob,
    records: Iterator[Record | None],
    embedder: Embedder,
    output: Output,
    tally: Tally,
    progress: InputProgress,
) -> None:
    """Write all rows. The columns of --keep all are those that the first window has."""
    kept: Sequence[str] = job.fields.keep
    writer: VectorWriter | None = None

    def new_writer() -> VectorWriter:
        layout = FileLayout(
            spec=embedder.spec,
            task=job.task,
            engine=embedder.profile.engine,
            text_ids=job.text_ids,
            kept=kept,
        )
        return job.target.form.new_writer(output, layout)

    for window in embed(records, embedder, live=job.target.is_stream):
        if writer is None and job.fields.keep_all:
            kept = list(dict.fromkeys(name for row in window.rows for name in row.record.kept))
        writer = writer or new_writer()
        written = tally.sort(window.rows, on_long=embedder.on_long, on_error=job.on_error)
        if len(written) == len(window.rows):
            writer.write(window.rows, window.vectors)
        elif written:
            writer.write([window.rows[index] for index in written], window.vectors[written])
        progress.add(len(window.rows), tokens=window.tokens, size=window.size)
    (writer or new_writer()).finish()


def _commit(job: EmbedJob, output: Output, embedder: Embedder, tally: Tally) -> None:
    """Commit the output, and write its description beside it where the format holds none."""
    target = job.target
    if target.is_stream:
        output.commit()
        return
    target.check_sidecar()  # it may have come during the run
    # So a crash never leaves an old description beside new vectors.
    if describes_vectors(target.sidecar):
        target.sidecar.unlink()
    output.commit()
    if target.form.needs_sidecar:
        engine = embedder.profile.engine
        text = embedder.spec.to_json(
            task=job.task, engine=engine, rows=tally.rows, failed=tally.failed
        )
        with new_file(target.sidecar) as part:
            part.write_text(text + "\n", encoding="utf-8")


def _leave_journal(journal: Journal) -> None:
    """Keep the journal and print how to resume; remove it where nothing was computed."""
    if not journal.rows and not journal.is_resumed:
        journal.path.unlink(missing_ok=True)
        return
    size = os.path.getsize(journal.path)  # noqa: PTH202
    note(
        f"{journal.path} ({size_in_words(size)}) keeps what was computed: "
        "the same command with --resume goes on from there"
    )


class Tally:
    """Counts of rows by kind, with where the first of each kind is."""

    def __init__(self, max_tokens: int) -> None:
        self.rows = 0
        self.failed = 0
        self._max_tokens = max_tokens
        self.kinds: Counter[str] = Counter()  # cut, long, or an error's code
        self.first: dict[str, str] = {}  # kind -> place

    def sort(self, rows: Sequence[OutputRow], *, on_long: str, on_error: str) -> list[int]:
        """Count the rows, and return the indices of those that are to be written.

        Raises:
            SomeRowsFailed: a row has an error, and `on_error` is fail.
        """
        written = []
        for index, row in enumerate(rows):
            self.rows += 1
            if row.is_cut:
                self._count("cut", row)
            if row.error is None:
                written.append(index)
            elif row.error.code == "too_long" and on_long == "skip":
                self._count("long", row)
            else:
                self.failed += 1
                self._count(row.error.code, row)
                if on_error == "fail":
                    message = f"{row.record.place}: {row.error.message}; stopped (--on-error fail)"
                    raise SomeRowsFailed(message)
                if on_error == "inline":
                    written.append(index)
        return written

    def _count(self, kind: str, row: OutputRow) -> None:
        self.kinds[kind] += 1
        self.first.setdefault(kind, row.record.place)

    def say(self) -> None:
        """Print a line on stderr for each kind of rows that were cut, left out or failed."""
        for kind, count in self.kinds.items():
            which = f"{count} of {self.rows} rows"
            first = f"(first: {self.first[kind]})"
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
