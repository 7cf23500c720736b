"""The local proxy's listener: one port, whose first byte tells the protocol, and those of forwards.

    accept -> a forward's port   -> its stream (forwarded_connection.py) -> relay
           -> first byte 4 or 5 -> SOCKS negotiation (socks_connection.py) -> stream -> reply -> relay
                                                                       -> UDP association (socks_udp.py)
           -> anything else     -> HTTP (http_proxy.py), a task of its own -> maybe a tunnel -> relay

SOCKS is the hot path: from accept to relay a connection takes no task and no future.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import deque
from dataclasses import dataclass, replace
from typing import Final

from ..address import Destination
from ..base.accept_loop import Acceptor, Acceptors
from ..base.linger import Farewell
from ..base.sockets import prepare_accepted, prepare_listener, set_end_on_close, set_reset_on_close
from ..base.tasks import spawn
from ..base.work import Work
from ..client.requests import StreamSource
from ..errors import LocalError, StreamReason, StreamReset
from ..outbound.bytestream import LinkStream, SocketStream
from ..outbound.relay import Relay
from ..outbound.relays import APPLICATIONS, EARLY, REQUESTS, SILENT, Relays
from ..outbound.socket_group import SocketGroup
from ..session.streams import AnyStream
from ..session.turns import TurnBudget
from .credentials import Credentials
from .forwarded_connection import ForwardedConnection
from .http_proxy import HttpProxy, HttpTunnel
from .own_page import TellFacts, no_facts
from .socks import SocksServer
from .socks_connection import SocksConnection
from .socks_udp import UdpFront

BACKLOG: Final = 1_024
"""Connections that wait to be accepted."""
SWEEP_SECONDS: Final = 1.0
"""Seconds between two checks for negotiations that take too long."""


@dataclass(frozen=True, slots=True)
class ListenerSettings:
    """`negotiation_timeout` in seconds bounds SOCKS negotiations and the head of each HTTP request, `idle_timeout` a
    relay in which nothing moves; 0: nothing does."""

    listen: Destination
    negotiation_timeout: float
    max_connections: int
    via: bool
    credentials: Credentials | None = None
    idle_timeout: float = 0.0


@dataclass(slots=True, eq=False)
class OpenForward:
    """A forward: where it listens, its target, and the connections to that so far."""

    listen: Destination
    to: Destination
    connections: int = 0

    def turn_to(self, target: Destination) -> None:
        """Lead there from now on; connections to the old target go on."""
        self.to, self.connections = target, 0


class MixedListener:
    """`start`, then `stop`."""

    def __init__(self, source: StreamSource, settings: ListenerSettings, facts: TellFacts = no_facts) -> None:
        self.source = source
        self._facts = facts
        self.settings = settings
        self.loop = asyncio.get_running_loop()
        self.sockets = SocketGroup(self.loop, TurnBudget(self.loop.call_soon))
        """What watches applications that speak SOCKS, and those whose bytes are relayed."""
        self._acceptor: Acceptors | None = None
        self.forwards: dict[OpenForward, Acceptor] = {}
        self._connections = 0
        self._negotiating: deque[tuple[float, SocksConnection]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._relays: Relays[Relay] = Relays(self.loop, APPLICATIONS, idle_timeout=settings.idle_timeout)
        self.early: Relays[SocksConnection] = Relays(self.loop, EARLY)
        self.silent: Relays[SocksConnection] = Relays(self.loop, SILENT)
        self._udp: set[UdpFront] = set()
        self._http: set[asyncio.Task[None]] = set()
        self._turns = TurnBudget(self.loop.call_soon)
        self._exchanges: Relays[HttpExchange] = Relays(
            self.loop, REQUESTS, idle_timeout=settings.idle_timeout
        )

    def start(self) -> Destination:
        """Listen. Returns the bound address. Raises OSError."""
        sock = listening_socket(self.settings.listen)
        if not self.sockets.open():
            sock.close()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        self._acceptor = Acceptors()
        self._acceptor.add(Acceptor(self.loop, sock, self._accepted))
        return Destination(*sock.getsockname()[:2])

    @property
    def listens(self) -> bool:
        """From `start` until `stop`."""
        return self._acceptor is not None

    def forward(self, listener: socket.socket, target: Destination) -> OpenForward:
        """Take connections of this `listening_socket` too, to `target`, while started."""
        if self._acceptor is None:
            raise LocalError("only a listener that has been started forwards")
        forward = OpenForward(Destination(*listener.getsockname()[:2]), target)
        acceptor = Acceptor(
            self.loop, listener, lambda sock, host: self._accepted_forward(sock, host, forward)
        )
        self.forwards[forward] = acceptor
        self._acceptor.add(acceptor)
        return forward

    def end_forward(self, forward: OpenForward) -> None:
        """Listen there no longer; its connections go on."""
        acceptor = self.forwards.pop(forward)
        if self._acceptor is not None:
            self._acceptor.remove(acceptor)

    def take_limits(self, max_connections: int, idle_timeout: float) -> None:
        """As in the settings, from now on; connections beyond the new number go on."""
        self.settings = replace(self.settings, max_connections=max_connections, idle_timeout=idle_timeout)
        self._relays.take_idle_timeout(idle_timeout)
        self._exchanges.take_idle_timeout(idle_timeout)
        if self._acceptor is not None:
            if self._connections >= max_connections:
                self._acceptor.stop()
            else:
                self._acceptor.start()

    def work(self) -> list[Work]:
        """For the watchdog."""
        return [] if self._acceptor is None else self._acceptor.work("accepting applications")

    async def stop(self) -> None:
        """Stop listening and end all connections."""
        if self._acceptor is not None:
            self._acceptor.close()
            self._acceptor = None
        if self._sweeper is not None:
            self._sweeper.cancel()
        for _, connection in self._negotiating:
            if connection.negotiating:
                connection.close()
        for front in list(self._udp):
            front.close()
        for relay in self._relays:
            relay.abort(StreamReason.SHUTTING_DOWN)
        for task in self._http:
            task.cancel()
        if self._http:
            await asyncio.wait(self._http)
        self.sockets.retire()

    def _accepted(self, sock: socket.socket, host: str) -> None:
        prepare_accepted(sock, host, self.settings.listen.host)
        connection = SocksConnection(self, sock)
        self._begun()
        self._negotiating.append((self.loop.time() + self.settings.negotiation_timeout, connection))
        if self._sweeper is None:
            self._sweep()

    def _accepted_forward(self, sock: socket.socket, host: str, forward: OpenForward) -> None:
        prepare_accepted(sock, host, forward.listen.host)
        connection = ForwardedConnection(self, sock)
        self._begun()
        forward.connections += 1
        connection.ask(forward.to)

    def _begun(self) -> None:
        self._connections += 1
        if self._acceptor is not None and self._connections >= self.settings.max_connections:
            self._acceptor.stop()

    def _sweep(self) -> None:
        """End negotiations that take too long; they are in the order of their deadlines."""
        now = self.loop.time()
        try:
            while self._negotiating and (
                self._negotiating[0][0] <= now or not self._negotiating[0][1].negotiating
            ):
                _, connection = self._negotiating.popleft()
                if connection.negotiating:
                    connection.close()
        finally:
            seconds = min(SWEEP_SECONDS, self.settings.negotiation_timeout)
            self._sweeper = self.loop.call_later(seconds, self._sweep) if self._negotiating else None

    # --- the stages of a connection, as in FrontListener ------------------------------------------------------------

    @property
    def credentials(self) -> Credentials | None:
        return self.settings.credentials

    def ended(self) -> None:
        """Free the place of an ended connection."""
        self._connections -= 1
        if self._acceptor is not None and self._connections < self.settings.max_connections:
            self._acceptor.start()

    def relay(self, sock: socket.socket, stream: AnyStream) -> Relay:
        """The relay between an application's socket and its stream, not yet started."""
        relay = Relay(self.sockets, sock, stream, self.source.slots, self._relay_ended)
        self._relays.add(relay)
        return relay

    def _relay_ended(self, relay: Relay) -> None:
        self._relays.discard(relay)
        self.ended()

    def serve_http(self, sock: socket.socket, first: bytes) -> None:
        self._serve(sock, first, at_page=False)

    def serve_page(self, sock: socket.socket, first: bytes) -> None:
        self._serve(sock, first, at_page=True)

    def serve_visitor(self, sock: socket.socket, host: str) -> None:
        """Take over a connection from `host` to our own page, whose name was resolved here; it may be one too many."""
        if self._connections >= self.settings.max_connections:
            sock.close()
            return
        prepare_accepted(sock, host, host)
        self._begun()
        self._serve(sock, b"", at_page=True, named=False)

    def _serve(self, sock: socket.socket, first: bytes, *, at_page: bool, named: bool = True) -> None:
        set_reset_on_close(sock)
        application = SocketStream(sock)
        proxy = HttpProxy(
            application,
            self.source,
            self._turns,
            credentials=self.settings.credentials,
            via="cryprq-proxy" if self.settings.via else None,
            header_timeout=self.settings.negotiation_timeout,
            facts=self._facts,
            at_page=at_page,
            named=named,
        )
        task = spawn(self._serve_http(application, proxy, first), "http connection")
        exchange = HttpExchange(application, proxy, task)
        self._http.add(task)
        self._exchanges.add(exchange)
        task.add_done_callback(self._http.discard)
        task.add_done_callback(lambda _: self._exchanges.discard(exchange))

    async def _serve_http(self, application: SocketStream, proxy: HttpProxy, first: bytes) -> None:
        sock, handed_on = application.sock, False
        try:
            tunnel = await proxy.run(first)
            if tunnel is None:
                Farewell(self.loop, sock, ended=self.ended)
            else:
                await self._tunnel(application, tunnel)
            handed_on = True
        except StreamReset:
            pass  # As the socket is, closing it is a reset.
        finally:
            if not handed_on:
                if not proxy.serving:
                    set_end_on_close(sock)
                sock.close()
                self.ended()

    async def _tunnel(self, application: SocketStream, tunnel: HttpTunnel) -> None:
        """Change from HTTP messages to raw bytes. Raises StreamReset."""
        link = tunnel.stream
        try:
            if not isinstance(link, LinkStream):
                raise LocalError("only a stream of the link can become a tunnel")
            await application.write(tunnel.to_client)
            await link.write(tunnel.early)
            stream, incoming, eof = link.detach()
        except BaseException:
            tunnel.stream.abort()
            raise
        self.relay(application.sock, stream).start(received=incoming, ended=eof)

    def serve_udp(self, sock: socket.socket, socks: SocksServer) -> None:
        front = UdpFront(self.loop, sock, socks, self.source, self._udp_ended)
        self._udp.add(front)
        front.start()

    def _udp_ended(self, front: UdpFront) -> None:
        self._udp.discard(front)
        self.ended()


def listening_socket(address: Destination) -> socket.socket:
    """Raises OSError. Looks a name up, which blocks."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.create_server(address, family=family, backlog=BACKLOG)
    prepare_listener(sock, address.host)
    return sock


class HttpExchange:
    """The Relaying of an HTTP connection, whose task may wait for its origin and not for its application."""

    __slots__ = ("_application", "_proxy", "_task")

    def __init__(self, application: SocketStream, proxy: HttpProxy, task: asyncio.Task[None]) -> None:
        self._application = application
        self._proxy = proxy
        self._task = task

    @property
    def unwatched(self) -> bool:
        return self._proxy.serving

    @property
    def sock(self) -> socket.socket:
        return self._application.sock

    def progress(self) -> int:
        return self._application.moved

    def abort(self, reason: StreamReason) -> None:
        self._task.cancel()
