"""Completion in a shell: click's scripts, which ask the program for the possible words: commands, flags, and what this
machine's configuration and lists name.

Names alone are told. An answer that is not there within ANSWER_SECONDS is none: a person is typing.
"""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ..base.program import PROGRAM
from ..errors import CryprqError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

SHELLS: Final = ("bash", "zsh", "fish")
VARIABLE: Final = "_CRYPRQ_PROXY_COMPLETE"
"""Set by the script: the program then answers instead of running."""
ANSWER_SECONDS: Final = 1.0
MOST_WORDS: Final = 1_000
MOST_LIST: Final = 1 << 20
"""Bytes of a list of peers that is read for it."""


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete this program's commands, flags, exits, peers and names in rules.

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

    # What is said beside the words would stand in the line that a person types.
    logging.disable()
    return shell_complete(cli, {}, PROGRAM, VARIABLE, instruction)


# --- words of this machine ---

type Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _words(known: Callable[[Path | None], Iterable[str]]) -> Complete:
    """The `shell_complete` of a parameter whose words `known` tells, for the configuration that the line names."""

    def complete(context: click.Context, _: click.Parameter, begun: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        found: list[str] = []
        with contextlib.suppress(CryprqError, OSError, _TooLateError), _in_time():
            found += known(_config(context))
        fitting = dict.fromkeys(word for word in found if word.startswith(begun) and _is_one_word(word))
        return [CompletionItem(word) for word in list(fitting)[:MOST_WORDS]]

    return complete


def _config(context: click.Context | None) -> Path | None:
    while context is not None:
        if (named := context.params.get("config")) is not None:
            return Path(named)
        context = context.parent
    return None


def _is_one_word(word: str) -> bool:
    """Whether the scripts can carry it, which read lines and commas, and a terminal can show it."""
    return word.isprintable() and not any(each in word for each in " ,:")


class _TooLateError(BaseException):
    """No Exception, which a library in between might take for its own."""


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    def end(*_: object) -> None:
        raise _TooLateError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, ANSWER_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _exits(config: Path | None) -> Iterator[str]:
    from .running import find

    yield "auto"
    yield from (choice.name for choice in find("client", config).client().exits())


def _targets(config: Path | None) -> Iterator[str]:
    """The names in rules that are whole."""
    from .running import find

    for rule in find("client", config).client().rules():
        yield from (domain.removeprefix(".") for domain in rule.domains if "*" not in domain)


def _peers(config: Path | None) -> Iterator[str]:
    from ..config.authorized import read_peers

    authorized = _authorized(config)
    if authorized.stat().st_size <= MOST_LIST:
        for peer in read_peers(authorized).values():
            yield peer.name or str(peer.peer_id)


def _invites(config: Path | None) -> Iterator[str]:
    import time

    from ..pairing.invite_store import InviteStore, beside

    yield from (invite.name for invite in InviteStore(beside(_authorized(config))).open(time.time()))


def _authorized(config: Path | None) -> Path:
    from ..config.exit import authorized_file, load_exit
    from .running import find

    about = find("exit", config)
    return authorized_file(about.named, load_exit(about.named, about.flags))


EXITS: Final = _words(_exits)
TARGETS: Final = _words(_targets)
PEERS: Final = _words(_peers)
INVITES: Final = _words(_invites)
