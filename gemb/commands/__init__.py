"""One file per subcommand: options, help and printing. The work is done elsewhere."""

import click

COMMANDS: tuple[click.Command, ...] = ()
