"""What macOS says about its interfaces and routes, read from `ifconfig -a` and `netstat -rn`, and what follows from it.

Pure functions over text, but for `look`, which asks. Lines that are not understood are passed over; a table in which
nothing is understood is an error, since nobody may take it for a machine without routes.

A point-to-point interface is another VPN's or a modem's: its networks are no LAN.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Final, NamedTuple

from cryprq_proxy.errors import CryprqError

from ..routing.lan import Lan, Network, Uplink, is_private, merged, within
from .programs import Run, ask

type Interface = IPv4Interface | IPv6Interface
type Address = IPv4Address | IPv6Address

NETSTAT: Final[Mapping[int, tuple[str, ...]]] = {
    4: ("netstat", "-rn", "-f", "inet"),
    6: ("netstat", "-rn", "-f", "inet6"),
}
DEFAULTS: Final[Mapping[int, Network]] = {
    4: ipaddress.IPv4Network("0.0.0.0/0"),
    6: ipaddress.IPv6Network("::/0"),
}
_HEAD: Final = re.compile(r"([a-z][a-z0-9_.-]*[0-9]+): flags=[0-9a-f]+<([A-Z0-9_,]*)>(?: mtu (\d+))?")
_INET: Final = re.compile(r"\s+inet (\S+)(?: --> \S+)? netmask (0x[0-9a-f]{8})")
_INET6: Final = re.compile(r"\s+inet6 ([0-9a-fA-F:.]+)(?:%\S+)?(?: --> \S+)? prefixlen (\d+)(.*)")


class MacInterface(NamedTuple):
    """One interface, as `ifconfig` shows it."""

    name: str
    flags: frozenset[str] = frozenset()
    mtu: int = 0
    addresses: tuple[Interface, ...] = ()
    unfit: frozenset[Interface] = frozenset()
    """Those of `addresses` that are no source for new traffic: temporary, deprecated, tentative or duplicated."""

    @property
    def up(self) -> bool:
        return "UP" in self.flags

    @property
    def leads_out(self) -> bool:
        """Whether a network is behind it, and not one other end or this machine itself."""
        return self.up and not self.flags & {"LOOPBACK", "POINTOPOINT"}


class MacRoute(NamedTuple):
    """One route, as `netstat` shows it."""

    prefix: Network
    gateway: str
    """An address, perhaps with a zone; `link#N`, a link-layer address or an interface without one."""
    flags: str
    interface: str

    @property
    def next_hop(self) -> Address | None:
        """The gateway's address; None where there is none."""
        if "G" not in self.flags:
            return None
        try:
            return ipaddress.ip_address(self.gateway)
        except ValueError:
            return None

    @property
    def scoped(self) -> bool:
        """Whether only sockets that are bound to the interface use it (RTF_IFSCOPE)."""
        return "I" in self.flags

    @property
    def cloned(self) -> bool:
        """Whether the kernel has made it of another one: a neighbour, a cached host."""
        return "W" in self.flags or "L" in self.flags

    def __str__(self) -> str:
        return f"the route to {self.prefix} by {self.interface}"


@dataclass(frozen=True, slots=True)
class MacState:
    """Interfaces and routes at one look."""

    interfaces: tuple[MacInterface, ...]
    routes: tuple[MacRoute, ...]

    def interface(self, name: str) -> MacInterface | None:
        return next((one for one in self.interfaces if one.name == name), None)

    def at(self, prefix: Network) -> MacRoute | None:
        """The route to exactly this prefix that all programs use."""
        return next((route for route in self.routes if route.prefix == prefix and not route.scoped), None)

    def default(self, version: int, own: str) -> MacRoute | None:
        """The default route past our own device, and past another VPN's where the network's own is left in the scope of
        its interface."""
        found = self.at(DEFAULTS[version])
        if found is None or found.interface == own:
            return None
        if not self.is_tunnel(found.interface):
            return found
        scoped = (one for one in self.routes if one.prefix == DEFAULTS[version] and one.scoped)
        return next((one for one in scoped if not self.is_tunnel(one.interface)), None)

    def is_tunnel(self, name: str) -> bool:
        """Whether it is a utun or the ipsec of a VPN: ours or another's. A ppp may be a modem."""
        interface = self.interface(name)
        return (
            interface is not None and "POINTOPOINT" in interface.flags and name.startswith(("utun", "ipsec"))
        )

    def uplink(self, version: int, own: str) -> Uplink | None:
        route = self.default(version, own)
        if route is None:
            return None
        interface = self.interface(route.interface)
        if interface is None or not interface.up:
            return None
        index = self.interfaces.index(interface) + 1
        gateway = None if route.next_hop is None else str(route.next_hop)
        return Uplink(index, interface.name, gateway, _source(interface, version, route.next_hop))

    def lan(self, own: str) -> Lan:
        others = [one for one in self.interfaces if one.name != own and one.up]
        inside = [
            address.network
            for one in others
            if one.leads_out
            for address in one.addresses
            if is_private(address.network)
        ]
        prefixes = merged(inside)
        attached = merged(
            {
                address.network
                for one in others
                if "LOOPBACK" not in one.flags
                for address in one.addresses
                if not within(address.network, prefixes)
            }
        )
        uplinks = frozenset(one.name for one in others if one.leads_out and one.addresses)
        return Lan(prefixes, (), uplinks, attached)

    def is_near(self, address: Address, own: str) -> bool:
        """Whether a network of another interface holds it, so that no gateway leads there."""
        return any(
            address in one.network
            for interface in self.interfaces
            if interface.name != own and interface.up and "POINTOPOINT" not in interface.flags
            for one in interface.addresses
        )


def _source(interface: MacInterface, version: int, gateway: Address | None) -> str | None:
    usable = [
        one
        for one in interface.addresses
        if one.version == version and one not in interface.unfit and not one.ip.is_link_local
    ]
    usable.sort(key=lambda one: gateway is None or gateway not in one.network)
    return str(usable[0].ip) if usable else None


# --- reading ---


def look(run: Run) -> MacState:
    """What there is now; blocks for some milliseconds. Raises ProgramError, and CryprqError for an unknown answer."""
    interfaces = tuple(read_interfaces(ask(run, "ifconfig", "-a")))
    if not any("LOOPBACK" in one.flags for one in interfaces):
        raise CryprqError(
            "`ifconfig -a` answers in a form that is not understood: nothing can be told of this machine"
        )
    routes: list[MacRoute] = []
    for version, argv in NETSTAT.items():
        text = ask(run, *argv)
        if "Destination" not in text and version == 4:
            raise CryprqError(
                f"`{' '.join(argv)}` answers in a form that is not understood: no route can be told"
            )
        routes += read_routes(text, version)
    return MacState(interfaces, tuple(routes))


def read_interfaces(text: str) -> Iterator[MacInterface]:
    """The interfaces of `ifconfig -a`, or of one of them (ifconfig(8))."""
    found: MacInterface | None = None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            if found is not None:
                yield found
            found = MacInterface(head[1], frozenset(head[2].split(",")), int(head[3] or 0))
        elif found is not None and (read := _read_address(line)) is not None:
            address, stale = read
            found = found._replace(
                addresses=(*found.addresses, address), unfit=found.unfit | ({address} if stale else set())
            )
    if found is not None:
        yield found


_STALE: Final = frozenset({"temporary", "deprecated", "tentative", "duplicated", "detached"})


def _read_address(line: str) -> tuple[Interface, bool] | None:
    try:
        if four := _INET.match(line):
            mask = IPv4Address(int(four[2], 16))
            return IPv4Interface(f"{four[1]}/{mask}"), False
        if six := _INET6.match(line):
            return IPv6Interface(f"{six[1]}/{six[2]}"), bool(_STALE & set(six[3].split()))
    except ValueError:
        return None
    return None


def read_routes(text: str, version: int) -> Iterator[MacRoute]:
    """The routes of `netstat -rn` for one family (netstat(1))."""
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 4 or fields[0] == "Destination":
            continue
        prefix = _read_destination(fields[0], version)
        if prefix is not None:
            yield MacRoute(prefix, fields[1], fields[2], fields[3])


def _read_destination(text: str, version: int) -> Network | None:
    """A destination as netstat shortens it: `default`, `10`, `192.168.1`, `128.0/1`, `fe80::%en0/64`."""
    if text == "default":
        return DEFAULTS[version]
    address, slash, length = text.partition("/")
    if version == 6 and "%" in address:
        address, _, rest = address.partition("%")
        # The zone may stand before the length or, as in fe80::%en0/64, hold it.
        length = length or rest.partition("/")[2]
        slash = "/" if length else ""
    try:
        if version == 6:
            return ipaddress.IPv6Network(f"{address}/{length}" if slash else address, strict=False)
        octets = address.split(".")
        whole = ".".join([*octets, "0", "0", "0"][:4])
        return ipaddress.IPv4Network(f"{whole}/{length or 8 * len(octets)}", strict=False)
    except ValueError:
        return None


def refuse_other_tunnel(state: MacState, own: str) -> str:
    """A part of a sentence about another VPN that holds the default route; empty if there is none."""
    for version in (4, 6):
        route = state.at(DEFAULTS[version])
        if route is not None and route.interface != own and state.is_tunnel(route.interface):
            return f"another VPN has the default route of IPv{version} ({route.interface})"
    return ""


def networks_of(interfaces: Collection[MacInterface], own: str) -> tuple[Network, ...]:
    """The networks of all addresses but those of `own`."""
    return tuple(address.network for one in interfaces if one.name != own for address in one.addresses)
