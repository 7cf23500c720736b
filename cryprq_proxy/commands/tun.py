"""The commands of system-wide mode: pause it, confirm it, test it for leaks, undo it after a crash."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ..base.leftovers import holder
from ..base.leftovers import lockdown as locked_down
from ..errors import ConfigError, CryprqError
from ..process.actions import MAX_PAUSE
from .asked import control_sockets
from .common import FILE, ask, ask_status, config_option, seconds

if TYPE_CHECKING:
    from ..config.tun import TunTable

_log = logging.getLogger(__name__)

_SHOWN: Final = 3
"""Addresses in the question and the warning."""
_STDIN: Final = 0


_OF_A_START: Final = (
    "this start",
    "--inbound keep lets them live, --confirm 60 undoes everything unless you confirm",
)
_OF_LOCKDOWN: Final = "lockdown", 'inbound = "keep" in [tun] lets them live'


def ask_before_cutting(table: TunTable, words: tuple[str, str] = _OF_A_START) -> None:
    """Let the person decide where a start ends connections from outside, and with them perhaps the shell.

    Without a terminal, as under a service manager, one line of the log says it. Raises CryprqError for a no.
    """
    from ..service.system_wide import cut_by_start

    ends = cut_by_start(table)
    if not ends:
        return
    more = f" and {len(ends) - _SHOWN} more" if len(ends) > _SHOWN else ""
    text = f"{words[0]} ends connections to this machine from {', '.join(ends[:_SHOWN])}{more}: {words[1]}"
    if not _at_terminal():
        _log.warning("%s", text)
    elif not click.confirm(f"{text}. Go on nevertheless?", err=True):
        raise CryprqError("not done; nothing was changed")


def _at_terminal() -> bool:
    """Whether a person can answer: not from a job in the background, which the kernel would stop."""
    try:
        return os.isatty(_STDIN) and os.tcgetpgrp(_STDIN) == os.getpgrp()
    except OSError:
        return False


# So "-5" is a wrong number, and not an option that does not exist.
@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("seconds", type=seconds(1, MAX_PAUSE, whole=True))
@config_option
def pause(seconds: int, config: Path | None) -> None:
    """Let this machine past the tunnel for so many SECONDS, as for the login page of a hotel. Ends by itself."""
    ask(control_sockets(config), "pause", str(seconds))
    click.echo(f"open for {seconds} s; programs that are started now are not tunnelled")


@click.command()
@config_option
def confirm(config: Path | None) -> None:
    """Keep what `--tun --confirm SECONDS` has set up."""
    ask(control_sockets(config), "confirm")
    click.echo("confirmed")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@click.option("--target", multiple=True, metavar="ADDRESS", help="Send to this address; may be repeated.")
@click.option(
    "--hold",
    type=seconds(1, MAX_PAUSE, whole=True),
    metavar="SECONDS",
    help="Keep flows open for so long first, and test them too.",
)
@config_option
def leaktest(as_json: bool, target: tuple[str, ...], hold: int | None, config: Path | None) -> None:
    """Send packets of the kinds that leak, and watch whether any leaves this machine past the tunnel; as root.

    Without --target they go to public resolvers. With --hold, flows are opened first: pause, reload or restart the
    client meanwhile. Exit code 1 on a leak.
    """
    from ..service.system_wide import check_leak_test, hold_flows, leak_test

    check_leak_test(target)
    sockets = control_sockets(config)
    held = []
    if hold is not None:
        click.echo(f"flows are open for {hold} s: pause, reload or restart the client now", err=True)
        held = hold_flows(target, hold)
    try:
        running = ask_status(sockets)
    except CryprqError as error:
        if not locked_down():
            raise ConfigError(str(error)) from None
        running = []
    code, table, plain = leak_test(running, target, held)
    click.echo(json.dumps(plain, indent=2) if as_json else table)
    raise click.exceptions.Exit(code)


@click.command()
@click.option(
    "--state-dir", type=FILE, metavar="D", help="Where the journal is (default: /var/lib/cryprq-proxy)."
)
@click.option("--all", "lift", is_flag=True, help="Turn lockdown off as well, so that everything gets out.")
def cleanup(state_dir: Path | None, lift: bool) -> None:
    """Undo what --tun has changed on this machine, after a crash. Harmless at any other time.

    While lockdown is on its block stays, without --all.
    """
    from ..config.tun import STATE
    from ..service.system_wide import clean_up

    clean_up(state_dir or STATE, click.echo, lift=lift)


@click.command()
@click.argument("state", metavar="on|off", type=click.Choice(["on", "off"]))
@click.option("--yes", is_flag=True, help="Do not ask before connections from outside, as by ssh, are ended.")
@config_option
def lockdown(state: str, yes: bool, config: Path | None) -> None:
    """Let nothing out while --tun does not run, from before the network comes at each boot; as root.

    DHCP and, as [tun] in the configuration says, the local network are reached nevertheless. A stop of the client and
    `cleanup` leave the block; `lockdown off` and `cleanup --all` lift it.
    """
    if state == "on":
        _lock_down(config, ask_first=not yes)
    else:
        from ..service.system_wide import lift_lockdown

        lift_lockdown(_state_dir(config), click.echo)


def _lock_down(config: Path | None, *, ask_first: bool) -> None:
    from msgspec.structs import replace

    from ..base.file_access import open_list
    from ..base.progress import bar, unseen
    from ..rules.engine import load_rules
    from ..service.system_wide import lock_down
    from .running import find

    about = find("client", config)
    about.act()
    settings = about.client()
    unread = settings.rules()
    with (bar if any(rule.lists for rule in unread) else unseen)("reading lists") as report:
        rules = load_rules(unread, settings.default, progress=report, opener=open_list)
    if ask_first and holder("client") is None:
        ask_before_cutting(replace(settings.tun, confirm=0.0), _OF_LOCKDOWN)
    lock_down(settings, rules, click.echo)


def _state_dir(config: Path | None) -> Path:
    """That of the client that runs or would run, or the usual one where no configuration is valid: what is lifted needs
    none."""
    from ..config.tun import STATE
    from .running import find

    try:
        return find("client", config).client().tun.state_dir
    except ConfigError:
        if config is not None:
            raise
        return STATE
