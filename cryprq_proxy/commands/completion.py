"""Completion of commands and flags in a shell: click's scripts, which ask the program for the possible words."""

from __future__ import annotations

from typing import Final

import click

from ..base.program import PROGRAM

SHELLS: Final = ("bash", "zsh", "fish")
VARIABLE: Final = "_CRYPRQ_PROXY_COMPLETE"
"""Set by the script: the program then answers instead of running."""


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete this program's commands and flags.

    \b
    bash:  cryprq-proxy completion bash > ~/.local/share/bash-completion/completions/cryprq-proxy
    zsh:   cryprq-proxy completion zsh > "${fpath[1]}/_cryprq-proxy"
    fish:  cryprq-proxy completion fish > ~/.config/fish/completions/cryprq-proxy.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"this version of click has no completion for {shell}")
    # Not kind.source(): for bash that starts a bash to read its version.
    made = kind(context.find_root().command, {}, PROGRAM, VARIABLE)
    click.echo(kind.source_template % made.source_vars())


def answer(cli: click.Command, instruction: str) -> int:
    """Answer a shell's script, which sets VARIABLE to a value like "bash_complete". Returns the exit code."""
    from click.shell_completion import shell_complete

    return shell_complete(cli, {}, PROGRAM, VARIABLE, instruction)
