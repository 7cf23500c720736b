"""Strangers at the exit: accepting connections, and reading the first flight of each.

    accept -> bounds -> [PROXY header] -> [TLS, HTTP, upgrade] -> first flight -> a token of its prefix (reception.py)
           -> it opens? -> not replayed? -> the handshake (reception.py)

Strangers cost little and learn nothing: every step is bounded in number and time, and a connection that fails is closed
without a byte.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from ..address import Destination
from ..base import descriptors
from ..base.accept_loop import Acceptor
from ..base.faults import report_fault
from ..base.passed_sockets import PassedSockets
from ..base.sockets import prepare
from ..base.tasks import spawn
from ..base.work import Work
from ..carriers.admission import read_flight
from ..carriers.pipe import Pipe, ProxiedPipe, TcpPipe
from ..crypto.exit_handshake import ExitHandshake
from ..crypto.handshake import FIRST_SIZE
from ..crypto.identity import Identity
from ..crypto.payloads import Feature
from ..crypto.primitives import Provider
from ..errors import ConfigError, HandshakeError, PeerError
from .first_flight import FirstFlight, SilentSockets, read_pieces
from .flight_memory import FlightMemory
from .handshake_thread import HandshakeThread
from .prefixes import prefixes_of
from .proxy_protocol import ProxyHeader, is_among
from .reception import Admit, Reception, RoomSizes, Visitor
from .settings import ExitBounds, ExitSettings
from .web_certificate import WebCertificate

if TYPE_CHECKING:
    from .websocket_listener import WebEntrance

BACKLOG: Final = 4096
"""Connections that wait to be accepted; the kernel has a bound of its own (net.core.somaxconn)."""


class ExitListener:
    """`bind`, `start`, then `stop_accepting`, and `close` in the end."""

    def __init__(
        self,
        identity: Identity,
        settings: ExitSettings,
        provider: Provider,
        thread: HandshakeThread,
        admit: Admit,
        flights: FlightMemory,
    ) -> None:
        self._identity = identity
        self._settings = settings
        self._provider = provider
        self._features = Feature(0)
        self._loop = asyncio.get_running_loop()
        self._acceptors: list[Acceptor] = []
        self._entrance: WebEntrance | None = None
        """What accepts WebSocket connections."""
        per_minute = settings.bounds.handshakes_per_minute
        self.reception = Reception(thread, _room_sizes(settings.bounds), per_minute, admit, random.Random())
        self._silent = SilentSockets(self._loop)
        self._flights = flights

    @property
    def strangers(self) -> int:
        """Connections that have not shown a valid first flight."""
        return len(self.reception.strangers) + len(self.reception.upgrading)

    @property
    def handshakes(self) -> int:
        """Connections between a valid first flight and the verdict."""
        return len(self.reception.waiting) + len(self.reception.answered)

    @property
    def failed(self) -> Counter[str]:
        """Connections that ended before their peer proved who it is, by cause."""
        return self.reception.failed

    def bind(self, passed: PassedSockets) -> list[Destination]:
        """Take the addresses, and return them as bound, that for WebSocket last. Raises OSError, and ConfigError for a
        certificate, and for a passed socket that is at none of them; then no address is held."""
        websocket = self._settings.websocket
        try:
            addresses = [self._listen(passed, address) for address in self._settings.listen]
            if websocket is not None:
                from .websocket_listener import WebEntrance  # aiohttp takes a third of a second to load

                self._entrance = WebEntrance(websocket, self.welcome, self._refuses)
                addresses.append(self._listen(passed, websocket.listen, self._entrance))
            passed.check_all_taken()
        except (OSError, ConfigError):
            self.stop_accepting()
            raise
        return addresses

    def _listen(
        self, passed: PassedSockets, address: Destination, entrance: WebEntrance | None = None
    ) -> Destination:
        sock = passed.take(address)
        if sock is None:
            family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
            sock = socket.create_server(tuple(address), family=family, backlog=BACKLOG)
        self._acceptors.append(Acceptor(self._loop, sock, partial(self.accepted, entrance)))
        return Destination(*sock.getsockname()[:2])

    def take_limits(self, bounds: ExitBounds) -> None:
        """For connections from now on."""
        self.reception.take_limits(_room_sizes(bounds), bounds.handshakes_per_minute)

    def take_certificate(self, certificate: WebCertificate | None) -> bool:
        """For TLS handshakes from now on; None: without TLS. Returns whether it is another one than before."""
        return self._entrance is not None and self._entrance.take_certificate(certificate)

    def start(self, features: Feature) -> None:
        """Accept connections on what `bind` took, and offer them `features`."""
        self._features = features
        for acceptor in self._acceptors:
            acceptor.start()

    def work(self) -> list[Work]:
        """For the watchdog."""
        return [
            acceptor.work(f"accepting clients ({number})") for number, acceptor in enumerate(self._acceptors)
        ]

    def stop_accepting(self) -> None:
        """Close the listening sockets; handshakes that have begun and established links go on."""
        for acceptor in self._acceptors:
            acceptor.close()
        self._acceptors.clear()

    async def close(self) -> None:
        """End all handshakes, and cut what is left of the HTTP connections."""
        self.reception.close()
        self._silent.close()
        if self._entrance is not None:
            await self._entrance.close()

    def accepted(self, entrance: WebEntrance | None, sock: socket.socket, host: str) -> None:
        """A connection has come in; `host` is the address of its other end."""
        # A client behind a proxy counts once the proxy has named its address: in a PROXY header, or in HTTP.
        by_http = entrance is not None and entrance.is_proxy(host)
        by_header = not by_http and is_among(host, self._settings.proxies)
        behind = by_http or by_header
        if not behind and self._refuses(host):
            self.failed["too_many"] += 1
            sock.close()
            return
        sock.setblocking(False)
        visitor = Visitor(host, () if behind else prefixes_of(host), partial(self._cut, sock))
        pipe = ProxiedPipe if by_header else TcpPipe
        ready = partial(self._read_first, visitor, sock, host, pipe, FirstFlight())
        if entrance is not None:
            ready = partial(self._upgrade, visitor, sock, host, entrance)
        if by_header:
            ready = partial(self._read_header, visitor, sock, ProxyHeader(), ready)
        try:
            self._silent.watch(sock, partial(self._guarded, visitor, ready))
        except OSError as error:
            descriptors.SHORTAGE.note(error)
            self.failed["no_room"] += 1
            sock.close()
            return
        self.reception.arrive(visitor, self.reception.strangers)

    def _refuses(self, host: str) -> bool:
        """Whether no more handshakes may come from `host` for now."""
        return self.reception.refuses(prefixes_of(host))

    def _guarded(self, visitor: Visitor, ready: Callable[[], None]) -> None:
        """Let a fault in this program end the one connection, which would otherwise stay readable for ever."""
        try:
            ready()
        except Exception as error:  # noqa: BLE001  see above
            report_fault(f"ends the connection from {visitor.host}", error)
            self.reception.lost(visitor, "a fault in this program")

    def _cut(self, sock: socket.socket) -> None:
        self._silent.forget(sock)
        sock.close()

    def _read_header(
        self, visitor: Visitor, sock: socket.socket, header: ProxyHeader, ready: Callable[[], None]
    ) -> None:
        """As `ready`, which is called once the proxy has named its client, and has sent more than that."""
        if not header.missing:
            ready()
            return
        error = read_pieces(sock, header)
        if error is not None:
            self.reception.lost(visitor, str(error))
        elif not header.missing:
            self.reception.rename(visitor, header.client(visitor.host))
            if self._refuses(visitor.host):
                self.reception.refuse(visitor)

    def _read_first(
        self, visitor: Visitor, sock: socket.socket, host: str, pipe: type[TcpPipe], first: FirstFlight
    ) -> None:
        """A stranger on TCP, with a connection from `host`, has something to read, or has ended."""
        error = read_pieces(sock, first)
        if error is not None:
            self.reception.lost(visitor, str(error))
        elif not first.missing:
            self._silent.forget(sock)
            opening = partial(self._open_first, visitor, sock, host, pipe, first.flight)
            self.reception.offer(visitor, partial(self._guarded, visitor, opening))

    def _open_first(
        self, visitor: Visitor, sock: socket.socket, host: str, pipe: type[TcpPipe], first: bytes
    ) -> None:
        """As `_read_first`, when there is a token for its first flight."""
        try:
            handshake = self._open(first)
        except PeerError as error:
            self.reception.lost(visitor, str(error))
        else:
            self.reception.opened(visitor, pipe(prepare(sock, host)), handshake)

    def _open(self, first: bytes) -> ExitHandshake:
        """The handshake that begins with this flight. Raises HandshakeError. Takes a tenth of a millisecond, or less
        where the client does not know this exit's id."""
        psk, features = self._settings.psk, self._features
        handshake = ExitHandshake(self._identity, self._provider, psk=psk, features=features)
        handshake.read_first(first)
        if self._flights.seen(first):
            raise HandshakeError("its first flight was replayed")
        return handshake

    # --- WebSocket -------------------------------------------------------------------------------------------------

    def _upgrade(self, visitor: Visitor, sock: socket.socket, host: str, entrance: WebEntrance) -> None:
        """A stranger on the second entrance has said something: let it be TLS or HTTP."""
        self._silent.forget(sock)
        visitor.end = sock.close
        self.reception.move(visitor, self.reception.upgrading)
        if visitor.room is None:
            return  # it lost its place at once
        visit = spawn(entrance.visit(visitor, prepare(sock, host)), "upgrade")
        visitor.end = visit.cancel
        visit.add_done_callback(partial(self._visited, visitor, sock))

    def _visited(self, visitor: Visitor, sock: socket.socket, visit: asyncio.Task[None]) -> None:
        if visit.cancelled():
            sock.close()  # perhaps it had not begun
        self.reception.lost(visitor)

    async def welcome(self, visitor: Visitor, pipe: Pipe, host: str) -> None:
        """A visitor that is among the upgrading ones, or has just lost its place there, speaks over `pipe` now, and its
        address is `host`. Returns when it has its carrier or its end."""
        reception = self.reception
        if visitor.room is None:
            pipe.close()
            return
        reception.rename(visitor, host)
        try:
            async with asyncio.timeout(None) as scope:
                visitor.end = partial(scope.reschedule, 0.0)
                first = await read_flight(pipe, FIRST_SIZE)
                token = asyncio.Event()
                reception.offer(visitor, token.set)
                await token.wait()
                handshake = self._open(first)
        except TimeoutError:
            pipe.close()
        except PeerError as error:
            visitor.end = pipe.close
            reception.lost(visitor, str(error))
            pipe.close()
        except BaseException:
            visitor.end = pipe.close
            pipe.close()
            raise
        else:
            await reception.opened(visitor, pipe, handshake)


def _room_sizes(bounds: ExitBounds) -> RoomSizes:
    return RoomSizes.of(descriptors.limit(), bounds.handshakes_in_flight)
