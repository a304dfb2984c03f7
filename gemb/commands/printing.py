"""Shared output of the commands: groups that suggest the nearest name, tables, JSON."""

from __future__ import annotations

from collections.abc import Sequence

import click

from gemb.io.notes import answer, show
from gemb.io.text import did_you_mean, visible


class Group(click.Group):
    """A `click.Group` that suggests the nearest command."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command, or fail with the nearest name."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            ctx.fail(f"no command '{args[0]}'{self._hint(ctx, args[0])}")
        return super().resolve_command(ctx, args)

    def _hint(self, ctx: click.Context, name: str) -> str:
        if name == "version":  # a command of other tools
            hint = "did you mean 'gemb --version'?"
        elif name == "help":
            hint = f"did you mean 'gemb help {ctx.info_name}'?"
        else:
            hint = did_you_mean(name, self.list_commands(ctx))
        return f"; {hint}" if hint else ""


def print_json(value: object) -> None:
    """Print one JSON document."""
    import json

    answer(json.dumps(value, ensure_ascii=False, indent=2))


def print_table(rows: Sequence[tuple[str, ...]], *, err: bool = False) -> None:
    """Print rows as aligned columns, the last one unpadded; with `err` on stderr."""
    rows = [tuple(map(visible, row)) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        (show if err else answer)("  ".join([*cells, row[-1]]).rstrip())
