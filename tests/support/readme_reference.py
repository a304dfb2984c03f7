"""Write the generated parts of README.md and of mini's card.

`python tests/support/readme_reference.py` does it.

The command reference comes from `--help`, the file map from the first lines of the files, and the
facts in the card from the model's file.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

from gemb.cli import HELP, gemb
from gemb.models.hub import show_size
from gemb.models.references import bundled
from gemb.plugins import describe

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
CARD = ROOT / "gemb" / "data" / "mini.md"
FOLDERS = (
    "gemb",
    "gemb/commands",
    "gemb/index",
    "gemb/search",
    "backends/gemb_torch",
    "backends/gemb_llamacpp",
)
WIDTH = 90


def reference() -> str:
    """Return the help of every command, in Markdown."""
    return "\n".join(_sections(gemb, click.Context(gemb, info_name="gemb", **HELP)))


def file_map() -> str:
    """Return every source file with the first sentence of its docstring, in Markdown."""
    lines = []
    for folder in FOLDERS:
        lines += ["", f"**{folder}**", "", "| file | what it is for |", "|---|---|"]
        for path in sorted((ROOT / folder).glob("*.py")):
            words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            lines.append(f"| {path.name} | {words.splitlines()[0].replace('|', chr(92) + '|')} |")
    return "\n".join(lines[1:])


def facts(path: Path) -> str:
    """Return what a model's file says of itself, in Markdown."""
    model = describe(path)
    kinds = [f"{kind} {type_}" for kind, type_ in sorted(model.types.items())]
    rows = (
        ("file", f"{path.name}, {show_size(model.size_bytes)}, GGUF (`{model.architecture}`)"),
        ("parameters", f"{model.parameters / 1e6:.1f} M"),
        ("layers", f"{model.layers}, {model.hidden} wide"),
        ("vocabulary", f"{model.vocabulary:,} tokens"),
        ("context", f"{model.max_tokens:,} tokens"),
        ("vectors", ", ".join(str(dim) for dim in sorted(model.matryoshka_dims, reverse=True))),
        ("types", ", ".join(kinds)),
        ("fingerprint", model.fingerprint),
    )
    lines = ["| | |", "|---|---|", *(f"| {name} | {said} |" for name, said in rows)]
    return "\n".join(lines) + "\n"


def readme_parts() -> dict[str, str]:
    """Return the generated parts of README.md."""
    return {"commands": reference(), "files": file_map()}


def card_parts() -> dict[str, str]:
    """Return the generated part of the bundled model's card."""
    return {"facts": facts(bundled())}


def replaced(text: str, parts: Mapping[str, str]) -> str:
    """Return a text with its generated parts between their marks.

    Raises:
        ValueError: a mark is missing.
    """
    for name, part in parts.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, begin_found, rest = text.partition(begin)
        _, end_found, after = rest.partition(end)
        if not begin_found or not end_found:
            raise ValueError(f"no {begin} or no {end}")
        text = f"{before}{begin}\n\n{part}\n{end}{after}"
    return text


def _sections(group: click.Group, parent: click.Context) -> Iterator[str]:
    for name in group.list_commands(parent):
        command = group.commands[name]
        context = click.Context(command, parent=parent, info_name=name, terminal_width=WIDTH)
        yield f"### {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
        if isinstance(command, click.Group):
            yield from _sections(command, context)


if __name__ == "__main__":
    for file, parts in ((README, readme_parts()), (CARD, card_parts())):
        file.write_text(replaced(file.read_text(encoding="utf-8"), parts), encoding="utf-8")
