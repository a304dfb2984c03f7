"""`gemb completion`: print a shell's completion script."""

from __future__ import annotations

import click

SHELLS = ("bash", "zsh", "fish")

# click's own script for bash passes COMP_WORDS, which bash splits at every colon, so it cannot
# complete `embeddinggemma-300m:q4_0`. This one passes the line, as click's script for fish does.
BASH = """\
# bash 4.4 or newer
_gemb_completion() {
    local line=${COMP_LINE:0:COMP_POINT} type value
    local word=${line##*[[:space:]]}
    local before=${word#--*=}
    before=${before%"${before##*:}"}  # bash keeps what stands before the last colon
    COMPREPLY=()
    while IFS=, read -r type value; do
        value=${value%%$'\\t'*}
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain)
                COMPREPLY+=("${value#"$before"}")
                [[ $value == *[/=] ]] && compopt -o nospace
                ;;
        esac
    done < <(COMP_WORDS=$line COMP_CWORD=$word _GEMB_COMPLETE=fish_complete "$1")
    return 0
}
complete -o nosort -F _gemb_completion gemb
"""


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script for completion in a shell.

    It completes commands, options, models and recipes.

    \b
    echo 'eval "$(gemb completion bash)"' >> ~/.bashrc
    gemb completion zsh > "${fpath[1]}/_gemb"
    gemb completion fish > ~/.config/fish/completions/gemb.fish

    bash must be 4.4 or newer.
    """
    click.echo(script(shell), nl=False)


def script(shell: str) -> str:
    """Return the script for one of `SHELLS`."""
    if shell == "bash":
        return BASH
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None, shell
    return kind(click.Command("gemb"), {}, "gemb", "_GEMB_COMPLETE").source()
