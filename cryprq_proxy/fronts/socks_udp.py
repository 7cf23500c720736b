"""SOCKS5 UDP ASSOCIATE (RFC 1928 section 7) at the client: the application's UDP socket, and a UDP stream.

The socket is bound to the local address of the control connection and lives as long as that connection. It takes
datagrams only from the host of that connection, and only from the first port that sends a valid one. The address in the
request is a hint, since applications put many things there: the name "0" (PySocks), their target, a port that a NAT has
changed. The port counts only if it does send: then it takes the place of the first one.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from ..address import OWN_NAME, Destination
from ..base.faults import report_fault
from ..client.requests import NOWHERE, StreamSource
from ..errors import StreamReason
from ..session.streams import AnyStream, StreamHandler
from ..session.wire import MAX_DATAGRAM, StreamProtocol
from .socks import DatagramError, SocksServer, encode_datagram, parse_datagram

READS: Final = 32
"""Datagrams read in one wake-up."""


class UdpFront(StreamHandler):
    """One association: handler of its stream. `ended` is called once."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        control: socket.socket,
        socks: SocksServer,
        source: StreamSource,
        ended: Callable[[UdpFront], None],
    ) -> None:
        self._loop = loop
        self._control = control
        self._socks = socks
        self._source = source
        self._ended = ended
        self._stream: AnyStream | None = None
        self._sock: socket.socket | None = None
        self._host = ""
        """Where the application is, once the stream is open."""
        self._application: tuple[str, int] | None = None
        self._hinted = socks.request.destination.port if socks.request is not None else 0
        self._closed = False

    def start(self) -> None:
        self._loop.add_reader(self._control, self._on_control)
        self._source.request(StreamProtocol.UDP, NOWHERE, self, self._begin)

    def close(self) -> None:
        """End the association."""
        if self._closed:
            return
        self._closed = True
        if self._stream is not None:
            self._stream.reset(StreamReason.CANCELLED)
        if self._sock is not None:
            self._loop.remove_reader(self._sock)
            self._sock.close()
        self._loop.remove_reader(self._control)
        self._control.close()
        self._ended(self)

    def _on_control(self) -> None:
        try:
            if self._control.recv(4_096):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass
        self.close()

    def _on_readable(self) -> None:
        try:
            self._read()
        except Exception as error:  # noqa: BLE001  a fault: see base/faults.py
            report_fault("ends a UDP association", error)
            self.close()

    def _read(self) -> None:
        sock, stream = self._sock, self._stream
        if sock is None or stream is None:
            return
        for _ in range(READS):
            try:
                data, address = sock.recvfrom(MAX_DATAGRAM)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                continue  # an ICMP error of an earlier datagram
            try:
                destination, payload = parse_datagram(data)
            except DatagramError:
                continue
            if self._is_application(address) and destination.host != OWN_NAME:
                stream.send_datagram(destination, payload)

    def _is_application(self, address: tuple[str, int]) -> bool:
        if address[0] == self._host and (self._application is None or address[1] == self._hinted):
            self._application = address
        return self._application == address

    # --- handler of the stream -------------------------------------------------------------------------------------

    def _begin(self, stream: AnyStream) -> None:
        self._stream = stream
        if self._closed:
            stream.reset(StreamReason.CANCELLED)

    def opened(self) -> None:
        try:
            # Once: a connection that was reset has no addresses any more.
            self._host, host = self._control.getpeername()[0], self._control.getsockname()[0]
            self._sock = socket.socket(self._control.family, socket.SOCK_DGRAM)
            self._sock.setblocking(False)
            self._sock.bind((host, 0))
            self._control.send(self._socks.succeed(self._sock.getsockname()[:2]))
        except OSError:
            self.close()
            return
        self._loop.add_reader(self._sock, self._on_readable)

    def refused(self, reason: StreamReason) -> None:
        self._stream = None
        try:
            if not self._closed:
                self._control.send(self._socks.refuse(reason))
        except OSError:
            pass
        self.close()

    def reset(self, reason: StreamReason) -> None:
        self._stream = None
        self.close()

    def eof_received(self) -> None:
        self.close()

    def datagram_received(self, destination: Destination, payload: memoryview) -> None:
        if self._sock is not None and self._application is not None:
            try:
                self._sock.sendto(encode_datagram(destination, bytes(payload)), self._application)
            except OSError:
                return  # the application does not listen, or its queue is full: the datagram is lost
