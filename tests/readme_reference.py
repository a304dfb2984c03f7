"""Write the command reference in README.md from `--help`: `python tests/readme_reference.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from gemb.cli import HELP, gemb

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- begin commands -->", "<!-- end commands -->"
WIDTH = 90


def reference() -> str:
    """Return the help of every command, in Markdown."""
    return "\n".join(_sections(gemb, click.Context(gemb, info_name="gemb", **HELP)))


def replaced(readme: str) -> str:
    """Return the README with the reference between its two marks.

    Raises:
        ValueError: it has not both marks.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n\n{reference()}\n{END}{after}"


def _sections(group: click.Group, parent: click.Context) -> Iterator[str]:
    for name in group.list_commands(parent):
        command = group.commands[name]
        context = click.Context(command, parent=parent, info_name=name, terminal_width=WIDTH)
        yield f"### {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
        if isinstance(command, click.Group):
            yield from _sections(command, context)


if __name__ == "__main__":
    README.write_text(replaced(README.read_text(encoding="utf-8")), encoding="utf-8")
