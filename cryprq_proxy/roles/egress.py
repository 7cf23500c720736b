"""Where the exit lets its clients go: the egress policy.

The exit is a machine inside somebody's network, and its clients are outside. Without a policy each client
could reach the exit's loopback, its LAN and the credentials service of its cloud. The policy is asked twice:
`check_name` before a name is resolved, which saves a useless query, and `check_address` on the very literal
that the next `connect` or `sendto` gets. Only the second protects: a name may resolve to anything, and to
something else each time.

An IPv6 address can carry an IPv4 address that a translator or tunnel takes out again. Such an address is
judged once for each *face*: as it stands, and as each IPv4 address that it may mean. Every face must pass.

What a person writes are three lists with entries of the form `HOST`, `HOST:PORTS` or `:PORTS`. HOST is an
address or CIDR (IPv6 in brackets if ports follow), a name, or `*.name` for all names below it. PORTS is `80`
or `8000-9000`.

    deny   What never passes; it beats everything else. A name here forbids the name and not its addresses.
    allow  Exceptions from the built-in denials, so addresses and CIDRs only. A name here is an error, because
           its owner could point it at the exit's loopback.
    only   If not empty, nothing else passes: the port and the name, or the port and the address, must match
           an entry. It narrows and never widens: a private network has to be in `allow` as well.

Built in are the tables below. `allow_private` lifts PRIVATE, the exit's own addresses and the ban on the
names of loopback. The addresses of METADATA (whoever reads them may own the machine) and of the exit itself
are *guarded*: an entry of `allow` lifts one only if it lies within the guarded prefix. So "10.0.0.0/8" opens
a LAN, but neither the exit's own 10.0.0.5 nor a metadata service in between.
"""

from __future__ import annotations

import re
import socket
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Final, NamedTuple

from ..address import canonical_host
from ..errors import ConfigError

type Network = IPv4Network | IPv6Network

PRIVATE: Final = (
    "10.0.0.0/8",  # RFC 1918
    "100.64.0.0/10",  # RFC 6598, shared with the provider; Tailscale
    "127.0.0.0/8",
    "169.254.0.0/16",  # RFC 3927, link-local
    "172.16.0.0/12",
    "192.168.0.0/16",
    "::1/128",
    "64:ff9b:1::/48",  # RFC 8215: a translator of the local network, to private IPv4 too
    "fc00::/7",  # RFC 4193, unique local
    "fe80::/10",
    "fec0::/10",  # RFC 3879, site-local of old
)
SPECIAL: Final = (
    "0.0.0.0/8",  # RFC 1122: this host; Linux connects 0.0.0.0 to loopback
    "192.0.0.0/24",  # RFC 6890, IETF protocol assignments
    "192.0.2.0/24",  # RFC 5737, documentation; also the next but two
    "192.88.99.0/24",  # RFC 7526, 6to4 relays of old
    "198.18.0.0/15",  # RFC 2544, benchmarking
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",  # RFC 5771, multicast
    "240.0.0.0/4",  # RFC 1112, reserved; the last one is broadcast
    # Only 2000::/3 is global unicast (RFC 4291). The rest holds the unspecified address, discard-only
    # 100::/64, segment ids 5f00::/16, multicast and what nobody has assigned. TRANSLATED is taken out of it.
    "::/3",
    "4000::/2",
    "8000::/1",
    "2001::/23",  # RFC 2928, IETF protocol assignments: Teredo, benchmarking, ORCHID
    "2001:db8::/32",  # RFC 3849, documentation
    "3fff::/20",  # RFC 9637, documentation
)
METADATA: Final = (
    "100.100.100.200/32",  # Alibaba
    "168.63.129.16/32",  # Azure's host agent, a public address
    "169.254.0.23/32",  # Tencent
    "169.254.42.42/32",  # Scaleway; also fd00:42::42
    "169.254.169.0/24",  # AWS, Azure, Google, Oracle and most others
    "169.254.170.0/24",  # AWS containers
    "192.0.0.192/32",  # Oracle Classic
    "fd00:42::42/128",
    "fd00:c1::/32",  # Oracle
    "fd00:ec2::/32",  # AWS
    "fd20:ce::/32",  # Google
    "fe80::a9fe:a9fe/128",  # OpenStack
)
TRANSLATED: Final = ("::ffff:0:0/96", "64:ff9b::/96")
"""Outside of 2000::/3 and good if the IPv4 address inside is: v4-mapped, and NAT64 (RFC 6052)."""

LAST_PORT: Final = 65535

_LOCAL_NAT64: Final = 0x0064_FF9B_0001
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORTS: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_BRACKETED: Final = re.compile(r"\[([^\[\]]*)\](?::(.*))?")


class Face(NamedTuple):
    """An address as the policy compares it. `version` is 4 or 6."""

    version: int
    value: int


def faces(ip: str) -> tuple[Face, ...]:
    """`ip` itself, then each IPv4 address that it may become; nothing if it is no literal or has a zone."""
    try:
        if ":" not in ip:
            return (Face(4, int.from_bytes(socket.inet_pton(socket.AF_INET, ip))),)
        value = int.from_bytes(socket.inet_pton(socket.AF_INET6, ip))
    except (OSError, ValueError):
        return ()
    return Face(6, value), *(Face(4, inner) for inner in _inside(value))


def _inside(value: int) -> Sequence[int]:
    """The IPv4 addresses that an IPv6 address may stand for."""
    high, low = value >> 32, value & 0xFFFF_FFFF
    if high == 0xFFFF or high == 0x0064_FF9B << 64:  # v4-mapped, NAT64
        return (low,)
    if high == 0:  # v4-compatible, but for :: and ::1
        return (low,) if low > 1 else ()
    if value >> 112 == 0x2002:  # 6to4, RFC 3056
        return (value >> 80 & 0xFFFF_FFFF,)
    if value >> 96 == 0x2001 << 16:  # Teredo, RFC 4380 section 4: the server, and the client inverted
        return value >> 64 & 0xFFFF_FFFF, low ^ 0xFFFF_FFFF
    if value >> 80 == _LOCAL_NAT64:
        return _inside_local_nat64(value)
    return ()


def _inside_local_nat64(value: int) -> Sequence[int]:
    """RFC 6052 section 2.2: prefixes of 48, 56, 64 and 96 bits, and bits 64 to 71 are skipped.

    Which of them the local translator has is not known here, so all are judged. The wrong ones often give
    0.x.x.x, which is nobody's address and says nothing, unless there is nothing else.
    """
    joined = (value >> 64) << 56 | value & (1 << 56) - 1
    shifted = (joined >> shift & 0xFFFF_FFFF for shift in (40, 32, 24))
    return [inner for inner in (*shifted, value & 0xFFFF_FFFF) if inner >> 24] or [0]


class Ranges:
    """Networks of one version as sorted borders, where every second one ends a range: one bisection tells."""

    __slots__ = ("_borders",)

    def __init__(self, networks: Iterable[Network]) -> None:
        self._borders: list[int] = []
        for first, last in sorted((int(n.network_address), int(n.broadcast_address)) for n in networks):
            if self._borders and first <= self._borders[-1]:
                self._borders[-1] = max(self._borders[-1], last + 1)
            else:
                self._borders += first, last + 1

    def __contains__(self, value: int) -> bool:
        return bisect_right(self._borders, value) & 1 == 1


class AddressSet:
    """Networks of both versions."""

    __slots__ = ("v4", "v6")

    def __init__(self, networks: Iterable[Network]) -> None:
        networks = list(networks)
        self.v4 = Ranges(n for n in networks if n.version == 4)
        self.v6 = Ranges(n for n in networks if n.version == 6)

    def __contains__(self, face: Face) -> bool:
        return face.value in (self.v4 if face.version == 4 else self.v6)


class Rule(NamedTuple):
    """One entry of a list, decoded. Neither network nor name: any host."""

    network: Network | None
    name: str
    """Lower case; "*.example.com" for all below; "" for none."""
    first_port: int
    last_port: int


def parse_rule(entry: str, where: str = "egress rule") -> Rule:
    """Decode one entry. `where` begins the error's text, like "deny" or "egress.deny in exit.toml".

    Raises `ConfigError`, which names the entry and what is expected.
    """
    text = entry.strip()
    bracketed = _BRACKETED.fullmatch(text)
    host: str
    ports: str | None
    if bracketed:
        host, ports = bracketed[1], bracketed[2]
    elif text.count(":") > 1:
        host, ports = text, None
    else:
        host, colon, rest = text.partition(":")
        ports = rest if colon else None
    try:
        first, last = (1, LAST_PORT) if ports is None else _parse_ports(ports)
        if not host.isascii():
            host = host.encode("idna").decode("ascii")
        if bracketed or ":" in host or "/" in host or _NUMBER.fullmatch(host.rpartition(".")[2].lower()):
            network = _parse_network(host)
            if bracketed and network.version == 4:
                raise ValueError("only IPv6 addresses stand in brackets")
            return Rule(network, "", first, last)
        if host or ports is None:
            return Rule(None, _parse_name(host), first, last)
        return Rule(None, "", first, last)
    except ValueError as error:
        raise ConfigError(
            f"{where}: {entry!r} is not understood ({error}); expected is an address or CIDR, a name or"
            " *.name, with :PORT or :FROM-TO behind it or alone, like 10.0.0.0/8, *.example.com, :25 or"
            " [2001:db8::/32]:80-90"
        ) from None


def _parse_ports(text: str) -> tuple[int, int]:
    match = _PORTS.fullmatch(text)
    if not match:
        raise ValueError("a port is a number, a range two numbers with a hyphen")
    first = int(match[1])
    last = int(match[2] or match[1])
    if not 1 <= first <= last <= LAST_PORT:
        raise ValueError("ports go from 1 to 65535, and a range begins with the lower one")
    return first, last


def _parse_network(text: str) -> Network:
    address, slash, length = text.partition("/")
    if "%" in address:
        raise ValueError("an address here has no zone")
    if slash and not (length.isascii() and length.isdecimal()):
        raise ValueError("a CIDR ends in a number of bits")
    if address.isdecimal():
        raise ValueError("a port alone is written with a colon before it")
    try:
        return ip_network(text)
    except ValueError:
        pass
    try:
        wider = ip_network(text, strict=False)
    except ValueError:
        raise ValueError("no valid IP address or CIDR") from None
    raise ValueError(f"it has bits set behind its prefix; write {wider}")


def _parse_name(text: str) -> str:
    name = text.removeprefix("*.")
    if "*" in name:
        raise ValueError("a * stands only at the beginning, as *.name")
    name = canonical_host(name.encode("ascii"))
    return f"*.{name}" if text.startswith("*.") else name


def _normalise(name: str) -> str:
    return name.lower().removesuffix(".")


class _PortGroup:
    """All rules of one list with the same ports."""

    __slots__ = ("addresses", "anywhere", "first", "has_addresses", "last", "names", "parents")

    def __init__(self, first: int, last: int, rules: Sequence[Rule]) -> None:
        self.first = first
        self.last = last
        networks = [rule.network for rule in rules if rule.network is not None]
        self.addresses = AddressSet(networks)
        self.has_addresses = bool(networks)
        self.anywhere = any(rule.network is None and not rule.name for rule in rules)
        self.names = frozenset(rule.name for rule in rules if rule.name)
        self.parents = any(name.startswith("*.") for name in self.names)

    def has_name(self, name: str) -> bool:
        if name in self.names:
            return True
        if self.parents:
            dot = name.find(".")
            while dot >= 0:
                if "*" + name[dot:] in self.names:
                    return True
                dot = name.find(".", dot + 1)
        return False


class RuleList:
    """A list of rules, grouped by ports: few groups, whatever the number of rules."""

    __slots__ = ("_groups",)

    def __init__(self, rules: Iterable[Rule]) -> None:
        by_ports: dict[tuple[int, int], list[Rule]] = {}
        for rule in rules:
            by_ports.setdefault((rule.first_port, rule.last_port), []).append(rule)
        self._groups = [_PortGroup(*ports, group) for ports, group in by_ports.items()]

    def __bool__(self) -> bool:
        return bool(self._groups)

    def has_address(self, face: Face, port: int) -> bool:
        for group in self._groups:
            if group.first <= port <= group.last and (group.anywhere or face in group.addresses):
                return True
        return False

    def has_name(self, name: str, port: int) -> bool:
        for group in self._groups:
            if group.first <= port <= group.last and (group.anywhere or group.has_name(name)):
                return True
        return False

    def may_have_address(self, port: int) -> bool:
        """Whether there is any address that `has_address` would find with this port."""
        return any(g.first <= port <= g.last and (g.anywhere or g.has_addresses) for g in self._groups)


class EgressPolicy:
    """The exit's answer to "may a client go there?"; the module's text gives the meaning of the lists.

    `own_addresses` are the exit's, as addresses or CIDRs (see the function of that name); they change, so
    call `update_own_addresses` now and then. Raises `ConfigError` for an entry that is not understood.
    """

    def __init__(
        self,
        allow: Iterable[str] = (),
        deny: Iterable[str] = (),
        only: Iterable[str] = (),
        allow_private: bool = False,
        own_addresses: Iterable[str] = frozenset(),
    ) -> None:
        self._deny = RuleList(parse_rule(entry, "deny") for entry in deny)
        self._only = RuleList(parse_rule(entry, "only") for entry in only)
        self._allow_rules = [_parse_exception(entry) for entry in allow]
        self._allow = RuleList(self._allow_rules)
        self._allow_private = allow_private
        self.update_own_addresses(own_addresses)

    def update_own_addresses(self, addresses: Iterable[str]) -> None:
        """Replace the exit's own addresses; what is no address or CIDR is left out."""
        own = [] if self._allow_private else [*filter(_is_guardable, map(_network_or_none, addresses))]
        guarded = [*map(ip_network, METADATA), *(n for n in own if n is not None)]
        blocked = list(map(ip_network, SPECIAL))
        private = list(map(ip_network, PRIVATE))
        blocked = _without(blocked, [*map(ip_network, TRANSLATED), *private])
        if not self._allow_private:
            blocked += private
        self._guarded = AddressSet(guarded)
        self._blocked = AddressSet([*blocked, *guarded])
        self._allow_guarded = RuleList(
            rule for rule in self._allow_rules if any(_covers(network, rule.network) for network in guarded)
        )

    def check_name(self, name: str, port: int) -> bool:
        """Whether it makes sense to resolve `name`, in A-labels. A literal is judged as by `check_address`.

        True is not yet a permission: each address found needs `check_address(address, port, name)`.
        """
        if faces(name):
            return self.check_address(name, port)
        name = _normalise(name)
        if not 1 <= port <= LAST_PORT or not name or not name.isascii():
            return False
        if not self._allow_private and (name == "localhost" or name.endswith(".localhost")):
            return False
        if self._deny and self._deny.has_name(name, port):
            return False
        return not self._only or self._only.has_name(name, port) or self._only.may_have_address(port)

    def check_address(self, ip: str, port: int, name: str | None = None) -> bool:
        """Whether a socket may be connected, or a datagram sent, to the literal `ip`; False for other text.

        `name` is what the client asked for if `ip` came out of the resolver; the names of `only` need it.
        """
        if not 1 <= port <= LAST_PORT:
            return False
        seen = faces(ip)
        for face in seen:
            if self._deny and self._deny.has_address(face, port):
                return False
            if face in self._blocked:
                allow = self._allow_guarded if face in self._guarded else self._allow
                if not allow.has_address(face, port):
                    return False
        if self._only and seen:
            if name is not None and self._only.has_name(_normalise(name), port):
                return True
            return any(self._only.has_address(face, port) for face in seen)
        return bool(seen)


def _parse_exception(entry: str) -> Rule:
    rule = parse_rule(entry, "allow")
    if rule.network is None:
        raise ConfigError(
            f"allow: {entry!r} has no address, but allow makes exceptions from the built-in denials and takes"
            " addresses and CIDRs only; the list to permit certain names or ports and nothing else is only"
        )
    return rule


def _network_or_none(text: str) -> Network | None:
    try:
        return ip_network(text.partition("%")[0], strict=False)
    except ValueError:
        return None


def _is_guardable(network: Network | None) -> bool:
    """Loopback has its place in PRIVATE, and an entry like 127.0.0.0/8 in `allow` shall lift all of it."""
    return network is not None and not network.is_loopback


def _covers(outer: Network, inner: Network | None) -> bool:
    if isinstance(outer, IPv4Network):
        return isinstance(inner, IPv4Network) and inner.subnet_of(outer)
    return isinstance(inner, IPv6Network) and inner.subnet_of(outer)


def _without(networks: Iterable[Network], holes: Iterable[Network]) -> list[Network]:
    """The networks with each hole cut out of the one that has it inside."""
    left = list(networks)
    for hole in holes:
        for network in [network for network in left if _covers(network, hole)]:
            left.remove(network)
            # Two versions never cover each other, which the type checker cannot see.
            left += network.address_exclude(hole)  # type: ignore[arg-type]
    return left


def own_addresses(proc_net: Path = Path("/proc/net")) -> frozenset[str]:
    """This machine's addresses: what the kernel treats as local, with whole prefixes among it; never raises.

    Reads files of /proc, so call it once a minute or so, not for each connection. Without /proc only what the
    machine's own name resolves to is found, and never the public address of a router that translates for it.
    """
    try:
        v4 = _local_v4((proc_net / "fib_trie").read_text(encoding="ascii"))
    except (OSError, UnicodeError):
        return _addresses_of_own_name()
    try:
        return frozenset(v4 | _local_v6((proc_net / "if_inet6").read_text(encoding="ascii")))
    except (OSError, UnicodeError):  # no file: a kernel without IPv6
        return frozenset(v4)


def _local_v4(fib_trie: str) -> set[str]:
    """The leaves of type LOCAL: a line "|-- ADDRESS", then one "/BITS SCOPE TYPE" for each route to it."""
    found: set[str] = set()
    address = ""
    for line in fib_trie.splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == "|--":
            address = words[1]
        elif len(words) >= 3 and words[0].startswith("/") and words[2] == "LOCAL":
            found.add(address if words[0] == "/32" else address + words[0])
    return found


def _local_v6(if_inet6: str) -> set[str]:
    """The first column of each line: 32 hexadecimal digits."""
    rows = (line.split() for line in if_inet6.splitlines())
    words = (row[0] for row in rows if row)
    return {socket.inet_ntop(socket.AF_INET6, bytes.fromhex(word)) for word in words if len(word) == 32}


def _addresses_of_own_name() -> frozenset[str]:
    try:
        return frozenset(str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None))
    except OSError:
        return frozenset()
