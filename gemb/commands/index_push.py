"""`gemb index push`: bring a table of a database up to date with an index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from gemb.commands.index_options import JSON, may_remove
from gemb.commands.options import GroupedCommand, quiet_option
from gemb.commands.params import ModelReference
from gemb.commands.printing import print_json
from gemb.errors import SomeRowsFailed
from gemb.io.notes import answer
from gemb.io.text import visible
from gemb.models.references import DEFAULT

if TYPE_CHECKING:
    from gemb.targets.addresses import Address
    from gemb.targets.base import Content
    from gemb.targets.push import PushJob
    from gemb.targets.sources import Source

GROUPS = {
    "The table": ("table", "kind", "dim", "with_index", "delete"),
    "The run": ("dry_run", "min_recall", "yes", "as_json"),
    "Vectors of gemb embed": ("prompt", "model"),
}


@click.command(cls=GroupedCommand, groups=GROUPS)
@click.argument("source", metavar="INDEX|FILE|-")
@click.argument("target", metavar="TARGET")
@click.option("--table", default="", metavar="NAME", help="Of the rows.  [default: as the INDEX]")
@click.option(
    "--type",
    "kind",
    type=click.Choice(("vector", "halfvec", "bit")),
    help="Numbers of 32 bits, of 16, or signs.  [default: as the source: 16 of f16 and int8]",
)
@click.option("--dim", type=int, help="Narrower vectors: a width the model was trained for.")
@click.option(
    "--index/--no-index",
    "with_index",
    default=True,
    show_default=True,
    help="Make the database's own index of the vectors after the load.",
)
@click.option("--delete", is_flag=True, help="Remove the rows that are not in the source.")
@click.option(
    "--min-recall",
    type=click.FloatRange(0, 1),
    metavar="X",
    help="Exit code 1 where the database finds less of the ten best.",
)
@click.option(
    "-n", "--dry-run", is_flag=True, help="Only print what would be run; nothing is connected."
)
@click.option("--yes", is_flag=True, help="Do not ask before more than half is removed.")
@JSON
@click.option(
    "--prompt", metavar="TEMPLATE", help="The prompt of the vectors, if it was one of your own."
)
@click.option(
    "-m",
    "--model",
    type=ModelReference(),
    metavar="REF",
    default=DEFAULT,
    envvar="GEMB_MODEL",
    show_envvar=True,
    show_default=True,
    help="The model of the vectors.",
)
@quiet_option
@click.pass_context
def push(
    ctx: click.Context,
    source: str,
    target: str,
    table: str,
    kind: str | None,
    dim: int | None,
    with_index: bool,
    delete: bool,
    min_recall: float | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    prompt: str | None,
    model: str,
) -> None:
    """Copy an index, or what gemb embed wrote, into a database.

    TARGET is postgres://HOST/DATABASE (with pgvector), a folder or bucket of LanceDB (lance:FOLDER,
    NAME.lance) or qdrant:URL. Only rows that are new or have changed are written, in parts, so that
    a push that was stopped goes on; then some are read back and searched for. Passwords come from
    PGPASSWORD, PGPASSFILE or QDRANT_API_KEY, never from the command line.

    \b
    gemb index push wiki.gemb postgres://localhost/docs
    gemb search "refund rules" postgres://localhost/docs --where "year >= 2024"
    gemb embed rows.jsonl --id-field id --keep all | gemb index push - lance:vectors

    \b
    Exit codes: 0 done, 1 what was read back is wrong or recall too low, 2 wrong usage, 3 done but
    some rows had no vector, 4 something is absent, 5 the database failed, 130/141/143 stopped.
    """
    from gemb.targets.addresses import address_of, table_name
    from gemb.targets.connect import open_target
    from gemb.targets.push import PushJob
    from gemb.targets.push import push as run

    if delete and source == "-":
        raise click.UsageError(
            "--delete needs all rows, and standard input does not say whether they were all: gemb "
            "embed ... -o rows.jsonl, then gemb index push rows.jsonl TARGET --delete"
        )
    address = address_of(target, table)
    if not address.table:
        address = replace(address, table=table_name(source))
    is_named = ctx.get_parameter_source("model") is ParameterSource.COMMANDLINE
    opened, close = _opened(source, model, prompt, kind, is_named=is_named)
    try:
        content = _narrowed(opened.content, dim)
        job = PushJob(
            content=content,
            with_index=with_index,
            may_remove=may_remove(yes) if delete else None,
            min_recall=min_recall,
        )
        if dry_run:
            answer("\n".join(_plan(address, job, opened.count or 0)))
            return
        there = open_target(address)
        try:
            pushed = run(opened, there, job)
        finally:
            there.close()
    finally:
        close()
    if as_json:
        print_json(pushed.to_json())
    else:
        answer(pushed.line(there.name))
    if count := pushed.failed:
        raise SomeRowsFailed(f"without a vector, and not pushed: {count:,} rows")


def _opened(
    source: str, model: str, prompt: str | None, kind: str | None, *, is_named: bool
) -> tuple[Source, Callable[[], None]]:
    """Return the open source, and what closes it."""
    from gemb.index.build import BuildJob
    from gemb.index.manifest import is_index
    from gemb.index.reader import Index
    from gemb.index.source import VectorSource
    from gemb.integrations.ray.parts import MANIFEST
    from gemb.io.paths import current_folder
    from gemb.targets.sources import IndexSource, file_source

    path = Path(source)
    if (path / MANIFEST).is_file():
        raise click.UsageError(
            f"{visible(source)} is a folder of parts, which are pushed one by one: for part in "
            f"{visible(source.rstrip('/'))}/part-*; do gemb index push $part TARGET --table NAME; "
            "done"
        )
    if source != "-" and (is_index(path) or path.is_dir() or not path.exists()):
        if is_named or prompt is not None:
            raise click.UsageError(
                "-m and --prompt are for vectors of gemb embed: an INDEX has its own"
            )
        index = Index.open(path)
        return IndexSource(index, kind), index.close
    job = BuildJob(
        target=path,
        source=VectorSource(base=current_folder((source,)), paths=(source,)),
        model=model,
        model_is_named=is_named,
        prompt=prompt,
    )
    return file_source(source, job, kind), lambda: None


def _narrowed(content: Content, dim: int | None) -> Content:
    from gemb.targets.sources import narrowed

    return content if dim is None else narrowed(content, dim)


def _plan(address: Address, job: PushJob, rows: int) -> list[str]:
    """Return what a push into a new table would run."""
    if address.kind == "postgres":
        from gemb.targets.postgres_sql import dry_run

        return dry_run(address.table, job.content, rows, with_index=job.with_index)
    job.content.refuse_bits({"lance": "LanceDB", "qdrant": "Qdrant"}[address.kind])
    spec = job.content.spec
    lines = [
        f"make table {address.table} in {address.shown}: vectors of {spec.dim} {job.content.kind}",
        f"write {rows:,} rows in parts, each by its id",
    ]
    if job.with_index:
        lines.append("make the index of the vectors where there are many rows")
    return lines
