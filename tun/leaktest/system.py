"""What a leak test needs of the operating system: a capture of what leaves, counters, sockets bound to an interface.

tun/linux/capture.py and tun/macos/capture.py fill it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Protocol, Self

from .watch import Watch

SNAP: Final = 320
"""Bytes captured of a packet, from the IP header on; a canary has its token before that, behind any headers."""


class Capture(Protocol):
    """Feeds a `Watch` with all packets that leave by an interface other than loopback, while it is entered in a
    running loop. A context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def finish(self) -> int:
        """Read what is left, and say how many packets were not looked at so far: the kernel had to drop them, or this
        program has a fault or cannot read them."""


class LeakTestSystem(NamedTuple):
    """One for each operating system."""

    capture: Callable[[Watch], Capture]
    """Raises ConfigError where this process may not capture."""
    packets_sent: Callable[[], Mapping[str, int]]
    """Packets sent by each interface but loopback, from the kernel's counters. Raises CryprqError."""
    bind_to: Callable[[socket.socket, str], None]
    """Let what a socket sends leave by this interface, whatever the routes say. Raises OSError."""
