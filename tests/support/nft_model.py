"""What the client's table of nft does with a packet of this machine: the script of client_table.py, evaluated.

Only what the chains of the output path are made from is understood; anything else is an error. A packet is followed
through `mark_out`, `dns_out`, `output`, `sources` and `leaving`, in the order of the kernel's hooks. `oifname` is the
device that was chosen first in the output hooks, and the true one behind them (client_table.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

type Address = IPv4Address | IPv6Address
type Route = Callable[["NftPacket"], str]
"""The device that a packet leaves by, by its mark, user and destination."""

_NUMBERS = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58}
_TOKEN = re.compile(r'"[^"]*"|[^\s{},]+|[{},]')
# Of conntrack's own list for ICMPv6: what it does not track.
_UNTRACKED = {130, 131, 132, 133, 134, 135, 136, 137, 143}


@dataclass
class NftPacket:
    """One packet of this machine, the first of its connection."""

    source: Address
    destination: Address
    proto: str
    """tcp, udp, icmp or icmpv6."""
    source_port: int = 0
    destination_port: int = 0
    uid: int = 0
    mark: int = 0
    icmp_type: int = 0
    hop_limit: int = 64
    device: str = ""
    ct_mark: int | None = 0
    """None for what conntrack does not track."""
    translated: bool = False
    original_port: int = 0

    def __post_init__(self) -> None:
        self.original_port = self.destination_port
        if self.proto == "icmpv6" and self.icmp_type in _UNTRACKED:
            self.ct_mark = None


class NftModelError(Exception):
    """The script has a word that this model does not know."""


@dataclass
class NftTable:
    chains: dict[str, list[list[str]]] = field(default_factory=dict)
    policies: dict[str, str] = field(default_factory=dict)
    sets: dict[str, list[str]] = field(default_factory=dict)


@lru_cache(maxsize=64)
def read(script: str) -> NftTable:
    found = NftTable()
    kind = title = ""
    for line in map(str.strip, script.splitlines()):
        if match := re.fullmatch(r"(chain|set) (\w+) \{", line):
            kind, title = match[1], match[2]
            (found.chains if kind == "chain" else found.sets)[title] = []
        elif line == "}":
            kind = ""
        elif kind == "set" and line.startswith("elements = {"):
            found.sets[title] = line.removeprefix("elements = {").removesuffix("}").strip().split(", ")
        elif kind == "chain" and line.startswith("type "):
            found.policies[title] = line.rpartition("policy ")[2].rstrip(";")
        elif kind == "chain":
            found.chains[title].append(_TOKEN.findall(line))
    return found


def leaves(script: str, packet: NftPacket, route: Route, own: frozenset[Address], tun: str) -> str:
    """out, tunnel, forwarder or kept: what becomes of it. `own` are the addresses of this machine."""
    walk = _Path(read(script), packet, own)
    packet.device = route(packet)
    mark = packet.mark
    for chain in ("mark_out", "dns_out", "output"):
        if walk.run(chain) == "drop":
            return "kept"
    if packet.mark != mark:
        packet.device = route(packet)
    if packet.translated and packet.destination in own:
        packet.device = "lo"
    for chain in ("sources", "leaving"):
        if walk.run(chain) == "drop":
            return "kept"
    if packet.device == "lo":
        return "forwarder"
    return "tunnel" if packet.device == tun else "out"


class _Path:
    def __init__(self, table: NftTable, packet: NftPacket, own: frozenset[Address]) -> None:
        self._table = table
        self._packet = packet
        self._own = own

    def run(self, chain: str) -> str:
        found = self._chain(chain)
        return self._table.policies[chain] if found in ("", "return") else found

    def _chain(self, chain: str) -> str:
        for tokens in self._table.chains[chain]:
            found = self._rule(_Tokens(tokens))
            if found.startswith("goto "):
                return self._chain(found.removeprefix("goto "))
            if found == "return":
                return ""
            if found:
                return found
        return ""

    def _rule(self, tokens: _Tokens) -> str:
        """A verdict, or nothing."""
        packet = self._packet
        while tokens.left:
            word = tokens.take()
            match word:
                case "accept" | "drop" | "return":
                    return word
                case "reject":
                    return "drop"
                case "goto":
                    return f"goto {tokens.take()}"
                case "jump":
                    if found := self._chain(tokens.take()):
                        return found
                case "counter":
                    tokens.take("name")
                    tokens.take()
                case "masquerade":
                    packet.source = next(
                        each
                        for each in self._own
                        if each.version == packet.source.version and each not in self._tunnels()
                    )
                    return "accept"
                case "dnat":
                    version = 4 if tokens.take("ip", "ip6") == "ip" else 6
                    tokens.take("to")
                    target, _, port = tokens.take().rpartition(":")
                    if version == packet.destination.version:
                        packet.destination = ip_address(target.strip("[]"))
                        packet.destination_port = int(port)
                        packet.translated = True
                        return "accept"
                    return ""
                case _:
                    if not self._matches(word, tokens):
                        return ""
        return ""

    def _tunnels(self) -> set[Address]:
        return {ip_address(each) for version in "46" for each in self._table.sets[f"tunnel{version}"]}

    def _matches(self, word: str, tokens: _Tokens) -> bool:
        packet = self._packet
        if word in ("oifname", "iifname"):
            return self._compare(packet.device if word == "oifname" else "", tokens)
        if word in ("ip", "ip6"):
            return self._addresses(word, tokens)
        if word == "fib":
            tokens.take("daddr")
            tokens.take("type")
            negated = tokens.took("!=")
            tokens.take("local")
            return (packet.destination in self._own) != negated
        if word == "ct":
            return self._conntrack(tokens)
        if word == "meta":
            return self._meta(tokens)
        if word == "th":
            return self._port(tokens)
        if word in ("udp", "tcp"):
            if word == "tcp" and tokens.next == "flags":
                raise NftModelError("flags stand in no chain of the output path")
            return self._port(tokens) and packet.proto == word
        if word in ("icmp", "icmpv6"):
            tokens.take("type")
            return self._compare(packet.icmp_type, tokens) and packet.proto == word
        if word.startswith("@th"):
            # What stands in the packet itself: no packet of this model asks for our own name or quotes another.
            tokens.rest()
            return False
        raise NftModelError(word)

    def _addresses(self, word: str, tokens: _Tokens) -> bool:
        packet = self._packet
        version = 4 if word == "ip" else 6
        here = packet.destination.version == version
        which = tokens.take("saddr", "daddr", "hoplimit")
        if which == "hoplimit":
            return self._compare(packet.hop_limit, tokens) and here
        address = packet.source if which == "saddr" else packet.destination
        if tokens.took("."):
            return self._joined(address, tokens) and here
        if tokens.took("&"):
            mask = int(ip_address(tokens.take()))
            tokens.take("==")
            values = [int(ip_address(each)) for each in tokens.values()]
            return here and int(address) & mask in values
        return self._compare(address, tokens) and here

    def _joined(self, first: Address, tokens: _Tokens) -> bool:
        packet = self._packet
        parts: list[object] = [first]
        ported = True
        while True:
            kind, which = tokens.take(), tokens.take()
            if kind in ("th", "tcp"):
                ported = ported and packet.proto in (("tcp", "udp") if kind == "th" else ("tcp",))
                parts.append(packet.source_port if which == "sport" else packet.destination_port)
            else:
                parts.append(packet.source if which == "saddr" else packet.destination)
            if not tokens.took("."):
                break
        elements = self._table.sets[tokens.take().removeprefix("@")]
        return ported and " . ".join(map(str, parts)) in elements

    def _conntrack(self, tokens: _Tokens) -> bool:
        packet = self._packet
        word = tokens.take("mark", "state", "status", "direction", "original")
        if word == "mark":
            if tokens.took("set"):
                value = int(tokens.take(), 0)
                if packet.ct_mark is not None:
                    packet.ct_mark = value
                return packet.ct_mark is not None
            found = packet.ct_mark
            if tokens.took("&"):
                mask = int(tokens.take(), 0)
                found = None if found is None else found & mask
            same = self._compare(found, tokens)
            return same and found is not None
        if word == "state":
            return "new" in tokens.take().split(",") and packet.ct_mark is not None
        if word == "status":
            # The first packet: neither confirmed nor translated, but by `dns_out`.
            if tokens.took("&"):
                tokens.take("confirmed")
                tokens.take("==")
                tokens.take("0")
                return packet.ct_mark is not None
            tokens.take("dnat")
            return packet.translated
        if word == "direction":
            return tokens.take("original", "reply") == "original" and packet.ct_mark is not None
        tokens.take("proto-dst")
        return self._compare(packet.original_port, tokens)

    def _meta(self, tokens: _Tokens) -> bool:
        packet = self._packet
        word = tokens.take("mark", "l4proto", "skuid", "nfproto")
        if word == "mark" and tokens.took("set"):
            packet.mark = int(tokens.take(), 0)
            return True
        values: dict[str, object] = {
            "mark": packet.mark,
            "l4proto": packet.proto,
            "skuid": packet.uid,
            "nfproto": f"ipv{packet.source.version}",
        }
        return self._compare(values[word], tokens)

    def _port(self, tokens: _Tokens) -> bool:
        word = tokens.take("sport", "dport")
        port = self._packet.source_port if word == "sport" else self._packet.destination_port
        return self._compare(port, tokens) and self._packet.proto in ("tcp", "udp")

    def _compare(self, value: object, tokens: _Tokens) -> bool:
        negated = tokens.took("!=")
        tokens.took("==")
        if tokens.took(">="):
            return isinstance(value, int) and value >= int(tokens.take())
        listed: list[str] = []
        for each in tokens.values():
            listed += self._table.sets[each[1:]] if each.startswith("@") else [each]
        return any(_holds(each.partition(" timeout ")[0], value) for each in listed) != negated


def _holds(element: str, value: object) -> bool:
    if isinstance(value, (IPv4Address, IPv6Address)):
        first, dash, last = element.partition("-")
        if dash:
            low, high = ip_address(first), ip_address(last)
            return low.version == value.version and int(low) <= int(value) <= int(high)
        return value in ip_network(element)
    if isinstance(value, int):
        if element == "echo-request":
            return value in (8, 128)
        first, dash, last = element.partition("-")
        return int(first, 0) <= value <= int(last if dash else first, 0)
    return element.strip('"') == value


class _Tokens:
    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._at = 0

    @property
    def left(self) -> bool:
        return self._at < len(self._tokens)

    @property
    def next(self) -> str:
        return self._tokens[self._at] if self.left else ""

    def take(self, *wanted: str) -> str:
        found = self.next
        if not found or (wanted and found not in wanted):
            raise NftModelError(f"{found or 'the end'} in {' '.join(self._tokens)}")
        self._at += 1
        return found

    def took(self, wanted: str) -> bool:
        if self.next != wanted:
            return False
        self._at += 1
        return True

    def values(self) -> list[str]:
        """One, or those in braces."""
        if not self.took("{"):
            return [self.take()]
        found = []
        while not self.took("}"):
            found.append(self.take())
            self.took(",")
        return found

    def rest(self) -> None:
        self._at = len(self._tokens)
