"""The routing rules of the client as values: the wanted ones, and the kernel's.

For each family, in the order in which the kernel asks them (after its own rule 0 for local addresses):

    link        marked packets: of our own sockets, and those
                that the filter keeps outside of the tunnel     -> main, else unreachable
    tunnel      the tunnel's own addresses                      -> our table
    names       DNS and DNS over TLS, with the kill switch      -> our table
    excluded    --exclude prefixes, --exclude-uid               -> main
    lan         local prefixes, one rule each, and the groups
                and broadcast of discovery there                -> main
    rest        everything, or only the --include prefixes      -> our table

A marked packet never reaches the last rule: without a route it fails, and does not loop inside the tunnel. No rule uses
the main table without its default route (`suppress_prefixlength`): a route that the network pushes into main would then
lead past the tunnel.

The rules for names hold questions to name servers past the tunnel while the filter is gone; while it stands, it
answers or refuses them (`dns_past` in client_table.py). A question to a server of this machine meets the kernel's rule
0 first, and the answers of such a server have another destination port. Rules with ports exist since Linux 4.17; the
filter's table needs 5.2.

Our rules have one protocol number, which distinguishes them from those of other programs.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from socket import AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP
from typing import Any, Final, NamedTuple

from cryprq_proxy.base.linux_marks import RULE_PROTOCOL

from ...routing.lan import Lan, Network
from ...settings import CLEAR_DNS_PORTS, DISCOVERY, TUNNEL_NETWORKS, TunnelSettings
from .networks import MAIN, NetlinkMessage

TABLE: Final = 0x6372
FIRST: Final = 25400
LAST: Final = 25449
"""The priorities that are ours, in each family."""

LINK: Final = FIRST
TUNNEL: Final = FIRST + 5
NAMES: Final = FIRST + 8
EXCLUDED: Final = FIRST + 10
EXCLUDED_USERS: Final = FIRST + 11
LOCAL: Final = FIRST + 20
REST: Final = FIRST + 30

LOOKUP: Final = 1  # FR_ACT_TO_TBL
UNREACHABLE: Final = 7  # FR_ACT_UNREACHABLE, and RTN_UNREACHABLE for routes
_WHOLE_MARK: Final = 0xFFFF_FFFF


class RoutingRule(NamedTuple):
    """One rule; a None matches everything."""

    version: int
    priority: int
    action: int = LOOKUP
    table: int = MAIN
    to: Network | None = None
    mark: int | None = None
    uids: tuple[int, int] | None = None
    service: tuple[int, int] | None = None
    """Protocol and destination port."""

    def __str__(self) -> str:
        return f"IPv{self.version} rule {self.priority}"

    def arguments(self) -> dict[str, Any]:
        """The arguments of `AsyncIPRoute.rule`, to add and to delete it."""
        arguments: dict[str, Any] = {
            "family": AF_INET if self.version == 4 else AF_INET6,
            "priority": self.priority,
            "action": self.action,
            "protocol": RULE_PROTOCOL,
        }
        if self.action == LOOKUP:
            arguments["table"] = self.table
        if self.to is not None:
            arguments |= {"dst": str(self.to.network_address), "dst_len": self.to.prefixlen}
        if self.mark is not None:
            arguments["fwmark"] = self.mark
        if self.uids is not None:
            arguments["uid_range"] = f"{self.uids[0]}:{self.uids[1]}"
        if self.service is not None:
            protocol, port = self.service
            arguments |= {"ip_proto": protocol, "dport_range": f"{port}:{port}"}
        return arguments


def wanted_rules(settings: TunnelSettings, lan: Lan, version: int) -> list[RoutingRule]:
    """All rules of one family, by priority."""

    def of_family(prefixes: tuple[Network, ...]) -> Iterator[Network]:
        # One set for each purpose: the kernel refuses the same rule twice.
        return (prefix for prefix in dict.fromkeys(prefixes) if prefix.version == version)

    local = (*lan.prefixes, *DISCOVERY) if settings.lan else lan.guests
    services = [(protocol, port) for protocol in (IPPROTO_UDP, IPPROTO_TCP) for port in CLEAR_DNS_PORTS]
    # A rule of the kernel has no prefix of length 0; without a prefix it matches everything.
    rest = [prefix if prefix.prefixlen else None for prefix in of_family(settings.include)]
    return [
        RoutingRule(version, LINK, mark=settings.mark),
        RoutingRule(version, LINK + 1, UNREACHABLE, 0, mark=settings.mark),
        *(RoutingRule(version, TUNNEL, table=TABLE, to=prefix) for prefix in of_family(TUNNEL_NETWORKS)),
        *(
            RoutingRule(version, NAMES, table=TABLE, service=service)
            for service in (services if settings.kill_switch else [])
        ),
        *(RoutingRule(version, EXCLUDED, to=prefix) for prefix in of_family(settings.exclude)),
        *(RoutingRule(version, EXCLUDED_USERS, uids=uids) for uids in dict.fromkeys(settings.exclude_uids)),
        *(RoutingRule(version, LOCAL, to=prefix) for prefix in of_family(local)),
        *(RoutingRule(version, REST, table=TABLE, to=to) for to in (rest if settings.include else [None])),
    ]


def read_rule(message: NetlinkMessage) -> tuple[RoutingRule, int]:
    """A rule of RTM_NEWRULE and its protocol number.

    Conditions that ours never have are left out, so rules of other programs are incomplete.
    """
    attributes: Mapping[str, Any] = dict(message["attrs"])
    to = None
    if "FRA_DST" in attributes:
        to = ipaddress.ip_network((attributes["FRA_DST"], message["dst_len"]))
    mark = attributes.get("FRA_FWMARK")
    if mark is not None and attributes.get("FRA_FWMASK", _WHOLE_MARK) != _WHOLE_MARK:
        mark = None
    uids = None
    if "FRA_UID_RANGE" in attributes:
        first, _, last = attributes["FRA_UID_RANGE"].partition(":")
        uids = (int(first), int(last))
    service = None
    if "FRA_IP_PROTO" in attributes and "FRA_DPORT_RANGE" in attributes:
        service = attributes["FRA_IP_PROTO"], int(attributes["FRA_DPORT_RANGE"].partition(":")[0])
    found = RoutingRule(
        4 if message["family"] == AF_INET else 6,
        attributes.get("FRA_PRIORITY", 0),
        message["action"],
        attributes.get("FRA_TABLE", message["table"]),
        to,
        mark,
        uids,
        service,
    )
    return found, attributes.get("FRA_PROTOCOL", 0)
