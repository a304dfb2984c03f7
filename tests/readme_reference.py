"""Write README.md's generated parts: `python tests/readme_reference.py`.

The command reference comes from `--help`, the file map from the first lines of the files.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import click

from gemb.cli import HELP, gemb

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
WIDTH = 90


def reference() -> str:
    """Return the help of every command, in Markdown."""
    return "\n".join(_sections(gemb, click.Context(gemb, info_name="gemb", **HELP)))


def file_map() -> str:
    """Return every source file with the first sentence of its docstring, in Markdown."""
    lines = []
    for folder in ("gemb", "gemb/commands", "backends/gemb_torch", "backends/gemb_llamacpp"):
        lines += ["", f"**{folder}**", "", "| file | what it is for |", "|---|---|"]
        for path in sorted((ROOT / folder).glob("*.py")):
            words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            lines.append(f"| {path.name} | {words.splitlines()[0].replace('|', chr(92) + '|')} |")
    return "\n".join(lines[1:])


def replaced(readme: str) -> str:
    """Return the README with the generated parts between their marks.

    Raises:
        ValueError: a mark is missing.
    """
    for name, text in (("commands", reference()), ("files", file_map())):
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, begin_found, rest = readme.partition(begin)
        _, end_found, after = rest.partition(end)
        if not begin_found or not end_found:
            raise ValueError(f"README.md lacks {begin} or {end}")
        readme = f"{before}{begin}\n\n{text}\n{end}{after}"
    return readme


def _sections(group: click.Group, parent: click.Context) -> Iterator[str]:
    for name in group.list_commands(parent):
        command = group.commands[name]
        context = click.Context(command, parent=parent, info_name=name, terminal_width=WIDTH)
        yield f"### {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
        if isinstance(command, click.Group):
            yield from _sections(command, context)


if __name__ == "__main__":
    README.write_text(replaced(README.read_text(encoding="utf-8")), encoding="utf-8")
