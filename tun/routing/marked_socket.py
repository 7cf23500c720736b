"""Sockets that leave past the tunnel: routing and filter know them by the link's mark."""

from __future__ import annotations

import socket


def marked_socket(family: int, kind: int, mark: int) -> socket.socket:
    """A non-blocking socket; without a mark for 0. Raises OSError, also without the right to set the mark."""
    sock = socket.socket(family, kind)
    try:
        sock.setblocking(False)
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    except BaseException:
        sock.close()
        raise
    return sock
