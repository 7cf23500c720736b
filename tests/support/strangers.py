"""What somebody can do who has no place on the exit's list."""

from __future__ import annotations

import contextlib
import socket

from cryprq_proxy.crypto.client_handshake import ClientHandshake
from cryprq_proxy.crypto.identity import Identity, PeerId
from cryprq_proxy.crypto.primitives import select_provider


def silence(sock: socket.socket) -> None:
    """Not one byte comes back, and the connection ends; whether with an end or a reset does not matter."""
    with contextlib.suppress(ConnectionResetError):
        assert sock.recv(1) == b""


def first_flight(exit_id: str) -> bytes:
    provider = select_provider()
    handshake = ClientHandshake(Identity.generate(provider), PeerId.parse(exit_id), provider)
    flight = handshake.write_first()
    return len(flight).to_bytes(2) + flight
