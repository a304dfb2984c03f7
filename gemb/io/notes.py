"""What gemb says beside its results: one line each, on stderr."""

import click


def warn(line: str) -> None:
    """Say that something is not as the user may think, though the run goes on."""
    click.echo(f"gemb: warning: {' '.join(line.split())}", err=True)


def note(line: str) -> None:
    """Say something worth knowing."""
    click.echo(f"gemb: note: {' '.join(line.split())}", err=True)
