"""`gemb index info|verify|compact`: what an index is, whether it is whole, its space given back."""

from __future__ import annotations

from pathlib import Path

import click

from gemb.commands.index_options import INDEX, JSON, own_model
from gemb.commands.options import ModelOptions, model_options
from gemb.commands.printing import print_json, print_table
from gemb.errors import NegativeAnswer


@click.command()
@INDEX
@JSON
def info(folder: Path, as_json: bool) -> None:
    """Say what an index is: rows, model, prompt, source, size."""
    from gemb.index.care import facts, info

    found = info(folder)
    if as_json:
        print_json(found)
    else:
        print_table(facts(found))


@click.command()
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
    from gemb.index.verify import verify

    findings = []
    for finding in verify(folder, lambda: own_model(folder, options), rows=rows, seed=seed):
        findings.append(finding)
        if not as_json:
            print_table([("ok" if finding.ok else "BAD", finding.name.ljust(7), finding.detail)])
    if as_json:
        print_json([{"name": f.name, "ok": f.ok, "detail": f.detail} for f in findings])
    bad = [finding.name for finding in findings if not finding.ok]
    if bad:
        raise NegativeAnswer(f"{folder} is not whole: {', '.join(bad)}")


@click.command()
@INDEX
def compact(folder: Path) -> None:
    """Give the space of removed rows back.

    The rest is copied beside, and then takes the name; readers are not disturbed. It needs as much
    free space as the index that results.
    """
    from gemb.index.care import compact
    from gemb.models.hub import show_size

    done = compact(folder)
    saved = show_size(max(0, done.before - done.after))
    click.echo(f"{done.removed:,} removed rows left out: {saved} freed")
