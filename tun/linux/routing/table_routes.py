"""The routes of our own table as values: the wanted ones, and whatever the kernel has there.

The table belongs to this program alone, so a route in it is either equal to a wanted one, by all that decides where a
packet goes, or it is another program's and goes. Wanted are a default route into the TUN device for each family that
the exit offers, and an unreachable one with the highest metric under it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from socket import AF_INET, AF_INET6
from typing import Any, Final, NamedTuple

from cryprq_proxy.base.linux_marks import RULE_PROTOCOL

from ...routing.lan import Network
from .networks import UNICAST, NetlinkMessage
from .route_rules import TABLE, UNREACHABLE

LAST_RESORT: Final = 4_294_967_295
"""Metric of the unreachable routes: any other one wins."""

_FAMILIES: Final = {4: AF_INET, 6: AF_INET6}
_VERSIONS: Final = {AF_INET: 4, AF_INET6: 6}
_EVERYTHING: Final[Mapping[int, Network]] = {
    version: ipaddress.ip_network(text) for version, text in ((4, "0.0.0.0/0"), (6, "::/0"))
}
_METRICS: Final = {4: 0, 6: 1024}
"""What the kernel gives a route without one."""
_ANY_SCOPE: Final = 255  # RT_SCOPE_NOWHERE
_CLONED: Final = 0x200  # a cached copy of another route
_KINDS: Final = {2: "local", 6: "blackhole", UNREACHABLE: "unreachable", 8: "prohibit", 9: "throw"}
_READ: Final = frozenset(
    f"RTA_{name}"
    for name in ("TABLE", "DST", "SRC", "OIF", "GATEWAY", "MULTIPATH", "PRIORITY", "CACHEINFO", "PREF")
)


class TableRoute(NamedTuple):
    """One route of our table."""

    version: int
    kind: int = UNICAST
    hops: tuple[tuple[int | None, str | None], ...] = ()
    """Device and gateway of each; none where the kernel sends nothing on."""
    metric: int = 0
    protocol: int = RULE_PROTOCOL
    to: Network | None = None
    """None for everything."""
    source: Network | None = None
    tos: int = 0
    more: frozenset[str] = frozenset()
    """Names of further attributes: ours have none."""

    def __str__(self) -> str:
        words = [f"IPv{self.version}", _KINDS.get(self.kind, "default" if self.to is None else ""), "route"]
        words += [] if self.to is None else [str(self.to)]
        words += [f"via {gateway}" for _, gateway in self.hops if gateway is not None]
        return " ".join([*filter(None, words), f"of table {TABLE}"])

    @property
    def is_ours(self) -> bool:
        """Whether it has one of our two forms, into whatever device."""
        (device, _), *others = self.hops or ((None, None),)
        wanted = unreachable(self.version) if device is None else into(device, self.version)
        return not others and self == wanted

    def arguments(self) -> dict[str, Any]:
        """The arguments of `AsyncIPRoute.route`, to set it if it is ours, and to delete it."""
        arguments: dict[str, Any] = {
            "family": _FAMILIES[self.version],
            "dst": str(self.to or _EVERYTHING[self.version]),
            "table": TABLE,
            "type": self.kind,
            "proto": self.protocol,
        }
        if self.metric:
            arguments["priority"] = self.metric
        if self.tos:
            arguments["tos"] = self.tos
        if self.source is not None:
            arguments["src"] = str(self.source)
        if len(self.hops) == 1:
            # Without a hop, a route with any hops is meant.
            ((device, gateway),) = self.hops
            arguments |= {"oif": device} if device is not None else {}
            arguments |= {"gateway": gateway} if gateway is not None else {}
        if not self.is_ours:
            arguments["scope"] = _ANY_SCOPE
        return arguments


def unreachable(version: int) -> TableRoute:
    return TableRoute(version, UNREACHABLE, (), LAST_RESORT)


def into(device: int, version: int) -> TableRoute:
    """The default route into the TUN device of this index."""
    return TableRoute(version, UNICAST, ((device, None),), _METRICS[version])


def wanted_routes(version: int, device: int | None, versions: Collection[int]) -> list[TableRoute]:
    """All that stands in our table of one family. `device`: the index of the TUN device, if it is there; `versions`:
    the families that enter it."""
    wanted = [unreachable(version)]
    if device is not None and version in versions:
        wanted.append(into(device, version))
    return wanted


def read_table_route(message: NetlinkMessage) -> TableRoute | None:
    """A route of RTM_NEWROUTE; None if it stands in another table, or is a cached copy."""
    attributes: Mapping[str, Any] = dict(message["attrs"])
    version = _VERSIONS.get(message["family"])
    if (
        attributes.get("RTA_TABLE", message["table"]) != TABLE
        or version is None
        or message["flags"] & _CLONED
    ):
        return None
    kind = message["type"]
    hops: tuple[tuple[int | None, str | None], ...] = ()
    if "RTA_MULTIPATH" in attributes:
        hops = tuple(
            (hop["oif"], dict(hop["attrs"]).get("RTA_GATEWAY")) for hop in attributes["RTA_MULTIPATH"]
        )
    elif kind == UNICAST:
        # IPv6 shows the loopback device for what leads nowhere.
        hops = ((attributes.get("RTA_OIF"), attributes.get("RTA_GATEWAY")),)
    return TableRoute(
        version,
        kind,
        hops,
        attributes.get("RTA_PRIORITY", 0),
        message["proto"],
        _prefix(attributes.get("RTA_DST"), message["dst_len"]),
        _prefix(attributes.get("RTA_SRC"), message.get("src_len", 0)),
        message.get("tos", 0),
        frozenset(attributes) - _READ,
    )


def _prefix(address: str | None, length: int) -> Network | None:
    return None if address is None else ipaddress.ip_network((address, length))
