"""A client of an exit in the same process whose every flight and frame is the test's own."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, cast

from cryprq_proxy.address import Destination
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.carriers.admission import (
    Admission,
    claim,
    frame_flight,
    introduce,
    join,
    meet_exit,
    read_verdict,
)
from cryprq_proxy.carriers.pipe import Pipe, TcpPipe
from cryprq_proxy.crypto.client_handshake import ClientHandshake, ShortClientHandshake
from cryprq_proxy.crypto.identity import Identity
from cryprq_proxy.crypto.primitives import select_provider
from cryprq_proxy.errors import CarrierError
from cryprq_proxy.exit.egress_policy import EgressPolicy
from cryprq_proxy.exit.exit import Exit
from cryprq_proxy.exit.prefixes import prefixes_of
from cryprq_proxy.exit.reception import Visitor
from cryprq_proxy.outbound.resolving.resolver import SystemResolver
from cryprq_proxy.session import wire
from cryprq_proxy.session.frame_reader import decode_frames
from cryprq_proxy.session.records import HEADER
from cryprq_proxy.session.session import Session
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.settings import exit_settings
from tests.support.settle import until

FAST: Final = select_provider()
EXIT: Final = Identity.generate(FAST)
ALICE: Final = Identity.generate(FAST)
BOB: Final = Identity.generate(FAST)
HOST: Final = "192.0.2.1"
_opened: Final[list[socket.socket]] = []
"""The clients' ends of all connections, which `open_exit` closes."""


async def inline(step: Callable[[], bytes]) -> bytes:
    return step()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection over loopback, non-blocking."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        left = socket.create_connection(server.getsockname())
        right, _ = server.accept()
    left.setblocking(False)
    right.setblocking(False)
    return left, right


@dataclass
class Known:
    """What a client keeps of a session that it wants to join."""

    session_id: bytes
    secret: bytes
    """Its resume secret."""

    @property
    def rotation(self) -> Known:
        """Where a session has its epochs."""
        return self

    @property
    def known(self) -> Known:
        """Where they have the resume secrets."""
        return self

    @property
    def resume_secrets(self) -> tuple[bytes, ...]:
        return (self.secret,)

    @property
    def joining_secret(self) -> bytes:
        return self.secret

    @property
    def current(self) -> int:
        return 0


class HeldPipe(TcpPipe):
    """An exit's pipe that holds back the verdict until `release` is set. `closed` says that nothing became of it."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.reached = asyncio.Event()
        self.release = asyncio.Event()
        self.closed = False
        self._writes = 0

    async def write(self, data: bytes) -> None:
        self._writes += 1
        if self._writes == 2:
            self.reached.set()
            await self.release.wait()
        await super().write(data)

    def close(self) -> None:
        self.closed = True
        super().close()


class Visit:
    """One connection of a client. `begin` and `admit` are the two halves of its handshake."""

    def __init__(
        self,
        exit: Exit,
        identity: Identity,
        host: str = HOST,
        pipe: type[TcpPipe] = TcpPipe,
        features: int = 0,
    ) -> None:
        self.sock, theirs = tcp_pair()
        _opened.append(self.sock)
        self.theirs = pipe(theirs)
        self.pipe: Pipe = TcpPipe(self.sock)
        self.handshake = ClientHandshake(identity, EXIT.peer_id, FAST, features=features)
        self._features = features
        self._unread: deque[wire.Frame] = deque()
        """Frames of the last record."""
        self.admission: Admission
        visitor = Visitor(host, prefixes_of(host), lambda: None)
        exit.listener.reception.arrive(visitor, exit.listener.reception.upgrading)
        self.work = spawn(exit.listener.welcome(visitor, self.theirs, host), "visit")

    async def admit(self, known: Known | None = None, path: int = 1, invite: bytes | None = None) -> Visit:
        """All of the handshake: of a new session, or of one more path of `known`. Raises PeerError when the exit says
        no, CarrierError when it closes."""
        await meet_exit(self.pipe, self.handshake, inline)
        if known is None:
            await self.introduce(invite)
            await self.verdict()
        else:
            self.admission = await claim(self.pipe, self.handshake, cast(Session, known), path, inline)
            await self.acknowledge()
        await self.work
        return self

    async def join(self, known: Known, path: int = 1) -> Visit:
        """All of the handshake by the short pattern, as `admit`."""
        await self.show_ticket(known, path)
        await self.verdict()
        await self.work
        return self

    async def show_ticket(self, known: Known, path: int = 1) -> None:
        """The three flights of the short pattern; records may follow."""
        handshake = ShortClientHandshake(EXIT.peer_id, FAST, known.secret, path, features=self._features)
        await meet_exit(self.pipe, handshake, inline)
        self.admission = await join(self.pipe, handshake, 0, inline)

    async def introduce(self, invite: bytes | None = None) -> None:
        """The third flight of a new session, after `meet_exit`; records may follow."""
        self.admission = await introduce(self.pipe, self.handshake, inline, invite)

    async def verdict(self) -> None:
        """Wait for ACCEPT, and acknowledge it. Raises PeerError."""
        await read_verdict(self.pipe, self.admission.keys.opener, wire.ACCEPT)
        await self.acknowledge()

    async def acknowledge(self) -> None:
        """Say that the verdict has come; other records may follow then."""
        with suppress(CarrierError):
            await self.send(wire.encode_records(wire.ACK, self.admission.number, 1))

    @property
    def resumed(self) -> bool:
        """Whether it is a path of a session that was there before."""
        return self.admission.begins is None

    @property
    def known(self) -> Known:
        """Of the session that has begun."""
        begun = self.admission.begins
        assert begun is not None
        return Known(begun.session_id, begun.epoch.resume)

    async def send(self, *frames: bytes) -> None:
        """One record with these frames."""
        await self.pipe.write(self.admission.keys.sealer.seal(b"".join(frames)))

    async def read(self, kind: int) -> wire.Frame:
        """The next frame of that kind; others are passed over."""
        while True:
            while self._unread:
                frame = self._unread.popleft()
                if frame[0] == kind:
                    return frame
            header = await self.pipe.read_exactly(HEADER)
            record = header + await self.pipe.read_exactly(int.from_bytes(header))
            plaintext, _ = self.admission.keys.opener.open(memoryview(record), 0)
            self._unread.extend(decode_frames(bytes(plaintext or b"")))

    async def is_closed(self) -> bool:
        """Whether the exit closes the connection without another byte; waits until it does one or the other."""
        try:
            await self.pipe.read_exactly(1)
        except CarrierError:
            return True
        return False

    def cut(self) -> None:
        self.sock.close()


def arrive(exit: Exit, host: str, data: bytes = b"") -> socket.socket:
    """The client's end of a connection that the exit has accepted on TCP, from that address; `data` is sent."""
    ours, theirs = tcp_pair()
    _opened.append(ours)
    exit.listener.accepted(None, theirs, host)
    if data:
        ours.send(data)
    return ours


def first_flight(identity: Identity = ALICE) -> bytes:
    return frame_flight(ClientHandshake(identity, EXIT.peer_id, FAST).write_first())


async def hears_nothing(sock: socket.socket) -> bool:
    """Whether the exit closes the connection without a byte; waits until it does one or the other."""
    try:
        return await asyncio.get_running_loop().sock_recv(sock, 1) == b""
    except ConnectionResetError:
        return True


@asynccontextmanager
async def open_exit(
    *peers: Identity,
    bounds: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    **parts: Any,
) -> AsyncIterator[Exit]:
    """An exit that lets in `peers` (Alice and Bob if none), on a port of loopback; `bounds` and `settings` as for
    exit_settings, `parts` as for Exit."""
    listed = {peer.peer_id: "" for peer in peers or (ALICE, BOB)}
    resolver = SystemResolver()
    exit = Exit(
        EXIT,
        exit_settings(bounds={"handshakes_per_minute": 1_000_000, **(bounds or {})}, **(settings or {})),
        listed,
        EgressPolicy(allow_private=True),
        resolver,
        FAST,
        **parts,
    )
    try:
        yield exit
    finally:
        while _opened:
            _opened.pop().close()
        await exit.stop(0.0)
        resolver.close()


NOWHERE: Final = Destination("127.0.0.1", 9)
"""Where nothing listens."""


def held(exit: Exit, identity: Identity = ALICE) -> tuple[int, int]:
    """How many sessions a peer has with a carrier, and without."""
    entries = [entry for entry in exit.sessions if entry.peer == identity.peer_id]
    attached = sum(entry.carrier is not None for entry in entries)
    return attached, len(entries) - attached


def open_frame(stream: int, protocol: StreamProtocol = StreamProtocol.TCP) -> bytes:
    """An OPEN for NOWHERE."""
    return wire.encode_open(stream, protocol, NOWHERE)


async def cut(exit: Exit, *visits: Visit) -> None:
    """Break these connections, in this order."""
    for visit in visits:
        before = held(exit)[0]
        visit.cut()
        await until(lambda before=before: held(exit)[0] == before - 1)  # type: ignore[misc]
