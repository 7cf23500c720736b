"""What the client's filter is made from: `FilterSettings`, which a person or the network decides, and `Openings`, which
last for seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

from cryprq_proxy.errors import ConfigError
from cryprq_proxy.rules.ranges import IPNetwork

from ..device.names import checked_name
from .filter_rules import FilterRules
from .inbound import Address

_LAST_MARK: Final = 0xFFFFFFFF


class Cgroup(NamedTuple):
    """A cgroup that is there."""

    path: str
    """Below the mount of version 2."""
    level: int
    """Its depth in the hierarchy."""
    number: int


class ExitEndpoint(NamedTuple):
    """Where an exit (or the upstream proxy in front of it) is reached, by TCP and UDP."""

    address: Address
    port: int


class PagePlace(NamedTuple):
    """Where our own page is: its port 80 to programs, the listening port in truth."""

    address: IPv4Address
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterSettings:
    """All that the filter depends on. The collections are what the tables of the routes are made from, too."""

    tun: str
    """Name of the tunnel device; it need not exist."""
    mark: int
    """fwmark of the link's sockets; it must be free for us."""
    exits: frozenset[ExitEndpoint]
    """All configured exits, as far as their addresses are known."""
    tunnel4: IPv4Address | None = None
    tunnel6: IPv6Address | None = None
    """Addresses of the tunnel device; without one, nothing of that family enters the tunnel."""
    dns_port: int | None = None
    """UDP and TCP port of the forwarder, on the tunnel addresses; None: DNS is not redirected, only kept in."""
    lan: frozenset[IPNetwork] = field(default=frozenset())
    """On-link private prefixes, those of local bridges included."""
    lan_allowed: bool = True
    guests: frozenset[IPNetwork] = field(default=frozenset())
    """Those of `lan` that are behind local bridges: reachable even if the LAN is not."""
    uplinks: frozenset[str] = field(default=frozenset())
    """Devices towards the network outside: machines there may not use our tunnel and forwarder as a router."""
    excluded: frozenset[IPNetwork] = field(default=frozenset())
    """These go past the tunnel."""
    included: frozenset[IPNetwork] = field(default=frozenset())
    """If not empty, only these go through the tunnel."""
    excluded_uids: frozenset[int] = field(default=frozenset())
    """What these users' programs send goes past the tunnel (their DNS does not)."""
    excluded_cgroups: frozenset[Cgroup] = field(default=frozenset())
    """The same for the programs of these."""
    kill_switch: bool = True
    """False: nothing is kept in but DNS past the forwarder's redirection and stale sources; no policy of drop."""
    rules: FilterRules = field(default=FilterRules())
    """What a person's rules say about packets."""
    portal_resolvers: tuple[Address, ...] = ()
    """The network's own resolvers, asked while the filter is paused; the first of each family counts."""

    name_servers: frozenset[Address] = field(default=frozenset())
    """Resolvers of the LAN that the forwarder asks, past the tunnel, for the names that the configuration lists."""
    page: PagePlace | None = None
    """Our own page, while it is open."""

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        for device in (self.tun, *self.uplinks):
            checked_name(device)
        if self.tun in self.uplinks or self.tun == "lo":
            raise ConfigError(f"the tunnel device cannot be {self.tun}: that is another device's name")
        if not 0 < self.mark <= _LAST_MARK:
            raise ConfigError(
                f"the mark {self.mark:#x} is out of range: choose one from 1 to {_LAST_MARK:#x}"
            )
        if self.dns_port is not None and not 0 < self.dns_port < 65536:
            raise ConfigError(
                f"the DNS forwarder cannot use port {self.dns_port}: choose one from 1 to 65535"
            )
        if any(not 0 < exit.port < 65536 for exit in self.exits):
            raise ConfigError("an exit's port is out of range: choose one from 1 to 65535")
        if any(not 0 <= uid < 0xFFFFFFFF for uid in self.excluded_uids):
            raise ConfigError("an excluded user id is out of range: choose one from 0 to 4294967294")


@dataclass(frozen=True, slots=True)
class Openings:
    """What is open for a time. The kernel closes it, so it closes also if this process does not live to do so."""

    pause: int = 0
    """Seconds left of a pause."""
    bootstrap: Mapping[Address, int] = field(default_factory=dict)
    """Resolver from before -> seconds left in which the link may ask it for an exit's address."""


NOTHING_OPEN: Final = Openings()
