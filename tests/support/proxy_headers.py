"""PROXY headers as a proxy writes them."""

from __future__ import annotations

import struct
from ipaddress import ip_address

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
"""As in the specification."""


def proxy_header(client: str, options: bytes = b"") -> bytes:
    """Of a connection that `client` has made."""
    address = ip_address(client)
    target = address.__class__(1)
    block = address.packed + target.packed + struct.pack("!HH", 50_000, 4433) + options
    return SIGNATURE + struct.pack("!BBH", 0x21, 0x11 if address.version == 4 else 0x21, len(block)) + block


def local_header(family: int = 0, block: bytes = b"") -> bytes:
    """Of a connection of the proxy itself."""
    return SIGNATURE + struct.pack("!BBH", 0x20, family, len(block)) + block
