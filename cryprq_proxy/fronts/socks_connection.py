"""One application's connection from its first byte until its target is connected.

The listener that has accepted it goes on with it then: relays it, serves it as HTTP or as a UDP association.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Final, Protocol

from asyncio_socks_server.core.types import Cmd

from ..base.faults import report_fault
from ..base.linger import Farewell
from ..client.requests import StreamSource
from ..errors import StreamReason
from ..outbound.relay import Relay
from ..outbound.relays import Relays
from ..outbound.socket_group import SocketGroup
from ..session.streams import AnyStream, StreamHandler
from ..session.wire import StreamProtocol
from .credentials import Credentials
from .own_page import OWN_PAGE
from .socks import SocksRequest, SocksServer

_log = logging.getLogger(__name__)

SOCKS_VERSIONS: Final = frozenset((4, 5))


class FrontListener(Protocol):
    """What a connection needs of its listener. `sockets` watches it; `early` has those whose application has sent data
    before the target is connected, `silent` those whose application has ended its half by then, and has sent nothing.
    """

    loop: asyncio.AbstractEventLoop
    source: StreamSource
    sockets: SocketGroup
    early: Relays[SocksConnection]
    silent: Relays[SocksConnection]

    @property
    def credentials(self) -> Credentials | None: ...
    def ended(self) -> None:
        """Free the place of an ended connection."""

    def relay(self, sock: socket.socket, stream: AnyStream, /) -> Relay:
        """The relay between an application's socket and its stream, not yet started."""

    def serve_http(self, sock: socket.socket, first: bytes, /) -> None:
        """Take over an application that speaks HTTP, as its `first` bytes say."""

    def serve_page(self, sock: socket.socket, first: bytes, /) -> None:
        """Take over an application that has been told that it is connected to our own page; `first` may be empty."""

    def serve_udp(self, sock: socket.socket, socks: SocksServer, /) -> None:
        """Take over an application that has asked for a UDP association."""


class SocksConnection(StreamHandler):
    """One application's connection until its target is connected: negotiates, requests the stream, answers.

    It also recognizes HTTP connections and passes them on. It is a Relaying (outbound/relays.py) while it waits for its
    target and its application has said more already, or ended.
    """

    unwatched = True
    __slots__ = ("_fd", "_handed_on", "_listener", "_sock", "_socks", "_stream", "negotiating")

    def __init__(self, listener: FrontListener, sock: socket.socket) -> None:
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
            socks = self._socks = SocksServer(self._listener.credentials)
        socks.receive(data)
        output = socks.take_output()
        if output and not self._send(output):
            return
        if socks.failed is not None:
            _log.debug("a SOCKS connection is refused: %s", socks.failed)
            self._farewell()
        elif socks.request is not None:
            self.negotiating = False
            self._ask(socks, socks.request)

    def _ask(self, socks: SocksServer, request: SocksRequest) -> None:
        """Do what is requested."""
        listener = self._listener
        if request.command is not Cmd.CONNECT:
            self._hand_on()
            listener.serve_udp(self._sock, socks)
        elif request.destination != OWN_PAGE:
            listener.source.request(StreamProtocol.TCP, request.destination, self, self._begin)
        elif self._send(socks.succeed(None)):
            self._hand_on()
            listener.serve_page(self._sock, socks.leftover)

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
