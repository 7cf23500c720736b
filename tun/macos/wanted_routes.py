"""One route of ours on macOS: which are wanted, the commands that set and delete it, and its undo.

A route into the tunnel ends with the device. Those past it and those that refuse outlive it, and stand in the journal.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from cryprq_proxy.errors import CryprqError

from ..journal import Entry, Undoer, same_boot
from ..routing.lan import Network, Uplink, within
from ..settings import TunnelSettings
from . import networks
from .networks import Address, MacRoute, MacState
from .programs import Command, ProgramError, Run, complaint, run

KIND: Final = "mac_route"
HALVES: Final[Mapping[int, tuple[Network, ...]]] = {
    4: tuple(map(ipaddress.IPv4Network, ("0.0.0.0/1", "128.0.0.0/1"))),
    6: tuple(map(ipaddress.IPv6Network, ("::/1", "8000::/1"))),
}
_FAMILY: Final[Mapping[int, str]] = {4: "-inet", 6: "-inet6"}
_LOOPBACK: Final[Mapping[int, str]] = {4: "127.0.0.1", 6: "::1"}
_UPLINK: Final = re.compile(r"[a-z]{1,10}[0-9]{1,4}")
_THERE: Final = "File exists"
_GONE: Final = ("not in table", "No such process")


class WantedRoute(NamedTuple):
    """A route of ours. It leads into `device`, to `gateway`, to all that is behind `uplink`, or nowhere."""

    prefix: Network
    device: str = ""
    gateway: str = ""
    uplink: str = ""
    """The interface of the gateway, or the one without a gateway. A gateway of the same address may lie behind another
    one as well: at home, by cable and by Wi-Fi."""

    @property
    def outlives(self) -> bool:
        """Whether it stays when the device is gone."""
        return not self.device

    def matches(self, route: MacRoute) -> bool:
        if route.prefix != self.prefix:
            return False
        if self.device:
            return route.interface == self.device
        if not self.gateway and not self.uplink:
            return "R" in route.flags
        hop = "" if route.next_hop is None else str(route.next_hop)
        return hop == self.gateway and self.uplink in ("", route.interface) and "R" not in route.flags

    def __str__(self) -> str:
        return f"the route to {self.prefix}"

    def command(self, verb: str) -> Command:
        """`add`, `delete` or `change`."""
        version = self.prefix.version
        host = self.prefix.prefixlen == self.prefix.max_prefixlen
        target = ("-host", str(self.prefix.network_address)) if host else ("-net", str(self.prefix))
        if self.device:
            towards: tuple[str, ...] = ("-interface", self.device)
        elif self.gateway:
            towards = (self.gateway,)
        elif self.uplink:
            towards = ("-interface", self.uplink)
        else:
            towards = (_LOOPBACK[version], "-reject")
        return Command(("route", "-n", verb, _FAMILY[version], *target, *towards))

    def entry(self) -> dict[str, object]:
        uplink = "" if self.gateway else self.uplink
        return {"kind": KIND, "prefix": str(self.prefix), "gateway": self.gateway, "uplink": uplink}


class Exceptions(NamedTuple):
    """What goes past the tunnel, but for the LAN."""

    hosts: frozenset[Address] = frozenset()
    networks: tuple[Network, ...] = ()


def into_tunnel(settings: TunnelSettings, versions: frozenset[int], device: str) -> list[WantedRoute]:
    """The routes of what goes into the tunnel, and of what is refused since the exit does not carry it."""
    wanted = []
    for version in (4, 6):
        prefixes: Iterable[Network] = [
            one for one in settings.include if one.version == version and not within(one, settings.exclude)
        ]
        if not settings.include:
            prefixes = HALVES[version]
        where = device if version in versions else ""
        wanted += [WantedRoute(prefix, where) for prefix in prefixes]
    return wanted


def past_tunnel(exceptions: Exceptions, state: MacState, own: str) -> list[WantedRoute]:
    """The routes of what goes past the tunnel. Without an uplink it is refused: in the tunnel, the link's own datagrams
    would go round and round."""
    wanted = []
    for version in (4, 6):
        uplink = state.uplink(version, own)
        gateway, name = ("", "") if uplink is None else (_with_zone(uplink), uplink.name)
        hosts = sorted(host for host in exceptions.hosts if host.version == version and not host.is_loopback)
        prefixes = [ipaddress.ip_network(host) for host in hosts if not state.is_near(host, own)]
        prefixes += [network for network in exceptions.networks if network.version == version]
        wanted += [WantedRoute(prefix, "", gateway, name) for prefix in dict.fromkeys(prefixes)]
    return wanted


def _with_zone(uplink: Uplink) -> str:
    """`route` needs the zone of a link-local gateway."""
    gateway = uplink.gateway or ""
    local = gateway.startswith("fe80:") and "%" not in gateway
    return f"{gateway}%{uplink.name}" if local else gateway


def _settle(command: Command, run: Run, settled: Sequence[str]) -> None:
    """Let `route` make a change; no error where its complaint says that it is made already.

    Some versions end with 0 whatever has happened, so what it says counts. Raises ProgramError.
    """
    answer = run(command)
    said = f"{answer.err}\n{answer.out}"
    failed = answer.code or "writing to routing socket" in said or "bad address" in said
    if failed and not any(words in said for words in settled):
        raise ProgramError(complaint(command, answer))


def add(route: WantedRoute, run: Run = run) -> None:
    """Set a route of ours; no error where there is one to the same prefix. Blocks. Raises ProgramError."""
    _settle(route.command("add"), run, (_THERE,))


def delete(prefix: Network, run: Run = run) -> None:
    """Delete the route to exactly this prefix, whosever it is; no error where there is none. Blocks. Raises
    ProgramError."""
    _settle(Command(WantedRoute(prefix).command("delete").argv[:6]), run, _GONE)


def remove(route: WantedRoute, run: Run = run) -> None:
    """Delete a route of ours; no error where it is gone. Blocks. Raises ProgramError."""
    _settle(route.command("delete"), run, _GONE)


# --- undo ---


def wanted_of(entry: Mapping[str, Any]) -> WantedRoute:
    """The route of an entry in the journal. Raises CryprqError for one that this module would not write."""
    prefix, gateway, uplink = entry.get("prefix"), entry.get("gateway"), entry.get("uplink", "")
    try:
        if not isinstance(prefix, str) or not isinstance(gateway, str) or not isinstance(uplink, str):
            raise ValueError
        if uplink and (gateway or _UPLINK.fullmatch(uplink) is None):
            raise ValueError
        network = ipaddress.ip_network(prefix)
        if gateway:
            address, _, zone = gateway.partition("%")
            if ipaddress.ip_address(address).version != network.version or (not zone.isalnum() and zone):
                raise ValueError
        if not network.prefixlen:
            raise ValueError
    except ValueError:
        raise CryprqError("the journal's entry of a route is damaged") from None
    return WantedRoute(network, "", gateway, uplink)


def undo_route(entry: Entry, run: Run = run) -> None:
    """Delete the route of an entry, if it still is as we have set it. Raises CryprqError."""
    route = wanted_of(entry)
    if not same_boot(entry):
        return
    there = networks.look(run).at(route.prefix)
    if there is not None and route.matches(there):
        remove(route, run)


def undoers(run: Run = run) -> dict[str, Undoer]:
    """By the kind of the entry."""
    return {KIND: partial(undo_route, run=run)}
