"""The networks around this machine, by the kernel's tables: what is LAN (tun/routing/lan.py), and the uplink.

Pure functions over values; `read_route`, `read_link` and `read_address` make the values from pyroute2's messages.

Some devices lead only to guests of this machine: containers and virtual machines. Replies to guests need a route even
if the LAN is blocked, so their prefixes are listed separately. A bridge has guests if all its ports are cables into
namespaces or TAPs. A cable (veth) without a bridge has a guest at its other end only if this machine is not a container
itself: in one it is an uplink like a network card, also where it has no default route.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from ipaddress import IPv4Interface, IPv6Interface
from socket import AF_INET, AF_INET6
from typing import Any, Final, NamedTuple

from ...routing.lan import Lan, Network, Uplink, is_private, merged, within

type NetlinkMessage = Mapping[str, Any]
"""Header fields by name, and the attributes as pairs under "attrs"."""

MAIN: Final = 254
UNICAST: Final = 1
"""rtm_type of an ordinary route (rtnetlink(7))."""

_CLONED: Final = 0x200  # a cached copy of another route
_NO_USE: Final = 0x1 | 0x10  # next hop dead, or without a carrier
_UP, _LOOPBACK = 0x1, 0x8  # ifi_flags
# ifa_flags; 0x01 is "secondary" in IPv4.
_TEMPORARY, _TENTATIVE, _DEPRECATED, _FAILED = 0x01, 0x40, 0x20, 0x08
_CABLE: Final = "veth"
_OUTER: Final = frozenset({None, "vlan", "bond", "team", "macvlan", "ipvlan"})
_GUESTS: Final = frozenset({_CABLE, "tun"})
"""Kinds of ports of a bridge with only guests: cables into namespaces, and TAPs of virtual machines."""


class NextHop(NamedTuple):
    """One next hop of a route."""

    device: int | None
    gateway: str | None
    flags: int = 0


class KernelRoute(NamedTuple):
    """One route. `hops` is empty if the next hop is a nexthop object, which the message does not describe."""

    version: int
    table: int
    kind: int
    prefix: Network
    hops: tuple[NextHop, ...]
    source: str | None = None
    metric: int = 0
    protocol: int = 0
    wrapped: bool = False
    """Encapsulated, so the other end is not on this network."""


class NetworkDevice(NamedTuple):
    """One network device."""

    device: int
    name: str
    up: bool
    kind: str | None = None
    """rtnetlink's name for the kind of software device; None for hardware."""
    master: int | None = None
    loopback: bool = False


class DeviceAddress(NamedTuple):
    """One address of this machine."""

    device: int
    interface: IPv4Interface | IPv6Interface
    scope: int = 0
    flags: int = 0


def read_route(message: NetlinkMessage) -> KernelRoute | None:
    """A route of RTM_NEWROUTE; None for a family that is neither IPv4 nor IPv6, and for cached copies."""
    version = {AF_INET: 4, AF_INET6: 6}.get(message["family"])
    if version is None or message["flags"] & _CLONED:
        return None
    attributes: Mapping[str, Any] = dict(message["attrs"])
    if "RTA_MULTIPATH" in attributes:
        hops = tuple(
            _hop(hop["oif"], dict(hop["attrs"]), hop["flags"]) for hop in attributes["RTA_MULTIPATH"]
        )
    elif "RTA_OIF" in attributes:
        hops = (_hop(attributes["RTA_OIF"], attributes, message["flags"]),)
    else:
        hops = ()
    destination = attributes.get("RTA_DST", "0.0.0.0" if version == 4 else "::")
    return KernelRoute(
        version,
        attributes.get("RTA_TABLE", message["table"]),
        message["type"],
        ipaddress.ip_network((destination, message["dst_len"])),
        hops,
        attributes.get("RTA_PREFSRC"),
        attributes.get("RTA_PRIORITY", 0),
        message["proto"],
        "RTA_ENCAP" in attributes or "RTA_ENCAP_TYPE" in attributes,
    )


def _hop(device: int, attributes: Mapping[str, Any], flags: int) -> NextHop:
    gateway = attributes.get("RTA_GATEWAY")
    # A gateway of the other family (RFC 5549).
    if gateway is None and "RTA_VIA" in attributes:
        gateway = attributes["RTA_VIA"]["addr"]
    return NextHop(device, gateway, flags)


def read_link(message: NetlinkMessage) -> NetworkDevice:
    """A device of RTM_NEWLINK."""
    attributes: Mapping[str, Any] = dict(message["attrs"])
    information = attributes.get("IFLA_LINKINFO")
    kind = dict(information["attrs"]).get("IFLA_INFO_KIND") if information else None
    flags = message["flags"]
    return NetworkDevice(
        message["index"],
        attributes["IFLA_IFNAME"],
        bool(flags & _UP),
        kind,
        attributes.get("IFLA_MASTER"),
        bool(flags & _LOOPBACK),
    )


def read_address(message: NetlinkMessage) -> DeviceAddress:
    """An address of RTM_NEWADDR."""
    attributes: Mapping[str, Any] = dict(message["attrs"])
    local = attributes.get("IFA_LOCAL") or attributes["IFA_ADDRESS"]
    interface = ipaddress.ip_interface(f"{local}/{message['prefixlen']}")
    return DeviceAddress(
        message["index"], interface, message["scope"], attributes.get("IFA_FLAGS", message["flags"])
    )


def find_lan(
    routes: Collection[KernelRoute], links: Collection[NetworkDevice], own: str, *, container: bool
) -> Lan:
    """The local networks, by the main table; `own` is the name of our TUN device, whose routes do not count.

    `container`: whether this machine is one, so that its cables lead outside.
    """
    ours = {link.device for link in links if link.name == own}
    outer: list[Network] = []
    hosted: list[Network] = []
    devices = _guest_devices(routes, links, container)
    for route in routes:
        if not _on_link(route) or not is_private(route.prefix):
            continue
        device = route.hops[0].device
        if device is not None and device not in ours:
            # All devices have the same link-local prefixes; as guests they would also let other devices in.
            guest = device in devices and not route.prefix.is_link_local
            (hosted if guest else outer).append(route.prefix)
    return Lan(merged([*outer, *hosted]), merged(hosted), _uplinks(routes, links, own, container))


def find_attached(
    lan: Lan, addresses: Collection[DeviceAddress], links: Collection[NetworkDevice], own: str
) -> tuple[Network, ...]:
    """The networks of addresses that lie in none of the LAN's prefixes; those of the device `own` do not count."""
    ours = {link.device for link in links if link.name == own}
    networks = {address.interface.network for address in addresses if address.device not in ours}
    return merged(network for network in networks if not within(network, lan.prefixes))


def _on_link(route: KernelRoute) -> bool:
    return (
        route.table == MAIN
        and route.kind == UNICAST
        and not route.wrapped
        and len(route.hops) == 1
        and route.hops[0].gateway is None
    )


def _guest_devices(
    routes: Collection[KernelRoute], links: Collection[NetworkDevice], container: bool
) -> frozenset[int]:
    """Bridges whose ports all lead to guests, and cables to guests; never a device with a default route."""
    outward = _outward(routes)
    found = set()
    for link in links:
        if link.kind == "bridge":
            only_guests = all(port.kind in _GUESTS for port in links if port.master == link.device)
        else:
            only_guests = link.kind == _CABLE and not container
        if only_guests and link.device not in outward:
            found.add(link.device)
    return frozenset(found)


def _uplinks(
    routes: Collection[KernelRoute], links: Collection[NetworkDevice], own: str, container: bool
) -> frozenset[str]:
    """Names of hardware devices, of devices built on them, and of those with a default route; no ports of bridges.

    In a container, its cables as well.
    """
    outward = _outward(routes)
    outer = _OUTER | {_CABLE} if container else _OUTER
    return frozenset(
        link.name
        for link in links
        if link.device in outward or (link.kind in outer and link.master is None and not link.loopback)
        if link.name != own
    )


def _outward(routes: Collection[KernelRoute]) -> frozenset[int | None]:
    defaults = (route for route in routes if route.table == MAIN and not route.prefix.prefixlen)
    return frozenset(hop.device for route in defaults for hop in route.hops)


def find_uplink(
    version: int,
    routes: Collection[KernelRoute],
    links: Collection[NetworkDevice],
    addresses: Collection[DeviceAddress],
    own: str,
) -> Uplink | None:
    """The uplink by the main table's default route of one family; None without a usable one.

    The smallest metric wins, but is not part of the result: connection managers change it when they suspect a fault,
    and the uplink stays the same.
    """
    usable = {link.device: link for link in links if link.up and link.name != own}
    for route in sorted(routes, key=lambda route: route.metric):
        if route.version != version or route.table != MAIN or route.kind != UNICAST or route.prefix.prefixlen:
            continue
        for hop in route.hops:
            if hop.device in usable and not hop.flags & _NO_USE:
                source = route.source or _source(version, hop, addresses)
                return Uplink(hop.device, usable[hop.device].name, hop.gateway, source)
    return None


def _source(version: int, hop: NextHop, addresses: Collection[DeviceAddress]) -> str | None:
    """The source address of traffic to the hop, chosen roughly as in RFC 6724, section 5."""
    gateway = None if hop.gateway is None else ipaddress.ip_address(hop.gateway)

    def rank(address: DeviceAddress) -> tuple[bool, ...]:
        return (
            bool(address.flags & _DEPRECATED) and version == 6,
            bool(address.flags & _TEMPORARY),
            gateway is None or gateway not in address.interface.network,
        )

    candidates = [
        address
        for address in addresses
        if address.device == hop.device
        and address.interface.version == version
        and not address.scope
        and not address.flags & (_TENTATIVE | _FAILED)
    ]
    return str(min(candidates, key=rank).interface.ip) if candidates else None
