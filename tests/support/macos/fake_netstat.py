"""netstat(1), as far as `-rn` shows the routing tables, in the columns of macOS 10.15 and newer, and `-p tcp` that no
connection is open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network

from tests.support.macos.machine import Answer, FakeMac
from tests.support.macos.state import Route

USAGE = (
    "Usage:\tnetstat [-AaLlnW] [-f address_family | -p protocol]\n"
    "\tnetstat [-gilns] [-f address_family]\n"
    "\tnetstat -r [-Aaln] [-f address_family]\n"
)
_CONNECTIONS = "Proto Recv-Q Send-Q  Local Address          Foreign Address        (state)"
_FAMILIES = {"inet": (4,), "inet6": (6,), "": (4, 6)}
_TITLES = {4: "Internet:", 6: "Internet6:"}
_WIDTHS = {4: (18, 18, 15, 9), 6: (39, 39, 20, 7)}


def main(argv: Sequence[str], stdin: str, mac: FakeMac) -> Answer:
    flags, family, protocol, given = "", "", "", list(argv[1:])
    while given:
        word = given.pop(0)
        if word == "-f" and given:
            family = given.pop(0)
        elif word == "-p" and given and given[0] == "tcp":
            protocol = given.pop(0)
        elif word.startswith("-") and set(word[1:]) <= set("rnlaW"):
            flags += word[1:]
        else:
            return Answer(1, "", f"netstat: {word}: unknown or uninstrumented protocol\n{USAGE}")
    if protocol:
        # No connection is open on this Mac.
        return Answer(0, f"Active Internet connections (including servers)\n{_CONNECTIONS}\n")
    if family not in _FAMILIES or "r" not in flags or "n" not in flags:
        return Answer(1, "", USAGE)
    routes = mac.read().routes
    lines = ["Routing tables"]
    for version in _FAMILIES[family]:
        lines += ["", _TITLES[version], _line(version, "Destination", "Gateway", "Flags", "Netif", "Expire")]
        lines += _table(version, routes)
    return Answer(0, "\n".join(lines) + "\n")


def _table(version: int, routes: Sequence[Route]) -> Iterator[str]:
    """In the order of the kernel's tree, in which a scoped route stands behind the one without."""
    found = [route for route in routes if ip_network(route.destination).version == version]
    found.sort(key=lambda route: (_order(route), "I" in route.flags))
    for route in found:
        yield _line(version, shown(route), route.gateway, route.flags, route.interface, route.expire)


def _order(route: Route) -> tuple[int, int]:
    network = ip_network(route.destination)
    return int(network.network_address), network.prefixlen


def _line(version: int, *columns: str) -> str:
    widths = _WIDTHS[version]
    first = " ".join(text.ljust(width) for text, width in zip(columns[:3], widths[:3], strict=True))
    return f"{first} {columns[3]:>{widths[3]}} {columns[4]:>6}".rstrip() + " "


def shown(route: Route) -> str:
    """A destination as netstat shortens it: `default`, `10`, `192.168.1`, `128.0/1`, `fe80::%en0/64`."""
    network = ip_network(route.destination)
    host = "H" in route.flags
    if not network.prefixlen:
        return "default"
    if isinstance(network, IPv6Network):
        return _shown6(route, network, host)
    if host:
        return str(network.network_address)
    return _shown4(network)


def _shown4(network: IPv4Network) -> str:
    octets = str(network.network_address).split(".")
    first = int(octets[0])
    natural = 8 if first < 128 else 16 if first < 192 else 24
    rest = octets[natural // 8 :]
    kept = natural // 8
    while any(int(octet) for octet in rest):
        kept += 1
        rest = octets[kept:]
    short = ".".join(octets[:kept])
    return short if network.prefixlen == natural else f"{short}/{network.prefixlen}"


def _shown6(route: Route, network: IPv6Network, host: bool) -> str:
    address = str(network.network_address)
    scoped = network.network_address.is_link_local or address.startswith("ff02:")
    zone = f"%{_scope(route)}" if scoped else ""
    return f"{address}{zone}" if host else f"{address}{zone}/{network.prefixlen}"


def _scope(route: Route) -> str:
    """An own link-local address leads to lo0, and is of another interface, which its gateway need not show."""
    _, percent, zone = route.gateway.partition("%")
    return zone if percent else route.interface
