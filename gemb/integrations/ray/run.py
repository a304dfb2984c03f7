"""One run of `gemb embed --engine ray`: inputs through a pool of workers to a folder of parts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from gemb.embedding.formats.table import FORMATS
from gemb.embedding.run import fate
from gemb.errors import UsageError
from gemb.integrations.ray import failures
from gemb.integrations.ray.cluster import ClusterOptions, as_gemb_error, connected, import_ray
from gemb.integrations.ray.files import InputFile
from gemb.integrations.ray.ids import IdSample, hashes
from gemb.integrations.ray.parts import (
    MANIFEST,
    PART_CHARS,
    Manifest,
    PartCounts,
    PartFolder,
    Totals,
    missing_parts,
)
from gemb.io import notes
from gemb.io.notes import note, warn
from gemb.io.progress import InputProgress
from gemb.texts.inputs import Reading, format_of

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

    from gemb.integrations.ray.source import PlannedFile
    from gemb.integrations.ray.worker import PartJob

_MOST_READERS = 4096


@dataclass(frozen=True, kw_only=True)
class RayRun:
    """What a run is to do."""

    files: list[InputFile]
    system: FileSystem  # of the files
    reading: Reading
    part_rows: int
    job: PartJob
    resume: bool
    arithmetic: str  # of the model, as it runs here; empty: it runs elsewhere

    @property
    def total(self) -> int | None:
        """Sum of all `Record.size` to come, None where it is not known."""
        plain = [
            format_of(file.label, self.reading) != "parquet" and not file.label.endswith(".gz")
            for file in self.files
        ]
        return sum(file.size for file in self.files) if all(plain) else None

    @property
    def manifest(self) -> Manifest:
        """What must be equal so that a run goes on."""
        reading, job = self.reading, self.job
        words = {
            "model": job.spec.model,
            "prompt": job.spec.prompt,
            "dim": job.spec.dim,
            "dtype": job.spec.dtype,
            "spec": job.spec.fingerprint,
            "backend": job.backend,
            "arithmetic": self.arithmetic,
            "--on-long": job.on_long,
            "--on-error": job.on_error,
            "--part-rows": self.part_rows,
            "characters of a part": PART_CHARS,
            "--input-format": reading.format,
            "separator": reading.separator.decode(),
            "--encoding": reading.encoding,
            "--quoting": reading.quoting,
            "--text-field": list(reading.fields.text),
            "--title-field": reading.fields.title,
            "--id-field": reading.fields.id,
        }
        return Manifest(
            run=words, files=[(file.label, file.size, file.changed) for file in self.files]
        )


def run_on_ray(run: RayRun, options: ClusterOptions) -> None:
    """Embed the files.

    Raises:
        SomeRowsFailed: all was written, and some rows have no vector.
        UsageError: the folder holds another run, another process writes there, or the cluster is
            too small.
        Missing: Ray, or a cluster, is not there.
        GembError: the run failed; what is written stays.
    """
    folder = run.job.folder
    folder.make()
    with folder.locked():
        _take(run, folder)
        _run(run, options)


def _run(run: RayRun, options: ClusterOptions) -> None:
    folder, totals, sample = run.job.folder, Totals(run.job.spec.max_tokens), IdSample()
    progress = InputProgress(run.total)
    if run.resume:
        _count_done(run, totals, sample, progress)
    try:
        if planned := _planned(run, totals):
            with connected(options) as workers:
                for counts, ids in _embedded(run, planned, workers, options):
                    if totals.add(counts):
                        sample.add(ids)
                        progress.add(counts.rows, tokens=counts.tokens, size=counts.size)
    except BaseException:
        progress.close()
        kept = 0  # also those whose counts have not come back from their workers
        with contextlib.suppress(OSError):
            folder.remove_unfinished()
            kept = len(folder.parts())
        if kept:
            note(
                f"{folder.name} keeps the {kept} parts that are done: "
                "the same command with --resume goes on from there"
            )
        raise
    progress.close()
    _finish(run, folder, totals, sample)


def _take(run: RayRun, folder: PartFolder) -> None:
    """Make the folder this run's.

    Raises:
        UsageError: it holds something else, or this run, and `resume` is not asked for.
    """
    before = Manifest.read(folder)
    if before is None:
        folder.remove_unfinished()
        if names := sorted(folder.names()):
            raise UsageError(f"{folder.name} holds other files ({names[0]}); name an empty folder")
        if run.resume:
            note(
                f"{folder.name} is empty: nothing to resume, so this run starts from the beginning"
            )
    else:
        before.check_equal(run.manifest, folder.name)
        if not run.resume and folder.parts():
            state = "unfinished" if before.rows is None else "whole"
            raise UsageError(
                f"{folder.name} holds this run already, {state}; --resume goes on, "
                "or name another folder"
            )
        folder.remove_unfinished()
    if before is None or before.rows is not None:
        folder.write(MANIFEST, run.manifest.to_json())


def _count_done(run: RayRun, totals: Totals, sample: IdSample, progress: InputProgress) -> None:
    """Count the parts that are there already."""
    folder = run.job.folder
    for counts in folder.counts(run.job.spec.fingerprint):
        if counts.key.file < len(run.files) and totals.add(counts):
            progress.add(counts.rows, tokens=0, size=counts.size)
            if run.job.hashes_ids:
                sample.add(hashes(folder.ids(counts.key)))


def _planned(run: RayRun, totals: Totals) -> dict[str, PlannedFile]:
    """Return what is still to be read, by path."""
    from gemb.integrations.ray.source import PlannedFile

    single = len(run.files) == 1
    return {
        file.path: PlannedFile(
            index=index,
            label=None if single else file.label,
            name=file.label,
            done=totals.of_file(index),
        )
        for index, file in enumerate(run.files)
        if not totals.is_whole(index)
    }


def _embedded(
    run: RayRun, planned: dict[str, PlannedFile], workers: int, options: ClusterOptions
) -> Iterator[tuple[PartCounts, Any]]:
    """Yield the counts of each part as it is written, and the hashes of its ids."""
    ray = import_ray()
    from gemb.integrations.ray.source import RecordSource
    from gemb.integrations.ray.worker import Attempts, PartWorker

    # So that each row is a block of its own: a block is what one call of a worker gets.
    ray.data.DataContext.get_current().target_max_block_size = 1
    attempts = ray.remote(num_cpus=0, max_restarts=-1)(Attempts).remote()
    try:
        source = RecordSource(planned, run.system, run.reading, run.part_rows)
        dataset = ray.data.read_datasource(
            source,
            num_cpus=0,  # all CPUs are the workers'
            concurrency=min(max(2, workers), len(planned)),
            override_num_blocks=min(len(planned), _MOST_READERS),
        ).map_batches(
            PartWorker,
            fn_constructor_args=(run.job, attempts),
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=options.cpus,
            num_gpus=options.gpus or None,
        )
        for row in dataset.iter_rows():
            if row["failure"]:
                raise failures.from_json(row["failure"])
            for level, line in msgspec.json.decode(row["notes"]):
                notes.repeat(level, line)
            yield PartCounts.from_json(row["counts"]), np.frombuffer(row["ids"], "<u8")
    except failures.PORTABLE:
        raise
    except Exception as error:
        raise as_gemb_error(error) from None


def _finish(run: RayRun, folder: PartFolder, totals: Totals, sample: IdSample) -> None:
    """Check that all is there, and say what became of the rows.

    Raises:
        SomeRowsFailed: a row has no vector.
        GembError: a part is not there.
    """
    if error := missing_parts(folder, totals, len(run.files)):
        raise error
    with contextlib.suppress(OSError):  # of workers that were lost while they wrote
        folder.remove_unfinished()
    tally = totals.tally
    manifest = replace(run.manifest, rows=tally.rows, failed=tally.failed, parts=totals.parts)
    folder.write(MANIFEST, manifest.to_json())
    if not tally.rows:
        note("the input has no text, so there are no vectors")
    if len(totals.engines) > 1:
        warn(
            f"parts are of {len(totals.engines)} engines ({'; '.join(sorted(totals.engines))}): "
            "their last digits differ; --backend and --precision name one"
        )
    if len(sample.repeated):
        _say_repeated(folder, sample)
    tally.say()
    tally.check(fate(run.job.on_error, FORMATS["parquet"], run.job.spec.dtype))


def _say_repeated(folder: PartFolder, sample: IdSample) -> None:
    repeated = set(sample.repeated.tolist())
    example = next(
        row_id
        for key in folder.parts()
        for row_id in folder.ids(key)
        if int(hashes([row_id])[0]) in repeated
    )
    count = f"{len(repeated)}" if sample.is_all else f"over {len(repeated)}"
    warn(
        f"{count} ids are those of several rows, such as '{example}': all rows are here; "
        "an index keeps one of each"
    )
