"""The options of TCP sockets, and the time that one has to connect."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Final

CONNECT_TIMEOUT: Final = 10.0
"""Seconds to connect a target, resolving included, unless an exit's configuration says otherwise."""
_CONGESTION: Final = getattr(socket, "TCP_CONGESTION", None)
_UNPACED: Final = b"reno"
"""A congestion control that Linux always has and every user may choose."""
_LINGER_RESET: Final = struct.pack("ii", 1, 0)


def prepare(sock: socket.socket, host: str) -> socket.socket:
    """Make `sock` non-blocking and prompt; `host` is the IP address of its other end.

    A connection on this machine crosses no network: a congestion control that paces (BBR) would only set a timer for
    every piece.
    """
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if _CONGESTION is not None and (host.startswith("127.") or host == "::1"):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, _CONGESTION, _UNPACED)
    return sock


def set_reset_on_close(sock: socket.socket) -> None:
    """Let `close` send a TCP reset, so that the application sees an error and not an early end."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
