"""`gemb embed`: texts in, vectors out."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gemb.commands.cluster_options import ClusterChoice, cluster_options
from gemb.commands.embed_ray import check_on_ray, embed_on_ray
from gemb.commands.options import ENCODING, QUOTING, GroupedCommand, ModelOptions, model_options
from gemb.commands.params import AnyPath
from gemb.embedding.formats.table import FORMATS, Format, format_of
from gemb.models.prompts import TASKS
from gemb.texts import INPUT_FORMATS

if TYPE_CHECKING:
    from gemb.embedding.output import Target
    from gemb.texts.records import Fields

NO_INPUT = """
Nothing to embed: standard input is a terminal. Give it texts:
  echo hello | gemb embed
  gemb embed notes.txt
  gemb embed -e hello
More: gemb embed --help"""
GROUPS = {
    "Input": (
        "texts",
        "input_format",
        "null",
        "encoding",
        "quoting",
        "text_field",
        "title_field",
        "id_field",
        "keep",
    ),
    "Output": ("output", "output_format", "dim", "dtype"),
    "Prompt": ("task", "prompt"),
    "Rows that cannot be used as they are": ("on_long", "on_error"),
    "Long runs": ("resume", "shard", "engine", "workers", "address", "gpus", "part_rows"),
    "Model": ("model", "backend", "device", "precision", "threads"),
}


@click.command(cls=GroupedCommand, groups=GROUPS)
@click.argument("files", nargs=-1, type=AnyPath(), metavar="[FILE]...")
@click.option("-e", "--text", "texts", multiple=True, metavar="TEXT", help="A text; repeatable.")
@click.option(
    "-I",
    "--input-format",
    type=click.Choice(INPUT_FORMATS),
    default="auto",
    help="auto (the default) goes by the suffix, then by the first line.",
)
@click.option("-0", "--null", is_flag=True, help="Texts end in NUL, not in a newline.")
@ENCODING
@QUOTING
@click.option(
    "--text-field",
    multiple=True,
    metavar="NAME",
    help="Field or column of the text ('text', or a table's only column); several are joined by "
    "a newline.",
)
@click.option("--title-field", metavar="NAME", help="Field of the title, for the document prompt.")
@click.option("--id-field", metavar="NAME", help="Field of the id; else rows are numbered.")
@click.option("--keep", metavar="A,B|all", help="Fields to copy to the output.")
@click.option(
    "-o",
    "--output",
    type=AnyPath(),
    metavar="FILE",
    help="Write to a file, whole or not at all; with --engine ray a folder of parts.",
)
@click.option(
    "-O",
    "--output-format",
    type=click.Choice([form.name for form in FORMATS.values() if not form.is_for_people]),
    help="By default as the suffix of FILE says, else jsonl; on a terminal, a preview.",
)
@click.option("--dim", type=int, help="Width of the vectors: one that the model was trained for.")
@click.option(
    "--dtype",
    type=click.Choice(["f32", "f16", "int8", "ubinary"]),
    default="f32",
    help="Type of the numbers; int8 has a fixed scale, ubinary is one bit each.",
)
@click.option(
    "--task",
    type=click.Choice(list(TASKS)),
    help="Prompt that the model was trained with; document by default.",
)
@click.option("--prompt", metavar="TEMPLATE", help="Your own prompt: 'query: {text}'.")
@click.option(
    "--on-long",
    type=click.Choice(["truncate", "error", "skip"]),
    default="truncate",
    help="A text longer than the model takes: cut it (the default), fail it, leave it out.",
)
@click.option(
    "--on-error",
    type=click.Choice(["inline", "skip", "fail"]),
    default="inline",
    help="A row that fails: its error stands in its place (the default), it is left out, the "
    "run stops. Exit code 3.",
)
@click.option("--resume", is_flag=True, help="Go on with a run of -o FILE that was stopped.")
@click.option(
    "--shard",
    metavar="I/N",
    help="Only every N-th row, from row I; auto: as SLURM or Kubernetes says.",
)
@cluster_options
@model_options
def embed(
    options: ModelOptions,
    cluster: ClusterChoice | None,
    files: tuple[str, ...],
    texts: tuple[str, ...],
    input_format: str,
    null: bool,
    encoding: str,
    quoting: str | None,
    text_field: tuple[str, ...],
    title_field: str | None,
    id_field: str | None,
    keep: str | None,
    output: str | None,
    output_format: str | None,
    dim: int | None,
    dtype: str,
    task: str | None,
    prompt: str | None,
    on_long: str,
    on_error: str,
    resume: bool,
    shard: str | None,
) -> None:
    """Turn texts into vectors, one for each line, in order.

    FILEs are texts, one a line, or JSON lines, CSV, TSV or Parquet; - is standard input.

    \b
    git log --format=%s | gemb embed > vectors.jsonl
    gemb embed reviews.csv --text-field body --id-field id --dim 256 -o reviews.npz
    gemb embed --task query -e "how do I cancel an order"
    tail -f app.log | gemb embed | jq -c .id
    gemb embed s3://bucket/pages --id-field url -o s3://bucket/vectors --engine ray

    \b
    Exit codes: 0 done, 3 done but some rows failed, 2 wrong usage, 4 something is
    absent, 5 the run failed, 130/141/143 stopped by a signal.
    """
    if prompt is not None and task is not None:
        raise click.UsageError("--prompt and --task are both given; only one can set the prompt")
    if texts and files:
        raise click.UsageError("-e TEXT and FILE are both given; one at a time")
    if "" in files or output == "":
        raise click.UsageError(f"an empty name for {'-o' if output == '' else 'a FILE'}")
    if not files and not texts and sys.stdin is not None and sys.stdin.isatty():
        click.echo(click.get_current_context().get_usage() + NO_INPUT, err=True)
        raise click.exceptions.Exit(2)

    if cluster:
        check_on_ray(
            files,
            output,
            texts=texts,
            keep=keep,
            shard=shard,
            output_format=output_format,
        )

    from gemb.embedding.output import Target
    from gemb.models import prompts
    from gemb.texts import inputs
    from gemb.texts.shards import shard as shard_of

    form = FORMATS["parquet"] if cluster else _format(output_format, output)
    fields = _fields(text_field, title_field, id_field, keep, form)
    _check_input(bool(texts), input_format, null, fields)
    custom_prompt = prompts.custom(prompt) if prompt is not None else None
    task = task or "document"
    reading = inputs.Reading(
        format=input_format,
        separator=b"\0" if null else b"\n",
        fields=fields,
        encoding=encoding,
        quoting=quoting or "",
    )
    if cluster:
        embed_on_ray(
            cluster,
            options,
            files,
            output or "",
            reading,
            prompt=custom_prompt or task,
            dim=dim,
            dtype=dtype,
            on_long=on_long,
            on_error=on_error,
            resume=resume,
        )
        return
    target = Target.of(output, form)
    _say_form(target, is_chosen=output_format is not None)
    target.check()
    _check_form(target, dtype, resume=resume)
    reading = replace(reading, live=target.is_stream)
    paths = files or ("-",)
    row_shard = shard_of(shard, os.environ) if shard else None
    if not texts:
        inputs.check(paths)
        target.check_inputs(paths)
    records = inputs.from_texts(texts) if texts else inputs.read(paths, reading)

    model = options.open()

    from gemb.embedding.pipeline import Embedder
    from gemb.embedding.run import EmbedJob, run
    from gemb.io.signals import one_interrupt

    embedder = Embedder.of(
        model.encoder,
        custom_prompt or task,
        dim=dim,
        dtype=dtype,
        on_long=on_long,
        has_titles=title_field is not None,
    )
    job = EmbedJob(
        target=target,
        task="custom" if custom_prompt else task,
        on_error=on_error,
        fields=fields,
        text_ids=id_field is not None or len(paths) > 1,
        resume=resume,
        backend=model.backend,
        total=None if texts or row_shard else inputs.total_size(paths, reading),
    )
    with one_interrupt():
        run(job, row_shard.of(records) if row_shard else records, embedder)


def _format(chosen: str | None, output: str | None) -> Format:
    """Return the format of the output: the chosen one, or by the suffix or the terminal."""
    if chosen:
        return FORMATS[chosen]
    if output in (None, "-"):
        on_terminal = sys.stdout.isatty()
        return FORMATS["preview" if on_terminal and output is None else "jsonl"]
    return format_of(Path(output or "")) or FORMATS["jsonl"]


def _say_form(target: Target, *, is_chosen: bool) -> None:
    """Note that a file whose suffix names no format gets JSON lines."""
    from gemb.io.notes import note

    path = target.path
    if path is not None and not is_chosen and path.suffix and not format_of(path):
        note(f"{path.name} gets JSON lines; -O names another format")


def _check_form(target: Target, dtype: str, *, resume: bool) -> None:
    form = target.form
    if dtype not in form.dtypes:
        formats = ", ".join(name for name, other in FORMATS.items() if dtype in other.dtypes)
        raise click.UsageError(
            f"-O {form.name} is {' or '.join(form.dtypes)} alone; "
            f"--dtype {dtype} goes with {formats}"
        )
    if form.needs_pyarrow:
        from gemb.texts.tables import import_pyarrow

        import_pyarrow()
    if resume and target.is_stream:
        raise click.UsageError("--resume needs -o FILE: what went into a pipe is gone")


def _check_input(has_texts: bool, input_format: str, null: bool, fields: Fields) -> None:
    if has_texts and (input_format != "auto" or null or fields.named() or fields.keep_all):
        raise click.UsageError(
            "-e TEXT is embedded as it stands; -I, -0, --text-field, --title-field, --id-field and "
            "--keep are for FILEs"
        )
    if null and input_format in ("csv", "tsv", "parquet"):
        raise click.UsageError(f"-0 is for texts and JSON that end in NUL, not for {input_format}")


def _fields(
    text: tuple[str, ...], title: str | None, record_id: str | None, keep: str | None, form: Format
) -> Fields:
    from gemb.texts.records import RESERVED, Fields

    keep_all = keep == "all"
    copied = () if keep_all or not keep else tuple(name.strip() for name in keep.split(","))
    if keep and not form.holds_fields:
        raise click.UsageError(f"--keep: {form.name} holds numbers alone; use another format")
    for name in copied:
        if name in RESERVED:
            hint = "; --id-field id makes it the row's id" if name == "id" else ""
            raise click.UsageError(f"--keep {name}: the output has a field of that name{hint}")
    return Fields(text=text, title=title, id=record_id, keep=copied, keep_all=keep_all)
