"""What a leak test sends, how its packets are recognised on the wire, and what that proves. No socket is used here.

    canaries(targets)  ->  leakprobe sends them and captures  ->  Watch.frame(interface, packet) ...  ->  Watch.report()

A canary is a packet with something random in it, of a kind that leaks in practice: DNS, plain TCP, ICMP, UDP as QUIC
and STUN use it, of both families. One that is seen outside of the tunnel's interface has leaked, whatever became of it
further on. It is known by its random text anywhere in a packet, even if somebody has sent the question on to
another server, and where a packet has no payload (a SYN) by its addresses and ports.

The kernel shows a capture every packet that leaves (packet(7)), behind the filter and the NAT. It may drop some when
there is more than we can read; then the test says that it has proved nothing.
"""

from __future__ import annotations

import enum
import ipaddress
import secrets
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import dns.message
import dns.name

ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
ICMPV6: Final = 58

PREFIX: Final = b"cqleak"
TOKEN_SIZE: Final = len(PREFIX) + 16
"""Bytes of a token: the prefix and 8 random bytes in hexadecimal. A label of DNS, too."""
MAX_OTHERS: Final = 16
"""Destinations listed of what else left outside of the tunnel; the number of packets counts all."""
MAX_INTERFACES: Final = 64
"""Interfaces told apart in one run."""

type Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Verdict(enum.StrEnum):
    TUNNELLED = "tunnelled"
    """Seen on the tunnel's interface and nowhere else."""
    HERE = "answered here"
    """Answered, and seen on no interface: by the DNS forwarder of this machine."""
    BLOCKED = "blocked"
    """Seen nowhere, and not answered."""
    ALLOWED = "allowed"
    """Seen outside, where a setting (the LAN, an exclusion) lets it go."""
    LEAKED = "LEAKED"


@dataclass(frozen=True, slots=True)
class Targets:
    """Where canaries go. The defaults are public resolvers; what they do not serve they ignore."""

    dns: Sequence[str] = ("8.8.8.8", "9.9.9.9", "2001:4860:4860::8888", "2620:fe::fe")
    hosts: Sequence[str] = ("1.1.1.1", "8.8.4.4", "2606:4700:4700::1111", "2001:4860:4860::8844")
    """For TCP, UDP and ICMP."""
    domain: str = "example.com"
    """DNS canaries ask for a random name below it."""
    devices: Sequence[str] = ()
    """Outer interfaces: canaries are also sent by sockets bound to them, as some applications do, past the routes."""


@dataclass(frozen=True, slots=True)
class Canary:
    """One kind of packet to one address."""

    name: str
    protocol: int
    address: str
    port: int
    """0 for ICMP."""
    payload: bytes
    token: bytes
    device: str = ""

    @property
    def target(self) -> str:
        """For people: address and port, and the interface it is bound to."""
        host = f"[{self.address}]" if ":" in self.address and self.port else self.address
        return (f"{host}:{self.port}" if self.port else host) + (f" on {self.device}" if self.device else "")


def canaries(targets: Targets) -> list[Canary]:
    """All canaries for `targets`, each with a token of its own."""

    def one(name: str, protocol: int, address: str, port: int, device: str = "") -> Canary:
        token = PREFIX + secrets.token_hex(8).encode()
        payload = _PAYLOADS.get(name, _plain)(token, targets.domain)
        return Canary(name, protocol, address, port, payload, token, device)

    made: list[Canary] = []
    for address in targets.dns:
        made += (
            one("DNS over UDP", UDP, address, 53),
            one("DNS over TCP", TCP, address, 53),
            one("DNS over TLS", TCP, address, 853),
        )
    for device in ("", *targets.devices):
        for address in targets.hosts:
            made += (
                one("TCP", TCP, address, 443, device),
                one("QUIC", UDP, address, 443, device),
                one("STUN", UDP, address, 3478, device),
                one("ping", ICMPV6 if ":" in address else ICMP, address, 0, device),
            )
    return made


def _question(token: bytes, domain: str) -> bytes:
    return dns.message.make_query(f"{token.decode()}.{domain}", "A").to_wire()


def _question_in_stream(token: bytes, domain: str) -> bytes:
    question = _question(token, domain)
    return len(question).to_bytes(2) + question


def _quic(token: bytes, _: str) -> bytes:
    """The long header of an Initial packet (RFC 9000 section 17.2) of a version that is nobody's."""
    return b"\xc0\x1a\x2a\x3a\x4a\x08" + secrets.token_bytes(8) + b"\x00" + token


def _stun(token: bytes, _: str) -> bytes:
    """A Binding request with a SOFTWARE attribute (RFC 8489 sections 5 and 14.14)."""
    attribute = struct.pack("!HH", 0x8022, len(token)) + token + bytes(-len(token) % 4)
    return struct.pack("!HHI", 0x0001, len(attribute), 0x2112A442) + secrets.token_bytes(12) + attribute


def _plain(token: bytes, _: str) -> bytes:
    return token


_PAYLOADS: Final = {
    "DNS over UDP": _question,
    "DNS over TCP": _question_in_stream,
    "QUIC": _quic,
    "STUN": _stun,
}


# Packets on the wire


class Packet(NamedTuple):
    """What of an IP packet matters here."""

    protocol: int
    destination: bytes
    """Packed, 4 or 16 bytes."""
    source_port: int
    port: int
    """0 for what has no ports, and for fragments but the first. An ICMP message has its type in `source_port`."""


_EXTENSIONS: Final = frozenset({0, 43, 60})
"""IPv6: hop-by-hop, routing, destination options, all of one layout (RFC 8200 section 4)."""
_FRAGMENT: Final = 44
_MAX_EXTENSIONS: Final = 8
_PORTS: Final = struct.Struct("!HH")


def parse_packet(data: bytes) -> Packet | None:
    """The packet in `data`, which begins with the IP header and may be cut off behind the headers. Raises nothing."""
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= 20:
        start = (data[0] & 0x0F) * 4
        later = bool(int.from_bytes(data[6:8]) & 0x1FFF)
        return _transport(data, start, data[9], data[16:20], later) if start >= 20 else None
    if version != 6 or len(data) < 40:
        return None
    protocol, start, later = data[6], 40, False
    for _ in range(_MAX_EXTENSIONS):
        if protocol not in _EXTENSIONS and protocol != _FRAGMENT:
            break
        if len(data) < start + 8:
            return None
        if protocol == _FRAGMENT:
            later = later or bool(int.from_bytes(data[start + 2 : start + 4]) & 0xFFF8)
            size = 8
        else:
            size = (data[start + 1] + 1) * 8
        protocol, start = data[start], start + size
        if later:
            break
    return _transport(data, start, protocol, data[24:40], later)


def _transport(data: bytes, start: int, protocol: int, destination: bytes, later: bool) -> Packet | None:
    if later or protocol not in (TCP, UDP, ICMP, ICMPV6):
        return Packet(protocol, destination, 0, 0)
    if len(data) < start + _PORTS.size:
        return None
    if protocol in (ICMP, ICMPV6):
        return Packet(protocol, destination, data[start], 0)
    return Packet(protocol, destination, *_PORTS.unpack_from(data, start))


def find_tokens(data: bytes) -> Iterator[bytes]:
    """The tokens in `data`, in any case: resolvers mix the case of a question (draft-vixie-dnsext-dns0x20)."""
    lowered = data.lower()
    position = lowered.find(PREFIX)
    while position >= 0:
        yield lowered[position : position + TOKEN_SIZE]
        position = lowered.find(PREFIX, position + 1)


# What it proves


@dataclass(slots=True)
class _Seen:
    tunnel: int = 0
    outside: Counter[str] = field(default_factory=Counter)
    answered: bool = False
    trouble: str = ""


class Watch:
    """Takes what a capture sees and what the senders report; `report` says what it proves.

    `tunnel` is the tunnel's interface, `exits` the addresses and ports of the exits: to them, anything may go outside
    (it is the link), but canaries. `allowed` are the networks that settings let out: the LAN, exclusions.
    """

    def __init__(
        self,
        sent: Sequence[Canary],
        *,
        tunnel: str,
        exits: Sequence[tuple[str, int]] = (),
        allowed: Sequence[Network] = (),
    ) -> None:
        self._canaries = list(sent)
        self._tunnel = tunnel
        self._exits = {(_packed(address), port) for address, port in exits}
        self._allowed = tuple(allowed)
        self._seen = [_Seen() for _ in sent]
        self._by_token = {canary.token: number for number, canary in enumerate(self._canaries)}
        self._by_flow: dict[tuple[int, bytes, int, int], int] = {}
        self._interfaces: set[str] = set()
        self._link = 0
        self._others: Counter[tuple[str, str]] = Counter()
        self._other_packets = 0

    def launched(self, number: int, source_port: int) -> None:
        """Canary `number` leaves from this port: its packets without payload are known by that."""
        canary = self._canaries[number]
        self._by_flow[canary.protocol, _packed(canary.address), canary.port, source_port] = number

    def answered(self, number: int) -> None:
        """Canary `number` has an answer."""
        self._seen[number].answered = True

    def trouble(self, number: int, why: str) -> None:
        """The system has refused to send canary `number`; `why` in a few words."""
        self._seen[number].trouble = why

    def frame(self, interface: str, data: bytes) -> None:
        """A packet that leaves by `interface` (not loopback), from the IP header on, cut or not. Raises nothing."""
        if interface not in self._interfaces:
            if len(self._interfaces) >= MAX_INTERFACES and interface != self._tunnel:
                interface = "more"
            self._interfaces.add(interface)
        # Wherever it stands: in a malformed packet, in a tunnel of somebody else's, it is out.
        found = [self._by_token[token] for token in find_tokens(data) if token in self._by_token]
        packet = parse_packet(data)
        if packet is not None and not found:
            flow = (packet.protocol, packet.destination, packet.port, packet.source_port)
            found = [self._by_flow[flow]] if flow in self._by_flow else []
        for number in found:
            if interface == self._tunnel:
                self._seen[number].tunnel += 1
            else:
                self._seen[number].outside[interface] += 1
        if packet is None or found or interface == self._tunnel:
            return
        if (packet.destination, packet.port) in self._exits:
            self._link += 1
        elif not self._is_expected(packet):
            self._other_packets += 1
            other = (interface, _shown(packet))
            if other in self._others or len(self._others) < MAX_OTHERS:
                self._others[other] += 1

    def report(self, *, missed: int = 0, counters: Mapping[str, int] | None = None) -> Report:
        """The result. `missed`: packets that the capture lost; `counters`: packets sent, by interface."""
        return Report(
            rows=tuple(
                self._row(canary, seen) for canary, seen in zip(self._canaries, self._seen, strict=True)
            ),
            link=self._link,
            others=tuple(
                (interface, shown, count) for (interface, shown), count in self._others.most_common()
            ),
            other_packets=self._other_packets,
            missed=missed,
            counters=dict(counters or {}),
        )

    def _row(self, canary: Canary, seen: _Seen) -> Row:
        if seen.outside:
            verdict = Verdict.ALLOWED if self._is_allowed(_packed(canary.address)) else Verdict.LEAKED
        elif seen.tunnel:
            verdict = Verdict.TUNNELLED
        else:
            verdict = Verdict.HERE if seen.answered else Verdict.BLOCKED
        where = [f"{interface} x{count}" for interface, count in sorted(seen.outside.items())]
        if seen.tunnel:
            where.append(f"{self._tunnel} x{seen.tunnel}")
        if seen.answered:
            where.append("answered")
        if seen.trouble and not seen.answered:
            where.append(seen.trouble)
        return Row(canary.name, canary.target, verdict, ", ".join(where))

    def _is_allowed(self, packed: bytes) -> bool:
        address = ipaddress.ip_address(packed)
        return any(address in network for network in self._allowed)

    def _is_expected(self, packet: Packet) -> bool:
        """What no tunnel carries: DHCP, neighbours, multicast, broadcast; and what settings let out."""
        address = ipaddress.ip_address(packet.destination)
        if address.is_multicast or address.is_link_local or packet.destination == b"\xff\xff\xff\xff":
            return True
        if packet.protocol == UDP and packet.port in (67, 68, 546, 547):
            return True
        if packet.protocol == ICMPV6 and 133 <= packet.source_port <= 137:
            return True
        return self._is_allowed(packet.destination)


class Row(NamedTuple):
    """The result for one canary."""

    name: str
    target: str
    verdict: Verdict
    seen: str
    """For people: the interfaces, whether it was answered, what the system said."""


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a leak test."""

    rows: tuple[Row, ...]
    link: int
    """Packets of the link to an exit, outside."""
    others: tuple[tuple[str, str, int], ...]
    """Of what else left outside: interface, protocol and destination, packets. No canaries: no proof of a leak, since
    a setting may let it go (`--exclude-uid`, `--inbound keep`)."""
    other_packets: int
    missed: int
    """Packets that the capture lost; then a canary may have been among them."""
    counters: dict[str, int]
    """Packets that left meanwhile, by interface, from the kernel's counters."""

    @property
    def leaks(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.verdict is Verdict.LEAKED)

    @property
    def exit_code(self) -> int:
        """1 on any leak, and also where the capture has lost packets, so that nothing is proved; else 0."""
        return 1 if self.leaks or self.missed else 0


def render(report: Report) -> str:
    """The report as lines for a terminal, without colours."""
    head = ("canary", "target", "verdict", "seen")
    table = [head, *((row.name, row.target, str(row.verdict), row.seen) for row in report.rows)]
    widths = [max(len(line[column]) for line in table) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[3]]).rstrip()
        for line in table
    ]
    lines.append("")
    if report.counters:
        sent = ", ".join(f"{interface} {count}" for interface, count in sorted(report.counters.items()))
        lines.append(f"packets that left meanwhile: {sent}; {report.link} of them seen to be the link")
    for interface, shown, count in report.others:
        lines.append(f"also left outside of the tunnel: {shown} on {interface} ({count} packets)")
    listed = sum(count for _, _, count in report.others)
    if report.other_packets > listed:
        lines.append(f"and {report.other_packets - listed} packets more to other destinations")
    counts = Counter(row.verdict for row in report.rows)
    summary = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    if report.leaks:
        lines.append(f"LEAK: {summary}")
    elif report.missed:
        lines.append(f"nothing proved: the capture lost {report.missed} packets; try again with less traffic")
    else:
        lines.append(f"no leak: {summary or 'nothing was sent'}")
    return "\n".join(lines)


def _packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def _shown(packet: Packet) -> str:
    name = {TCP: "TCP", UDP: "UDP", ICMP: "ICMP", ICMPV6: "ICMPv6"}.get(
        packet.protocol, f"protocol {packet.protocol}"
    )
    address = ipaddress.ip_address(packet.destination)
    if not packet.port:
        return f"{name} to {address}"
    return (
        f"{name} to [{address}]:{packet.port}"
        if address.version == 6
        else f"{name} to {address}:{packet.port}"
    )
