"""`gemb completion`: print a shell's completion script."""

from __future__ import annotations

import click

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script that completes gemb's commands, options and models in a shell.

    \b
    echo 'eval "$(gemb completion bash)"' >> ~/.bashrc
    gemb completion zsh > "${fpath[1]}/_gemb"
    gemb completion fish > ~/.config/fish/completions/gemb.fish

    bash must be 4.4 or newer.
    """
    click.echo(script(shell), nl=False)


def script(shell: str) -> str:
    """Return the script for one of `SHELLS`."""
    from click.shell_completion import ShellComplete, get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None, shell
    # Only its template is used, so it needs no command; the class's own `source` starts bash to
    # learn its version, which says nothing of the bash that will read the script.
    return ShellComplete.source(kind(click.Command("gemb"), {}, "gemb", "_GEMB_COMPLETE"))
