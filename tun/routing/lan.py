"""The networks around this machine: the LAN, and the uplink. Each system finds them in its own tables, as
tun/linux/routing/networks.py does.

The LAN is all prefixes without a gateway in a range for private use. A DHCP server may push any route (CVE-2024-3661,
"TunnelVision"), and an access point may claim any prefix (CVE-2023-36672, "TunnelCrack"). So a prefix with a gateway or
a public prefix is never LAN: its traffic stays in the tunnel.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from itertools import islice
from typing import Final, NamedTuple

type Network = IPv4Network | IPv6Network

MAX_PREFIXES: Final = 256
"""LAN prefixes of a family that get a rule: the kernel searches rules one by one."""

PRIVATE: Final[tuple[Network, ...]] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "10.0.0.0/8",  # RFC 1918, section 3
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",  # RFC 3927
        "fc00::/7",  # RFC 4193
        "fe80::/10",  # RFC 4291, section 2.5.6
    )
)


@dataclass(frozen=True, slots=True)
class Lan:
    """The local networks, as the fewest disjoint prefixes."""

    prefixes: tuple[Network, ...] = ()
    guests: tuple[Network, ...] = ()
    """Those of `prefixes` with only this machine's containers and virtual machines."""
    uplinks: frozenset[str] = frozenset()
    """Names of the devices to outside networks."""
    attached: tuple[Network, ...] = ()
    """Networks of this machine's addresses that lie in none of `prefixes`: public ones, and single addresses."""


class Uplink(NamedTuple):
    """Device, gateway and source address of the traffic that leaves this machine past the tunnel."""

    device: int
    name: str
    gateway: str | None
    source: str | None
    """The source address; a stable one, if there are temporary ones too (RFC 8981)."""


def is_private(prefix: Network) -> bool:
    return within(prefix, PRIVATE)


def within(prefix: Network, networks: Iterable[Network]) -> bool:
    return any(
        prefix.version == network.version and prefix.subnet_of(network)  # type: ignore[arg-type]
        for network in networks
    )


def merged(prefixes: Iterable[Network]) -> tuple[Network, ...]:
    """The same addresses in as few prefixes as possible, IPv4 first, at most `MAX_PREFIXES` of each family."""
    ranges = list(prefixes)
    four = ipaddress.collapse_addresses(prefix for prefix in ranges if isinstance(prefix, IPv4Network))
    six = ipaddress.collapse_addresses(prefix for prefix in ranges if isinstance(prefix, IPv6Network))
    return (*islice(four, MAX_PREFIXES), *islice(six, MAX_PREFIXES))
