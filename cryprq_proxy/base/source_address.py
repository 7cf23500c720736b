"""The source address of what leaves for the Internet, and so whether there is a default route."""

from __future__ import annotations

import socket
from ipaddress import IPv6Address, ip_address
from typing import Final

_OUTSIDE: Final = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses for documentation (RFC 5737, RFC 3849): their route is the default route."""


def source_address(family: socket.AddressFamily) -> str | None:
    """The address, or None without a default route of this family. Connecting a UDP socket sends nothing."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((_OUTSIDE[family], 9))
            own = ip_address(sock.getsockname()[0])
    except OSError:
        return None
    if own.is_loopback or own.is_unspecified or (isinstance(own, IPv6Address) and own.is_link_local):
        return None
    return str(own)
