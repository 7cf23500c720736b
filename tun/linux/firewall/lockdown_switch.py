"""`lockdown on` and `lockdown off`: each has one step after which it is so, whatever becomes of the process.

    on     the exits' names, where no filter stands yet  ->  *the file*  ->  the filter, unless a client runs
    off    *the file is gone*  ->  the filter, unless a client runs or one that was killed has left it  ->  the mark

What an interrupted call has not done, the next one does. While a client runs its own filter stands; it finds the file
by itself within two seconds, and puts the block up when it ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cryprq_proxy.address import Destination
from cryprq_proxy.base import leftovers
from cryprq_proxy.carriers.dial.tcp import by_system
from cryprq_proxy.errors import ConfigError

from ...firewall.inbound import NOT_KEPT
from ...firewall.kill_switch import before_the_tunnel
from ...firewall.policy import Policy
from ...journal import Journal, own_directory
from ...resolver.known_addresses import FILE, KnownAddresses
from ...routing.exit_endpoints import ExitEndpoints
from ...settings import CLIENT_JOURNAL, TunnelSettings
from ..routing.kernel_state import read_lan
from . import conntrack, nft
from .lockdown import AtRest, Lockdown, forget_mark, set_mark
from .marks import FIRST_MARKS
from .open_connections import observe

_log = logging.getLogger(__name__)

NAME_SECONDS: Final = 5.0
"""Seconds for all names of exits."""


async def turn_on(settings: TunnelSettings, exits: Sequence[Destination], policy: Policy) -> bool:
    """Whether the block stands from now on: not while a client runs, whose own filter stands. Raises ConfigError."""
    if not settings.kill_switch:
        raise ConfigError(
            'lockdown would stand until a client lets everything out: remove kill_switch = "off" from [tun]'
        )
    nft.refuse_foreign(nft.CLIENT)
    own_directory(settings.state)
    lan = await read_lan(settings.device)
    endpoints = await _endpoints(exits, settings.state)
    filter_settings = before_the_tunnel(settings, endpoints, policy, lan)
    inbound = observe() if settings.keep_inbound else NOT_KEPT
    at_rest = AtRest(filter_settings, inbound, FIRST_MARKS.next_run(conntrack.seen_runs()))
    Lockdown(settings.state).turn_on(at_rest)
    with _where_no_client_runs() as free:
        if free:
            nft.remove(nft.CLIENT, instead=at_rest.script(now=True))
        else:
            set_mark()
        return free


def loader() -> str:
    """The program that puts the block up at a boot, given its file. Raises ConfigError where it is missing."""
    return nft.program()


def turn_off(state: Path) -> bool:
    """Whether it was on. Raises CryprqError."""
    marked = leftovers.lockdown()
    was_on = Lockdown(state).turn_off()
    if not was_on and not marked:
        return False
    with _where_no_client_runs() as free:
        if free and not _left_by_a_crash(state):
            nft.remove(nft.CLIENT)
        forget_mark()
    return True


def _left_by_a_crash(state: Path) -> bool:
    """Whether the journal names the filter: then it is for the next start or `cleanup` to undo."""
    file = state / CLIENT_JOURNAL
    if not file.exists():
        return False
    with Journal(file) as journal:
        return any(entry["kind"] == nft.KIND for entry in journal.entries())


async def _endpoints(exits: Sequence[Destination], state: Path) -> ExitEndpoints:
    """The exits with the addresses of their names: present ones where no filter stands, else the last ones."""
    names = {exit.host for exit in exits if not exit.is_ip}
    known = KnownAddresses.load(state / FILE, names)
    if names and not nft.exists(nft.CLIENT):
        asked = await asyncio.gather(*map(_addresses, sorted(names)))
        for name, found in zip(sorted(names), asked, strict=True):
            if found:
                known.learn(name, found)
    endpoints = ExitEndpoints(exits)
    for name in names:
        endpoints.learn(name, known.of(name))
        if not known.of(name):
            _log.warning("nobody says where the exit %s is: the client asks for it when it starts", name)
    return endpoints


async def _addresses(name: str) -> tuple[str, ...]:
    try:
        async with asyncio.timeout(NAME_SECONDS):
            return tuple(await by_system(name))
    except OSError:  # TimeoutError is one
        return ()


@contextmanager
def _where_no_client_runs() -> Iterator[bool]:
    """Whether there is none; then none starts inside."""
    try:
        claim = leftovers.claimed("client")
        claim.__enter__()
    except ConfigError:
        yield False
        return
    try:
        yield True
    finally:
        claim.__exit__(None, None, None)
