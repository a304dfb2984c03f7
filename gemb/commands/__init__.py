"""One file per subcommand: options, help and printing. The work is done elsewhere.

`COMMANDS` names them and loads each when it is run: a start reads the options of one command, not
of all. `options` and `params` hold what several share, `printing` the tables.
May import: everything but `cli`; heavy imports stand inside functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import click


class CommandEntry(NamedTuple):
    """A subcommand that may not be loaded yet."""

    module: str  # of this package
    function: str
    summary: str  # the first line of its help, without the dot

    def load(self) -> click.Command:
        """Return the command."""
        command: click.Command = getattr(import_module(f"{__name__}.{self.module}"), self.function)
        return command


COMMANDS = {
    "train": CommandEntry("train", "train", "Train a model as a recipe says"),
    "embed": CommandEntry("embed", "embed", "Turn texts into vectors, one for each line, in order"),
    "search": CommandEntry(
        "search", "search", "Find passages that answer a question, by what they mean"
    ),
    "index": CommandEntry(
        "index", "index", "Build an index, and keep it up to date; gemb search reads it"
    ),
    "serve": CommandEntry("serve", "serve", "Serve a model and indexes over HTTP"),
    "mcp": CommandEntry("mcp", "mcp", "Let an agent search folders and indexes (MCP)"),
    "eval": CommandEntry(
        "eval", "evaluate", "Measure a model on sets of texts, for each size of vector"
    ),
    "verify": CommandEntry(
        "verify", "verify", "Measure the agreement of two models or vector files"
    ),
    "models": CommandEntry("models", "models", "List, describe, pull and remove models"),
    "recipes": CommandEntry("recipes", "recipes", "List, copy and check recipes of training"),
    "mine": CommandEntry("mine", "mine", "Find hard negatives: near a query, and not its answer"),
    "export-gguf": CommandEntry("export_gguf", "export", "Write a model folder as one GGUF file"),
    "quantize": CommandEntry(
        "quantize", "quantize", "Write a model in fewer bits, and measure the loss"
    ),
    "cut": CommandEntry("cut", "cut", "Write a smaller model: fewer tokens or layers"),
    "soup": CommandEntry("soup", "soup", "Average the weights of models from one start"),
    "doctor": CommandEntry("doctor", "doctor", "Check that gemb works here, and say what to mend"),
    "completion": CommandEntry(
        "completion", "completion", "Print the script for completion in a shell"
    ),
    "help": CommandEntry("manual", "show_help", "Explain a topic, or show the help of a command"),
}


def all_commands() -> Iterator[click.Command]:
    """Yield every command, loaded."""
    for entry in COMMANDS.values():
        yield entry.load()
