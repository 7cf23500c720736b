"""Where a stream or a datagram goes: host and port, and their bytes.

One layout serves both sides of the program. SOCKS5 requests, SOCKS5 UDP headers and the link's own OPEN
frame all carry a destination as RFC 1928 section 5 draws it:

    +------+----------------------------+------+
    | ATYP |            ADDR            | PORT |      ATYP 1  IPv4, 4 bytes
    |  1   | 4, 16 or 1 + length bytes  |  2   |      ATYP 3  name, one byte of length, then the name
    +------+----------------------------+------+      ATYP 4  IPv6, 16 bytes

A `Destination` is always canonical: two spellings of one host compare equal, and policy sees one form only.
Names are lower-case A-labels without a trailing dot; addresses are what `inet_ntop` prints. Names whose last
label is a number ("127.1", "0x7f000001") are refused: the C resolver would read them as addresses, and no
top-level domain is a number. Names are never resolved here.
"""

from __future__ import annotations

import re
import struct
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import NamedTuple

from .errors import CryprqError

Buffer = bytes | bytearray | memoryview

ATYP_IPV4 = 1
ATYP_NAME = 3
ATYP_IPV6 = 4

MAX_NAME = 253
"""Longest name in bytes, without the trailing dot. The 255 of RFC 1035 section 2.3.4 include two bytes more."""

MAX_ENCODED = 1 + 1 + MAX_NAME + 2
"""Size in bytes of the longest destination that `encode` makes."""

MAX_TEXT = 1024
"""Longest text that `parse_host_port` accepts, in characters; far more than any name needs."""

OWN_NAME = "cryprq.test"
"""The name at which the client answers itself (fronts/own_page.py). It never leaves this machine. Nobody has a name
below `test` (RFC 6761 section 6.2)."""

_PORT = struct.Struct("!H")
# RFC 1123 does not allow the underscore in host names, yet such hosts exist.
_NAME = re.compile(rb"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_NUMBER = re.compile(rb"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")


class AddressError(CryprqError, ValueError):
    """An invalid host, port or encoding."""


class UnknownAddressType(AddressError):
    """An ATYP other than 1, 3 and 4."""


class Destination(NamedTuple):
    """A canonical host and a port; made by `parse_host_port`, by `decode`, or from parts known to be canonical."""

    host: str
    """An IPv4 or IPv6 literal (no brackets, no zone), or a lower-case A-label name."""
    port: int
    """0 to 65535."""

    @property
    def is_ip(self) -> bool:
        """Whether `host` is an address, not a name to be resolved."""
        return ":" in self.host or self.host.rpartition(".")[2].isdecimal()

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def encode(destination: Destination) -> bytes:
    """The RFC 1928 section 5 form, at most `MAX_ENCODED` bytes. Raises AddressError if not canonical."""
    host, port = destination
    if not 0 <= port <= 0xFFFF:
        raise AddressError(f"{port} is not a port; ports are 0 to 65535")
    try:
        if destination.is_ip:
            if ":" in host:
                return b"\x04" + inet_pton(AF_INET6, host) + _PORT.pack(port)
            return b"\x01" + inet_pton(AF_INET, host) + _PORT.pack(port)
        name = host.encode("ascii")
    except (OSError, ValueError):
        raise AddressError(f"{host[:MAX_NAME]!r} is not an address or a name in ASCII") from None
    if len(name) > MAX_NAME or not _NAME.fullmatch(name) or _NUMBER.fullmatch(name):
        raise AddressError(f"{host[:MAX_NAME]!r} is not a host name")
    return b"\x03" + len(name).to_bytes() + name + _PORT.pack(port)


def encoded_size(buffer: Buffer, offset: int = 0) -> int:
    """The size in bytes of the destination at `offset`; 0 if `buffer` is too short to tell (two bytes are enough).

    Raises UnknownAddressType.
    """
    if len(buffer) <= offset:
        return 0
    kind = buffer[offset]
    if kind == ATYP_IPV4:
        return 7
    if kind == ATYP_IPV6:
        return 19
    if kind != ATYP_NAME:
        raise UnknownAddressType(f"address type {kind} is unknown; 1, 3 and 4 are known")
    return buffer[offset + 1] + 4 if len(buffer) > offset + 1 else 0


def decode(buffer: Buffer, offset: int = 0) -> tuple[Destination, int]:
    """The destination that begins at `offset`, and the offset after it.

    A name that is an address literal becomes that address. Raises AddressError if the destination is truncated,
    malformed or of an unknown type.
    """
    end = offset + encoded_size(buffer, offset)
    if end == offset or end > len(buffer):
        raise AddressError("the destination is truncated")
    kind = buffer[offset]
    if kind == ATYP_NAME:
        host = canonical_host(bytes(buffer[offset + 2 : end - 2]))
    else:
        host = inet_ntop(AF_INET if kind == ATYP_IPV4 else AF_INET6, buffer[offset + 1 : end - 2])
    return Destination(host, buffer[end - 2] << 8 | buffer[end - 1]), end


def canonical_host(raw: bytes) -> str:
    """The canonical form of a name or an address literal in ASCII (no brackets). Raises AddressError."""
    name = raw.lower()
    if name.endswith(b"."):
        name = name[:-1]
    if _NAME.fullmatch(name) and len(name) <= MAX_NAME:
        text = name.decode("ascii")
        if not _NUMBER.fullmatch(name):
            return text
        family = AF_INET
    elif b":" in raw and len(raw) <= 45 and raw.isascii():
        text = raw.decode("ascii")
        family = AF_INET6
    else:
        raise AddressError(f"{_shown(raw)} is not a host name")
    try:
        return inet_ntop(family, inet_pton(family, text))
    except (OSError, ValueError):
        raise AddressError(f"{_shown(raw)} is neither a host name nor an address") from None


def packed(host: str) -> bytes | None:
    """The 4 or 16 bytes of an address literal (no brackets, no zone), None for anything else."""
    try:
        return inet_pton(AF_INET6 if ":" in host else AF_INET, host)
    except (OSError, ValueError):
        return None


def is_localhost(name: str) -> bool:
    """Whether the canonical `name` has no owner and means loopback: localhost, and the names below it (RFC 6761
    section 6.3)."""
    return name == "localhost" or name.endswith(".localhost")


def parse_host_port(text: str, default_port: int | None = None) -> Destination:
    """Read "host:port" or "[v6]:port" and, with a `default_port`, also "host", "[v6]" and "v6".

    IDNA converts names that are not ASCII. Raises AddressError with a text for the person.
    """
    if len(text) > MAX_TEXT:
        raise AddressError(f"{text[:40]!r}... is too long for a host and a port")
    if not text:
        raise AddressError("expected a host and a port, as in example.com:443, got nothing")
    if "://" in text:
        raise AddressError(f"{text!r} has a scheme in front; write only host and port, as in example.com:443")
    literal = text.startswith("[")
    if literal:
        host, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in host or (rest and not rest.startswith(":")):
            raise AddressError(f"{text!r} is not an IPv6 address in brackets, as in [2001:db8::1]:443")
        port_text = rest[1:] if rest else None
    elif text.count(":") > 1:
        # The last group could also be a port, so this form is allowed only where the port may be left out.
        if default_port is None:
            raise AddressError(f"{text!r} needs brackets around the IPv6 address, as in [2001:db8::1]:443")
        host, port_text = text, None
    else:
        host, colon, after = text.partition(":")
        port_text = after if colon else None
    if port_text is None:
        if default_port is None:
            raise AddressError(f"{text!r} lacks a port, as in {text}:443")
        return Destination(_parse_host(host), default_port)
    if not (port_text.isascii() and port_text.isdecimal() and len(port_text) <= 5) or int(port_text) > 0xFFFF:
        raise AddressError(f"{port_text!r} is not a port; ports are 0 to 65535")
    if not host:
        raise AddressError(f"{text!r} lacks a host in front of the colon, as in 127.0.0.1:{port_text or 443}")
    return Destination(_parse_host(host), int(port_text))


def reachable(address: Destination) -> Destination:
    """The address at which programs here reach a listener on `address`: loopback if it listens everywhere."""
    if address.host in ("0.0.0.0", "::"):
        return Destination("::1" if ":" in address.host else "127.0.0.1", address.port)
    return address


def _parse_host(host: str) -> str:
    if host.isascii():
        return canonical_host(host.encode("ascii"))
    try:
        return canonical_host(host.encode("idna"))
    except UnicodeError:
        raise AddressError(f"{host!r} is not a name that IDNA can express") from None


def _shown(raw: bytes) -> str:
    return ascii(raw[:64].decode("latin-1")) + ("..." if len(raw) > 64 else "")
