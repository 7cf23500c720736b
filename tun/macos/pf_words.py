"""What stands in more than one of the client's rules of pf."""

from __future__ import annotations

from typing import Final

from ..routing.lan import Uplink

KINDS: Final = {4: "inet", 6: "inet6"}
"""IP version -> how pf.conf calls it."""
TCP_UDP: Final = "proto { tcp, udp }"
BOUND: Final = "keep state (if-bound)"
"""A state that is for one interface only."""


def label(cause: str) -> str:
    return f' label "{cause}"'


def gateway(uplink: Uplink) -> str:
    """Its address, with the interface where that belongs to it."""
    found = uplink.gateway or ""
    return f"{found}%{uplink.name}" if found.startswith("fe80:") and "%" not in found else found
