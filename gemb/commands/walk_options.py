"""Options of a walk through folders: which files are read, by `gemb search` and `gemb index`."""

from __future__ import annotations

import click

from gemb.commands.params import FileSize

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
        type=FileSize(may_be_zero=True),
        metavar="SIZE",
        default="10M",
        show_default=True,
        help="Leave out longer files, as 500K, 10M, 0.2G; 0: none.",
    ),
)
