"""The settings of system-wide mode on both sides, and its fixed names and numbers."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Final

from cryprq_proxy.errors import ConfigError
from cryprq_proxy.lane.layout import OVERHEAD
from cryprq_proxy.lane.slices import SLICE_SIZE

from .dns.settings import DnsSettings
from .routing.lan import Network

CLIENT_JOURNAL: Final = "client.journal"
EXIT_JOURNAL: Final = "exit.journal"
CLIENT_DEVICE: Final = "cryprq0"
EXIT_DEVICE: Final = "cryprq-exit0"
MARK: Final = 0x6372
"""SO_MARK of the link's own sockets."""
CLEAR_DNS_PORTS: Final = (53, 853)
"""DNS, and DNS over TLS or QUIC. With the kill switch no question to them leaves by another device than the tunnel."""
SLICE_OVERHEAD: Final = OVERHEAD + SLICE_SIZE
"""Bytes of a datagram on the lane that are not the packet's."""
MTU: Final = 1412
"""A packet of this size is one datagram where the path takes 1,500 bytes, over IPv6 too."""
MIN_MTU: Final = 1280
"""With a smaller MTU a device carries no IPv6 (RFC 8200 section 5); Linux removes its IPv6 addresses for good."""
RESOLVER4: Final = IPv4Address("198.18.255.53")
RESOLVER6: Final = IPv6Address("fd63:7279:7071::53")
"""Where the system asks for names. The filter brings the questions to the forwarder, also where a device of this
machine has one of these addresses."""
TUNNEL_NETWORKS: Final[tuple[Network, ...]] = (IPv4Network(RESOLVER4), IPv6Network(RESOLVER6))
"""Routed into the tunnel also if a LAN has them, or if only some prefixes are included."""
DISCOVERY: Final = (
    IPv4Network("224.0.0.0/24"),
    IPv4Network("239.255.255.250"),
    IPv4Network("255.255.255.255"),
)
"""What a program sends to without naming an interface, to find others on the LAN: mDNS, SSDP, broadcast. For IPv6 the
kernel has routes of its own, which it asks before all rules."""
POOLS4: Final = tuple(map(IPv4Network, ("198.18.0.0/16", "198.19.0.0/16", "10.171.0.0/16", "10.203.0.0/16")))
POOLS6: Final = tuple(IPv6Network(f"fd63:7279:7071:{number:x}::/64") for number in range(8))
"""Where an exit's clients have their addresses: the first one that is free on its machine. 198.18.0.0/15 (RFC 2544, for
tests of devices) is no LAN, is routed nowhere on the internet, and belongs to no provider and no other VPN, as
100.64.0.0/10 does."""
SHARED4: Final = IPv4Network("100.64.0.0/10")
"""RFC 6598. Tailscale's filter drops what has a source there, questions to our own forwarder too."""
_MAX_UID: Final = 0xFFFF_FFFE
_SMALLEST_POOL: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelSettings:
    """The client's settings."""

    device: str = CLIENT_DEVICE
    mark: int = MARK
    offload: bool
    exclude: tuple[Network, ...]
    include: tuple[Network, ...]
    """Only these go through the tunnel; empty for everything."""
    exclude_uids: tuple[tuple[int, int], ...]
    """First and last user id of each range."""
    exclude_cgroups: tuple[str, ...]
    """Paths of cgroups, version 2."""
    lan: bool
    """Whether the LAN is reached directly; guests of this machine always are."""
    kill_switch: bool
    keep_inbound: bool
    leave_resolver: bool
    """Whether the system's resolver stays as it is."""
    dns: DnsSettings
    state: Path
    """The directory of the journal."""

    def __post_init__(self) -> None:
        if any(not prefix.prefixlen for prefix in self.exclude):
            raise ConfigError(
                "--exclude of every address leaves nothing for the tunnel: name smaller prefixes"
            )
        if any(not 0 <= first <= last <= _MAX_UID for first, last in self.exclude_uids):
            raise ConfigError("--exclude-uid wants user ids, or ranges of them with the smaller one first")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitNetworkSettings:
    """The exit's settings."""

    device: str = EXIT_DEVICE
    offload: bool
    pool4: IPv4Network = POOLS4[0]
    pool6: IPv6Network = POOLS6[0]
    fixed: frozenset[int] = frozenset()
    """IP versions whose pool a person has chosen; another one is chosen anew at the start if it is not free."""
    isolate: bool
    """Whether clients are kept from each other."""
    state: Path
    """The directory of the journal."""

    def __post_init__(self) -> None:
        for pool in (self.pool4, self.pool6):
            if pool.num_addresses < _SMALLEST_POOL:
                raise ConfigError(
                    f"the pool {pool} is too small: give one of {_SMALLEST_POOL} addresses or more"
                )

    @property
    def own4(self) -> IPv4Address:
        """The exit's own address: the first of the pool; the others are for clients."""
        return self.pool4[1]

    @property
    def own6(self) -> IPv6Address:
        return self.pool6[1]
