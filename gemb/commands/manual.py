"""`gemb help TOPIC`, and the man pages: both from `--help` and the texts in gemb/data/help."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from gemb.io.notes import answer

SECTION = "1"  # of the manual: programs
WIDTH = 90  # columns of an options table in a man page
_PACKAGE = Path(__file__).parents[1]


def topics() -> dict[str, Path]:
    """Return the file of each topic, by name."""
    files = {path.stem: path for path in sorted((_PACKAGE / "data" / "help").glob("*.md"))}
    recipes = [_PACKAGE / "recipes" / "README.md", _PACKAGE.parent / "recipes" / "README.md"]
    files["recipes"] = next((path for path in recipes if path.is_file()), recipes[0])
    return dict(sorted(files.items()))


def title(path: Path) -> str:
    """Return the first line of a topic, without its mark."""
    with path.open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip()


@click.command(name="help")
@click.argument("names", nargs=-1, metavar="[TOPIC|COMMAND...]")
@click.pass_context
def show_help(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Explain a topic, or show the help of a command.

    Without a TOPIC the topics are listed. A name of both is the topic; --help has the options.

    \b
    gemb help
    gemb help vectors
    gemb help index build
    """
    if not names:
        files = topics()
        widest = max(map(len, files))
        answer("Topics:\n")
        for name, path in files.items():
            answer(f"  {name.ljust(widest)}  {title(path)}")
        answer("\ngemb help TOPIC explains one; gemb COMMAND --help shows a command's options.")
    elif len(names) == 1 and names[0] in topics():
        text = topics()[names[0]].read_text(encoding="utf-8")
        if names[0] in _subcommands(ctx.find_root()):
            text += f"\nOptions: gemb {names[0]} --help\n"
        click.echo_via_pager(text)
    else:
        context = ctx.find_root()
        for name in names:
            command = _subcommands(context).get(name)
            if command is None:
                raise click.UsageError(_unknown(name, context))
            context = click.Context(command, parent=context, info_name=name)
        answer(context.get_help())


def _subcommands(context: click.Context) -> dict[str, click.Command]:
    group = context.command
    if not isinstance(group, click.Group):
        return {}
    loaded = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in loaded.items() if command is not None}


def _unknown(name: str, context: click.Context) -> str:
    import difflib  # a misspelt topic is rare

    candidates = [*_subcommands(context), *(topics() if context.parent is None else ())]
    near = difflib.get_close_matches(name, candidates, 1)
    hint = f"did you mean '{near[0]}'?" if near else "gemb help lists the topics"
    return f"no topic or command '{name}'; {hint}"


def pages(root: click.Group, version: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each man page: `gemb`, `gemb-embed`, `gemb-index-build`, ...

    Args:
        root: the whole command.
        version: of gemb.
    """
    context = click.Context(
        root, info_name="gemb", terminal_width=WIDTH, help_option_names=["-h", "--help"]
    )
    yield from _pages(root, context, version)


def _pages(
    command: click.Command, context: click.Context, version: str
) -> Iterator[tuple[str, str]]:
    name = context.command_path.replace(" ", "-")
    yield name, _page(command, context, name, version)
    if isinstance(command, click.Group):
        for child_name in command.list_commands(context):
            child = command.get_command(context, child_name)
            assert child is not None, child_name
            yield from _pages(
                child,
                click.Context(child, parent=context, info_name=child_name, terminal_width=WIDTH),
                version,
            )


def _page(command: click.Command, context: click.Context, name: str, version: str) -> str:
    """Return a man page in roff: name, synopsis, and the text of `--help` with its headings."""
    summary = _roff(command.get_short_help_str(limit=120).rstrip("."))
    usage, _, body = command.get_help(context).partition("\n")
    lines = [
        f'.TH {name.upper()} {SECTION} "" "gemb {version}" "gemb"',
        ".SH NAME",
        f"{_roff(name)} \\- {summary}",
        ".SH SYNOPSIS",
        _roff(usage.removeprefix("Usage: ")),
        ".SH DESCRIPTION",
        ".nf",
    ]
    for line in body.strip("\n").splitlines():
        heading = re.fullmatch(r"(\S.*):", line)
        if heading:
            lines += [".fi", f".SH {_roff(heading[1]).upper()}", ".nf"]
        else:
            lines.append(_roff(line.removeprefix("  ")))
    lines.append(".fi")
    if context.parent is not None:
        lines += [".SH SEE ALSO", f".BR {context.find_root().info_name} ({SECTION})"]
    return "\n".join(lines) + "\n"


def _roff(text: str) -> str:
    """Return a line of text, escaped for roff."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return f"\\&{text}" if text.startswith(".") else text
