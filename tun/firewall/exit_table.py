"""The exit's packet filter: where packets of clients go, and the address that they go out with.

    input      clients do not reach the exit itself, but for a ping of its tunnel address
    forward    from the tunnel: outwards only, not to other clients and not to denied prefixes; into it: answers only
    sources    NAT: a client's packets leave with the exit's address

The program (tun/exit_network.py) checks source and egress policy of each packet. The prefixes here are a second line,
and hold also for packets that are in the kernel while the program is replaced.

The chains judge what comes from or goes to our tunnel device, and accept everything else: the host's own traffic is
the host's matter. The reverse is not so: what another table drops stays dropped, whatever we accept. `warnings` says
so where Docker or a firewall drops forwarded packets.

Packets to the pool of addresses that come in on another device are dropped before they are routed (CVE-2019-14899).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, NamedTuple

from cryprq_proxy.errors import ConfigError
from cryprq_proxy.rules.ranges import IPNetwork

from ..journal import Record
from . import nft
from .nft import (
    CLAMP,
    EXIT,
    REFUSE,
    Ask,
    Run,
    block,
    counters,
    name,
    prefixes,
    replacing,
    set_of,
)

COUNTERS: Final = ("spoofed", "isolated", "denied", "local", "unsolicited", "guard", "invalid")
"""What was not let through, by cause: sources outside of the pool; between clients; to denied prefixes; to the exit
itself; into the tunnel without having been asked for; to the pool from other devices; from clients and belonging to no
connection, so that the address would not be translated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NatSettings:
    """All that the exit's table depends on."""

    tun: str
    """Name of the tunnel device; it need not exist."""
    pool4: IPv4Network
    """What clients' addresses are taken from."""
    address4: IPv4Address
    """The exit's own in it."""
    pool6: IPv6Network | None = None
    address6: IPv6Address | None = None
    """None: this exit has no IPv6, and refuses it."""
    denied: frozenset[IPNetwork] = field(default=frozenset())
    """Destinations that the policy denies without exception."""
    isolate: bool = True
    """Clients do not reach each other."""

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        name(self.tun)
        if self.address4 not in self.pool4:
            raise ConfigError(
                f"the exit's tunnel address {self.address4} is not inside of the pool {self.pool4}"
            )
        if (self.pool6 is None) != (self.address6 is None):
            raise ConfigError("the exit needs an IPv6 pool and an IPv6 tunnel address, or neither")
        if self.pool6 is not None and self.address6 not in self.pool6:
            raise ConfigError(
                f"the exit's tunnel address {self.address6} is not inside of the pool {self.pool6}"
            )


class _Pool(NamedTuple):
    version: int
    ip: str
    pool: IPNetwork
    address: IPv4Address | IPv6Address


def _pools(settings: NatSettings) -> list[_Pool]:
    pools = [_Pool(4, "ip", settings.pool4, settings.address4)]
    if settings.pool6 is not None and settings.address6 is not None:
        pools.append(_Pool(6, "ip6", settings.pool6, settings.address6))
    return pools


def script(settings: NatSettings) -> str:
    """The whole table as one transaction; the counters begin at 0."""
    lines = counters(COUNTERS, {})
    lines += set_of("denied4", "ipv4_addr", "interval", prefixes(settings.denied, 4))
    lines += set_of("denied6", "ipv6_addr", "interval", prefixes(settings.denied, 6))
    lines += REFUSE
    for title, rules in (
        ("guard", _guard(settings)),
        ("from_clients", _from_clients(settings)),
        ("to_clients", _to_clients()),
        ("input", _input(settings)),
        ("forward", _forward(settings)),
        ("sources", _sources(settings)),
    ):
        lines += block(f"chain {title}", rules)
    return replacing(EXIT, lines)


def _guard(settings: NatSettings) -> Iterable[str]:
    yield "type filter hook prerouting priority raw; policy accept;"
    for family in _pools(settings):
        yield f'iifname != {{ {name(settings.tun)}, "lo" }} {family.ip} daddr {family.pool} counter name guard drop'


def _sources_belong(settings: NatSettings) -> Iterable[str]:
    """A packet with a wrong source gets no answer, which would go to another machine."""
    pools = _pools(settings)
    for family in pools:
        yield f"{family.ip} saddr != {family.pool} counter name spoofed drop"
    if len(pools) == 1:
        yield "meta nfproto ipv6 counter name spoofed drop"


def _from_clients(settings: NatSettings) -> Iterable[str]:
    yield from _sources_belong(settings)
    tun = name(settings.tun)
    if settings.isolate:
        yield f"oifname {tun} counter name isolated goto refuse"
    else:
        yield f"oifname {tun} accept"
    yield "ip daddr @denied4 counter name denied goto refuse"
    yield "ip6 daddr @denied6 counter name denied goto refuse"
    yield "ct state invalid counter name invalid drop"
    yield CLAMP


def _to_clients() -> Iterable[str]:
    yield "ct state != { established, related } counter name unsolicited drop"
    yield CLAMP


def _input(settings: NatSettings) -> Iterable[str]:
    tun = name(settings.tun)
    yield "type filter hook input priority filter; policy accept;"
    yield f"iifname != {tun} accept"
    yield from _sources_belong(settings)
    yield "ct state established,related accept"
    for family in _pools(settings):
        echo = "icmp" if family.version == 4 else "icmpv6"
        yield f"{family.ip} daddr {family.address} {echo} type echo-request accept"
    yield "counter name local goto refuse"


def _forward(settings: NatSettings) -> Iterable[str]:
    tun = name(settings.tun)
    yield "type filter hook forward priority filter; policy accept;"
    yield f"iifname {tun} goto from_clients"
    yield f"oifname {tun} goto to_clients"


def _sources(settings: NatSettings) -> Iterable[str]:
    """By the pool and not by the device: at this hook the device that a packet came in on is not known any more."""
    tun = name(settings.tun)
    # A number, and before other programs' rules, which may know the pool's range as something else.
    yield "type nat hook postrouting priority 95; policy accept;"
    for family in _pools(settings):
        yield f'oifname != {{ {tun}, "lo" }} {family.ip} saddr {family.pool} masquerade'


def put_up(
    settings: NatSettings, record: Record, *, ours: bool, run: Run = nft.run, ask: Ask = nft.ask
) -> None:
    """Write the exit's table to the journal and put it up, in place of one that an earlier run left behind.

    `record` is the journal's; `ours` says that an older entry of the journal names the table. Forwarding itself (the
    sysctls) is the caller's. Blocks for some milliseconds. Raises NftError, and ConfigError if the table belongs to
    another program; then nothing was changed.
    """
    nft.claim(EXIT, ours, record, ask)
    run(script(settings))


def warnings(tun: str, ask: Ask = nft.ask) -> list[str]:
    """A sentence for each chain of another table that drops forwarded packets unless a rule of it accepts them.

    Tables of the old iptables (iptables-legacy) are not seen. Raises NftError.
    """
    found = []
    for item in ask("list", "chains") or []:
        chain = item.get("chain", {})
        if chain.get("hook") == "forward" and chain.get("policy") == "drop" and chain.get("table") != EXIT:
            where = f"{chain['name']} of table {chain['family']} {chain['table']}"
            found.append(
                f"the packet filter chain {where} drops forwarded packets: clients reach nothing unless a rule "
                f"there accepts what comes from and goes to {tun}"
            )
    return found
