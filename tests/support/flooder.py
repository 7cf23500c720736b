"""A listed client whose frames are the caller's own, and floods of each kind."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryprq_proxy.address import Destination
from cryprq_proxy.config.keys import load_identity
from cryprq_proxy.crypto.client_handshake import ClientHandshake
from cryprq_proxy.crypto.handshake import record_keys
from cryprq_proxy.crypto.identity import PeerId
from cryprq_proxy.crypto.primitives import select_provider
from cryprq_proxy.errors import StreamReason
from cryprq_proxy.session import wire
from cryprq_proxy.session.records import RecordSealer
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.applications import connect, read_exactly

CLOSED_PORT: Final = Destination("127.0.0.1", 9)


def frames_at(make: Callable[[int], bytes], first: int) -> bytes:
    return b"".join(make(first + number) for number in range(2_000))


FLOODS: Final[dict[str, Callable[[int], bytes]]] = {
    "OPEN and RESET": lambda number: (
        wire.encode_open(number, StreamProtocol.TCP, CLOSED_PORT)
        + wire.encode_reset(number, StreamReason.CANCELLED, 0)
    ),
    "RESET": lambda _: wire.encode_reset(1, StreamReason.GENERAL, 0),
    "DATAGRAM": lambda _: wire.encode_datagram(1, CLOSED_PORT, b"x"),
    "OPEN again": lambda _: wire.encode_open(1, StreamProtocol.UDP, CLOSED_PORT),
    "PREFER": lambda number: wire.encode_prefer(number, number),
    "WINDOW": lambda _: wire.encode_window(1, 1),
    "PING": lambda number: wire.encode_number(wire.PING, number),
}


class Flooder:
    """A client with the identity in the file `key`, which is on the list of the exit `peer_id` at `port`.

    Close `sock` in the end.
    """

    def __init__(self, peer_id: str, port: int, key: Path) -> None:
        provider = select_provider()
        self._handshake = ClientHandshake(load_identity(provider, key), PeerId.parse(peer_id), provider)
        self.sock = connect(port)
        first = self._handshake.write_first()
        self.sock.sendall(len(first).to_bytes(2) + first)
        self._handshake.read_second(read_exactly(self.sock, int.from_bytes(read_exactly(self.sock, 2))))
        third = self._handshake.write_third(None)
        self.sock.sendall(len(third).to_bytes(2) + third)
        read_exactly(self.sock, int.from_bytes(read_exactly(self.sock, 4)))
        established = self._handshake.result
        self._sealer = RecordSealer(established.cipher, record_keys(established.epoch.records, 0)[0])
        self._ended = threading.Event()
        self.sent = 0

    def run(self, make: Callable[[int], bytes]) -> None:
        """Send as fast as the exit takes it, until `end` or until the exit has had enough; read nothing but to drop."""
        reader = threading.Thread(target=self._drop)
        reader.start()
        self.sock.sendall(self._sealer.seal(wire.encode_open(1, StreamProtocol.UDP, CLOSED_PORT)))
        number = 2
        with contextlib.suppress(OSError):
            while not self._ended.is_set():
                # Full records, as many frames as they hold.
                plain = frames_at(make, number)
                number += 2_000
                self.sock.sendall(self._sealer.seal(plain))
                self.sent += len(plain)
        reader.join()

    def _drop(self) -> None:
        with contextlib.suppress(OSError):
            while self.sock.recv(1 << 16):
                pass

    def end(self) -> None:
        self._ended.set()
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
