"""What a start of system-wide mode would change on this machine, in order, with what undoes each: for `--dry-run`.

Nothing is changed, no link is made and nobody is asked for a name. The list comes from the functions by which a start
makes its changes, so it says what that does. What is not known before the link is up has a place-holder: the addresses
that the exit hands out are ADDRESS4 and ADDRESS6.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from cryprq_proxy.base import leftovers
from cryprq_proxy.base.paths import Role

from .firewall.kill_switch import before_the_tunnel
from .resolver.known_addresses import FILE, KnownAddresses
from .routing.address_pool import free_pools
from .routing.exit_endpoints import ExitEndpoints
from .settings import CLIENT_JOURNAL, EXIT_JOURNAL, ExitNetworkSettings
from .system import Change, System

if TYPE_CHECKING:
    from .tunnel import TunnelPlan

ADDRESS4: Final = IPv4Address("192.0.2.1")
ADDRESS6: Final = IPv6Address("2001:db8::1")
"""In place of those that the exit hands out (RFC 5737, RFC 3849)."""
_PLACE_HOLDERS: Final = (
    f"{ADDRESS4} and {ADDRESS6} stand for the addresses that the exit hands out when the link is up; an exit without "
    "IPv6 hands out none of the second kind, and IPv6 is refused then"
)
_JOURNALS: Final[dict[Role, str]] = {"client": CLIENT_JOURNAL, "exit": EXIT_JOURNAL}


class DryRun(NamedTuple):
    """What a start would do."""

    changes: tuple[Change, ...]
    remarks: tuple[str, ...]
    """What is assumed, what cannot be seen, and what would refuse the start: a sentence each."""


async def of_client(plan: TunnelPlan) -> DryRun:
    """Raises CryprqError."""
    system, settings = plan.system, plan.settings
    lan = await system.read_lan(settings.device)
    exits = ExitEndpoints(plan.exits)
    names = {exit.host for exit in plan.exits if not exit.is_ip}
    seen = _seen(settings.state)
    if names and seen:
        known = KnownAddresses.load(settings.state / FILE, names)
        for name in names:
            exits.learn(name, known.of(name))
    closed = replace(
        before_the_tunnel(settings, exits, plan.policy, lan),
        excluded_cgroups=system.cgroups(settings.exclude_cgroups),
    )
    addressed = replace(closed, tunnel4=ADDRESS4, tunnel6=ADDRESS6)
    changes = await system.client_changes(settings, closed, addressed)
    remarks = [*_standing(system, "client", settings.state, seen), _PLACE_HOLDERS]
    remarks += [
        f"a start asks for the addresses of {name}, and then they stand in the filter too"
        for name in sorted(names)
        if not exits.known_of(name)
    ]
    return DryRun((*_files("client", settings.state, names=bool(names)), *changes), tuple(remarks))


async def of_exit(system: System, settings: ExitNetworkSettings) -> DryRun:
    """Raises CryprqError."""
    settings = free_pools(settings, await system.read_occupied(settings.device))
    changes = await system.exit_changes(settings)
    return DryRun(
        (*_files("exit", settings.state, names=False), *changes),
        tuple(_standing(system, "exit", settings.state, _seen(settings.state))),
    )


def _files(role: Role, state: Path, *, names: bool) -> Iterator[Change]:
    if not state.is_dir():
        yield Change(f"make the directory {state}, for root only", "stays, empty")
    yield Change(f"write each change below to {state / _JOURNALS[role]} before it is made", "emptied")
    if names:
        yield Change(f"write the addresses of the exits' names to {state / FILE}", "stays")


def _standing(system: System, role: Role, state: Path, seen: bool) -> Iterator[str]:
    """What is there already."""
    if (process := leftovers.holder(role)) is not None:
        yield f"this role runs already (process {process}), so a start would be refused"
    if system.unseen and os.geteuid():
        yield system.unseen
    if not seen:
        yield f"without root, what an earlier run has left in {state} cannot be seen: a start would undo it first"
    elif _has_entries(state / _JOURNALS[role]):
        yield f"{state / _JOURNALS[role]} names changes of an earlier run: a start takes them over or undoes them first"


def _seen(state: Path) -> bool:
    return not os.path.lexists(state) or os.access(state, os.R_OK | os.X_OK)


def _has_entries(journal: Path) -> bool:
    try:
        return journal.stat().st_size > 0
    except OSError:
        return False
