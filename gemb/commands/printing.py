"""What commands share: a group that suggests the nearest name, and tables and JSON on stdout."""

from __future__ import annotations

from collections.abc import Sequence

import click


class Group(click.Group):
    """`click.Group`, and a suggestion."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command, or fail with the nearest name."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            ctx.fail(f"no command '{args[0]}'{self._hint(ctx, args[0])}")
        return super().resolve_command(ctx, args)

    def _hint(self, ctx: click.Context, name: str) -> str:
        if name == "version":  # a command of other tools
            near = ["gemb --version"]
        elif name == "help":
            near = [f"gemb help {ctx.info_name}"]
        else:
            import difflib  # a misspelt name is rare

            near = difflib.get_close_matches(name, self.list_commands(ctx), 1)
        return f"; did you mean '{near[0]}'?" if near else ""


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
