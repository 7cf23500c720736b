"""What a leak test sends: packets of the kinds that leak in practice, each with a random text of its own.

The kinds are DNS, plain TCP, ICMP, and UDP as QUIC and STUN use it, of both families. A canary is recognised by its
random text (`find_tokens`) anywhere in a packet, even if a local resolver has sent the question on to another server.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import dns.message

from ..device.packets import ICMP, ICMP6, TCP, UDP

PREFIX: Final = b"cqleak"
TOKEN_SIZE: Final = len(PREFIX) + 16
"""Bytes of a token: the prefix and 8 random bytes in hexadecimal. A label of DNS, too."""


@dataclass(frozen=True, slots=True)
class CanaryTargets:
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


def canaries(targets: CanaryTargets) -> list[Canary]:
    """All canaries for `targets`, each with a token of its own."""

    def one(name: str, protocol: int, address: str, port: int, device: str = "") -> Canary:
        token = PREFIX + secrets.token_hex(8).encode()
        payload = _PAYLOADS[name](token, targets.domain) if name in _PAYLOADS else token
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
                one("ping", ICMP6 if ":" in address else ICMP, address, 0, device),
            )
    return made


def _question(token: bytes, domain: str) -> bytes:
    return dns.message.make_query(f"{token.decode()}.{domain}", "A").to_wire()


def _question_in_stream(token: bytes, domain: str) -> bytes:
    question = _question(token, domain)
    return len(question).to_bytes(2) + question


def _quic(token: bytes, _: str) -> bytes:
    """The long header of an Initial packet (RFC 9000 section 17.2) of a version that no program uses."""
    return b"\xc0\x1a\x2a\x3a\x4a\x08" + secrets.token_bytes(8) + b"\x00" + token


def _stun(token: bytes, _: str) -> bytes:
    """A Binding request with a SOFTWARE attribute (RFC 8489 sections 5 and 14.14)."""
    attribute = struct.pack("!HH", 0x8022, len(token)) + token + bytes(-len(token) % 4)
    return struct.pack("!HHI", 0x0001, len(attribute), 0x2112A442) + secrets.token_bytes(12) + attribute


_PAYLOADS: Final = {
    "DNS over UDP": _question,
    "DNS over TCP": _question_in_stream,
    "QUIC": _quic,
    "STUN": _stun,
}


def find_tokens(data: bytes) -> Iterator[bytes]:
    """The tokens in `data`, in any case: resolvers mix the case of a question (draft-vixie-dnsext-dns0x20)."""
    lowered = data.lower()
    position = lowered.find(PREFIX)
    while position >= 0:
        yield lowered[position : position + TOKEN_SIZE]
        position = lowered.find(PREFIX, position + 1)
