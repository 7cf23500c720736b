"""A listed peer that floods an exit, in each of many ways that its frames, messages and targets offer.

bench/floods.py measures what that costs others.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

from cryprq_proxy.address import Destination
from cryprq_proxy.carriers.admission import frame_flight
from cryprq_proxy.config.keys import load_identity
from cryprq_proxy.crypto.client_handshake import ClientHandshake
from cryprq_proxy.crypto.handshake import record_keys
from cryprq_proxy.crypto.identity import Identity, PeerId
from cryprq_proxy.crypto.primitives import select_provider
from cryprq_proxy.errors import CloseReason, StreamReason
from cryprq_proxy.session import wire
from cryprq_proxy.session.frame_reader import read_frames
from cryprq_proxy.session.reassembly import MAX_PIECES
from cryprq_proxy.session.records import HEADER, RecordOpener, RecordSealer
from cryprq_proxy.session.windows import INITIAL_WINDOW
from cryprq_proxy.session.wire import StreamProtocol

TARGETS = min(10_000, (resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 2 - 128) * 3 // 4 - 100)
"""Streams of the flooder: what the limit of descriptors lets one peer have."""
ASSOCIATIONS = TARGETS // 2
PROVIDER = select_provider()
WS_PATH = "/flood"
MANY_NAMES = 200
"""Names of 32 addresses each, at which nothing listens."""
NOWHERE = Destination("127.0.0.1", 9)


class RawPeer:
    """A listed client whose frames are this script's own, on TCP or, with `web`, in messages of a WebSocket."""

    def __init__(self, port: int, exit_id: PeerId, identity: Identity, web: bool = False) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._web = web
        self._rest = bytearray()
        self.lock = threading.Lock()
        if web:
            self.sock.sendall(
                f"GET {WS_PATH} HTTP/1.1\r\nHost: exit\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
            )
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                answer += self._raw(1)
        handshake = ClientHandshake(identity, exit_id, PROVIDER)
        self._write(frame_flight(handshake.write_first()))
        handshake.read_second(self._read(int.from_bytes(self._read(2))))
        self._write(frame_flight(handshake.write_third(None)))
        established = handshake.result
        client_key, exit_key = record_keys(established.epoch.records, 0)
        self.sealer = RecordSealer(established.cipher, client_key)
        self._opener = RecordOpener(established.cipher, exit_key)
        self.window = INITIAL_WINDOW
        """How much the exit takes on its first stream."""
        self.next_frames()

    @property
    def received(self) -> int:
        """Records of the exit so far."""
        return self._opener.records

    def send(self, *frames: bytes) -> None:
        with self.lock:
            self._write(self.sealer.seal(b"".join(frames)))

    def next_frames(self) -> list[wire.Frame]:
        """The frames of the exit's next record."""
        header = self._read(HEADER)
        plain, _ = self._opener.open(memoryview(header + self._read(int.from_bytes(header))), 0)
        return list(read_frames(bytes(plain or b"")))

    def answer(self) -> None:
        """Take all that the exit sends, and acknowledge it, until the connection ends."""
        acknowledged = 0
        with contextlib.suppress(OSError, EOFError):
            while True:
                for kind, stream, value in self.next_frames():
                    if kind == wire.PING and isinstance(value, int):
                        self.send(wire.encode_number(wire.PONG, value))
                    elif kind == wire.WINDOW and stream == 1 and isinstance(value, int):
                        self.window = value
                if self.received - acknowledged > 256:
                    acknowledged = self.received
                    self.send(wire.encode_records(wire.ACK, 0, acknowledged))

    def drop(self) -> None:
        """Take all that the exit sends, until the connection ends."""
        with contextlib.suppress(OSError):
            while self.sock.recv(1 << 18):
                pass

    def close(self) -> None:
        self.sock.close()

    def _write(self, data: bytes) -> None:
        if self._web:
            data = b"\x82\xff" + len(data).to_bytes(8) + bytes(4) + data
        self.sock.sendall(data)

    def _read(self, size: int) -> bytes:
        while len(self._rest) < size:
            if not self._web:
                self._rest += self._raw(size - len(self._rest))
                continue
            length = self._raw(2)[1]
            if length > 125:
                length = int.from_bytes(self._raw(2 if length == 126 else 8))
            self._rest += self._raw(length)
        data = bytes(self._rest[:size])
        del self._rest[:size]
        return data

    def _raw(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            if not (got := self.sock.recv(size - len(data))):
                raise EOFError
            data += got
        return bytes(data)


# --- the floods ------------------------------------------------------------------------------------------------------


def flood_frames(make: Callable[[int], bytes], each: int = 2_000) -> Callable[[RawPeer], None]:
    """Records full of small frames, whose numbers rise."""

    def go(peer: RawPeer) -> None:
        threading.Thread(target=peer.drop, daemon=True).start()
        peer.send(wire.encode_open(1, StreamProtocol.UDP, NOWHERE))
        number = 2
        while True:
            peer.send(*map(make, range(number, number + each)))
            number += each

    return go


def flood_bytes(make: Callable[[RawPeer], bytes]) -> Callable[[RawPeer], None]:
    """Bytes under the session, as they are."""

    def go(peer: RawPeer) -> None:
        threading.Thread(target=peer.drop, daemon=True).start()
        peer.send(wire.encode_open(1, StreamProtocol.UDP, NOWHERE))
        while True:
            peer.sock.sendall(make(peer))

    return go


def tiny_data(peer: RawPeer) -> None:
    """One byte in each DATA frame, and each frame in a record of its own, for a target that takes all."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=peer.answer, daemon=True).start()
        peer.send(wire.encode_open(1, StreamProtocol.TCP, Destination(*server.getsockname()[:2])))
        target, _ = server.accept()
        threading.Thread(target=lambda: all(iter(lambda: target.recv(1 << 18), b"")), daemon=True).start()
        sent = 0
        while True:
            if sent + 1_000 > peer.window:
                time.sleep(0.001)
                continue
            with peer.lock:
                peer.sock.sendall(b"".join(peer.sealer.seal(byte_at(sent + n)) for n in range(1_000)))
            sent += 1_000


def byte_at(offset: int) -> bytes:
    """A DATA frame of the first stream."""
    return wire.encode_data_header(wire.DATA, 1, offset) + b"x"


def holes(peer: RawPeer) -> None:
    """Every other byte of what may wait, from the back, then what is between them, again and again."""
    threading.Thread(target=peer.answer, daemon=True).start()
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer.send(wire.encode_open(1, StreamProtocol.TCP, Destination(*server.getsockname()[:2])))
        offsets = range(1, 2 * MAX_PIECES, 2)
        while True:
            for order in (reversed(offsets), offsets):
                with peer.lock:
                    peer.sock.sendall(b"".join(peer.sealer.seal(byte_at(offset)) for offset in order))


def tiny_messages(peer: RawPeer) -> bytes:
    """A record, each byte in a message of its own."""
    record = peer.sealer.seal(wire.encode_datagram(1, NOWHERE, b"x") * 500)
    return b"".join(b"\x82\x81\0\0\0\0" + record[n : n + 1] for n in range(len(record)))


PING_FRAMES = b"\x89\x80\0\0\0\0" * 40_000
FRAGMENTS = b"\x02\x80\0\0\0\0" + b"\x00\x80\0\0\0\0" * 40_000 + b"\x80\x80\0\0\0\0"


def targets_of(peer: RawPeer, count: int) -> list[socket.socket]:
    """So many streams to targets in this process, and the sockets of these."""
    with socket.create_server(("127.0.0.1", 0), backlog=4_096) as server:
        destination = Destination(*server.getsockname()[:2])
        targets = []
        for first in range(1, count + 1, 100):
            numbers = range(first, min(first + 100, count + 1))
            peer.send(*(wire.encode_open(number, StreamProtocol.TCP, destination) for number in numbers))
            targets += [server.accept()[0] for _ in numbers]
    for target in targets:
        target.setblocking(False)
    return targets


def readable(peer: RawPeer) -> None:
    """Targets that all have something to say, again and again."""
    threading.Thread(target=peer.answer, daemon=True).start()
    targets = targets_of(peer, TARGETS)
    for _ in range(60):
        for target in targets:
            with contextlib.suppress(BlockingIOError):
                target.send(b"x")


def ending(peer: RawPeer) -> None:
    """Targets that all end at once."""
    threading.Thread(target=peer.answer, daemon=True).start()
    targets = targets_of(peer, TARGETS)
    for target in targets:
        target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    for target in targets:
        target.close()
    time.sleep(0.5)


def answering(peer: RawPeer) -> None:
    """UDP associations that all get datagrams at once, again and again."""
    threading.Thread(target=peer.answer, daemon=True).start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as target:
        target.bind(("127.0.0.1", 0))
        target.settimeout(0.5)
        destination = Destination(*target.getsockname()[:2])
        sources = set()
        for first in range(1, ASSOCIATIONS + 1, 50):
            numbers = range(first, first + 50)
            peer.send(*(wire.encode_open(number, StreamProtocol.UDP, destination) for number in numbers))
            peer.send(*(wire.encode_datagram(number, destination, b"x") for number in numbers))
            with contextlib.suppress(TimeoutError):
                for _ in numbers:
                    sources.add(target.recvfrom(16)[1])
        target.setblocking(False)
        for _ in range(60):
            for source in sources:
                for _ in range(4):
                    with contextlib.suppress(BlockingIOError):
                        target.sendto(b"x" * 1_000, source)


def waiting(peer: RawPeer) -> None:
    """UDP associations whose datagrams all wait for one name, and that end together with the session."""
    threading.Thread(target=peer.drop, daemon=True).start()
    datagram = Destination("silent.test", 9)
    for number in range(1, min(1_500, ASSOCIATIONS) + 1):
        opening = wire.encode_open(number, StreamProtocol.UDP, NOWHERE)
        peer.send(opening, *[wire.encode_datagram(number, datagram, b"")] * 64)
        if not number % 50:
            time.sleep(0.05)
    peer.send(wire.encode_close(CloseReason.NORMAL))
    time.sleep(1.0)


def remembered(peer: RawPeer) -> None:
    """Datagrams of many associations to a name whose address is in memory."""
    threading.Thread(target=peer.drop, daemon=True).start()
    numbers = range(1, 301)
    peer.send(*(wire.encode_open(number, StreamProtocol.UDP, NOWHERE) for number in numbers))
    while True:
        peer.send(*(wire.encode_datagram(number, Destination("localhost", 9), b"") for number in numbers))


TAKEN = wire.encode_taken(1, [ip_network("10.0.0.0/24")] * 16)
FLOODS: dict[str, tuple[bool, Callable[[RawPeer], None]]] = {
    "datagram": (False, flood_frames(lambda _: wire.encode_datagram(1, NOWHERE, b"x"))),
    "open-reset": (
        False,
        flood_frames(
            lambda number: (
                wire.encode_open(number, StreamProtocol.TCP, NOWHERE)
                + wire.encode_reset(number, StreamReason.CANCELLED, 0)
            )
        ),
    ),
    "open-name": (
        False,
        flood_frames(
            lambda number: wire.encode_open(number, StreamProtocol.TCP, Destination("localhost", 9)), 500
        ),
    ),
    "many-addresses": (
        False,
        flood_frames(
            lambda number: wire.encode_open(
                number, StreamProtocol.TCP, Destination(f"many{number % MANY_NAMES}.test", 9)
            ),
            500,
        ),
    ),
    "names-waiting": (False, waiting),
    "names-known": (False, remembered),
    "reset": (False, flood_frames(lambda _: wire.encode_reset(1, StreamReason.GENERAL, 0))),
    "rekey-please": (False, flood_frames(lambda _: wire.encode_epoch(wire.REKEY_PLEASE, 1))),
    "lane": (False, flood_frames(lambda number: wire.encode_lane(1, number))),
    "prefer": (False, flood_frames(lambda number: wire.encode_prefer(number, number))),
    "abandon": (False, flood_frames(lambda number: wire.encode_records(wire.ABANDON, number, 0))),
    "ack": (False, flood_frames(lambda _: wire.encode_records(wire.ACK, 0, 0))),
    "open-again": (False, flood_frames(lambda _: wire.encode_open(1, StreamProtocol.UDP, NOWHERE))),
    "numbers-left-out": (
        False,
        flood_frames(lambda number: wire.encode_open(2 * number, StreamProtocol.UDP, NOWHERE), 500),
    ),
    "taken": (False, flood_frames(lambda _: TAKEN, 100)),
    "window": (False, flood_frames(lambda _: wire.encode_window(1, 1))),
    "tiny-data": (False, tiny_data),
    "holes": (False, holes),
    "tiny-messages": (True, flood_bytes(tiny_messages)),
    "ping": (True, flood_bytes(lambda _: PING_FRAMES)),
    "fragments": (True, flood_bytes(lambda _: FRAGMENTS)),
    "readable": (False, readable),
    "ending": (False, ending),
    "answering": (False, answering),
}
"""Whether it is for the WebSocket entrance, and what one connection does until the exit has had enough."""


def flood_process(kind: str, ports: tuple[int, int], exit_id: str, key: Path) -> None:
    """Flood for ever: a connection that the exit ends is followed by another one."""
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    # On Ctrl-C, which comes to both, the other process ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise_limit()
    identity = load_identity(PROVIDER, key)
    web, go = FLOODS[kind]
    while True:
        with contextlib.suppress(OSError, EOFError):
            peer = RawPeer(ports[web], PeerId.parse(exit_id), identity, web)
            with contextlib.closing(peer):
                go(peer)


def raise_limit() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
