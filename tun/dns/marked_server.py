"""A DNS server that is asked past the tunnel: its sockets have the link's mark."""

from __future__ import annotations

import socket

from cryprq_proxy.outbound.resolving.name_server import NameServer

from ..routing.marked_socket import marked_socket


def marked_server(address: str, mark: int, port: int = 53) -> NameServer:
    """`mark` is the link's, or 0 for none."""

    def open_socket(family: int, kind: int) -> socket.socket:
        return marked_socket(family, kind, mark)

    return NameServer(address, port, open_socket)
