"""The hosts file (hosts(5)), which may hold any bytes."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Final

MAX_ADDRESSES: Final = 32
"""Addresses kept for one name."""


def read_hosts(content: bytes) -> Mapping[str, tuple[str, ...]]:
    """The addresses of each name, lower-case and without a dot at its end; IPv6 first, at most `MAX_ADDRESSES`."""
    found: dict[str, list[str]] = {}
    for line in content.split(b"\n"):
        words = line.partition(b"#")[0].split()
        if len(words) < 2:
            continue
        try:
            # UnicodeDecodeError is a ValueError.
            address = str(ipaddress.ip_address(words[0].decode("ascii")))
        except ValueError:
            continue
        for word in words[1:]:
            addresses = found.setdefault(word.lower().rstrip(b".").decode("ascii", "replace"), [])
            if address not in addresses and len(addresses) < MAX_ADDRESSES:
                addresses.append(address)
    return {name: tuple(sorted(found[name], key=lambda address: ":" not in address)) for name in found}
