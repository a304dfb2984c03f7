"""`gemb embed --engine ray`: from the options to a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from gemb.commands.cluster_options import ClusterChoice
from gemb.commands.options import ModelOptions

if TYPE_CHECKING:
    from gemb.models.prompts import Prompt
    from gemb.texts.inputs import Reading


def check_on_ray(
    files: Sequence[str],
    output: str | None,
    *,
    texts: Sequence[str],
    keep: str | None,
    shard: str | None,
    output_format: str | None,
) -> None:
    """Refuse options that a run on Ray does not take.

    Raises:
        UsageError: there is one.
    """
    if output in (None, "-"):
        raise click.UsageError("--engine ray writes a folder of parts: -o FOLDER")
    if texts or not files or "-" in files:
        what = "-e TEXT" if texts else "standard input"
        raise click.UsageError(f"--engine ray reads files, not {what}: its workers have none")
    if output_format not in (None, "parquet"):
        raise click.UsageError(f"--engine ray writes Parquet; -O {output_format} is for a file")
    if keep:
        raise click.UsageError("--keep: parts hold ids and vectors; join the input by the id")
    if shard:
        raise click.UsageError("--shard: Ray shares the rows out by itself; leave it out")


def embed_on_ray(
    cluster: ClusterChoice,
    options: ModelOptions,
    files: Sequence[str],
    output: str,
    reading: Reading,
    *,
    prompt: Prompt | str,
    dim: int | None,
    dtype: str,
    on_long: str,
    on_error: str,
    resume: bool,
) -> None:
    """Embed files into a folder of parts."""
    from gemb.integrations.ray.cluster import ClusterOptions, import_ray

    import_ray()

    from gemb.embedding.pipeline import Embedder
    from gemb.integrations.ray.embedder import absolute
    from gemb.integrations.ray.files import listed
    from gemb.integrations.ray.parts import PartFolder
    from gemb.integrations.ray.run import RayRun, run_on_ray
    from gemb.integrations.ray.worker import PartJob
    from gemb.io.signals import one_interrupt

    system, inputs = listed(files)
    folder = PartFolder.of(output)
    cpus = max(1, options.threads)
    # What determines the vectors is settled here, by a model that is opened for this alone. Its
    # engine is the workers', too; but one with a GPU may have another.
    device = "cpu" if cluster.gpus else options.device
    model = dataclasses.replace(options, threads=cpus, device=device).open()
    embedder = Embedder.of(
        model.encoder,
        prompt,
        dim=dim,
        dtype=dtype,
        on_long=on_long,
        has_titles=reading.fields.title is not None,
    )
    job = PartJob(
        model=absolute(options.model),
        backend=options.backend if cluster.gpus else model.backend,
        runtime=dataclasses.replace(options.runtime, threads=cpus),
        spec=embedder.spec,
        task=prompt if isinstance(prompt, str) else "custom",
        on_long=on_long,
        on_error=on_error,
        text_ids=reading.fields.id is not None or len(inputs) > 1,
        hashes_ids=reading.fields.id is not None,
        folder=folder,
    )
    run = RayRun(
        files=inputs,
        system=system,
        reading=reading,
        part_rows=cluster.part_rows,
        job=job,
        resume=resume,
        arithmetic="" if cluster.gpus else embedder.profile.dtype,
    )
    del model, embedder  # its memory is not the driver's
    where = ClusterOptions(
        address=cluster.address, workers=cluster.workers, cpus=cpus, gpus=cluster.gpus
    )
    with one_interrupt():
        run_on_ray(run, where)
