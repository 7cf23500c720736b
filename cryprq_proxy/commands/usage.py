"""A wrong command line as one sentence: what is wrong, what was perhaps meant, and where help is."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Final

import click

from ..base.program import to_run

_MEANT: Final = {
    "start": "without a command the proxy starts; `exit` starts the exit",
    "run": "without a command the proxy starts; `exit` starts the exit",
    "proxy": "without a command the proxy starts",
    "client": "without a command the proxy starts",
    "server": "`exit` starts the exit",
    "stop": "Ctrl-C ends what runs in a terminal, `service uninstall` a service",
    "help": "--help is meant, behind a command too",
    "version": "--version is meant",
    "--port": "--listen is meant",
    "--socks": "--listen is meant",
    "--socks5": "--listen is meant",
    "--bind": "--listen is meant",
    "--server": "--peer is meant",
    "--exit": "--peer is meant, or the command `exit`",
    "--vpn": "--tun is meant",
}
"""What people call things elsewhere, and what is here for them."""
_INVITE: Final = re.compile(r"(cryprq:/+[^\s'\"#]*)#\w+", re.IGNORECASE)


class Commands(click.Group):
    """A group that knows what a word in the place of a command was perhaps meant to be."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Raises UsageError."""
        word = args[0]
        if word[:1].isalpha() and self.get_command(ctx, word) is None and not ctx.resilient_parsing:
            raise click.UsageError(_no_such("command", word, self.list_commands(ctx)), ctx)
        return super().resolve_command(ctx, args)


def sentence(error: click.UsageError) -> str:
    """The error, and the command whose help says more."""
    if isinstance(error, click.NoSuchOption):
        text = _no_such("option", error.option_name, error.possibilities or [])
        if error.ctx is not None and _takes_a_value(error.ctx.command):
            text += "; if it is no option but a value, write it behind --"
    elif isinstance(error, click.MissingParameter) and error.param is not None:
        text = f"{error.param.get_error_hint(error.ctx)} is missing"
    else:
        text = error.format_message().strip().removesuffix(".")
    return f"{text[:1].lower()}{text[1:]}; see {to_run(f'{_behind_the_name(error.ctx)}--help')}"


def without_secrets(text: str) -> str:
    """`text` with the secret of each invite in it struck out."""
    return _INVITE.sub(r"\1#...", text)


def _no_such(kind: str, word: str, known: list[str]) -> str:
    if word.lower().startswith("cryprq://"):
        if "#" in word:
            return f"an invite stands behind `join`: {to_run("join '" + without_secrets(word))}'"
        return f"the URL of an exit stands behind --peer: {to_run(f'--peer {word}')}"
    text = f"no such {kind} {word!r}"
    if meant := _MEANT.get(word.lower()):
        return f"{text}: {meant}"
    near = [f"`{name}`" for name in get_close_matches(word, known)]
    return f"{text}: perhaps {' or '.join(near)} is meant" if near else text


def _takes_a_value(command: click.Command) -> bool:
    return any(isinstance(parameter, click.Argument) for parameter in command.params)


def _behind_the_name(context: click.Context | None) -> str:
    """The words of the command, each followed by a space; nothing for the program itself."""
    words: list[str] = []
    while context is not None and context.parent is not None:
        words.insert(0, f"{context.info_name} ")
        context = context.parent
    return "".join(words)
