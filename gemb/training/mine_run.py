"""One run of `gemb mine`: pairs in, rows with negatives out, and what is said of them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from gemb.backend import Runtime
from gemb.datasets.files import Written
from gemb.datasets.rows import open_source, prompts_of
from gemb.errors import UsageError
from gemb.io.atomic import new_file, scratch_folder
from gemb.io.caches import rows_cache, teachers_cache
from gemb.io.notes import note, warn
from gemb.io.paths import is_stream
from gemb.io.progress import CountProgress
from gemb.io.streams import Stream
from gemb.io.text import duration
from gemb.recipe.names import Task
from gemb.recipe.schema import Source
from gemb.texts.examples import Text
from gemb.texts.inputs import Reading, read
from gemb.texts.records import Fields
from gemb.training.mining import MinedRow, NegativeMiner, NegativeRule
from gemb.training.teacher import Teacher
from gemb.training.teachers import open_teacher

DIGITS = 5  # of a score; a stored vector is float16, so that the sixth means nothing


@dataclass(frozen=True, kw_only=True)
class MineJob:
    """What a run is to do."""

    pairs: Path  # - is standard input
    corpus: tuple[str, ...]  # files of candidates; empty: those of the pairs
    encoding: str  # of pairs and corpus, as `gemb.texts.inputs.Reading` has it
    quoting: str
    task: Task
    rule: NegativeRule
    without: str  # keep, drop: a row for which there is no negative
    output: Path | None  # no link; None: standard output
    dry_run: bool
    model: str  # a reference
    backend: str
    runtime: Runtime
    cache: Path | None


def run(job: MineJob) -> None:
    """Find the negatives, and write the rows.

    Raises:
        UsageError: the pairs or the corpus cannot be read, or are too few.
        Missing: the model or a library is not here.
        GembError: the model fails on a text.
    """
    with _readable(job.pairs) as (path, index):
        written = Written(job.encoding, job.quoting)
        rows = open_source(Source(path=str(path), task=job.task), index, written, strict=False)
        if rows.bad_count:
            place, reason = rows.bad[0]
            warn(f"{rows.bad_count} rows of {job.pairs} are left out, the first: {place}: {reason}")
        teacher = open_teacher(
            job.model, job.cache or teachers_cache(), job.runtime, backend=job.backend
        )
        prompts = prompts_of(rows.source, teacher.prompts)
        miner = NegativeMiner(rows, _corpus(job) if job.corpus else None, prompts)
        miner.check(job.rule)
        if miner.own_negatives:
            fate = "are not taken over" if job.corpus else "are candidates as any other text"
            note(f"{miner.own_negatives} rows have negatives already; these {fate}")
        if job.dry_run:
            _predict(job, miner, teacher, rows.format)
            return
        teacher.fill(miner.teacher_texts())
        _write(job, miner, teacher)


def _write(job: MineJob, miner: NegativeMiner, teacher: Teacher) -> None:
    count = len(miner.rows)
    without = fewer = 0
    progress = CountProgress(count, "looking for negatives", "rows")
    try:
        with _sink(job.output) as write:
            for block in miner.run(teacher, job.rule):
                rows = [row for row in block if row.negatives or job.without == "keep"]
                write(b"".join(map(_line, rows)))
                without += sum(not row.negatives for row in block)
                fewer += sum(0 < len(row.negatives) < job.rule.negatives for row in block)
                progress.add(len(block))
    finally:
        progress.close()
    full = count - without - fewer
    words = [f"{full} of {count} rows have {job.rule.negatives} negatives"]
    if fewer:
        words.append(f"{fewer} have fewer")
    if without:
        fate = "are left out" if job.without == "drop" else "are written without"
        words.append(f"{without} have none and {fate}")
    if without:
        warn("; ".join(words))
    else:
        note("; ".join(words))


def _predict(job: MineJob, miner: NegativeMiner, teacher: Teacher, form: str) -> None:
    """Say what there is to do, and how long it takes."""
    estimate = teacher.predict(miner.teacher_texts())
    searching = miner.search_seconds(teacher.dim, job.rule)
    note(
        f"{len(miner.rows)} rows of {form}; {miner.candidates} candidates; "
        f"{estimate.texts} texts have no vector of {teacher.reference} in {teacher.folder} yet"
    )
    note(
        f"about {duration(estimate.seconds)} for the vectors and {duration(searching)} for the "
        "search; no output was written (-n)"
    )


def _line(row: MinedRow) -> bytes:
    """Return a row of the output."""
    example = row.example
    line: dict[str, object] = {"query": example.query.text, "positive": example.positive.text}
    if example.positive.title:
        line["title"] = example.positive.title
    line["negatives"] = [
        {"text": text.text, "title": text.title} if text.title else text.text
        for text in row.negatives
    ]
    line["positive_score"] = round(row.positive_score, DIGITS)
    line["negative_scores"] = [round(score, DIGITS) for score in row.scores]
    return orjson.dumps(line) + b"\n"


def _corpus(job: MineJob) -> Iterator[Text]:
    """Yield the texts of files.

    Raises:
        UsageError: they have none.
    """
    reading = Reading(
        fields=Fields(title="title", title_may_lack=True),
        encoding=job.encoding,
        quoting=job.quoting,
        names_options=False,
    )
    good = bad = 0
    first = ""
    for record in read(job.corpus, reading):
        if record is None:
            continue
        if record.error:
            bad += 1
            first = first or f"{record.place}: {record.error.message}"
            continue
        good += 1
        yield Text(record.text, record.title)
    if not good:
        raise UsageError(f"{', '.join(job.corpus)}: no text ({first or 'empty'})")
    if bad:
        warn(f"{bad} texts of the corpus are left out, the first: {first}")


@contextmanager
def _readable(pairs: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a path that can be read more than once, and the folder of its index."""
    if str(pairs) != "-":
        yield pairs, rows_cache()
        return
    if sys.stdin is None:
        raise UsageError("standard input is closed; name a file of pairs")
    with scratch_folder("mine") as folder:
        path = folder / "stdin.jsonl"
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield path, folder


@contextmanager
def _sink(path: Path | None) -> Iterator[Callable[[bytes], object]]:
    """Yield what takes the lines: of a file that appears whole or not at all, or of a stream."""
    if path is None or is_stream(path):
        yield Stream(path).write
        return
    with new_file(path) as part, part.open("wb") as file:
        yield file.write
