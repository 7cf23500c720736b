"""The header in which a TCP proxy in front of the exit names its client: PROXY protocol, version 2, the binary one.

     0            12      13         14        16
    +------------+-------+----------+---------+--------------------------------------+
    | SIGNATURE  | 2 | C | family   | length  | source, target, their ports; options |
    +------------+-------+----------+---------+--------------------------------------+

C is PROXY, or LOCAL for a connection of the proxy itself, such as a health check. The header is read from the addresses
that the configuration names, and from no others; from those it must come. What it says counts for rates and in the
log, and gives no rights. Text (version 1), other families and more than MAX_HEADER bytes are refused; options are
skipped. (HAProxy's proxy-protocol.txt, section 2.2.)
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from ..errors import HandshakeError

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
HEAD: Final = struct.Struct("!12sBBH")
MAX_HEADER: Final = 536
"""Bytes; a TCP proxy's fits in one packet everywhere."""
LOCAL: Final = 0x20
PROXY: Final = 0x21
"""Both with the version."""
_TCP4: Final = 0x11
_TCP6: Final = 0x21
_SIZES: Final = {_TCP4: 4, _TCP6: 16}
"""Bytes of an address."""
_PORTS: Final = 4


class ProxyHeader:
    """Reads one header from pieces (first_flight.Pieces)."""

    __slots__ = ("_data", "_size")

    def __init__(self) -> None:
        self._data = bytearray()
        self._size = HEAD.size

    @property
    def missing(self) -> int:
        return self._size - len(self._data)

    def feed(self, data: bytes) -> None:
        """Take `missing` bytes or fewer. Raises HandshakeError."""
        self._data += data
        if not SIGNATURE.startswith(self._data[: len(SIGNATURE)]):
            raise HandshakeError("a proxy sent no PROXY header of version 2")
        if len(self._data) == HEAD.size == self._size:
            self._size += self._rest()

    def client(self, proxy: str) -> str:
        """The client's address, when nothing is missing; that of the `proxy` if it speaks for itself."""
        _, command, family, _ = HEAD.unpack_from(self._data)
        if command == LOCAL:
            return proxy
        return str(ip_address(bytes(self._data[HEAD.size : HEAD.size + _SIZES[family]])))

    def _rest(self) -> int:
        """The number of bytes behind the head."""
        _, command, family, rest = HEAD.unpack(self._data)
        if command not in (LOCAL, PROXY):
            raise HandshakeError("a PROXY header has an unknown version or command")
        if command == PROXY and (family not in _SIZES or rest < 2 * _SIZES[family] + _PORTS):
            raise HandshakeError("a PROXY header names no address")
        if HEAD.size + rest > MAX_HEADER:
            raise HandshakeError("a PROXY header is too long")
        return int(rest)


def is_among(host: str, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
    """Whether the address `host` is in one of `networks`; a v4-mapped address counts as the IPv4 one."""
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in networks)
