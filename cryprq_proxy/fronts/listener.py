"""The local proxy's listener: one port; the first byte tells the protocol.

    accept -> first byte 4 or 5 -> SOCKS negotiation, by callbacks -> stream -> reply -> relay
                                                                   -> UDP association (socks_udp.py)
           -> anything else     -> HTTP (http_proxy.py), a task of its own -> maybe a tunnel -> relay

SOCKS is the hot path: from accept to relay a connection takes no task and no future.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections import deque
from dataclasses import dataclass
from typing import Final

from asyncio_socks_server.core.types import Cmd

from ..address import Destination
from ..base.accept_loop import Acceptor
from ..base.faults import report_fault
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
from ..session.streams import AnyStream, StreamHandler
from ..session.turns import TurnBudget
from ..session.wire import StreamProtocol
from .credentials import Credentials
from .http_proxy import HttpProxy, HttpTunnel
from .socks import SocksServer
from .socks_udp import UdpFront

_log = logging.getLogger(__name__)

BACKLOG: Final = 1_024
"""Connections that wait to be accepted."""
SWEEP_SECONDS: Final = 1.0
"""Seconds between two checks for negotiations that take too long."""
SOCKS_VERSIONS: Final = frozenset((4, 5))


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


class MixedListener:
    """`start`, then `stop`."""

    def __init__(self, source: StreamSource, settings: ListenerSettings) -> None:
        self.source = source
        self.settings = settings
        self.loop = asyncio.get_running_loop()
        self.sockets = SocketGroup(self.loop, TurnBudget(self.loop.call_soon))
        """What watches applications that speak SOCKS, and those whose bytes are relayed."""
        self._acceptor: Acceptor | None = None
        self._connections = 0
        self._negotiating: deque[tuple[float, SocksConnection]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._relays: Relays[Relay] = Relays(self.loop, APPLICATIONS, idle_timeout=settings.idle_timeout)
        self.early: Relays[SocksConnection] = Relays(self.loop, EARLY)
        """Those whose application has sent data before the target is connected."""
        self.silent: Relays[SocksConnection] = Relays(self.loop, SILENT)
        """Those whose application has ended its half by then, and has sent nothing."""
        self._udp: set[UdpFront] = set()
        self._http: set[asyncio.Task[None]] = set()
        self._turns = TurnBudget(self.loop.call_soon)
        self._exchanges: Relays[HttpExchange] = Relays(
            self.loop, REQUESTS, idle_timeout=settings.idle_timeout
        )

    def start(self) -> Destination:
        """Listen. Returns the bound address. Raises OSError."""
        host, port = self.settings.listen
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.create_server((host, port), family=family, backlog=BACKLOG)
        if not self.sockets.open():
            sock.close()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        prepare_listener(sock, host)
        self._acceptor = Acceptor(self.loop, sock, self._accepted)
        self._acceptor.start()
        return Destination(*sock.getsockname()[:2])

    def work(self) -> list[Work]:
        """For the watchdog."""
        return [] if self._acceptor is None else [self._acceptor.work("accepting applications")]

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
        self._connections += 1
        if self._acceptor is not None and self._connections >= self.settings.max_connections:
            self._acceptor.stop()
        self._negotiating.append((self.loop.time() + self.settings.negotiation_timeout, connection))
        if self._sweeper is None:
            self._sweep()

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

    # --- the stages of a connection ------------------------------------------------------------------------------

    def ended(self) -> None:
        """Free the place of an ended connection."""
        self._connections -= 1
        if self._acceptor is not None:
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
        set_reset_on_close(sock)
        application = SocketStream(sock)
        proxy = HttpProxy(
            application,
            self.source,
            self._turns,
            credentials=self.settings.credentials,
            via="cryprq-proxy" if self.settings.via else None,
            header_timeout=self.settings.negotiation_timeout,
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


class SocksConnection(StreamHandler):
    """One application's connection until its target is connected: negotiates, requests the stream, answers.

    It also recognizes HTTP connections and passes them on. It is a Relaying (outbound/relays.py) while it waits for its
    target and its application has said more already, or ended.
    """

    unwatched = True
    __slots__ = ("_fd", "_handed_on", "_listener", "_sock", "_socks", "_stream", "negotiating")

    def __init__(self, listener: MixedListener, sock: socket.socket) -> None:
        self._listener = listener
        self._sock = sock
        self._fd = sock.fileno()  # asyncio builds a repr of a socket object each time it registers one
        self._socks: SocksServer | None = None
        self._stream: AnyStream | None = None
        self._handed_on = False
        self.negotiating = True
        listener.sockets.add_reader(self._fd, self._on_readable)

    def close(self) -> None:
        """End the connection without a reply, unless it has been handed on."""
        if self._handed_on:
            return
        self._hand_on()
        if self._stream is not None:
            self._stream.reset(StreamReason.CANCELLED)
        self._sock.close()
        self._listener.ended()

    def _hand_on(self) -> None:
        """The socket is somebody else's from now on."""
        self._listener.sockets.remove_reader(self._fd)
        self._let_go()

    def _let_go(self) -> None:
        self._handed_on, self.negotiating = True, False
        self._listener.early.discard(self)
        self._listener.silent.discard(self)

    def _on_readable(self) -> None:
        try:
            self._read()
        except Exception as error:  # noqa: BLE001  a fault: see base/faults.py
            report_fault("ends an application's connection", error)
            self.close()

    def _read(self) -> None:
        sock = self._sock
        if not self.negotiating:
            self._readable_while_waiting()
            return
        try:
            data = sock.recv(4_096)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        socks = self._socks
        if socks is None:
            if data[0] not in SOCKS_VERSIONS:
                self._hand_on()
                self._listener.serve_http(sock, data)
                return
            socks = self._socks = SocksServer(self._listener.settings.credentials)
        socks.receive(data)
        output = socks.take_output()
        if output and not self._send(output):
            return
        if socks.failed is not None:
            _log.debug("a SOCKS connection is refused: %s", socks.failed)
            self._farewell()
        elif socks.request is not None:
            self.negotiating = False
            if socks.request.command is Cmd.CONNECT:
                self._listener.source.request(
                    StreamProtocol.TCP, socks.request.destination, self, self._begin
                )
            else:
                self._hand_on()
                self._listener.serve_udp(sock, socks)

    def _readable_while_waiting(self) -> None:
        """Data, or the end, before the target is connected: the relay will read it. A reset ends the connection.

        An application that has ended its direction may still read. Whether it is there is looked at from now on,
        since its socket tells nothing any more. What it has sent is passed on, even if it has gone.
        """
        listener = self._listener
        try:
            early = self._sock.recv(1, socket.MSG_PEEK) or (self._socks is not None and self._socks.leftover)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        listener.sockets.remove_reader(self._fd)
        (listener.early if early else listener.silent).add(self)

    @property
    def sock(self) -> socket.socket:
        return self._sock

    def progress(self) -> int:
        return 0

    def abort(self, reason: StreamReason) -> None:
        self.close()

    def _send(self, reply: bytes) -> bool:
        """Send a few bytes. Closes a socket that does not take them at once."""
        try:
            if self._sock.send(reply) == len(reply):
                return True
        except OSError:
            pass
        self.close()
        return False

    def _farewell(self) -> None:
        """Let the last reply arrive."""
        self._hand_on()
        Farewell(self._listener.loop, self._sock, ended=self._listener.ended)

    # --- handler of the stream -------------------------------------------------------------------------------------

    def _begin(self, stream: AnyStream) -> None:
        if self._handed_on:
            stream.reset(StreamReason.CANCELLED)  # the application has gone while it waited for the link
        else:
            self._stream = stream

    def expected(self) -> None:
        self.opened()

    def opened(self) -> None:
        stream, socks = self._stream, self._socks
        if stream is None or socks is None or not self._send(socks.succeed(None)):
            return
        # The stream's label keeps this object for as long as the stream lives.
        self._stream = self._socks = None
        # The socket stays watched; the relay says who is called.
        self._let_go()
        self._listener.relay(self._sock, stream).start(socks.leftover)

    def refused(self, reason: StreamReason) -> None:
        self._stream = None
        if self._socks is not None and not self._handed_on and self._send(self._socks.refuse(reason)):
            self._farewell()

    def reset(self, reason: StreamReason) -> None:
        self.refused(reason)
