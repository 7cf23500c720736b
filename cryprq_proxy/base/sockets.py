"""What every TCP socket of the program is set to, whatever it connects."""

from __future__ import annotations

import contextlib
import socket
from typing import Final

_CONGESTION: Final = getattr(socket, "TCP_CONGESTION", None)
_UNPACED: Final = b"reno"
"""Always there on Linux, and open to everybody."""


def prepare(sock: socket.socket, host: str) -> socket.socket:
    """Make `sock`, which is or will be connected to the IP address `host`, non-blocking and prompt.

    Where the other end is a program on this machine there is no path to be gentle with: a congestion control that
    paces what it sends (BBR) would only set a timer for every piece.
    """
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if _CONGESTION is not None and (host.startswith("127.") or host == "::1"):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, _CONGESTION, _UNPACED)
    return sock
