"""macOS tells by the routing socket (route(4)) what changes: interfaces, addresses and routes."""

from __future__ import annotations

import socket
from typing import Final

from .changes import Changes

AF_ROUTE: Final = 17
"""sys/socket.h; CPython has no name for it on some builds."""


def route_changes() -> Changes:
    """Each change of interfaces, addresses and routes, our own ones too. Raises OSError where the kernel tells none."""
    return Changes(socket.socket(AF_ROUTE, socket.SOCK_RAW, socket.AF_UNSPEC))
