"""`gemb mcp`: searches for agents, over standard input and output."""

from __future__ import annotations

import click

from gemb.commands.options import quiet_option
from gemb.commands.params import ModelReference
from gemb.models.references import DEFAULT


@click.command()
@click.argument(
    "roots", nargs=-1, type=click.Path(readable=False), metavar="[FOLDER|INDEX]...", required=False
)
@click.option(
    "-m",
    "--model",
    type=ModelReference(),
    metavar="REF",
    default=DEFAULT,
    envvar="GEMB_MODEL",
    show_envvar=True,
    show_default=True,
    help="The model of folders; an index wants its own.",
)
@quiet_option
def mcp(roots: tuple[str, ...], model: str) -> None:
    """Let an agent search folders and indexes (MCP).

    It has three tools: search, similar, status. Nothing outside of the FOLDERs is read; without one
    it is this folder. gemb help agents shows the lines for an agent's settings.

    \b
    gemb mcp
    gemb mcp docs src wiki.gemb

    \b
    Exit codes: 0 the agent has closed standard input, 2 wrong usage, 4 something is absent.
    """
    from importlib.util import find_spec

    from gemb.errors import Missing

    if find_spec("mcp") is None:
        raise Missing("gemb mcp needs the module 'mcp': pip install 'gemb[mcp]'")
    from gemb.serving.mcp import run
    from gemb.serving.tools import Tools

    run(Tools(roots or (".",), model))
