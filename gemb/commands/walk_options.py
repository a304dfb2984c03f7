"""Options of a walk through folders: which files are read, by `gemb search` and `gemb index`."""

from __future__ import annotations

import re

import click


def size_of(text: str) -> int:
    """Return the bytes that a size names: 10M is ten million.

    Raises:
        click.UsageError: it names none.
    """
    match = re.fullmatch(r"(\d+)([kKmMgG]?)[bB]?", text)
    if not match:
        raise click.UsageError(f"--max-size {text}: write 500k, 10M or 2G; 0: no bound")
    factor: int = 1000 ** " kmg".index(match[2].lower() or " ")
    return int(match[1]) * factor


class Size(click.ParamType[int]):
    """A size in bytes: 500k, 10M, 2G; 0 is none."""

    name = "SIZE"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the bytes."""
        return value if isinstance(value, int) else size_of(str(value))


WALK = (
    click.option(
        "-g",
        "--glob",
        "globs",
        multiple=True,
        metavar="GLOB",
        help="Only files like '*.md'; '!*.min.js' leaves out; repeatable, the last one counts.",
    ),
    click.option("--hidden", is_flag=True, help="Also files and folders that begin with a dot."),
    click.option("--no-ignore", is_flag=True, help="Also what .gitignore and .ignore leave out."),
    click.option("-L", "--follow", is_flag=True, help="Follow links."),
    click.option(
        "--max-size",
        type=Size(),
        default="10M",
        show_default=True,
        help="Leave out longer files; 0: none.",
    ),
)
