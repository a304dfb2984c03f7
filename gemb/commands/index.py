"""`gemb index`: build and maintain an index, a folder of rows and vectors for fast search."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from gemb.commands.index_options import (
    INDEX,
    JSON,
    YES,
    SourceOptions,
    VectorOptions,
    may_remove,
    own_model,
    source_options,
    vector_options,
)
from gemb.commands.index_push import push
from gemb.commands.options import GroupedCommand, ModelOptions, model_options
from gemb.commands.params import Seconds
from gemb.commands.printing import Group, print_json, print_table
from gemb.errors import NegativeAnswer, SomeRowsFailed
from gemb.io.notes import answer
from gemb.io.paths import current_folder

if TYPE_CHECKING:
    from gemb.index.state import Changes

GROUPS = {
    "Rows": (
        "input_format",
        "null",
        "encoding",
        "quoting",
        "text_field",
        "title_field",
        "id_field",
        "keep",
    ),
    "Files as passages": ("passages", "globs", "hidden", "no_ignore", "follow", "max_size"),
    "Vectors": ("draft", "dim", "dtype", "task", "prompt", "on_long"),
    "The index": ("force", "as_json"),
    "Model": ("model", "backend", "device", "precision", "threads"),
}


@click.group(cls=Group)
def index() -> None:
    """Build an index, and keep it up to date; gemb search reads it.

    \b
    gemb index build docs.gemb docs/
    gemb search "how do I cancel an order" docs.gemb
    gemb index sync docs.gemb

    An index is a folder: rows and metadata in SQLite, vectors, sign codes, a manifest. It never
    shows a half-written state: a build or sync that is killed loses its last two seconds, and the
    next one goes on from there.
    """


@index.command(cls=GroupedCommand, groups=GROUPS)
@INDEX
@click.argument("sources", nargs=-1, metavar="[FILE|DIR]...")
@source_options
@vector_options
@click.option(
    "--draft",
    is_flag=True,
    help="Give rows drafts of their vectors, at once; gemb index refine gives them real ones.",
)
@click.option(
    "-f",
    "--force",
    is_flag=True,
    help="Replace an existing index, once the new one is complete.",
)
@JSON
@model_options
@click.pass_context
def build(
    ctx: click.Context,
    options: ModelOptions,
    folder: Path,
    source: SourceOptions,
    sources: tuple[str, ...],
    vectors: VectorOptions,
    draft: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Build the index INDEX of files, folders or standard input.

    A DIR becomes passages of its files. A FILE becomes rows as gemb embed takes them (lines, JSON
    lines, CSV, TSV, Parquet), or passages with --passages; one that gemb embed wrote with its
    vectors is not embedded again.

    \b
    gemb index build docs.gemb docs/ -g '*.md'
    gemb index build reviews.gemb reviews.csv --text-field body --id-field id
    gemb embed corpus.jsonl --keep all -o v.parquet && gemb index build c.gemb v.parquet
    git log --format=%s | gemb index build log.gemb

    With --draft the index is there in seconds; searches rank its rows by words and drafts, and
    gemb index refine gives them real vectors, by and by.

    \b
    Exit codes: 0 done, 3 done but some rows failed, 2 wrong usage, 4 something is
    absent, 5 the run failed, 130/141/143 stopped by a signal.
    """
    if not sources and sys.stdin is not None and sys.stdin.isatty():
        raise click.UsageError(f"what shall {folder} be built from? Name a FILE or a DIR")
    from gemb.index.build import BuildJob, build_index, check_target

    check_target(folder, overwrite=force)
    job = BuildJob(
        target=folder,
        source=source.source(sources),
        model=options.model,
        model_is_named=ctx.get_parameter_source("model") is ParameterSource.COMMANDLINE,
        dim=vectors.dim,
        dtype=vectors.dtype,
        task=vectors.task,
        prompt=vectors.prompt,
        overwrite=force,
        drafts=draft,
    )
    changes = build_index(job, lambda: options.open().encoder)
    _print(folder, changes, as_json=as_json)


@index.command()
@INDEX
@click.argument("sources", nargs=-1, metavar="[FILE|DIR]...")
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be done.")
@YES
@JSON
@model_options
@click.pass_context
def sync(
    ctx: click.Context,
    options: ModelOptions,
    folder: Path,
    sources: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Bring an index up to date with the files it was built of.

    Only what is new or has changed is embedded: +12 ~3 -1 says how much of it was added, changed
    and removed. Other FILEs are read in place of those; - is standard input. Removing more than
    half asks on a terminal; elsewhere it requires --yes. -m names the new place of the model that
    the index was built with, and the index keeps it.

    \b
    Exit codes: 0 done, 3 done but some rows failed, 2 wrong usage, 4 something is
    absent, 5 the run failed, 130/141/143 stopped by a signal.
    """
    from gemb.index import sync as run

    is_named = ctx.get_parameter_source("model") is ParameterSource.COMMANDLINE
    job = run.SyncJob(
        folder=folder,
        paths=sources,
        base=current_folder(sources),
        model=options.model if is_named else "",
    )
    if dry_run:
        changes = run.look(job)
    else:
        changes = run.sync(job, lambda: own_model(folder, options), may_remove(yes))
    _print(folder, changes, as_json=as_json)


@index.command()
@INDEX
@click.option("--for", "seconds", type=Seconds(), metavar="TIME", help="10m, 30s; else to the end.")
@JSON
@model_options
def refine(options: ModelOptions, folder: Path, seconds: float | None, as_json: bool) -> None:
    """Give the rows of an index that has drafts real vectors.

    First come the rows that searches ranked high, then the others. It can be stopped at any time,
    and goes on from there; gemb index info says how far it is. At the end gemb index compact gives
    the space of the drafts back.

    \b
    gemb index build docs.gemb docs/ --draft
    gemb index refine docs.gemb --for 10m

    \b
    Exit codes: 0 done, or the time is over, 3 rows failed and keep their drafts, 2 wrong usage, 4
    something is absent, 5 the run failed, 130/141/143 stopped by a signal.
    """
    from gemb.index.refine import refine as run

    refined = run(folder, lambda: own_model(folder, options), seconds)
    if as_json:
        print_json(refined.to_json())
    else:
        answer(refined.line())
    if count := refined.failed:
        rows = "row, which keeps its draft" if count == 1 else "rows, which keep their drafts"
        raise SomeRowsFailed(f"without a real vector: {count:,} {rows}")


@index.command()
@INDEX
@click.argument("references", nargs=-1, metavar="[ID|PATH]...")
@click.option("--where", metavar="FILTER", help="Rows that pass: \"lang='en' and year<2000\".")
@click.option("-n", "--dry-run", is_flag=True, help="Only say how many.")
@YES
@JSON
def rm(
    folder: Path,
    references: tuple[str, ...],
    where: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Remove rows from an index, by id, by path or by a filter.

    Their text is gone at once, their vectors with gemb index compact. What is still in the source
    comes back with the next sync. Removing more than half asks on a terminal; elsewhere it requires
    --yes.
    """
    if not references and where is None:
        raise click.UsageError("name an ID or a PATH, or --where FILTER")
    from gemb.index.care import remove

    changes = remove(folder, references, where, None if dry_run else may_remove(yes))
    if as_json:
        print_json(changes.to_json())
    else:
        total = "" if changes.rows is None else f" ({changes.rows:,} in all)"
        answer(f"-{changes.removed:,} rows{total}")


@index.command()
@INDEX
@JSON
def info(folder: Path, as_json: bool) -> None:
    """Print the rows, model, prompt, source and size of an index."""
    from gemb.index import care

    facts = care.info(folder)
    if as_json:
        print_json(facts)
    else:
        print_table(care.lines(facts))


@index.command()
@INDEX
@click.option(
    "--rows",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="How many random rows to embed again; 0 needs no model.",
)
@click.option("--seed", type=int, default=0, help="Which rows.  [default: 0]")
@JSON
@model_options
def verify(options: ModelOptions, folder: Path, rows: int, seed: int, as_json: bool) -> None:
    """Check an index: checksums, counts, and some rows anew.

    \b
    Exit codes: 0 whole, 1 damaged, 2 wrong usage, 4 something is absent, 5 the index cannot
    be opened.
    """
    from gemb.index import verify as checks

    findings = []
    for finding in checks.verify(folder, lambda: own_model(folder, options), rows=rows, seed=seed):
        findings.append(finding)
        if not as_json:
            print_table([("ok" if finding.ok else "BAD", finding.name.ljust(7), finding.detail)])
    if as_json:
        print_json([{"name": f.name, "ok": f.ok, "detail": f.detail} for f in findings])
    bad = [finding.name for finding in findings if not finding.ok]
    if bad:
        raise NegativeAnswer(f"{folder} is not whole: {', '.join(bad)}")


@index.command()
@INDEX
def compact(folder: Path) -> None:
    """Give the space of removed rows back.

    The remaining rows are copied to a new index, which then replaces the old one; readers are not
    disturbed. This requires as much free space as the new index has.
    """
    from gemb.index import care
    from gemb.io.text import size_in_words

    compacted = care.compact(folder)
    saved = size_in_words(max(0, compacted.before - compacted.after))
    answer(f"{compacted.removed:,} removed rows left out: {saved} freed")


index.add_command(push)


def _print(folder: Path, changes: Changes, *, as_json: bool) -> None:
    """Print the changes of an index.

    Raises:
        SomeRowsFailed: rows have no vector, or files could not be read.
    """
    if as_json:
        print_json(changes.to_json())
    else:
        answer(changes.line())
    if count := changes.failed:
        rows = "row" if count == 1 else "rows"
        raise SomeRowsFailed(f"without a vector, and not in {folder}: {count:,} {rows}")
    if count := changes.unreadable:
        files, them = ("file or folder", "it") if count == 1 else ("files or folders", "them")
        raise SomeRowsFailed(
            f"could not be read: {count:,} {files}; what {folder} had of {them} stays"
        )
