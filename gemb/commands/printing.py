"""What commands print on stdout: aligned columns, or one JSON document."""

from __future__ import annotations

from collections.abc import Sequence

import click


def print_json(value: object) -> None:
    """Print one JSON document."""
    import json

    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def print_table(rows: Sequence[tuple[str, ...]], *, err: bool = False) -> None:
    """Print rows as aligned columns, the last one as long as it is; on stderr if asked."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*cells, row[-1]]).rstrip(), err=err)
