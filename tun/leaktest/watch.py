"""What a leak test proves from the packets that leave this machine.

A canary that is seen outside of the tunnel's interface has leaked, even if it never arrives. It is recognised
by its random text, and where a packet has no payload (a SYN) by its addresses and ports.

The kernel shows a capture every packet that leaves (packet(7)), behind the filter and the NAT. It may drop some when
there are more than we can read; then the test says that it has proved nothing.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryprq_proxy.rules.ranges import IPNetwork

from ..device.packets import ICMP6, UDP
from .canaries import Canary, find_tokens
from .packets import CapturedPacket, parse_packet
from .report import CanaryRow, CanaryVerdict, LeakReport

MAX_OTHERS: Final = 16
"""Destinations listed of what else left outside of the tunnel; the number of packets counts all."""
MAX_INTERFACES: Final = 64
"""Interfaces told apart in one run."""


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
        allowed: Sequence[IPNetwork] = (),
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
        # Wherever the token stands, in a malformed packet or in another program's tunnel, the canary is outside.
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
            other = (interface, str(packet))
            if other in self._others or len(self._others) < MAX_OTHERS:
                self._others[other] += 1

    def report(self, *, missed: int = 0, counters: Mapping[str, int] | None = None) -> LeakReport:
        """The result. `missed`: packets that the capture lost; `counters`: packets sent, by interface."""
        return LeakReport(
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

    def _row(self, canary: Canary, seen: _Seen) -> CanaryRow:
        if seen.outside:
            verdict = (
                CanaryVerdict.ALLOWED if self._is_allowed(_packed(canary.address)) else CanaryVerdict.LEAKED
            )
        elif seen.tunnel:
            verdict = CanaryVerdict.TUNNELLED
        else:
            verdict = CanaryVerdict.HERE if seen.answered else CanaryVerdict.BLOCKED
        where = [f"{interface} x{count}" for interface, count in sorted(seen.outside.items())]
        if seen.tunnel:
            where.append(f"{self._tunnel} x{seen.tunnel}")
        if seen.answered:
            where.append("answered")
        if seen.trouble and not seen.answered:
            where.append(seen.trouble)
        return CanaryRow(canary.name, canary.target, verdict, ", ".join(where))

    def _is_allowed(self, packed: bytes) -> bool:
        address = ipaddress.ip_address(packed)
        return any(address in network for network in self._allowed)

    def _is_expected(self, packet: CapturedPacket) -> bool:
        """What no tunnel carries: DHCP, neighbours, multicast, broadcast; and what settings let out."""
        address = ipaddress.ip_address(packet.destination)
        if address.is_multicast or address.is_link_local or packet.destination == b"\xff\xff\xff\xff":
            return True
        if packet.protocol == UDP and packet.port in (67, 68, 546, 547):
            return True
        if packet.protocol == ICMP6 and 133 <= packet.source_port <= 137:
            return True
        return self._is_allowed(packet.destination)


def _packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed
