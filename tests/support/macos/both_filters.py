"""A packet of this machine and what becomes of it on Linux and on macOS, by models of both filters and their routes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

from cryprq_proxy.rules.ranges import IPNetwork
from tests.support import nft_model
from tests.support.macos.pf_model import PfPacket, judge, with_anchor
from tests.support.nft_model import NftPacket
from tun.firewall.filter_settings import NOTHING_OPEN, ExitEndpoint, FilterSettings, Openings
from tun.firewall.inbound import NOT_KEPT, Address, Inbound
from tun.linux.firewall.client_table import script
from tun.macos.pf_rules import CLOSED, Opened, anchor_rules
from tun.macos.pfctl import ANCHORS
from tun.routing.lan import Uplink
from tun.settings import DISCOVERY

TUN, WIFI, MARK = "utun9", "en0", 0x6372
FOUR, SIX = IPv4Address("198.18.0.2"), IPv6Address("fd63::2")
OWN: dict[int, Address] = {4: IPv4Address("192.168.1.23"), 6: IPv6Address("2001:db8:1::23")}
TUNNELS: dict[int, Address] = {4: FOUR, 6: SIX}
LINK_LOCAL = IPv6Address("fe80::23")
EXIT, EXIT6 = ip_address("5.75.10.2"), ip_address("2a01::2")
LAN = frozenset[IPNetwork](
    {IPv4Network("192.168.1.0/24"), IPv6Network("fd00:1::/64"), IPv6Network("fe80::/64")}
)
UPLINKS = {4: Uplink(6, WIFI, "192.168.1.1", str(OWN[4])), 6: Uplink(6, WIFI, "fe80::1", str(OWN[6]))}
SETTINGS = FilterSettings(
    tun=TUN,
    mark=MARK,
    exits=frozenset({ExitEndpoint(EXIT, 443), ExitEndpoint(EXIT6, 443)}),
    tunnel4=FOUR,
    tunnel6=SIX,
    dns_port=5300,
    lan=LAN,
    uplinks=frozenset({WIFI}),
)
USER, ROOT, OTHER = 501, 0, 777
OUTSIDE, OUTSIDE6 = "93.184.216.34", "2606:2800::1"


@dataclass(frozen=True)
class Sent:
    """A packet of this machine, before its route is chosen."""

    to: str
    proto: str = "tcp"
    port: int = 0
    source_port: int = 50000
    uid: int = USER
    link: bool = False
    """Whether the link sends it."""
    icmp_type: int = 0
    hop_limit: int = 64
    source: str = ""
    """Where it is not what the route gives."""


@dataclass(frozen=True)
class Mode:
    """All that a filter is made from."""

    settings: FilterSettings = SETTINGS
    inbound: Inbound = NOT_KEPT
    paused: bool = False
    resolvers: frozenset[Any] = field(default=frozenset())


def goes_past(mode: Mode, address: Any) -> bool:
    found = mode.settings
    if any(address in network for network in (*found.excluded, *found.lan, *found.guests)):
        return True
    if found.included:
        return not any(address in network for network in found.included)
    return bool(address.version == 6 and (address.is_link_local or address.is_multicast))


def by_linux(mode: Mode, sent: Sent) -> str:
    openings = NOTHING_OPEN
    if mode.paused or mode.resolvers:
        openings = Openings(60 if mode.paused else 0, dict.fromkeys(mode.resolvers, 20))
    destination = ip_address(sent.to)

    def route(packet: NftPacket) -> str:
        if packet.mark == MARK:
            return WIFI
        if packet.destination_port in (53, 853) and packet.proto in ("tcp", "udp"):
            return TUN
        discovery = packet.destination.version == 4 and any(packet.destination in each for each in DISCOVERY)
        user = packet.uid in mode.settings.excluded_uids
        return WIFI if user or discovery or goes_past(mode, packet.destination) else TUN

    packet = NftPacket(
        FOUR,
        destination,
        "icmpv6" if sent.proto == "ipv6-icmp" else sent.proto,
        sent.source_port,
        sent.port,
        sent.uid,
        MARK if sent.link else 0,
        sent.icmp_type,
        sent.hop_limit,
    )
    packet.source = source_of(sent, route(packet))
    text = script(mode.settings, mode.inbound, openings)
    return nft_model.leaves(text, packet, route, frozenset({*OWN.values(), FOUR, SIX, LINK_LOCAL}), TUN)


def source_of(sent: Sent, device: str) -> Any:
    if sent.source:
        return ip_address(sent.source)
    destination = ip_address(sent.to)
    if destination.version == 6 and (destination.is_link_local or destination.is_multicast):
        return LINK_LOCAL
    return (TUNNELS if device == TUN else OWN)[destination.version]


def by_macos(mode: Mode, sent: Sent) -> str:
    destination = ip_address(sent.to)
    mark = "open-1" if mode.paused or mode.resolvers else ""
    opened = Opened(mark, mode.paused, mode.resolvers) if mark else CLOSED
    text = anchor_rules(mode.settings, mode.inbound, opened, UPLINKS)
    pf = with_anchor(ANCHORS["client"], text)
    # Host routes, and in a pause the halves of the address space are gone.
    hosts = {exit.address for exit in mode.settings.exits} | mode.resolvers
    multicast = destination.is_multicast or sent.to == "255.255.255.255"
    past = mode.paused or multicast or destination in hosts or goes_past(mode, destination)
    device = WIFI if past else TUN
    packet = PfPacket(
        "out",
        device,
        source_of(sent, device),
        destination,
        sent.proto,
        sent.source_port,
        sent.port,
        icmp_type=sent.icmp_type,
        uid=sent.uid,
    )
    found = judge(pf, packet)
    if found.passes and found.route_to is not None:
        assert found.route_to[0] == WIFI and found.packet is not None
        found = judge(pf, replace(found.packet, interface=WIFI))
        assert not found.passes or (found.packet is not None and found.packet.source not in (FOUR, SIX))
        return "out" if found.passes else "kept"
    if not found.passes:
        return "kept"
    if device == WIFI:
        return "out"
    answered = sent.proto == "udp" and sent.port == 53 and mode.settings.dns_port is not None
    return "forwarder" if answered else "tunnel"
