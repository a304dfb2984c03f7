"""One file per subcommand: options, help and printing. The work is done elsewhere."""

import click

from gemb.commands.completion import completion
from gemb.commands.export_gguf import export
from gemb.commands.models import models

COMMANDS: tuple[click.Command, ...] = (
    models,
    export,
    completion,
)
