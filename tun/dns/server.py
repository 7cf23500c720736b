"""The sockets on which the forwarder is asked: UDP and TCP on the same addresses.

A wake-up of a UDP socket takes at most `DRAIN` datagrams; most are answered within it, and only a question for an
upstream becomes a task. Each socket is bound to one address, so a reply leaves from where the question came to.

A TCP connection carries questions as they come and answers as they are ready (RFC 7766 section 6.2.1.1). One that
does not ask for `IDLE_SECONDS`, or does not take its answers for so long, is closed. One with many questions open, or
with answers that the client does not take, is not read from.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Sequence
from typing import Any, Final

from cryprq_proxy.base.accept_loop import Acceptor, protocol_acceptor
from cryprq_proxy.base.faults import Faults, report_fault
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.errors import ConfigError, reason_of

from .forwarder import Forwarder
from .framed import message_end
from .query import Query

_log = logging.getLogger(__name__)

DRAIN: Final = 32
"""Datagrams taken in one wake-up; polling brings the rest."""
IDLE_SECONDS: Final = 10.0
MAX_CONNECTIONS: Final = 128
"""Over all addresses. A new one takes the place of the one that was silent for longest."""
MAX_PIPELINED: Final = 64
"""Questions of one connection that may be open; then it is not read from until one is answered."""
_BACKLOG: Final = 64
_RECEIVE_BUFFER: Final = 1 << 18

type _Address = tuple[Any, ...]


class DnsServer:
    """UDP and TCP sockets on which a forwarder is asked: all on one port, two for each address."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder
        self._udp: list[_Datagrams] = []
        self._tcp: list[Acceptor] = []
        self._clients: dict[_TcpClient, None] = {}
        self.port = 0
        """Where it listens, or did last."""

    async def listen(self, hosts: Sequence[str], port: int = 0) -> None:
        """Listen on all hosts (IP literals). Port 0: any that is free on the first one.

        Raises `ConfigError`; then it listens nowhere.
        """
        self.port = port
        for host in hosts:
            try:
                await self._listen(host)
            except OSError as error:
                self.close()
                remedy = (
                    "it needs root, or CAP_NET_BIND_SERVICE"
                    if isinstance(error, PermissionError)
                    else "end what else listens there"
                )
                raise ConfigError(
                    f"the DNS forwarder cannot listen on {host}, port {self.port}: {reason_of(error)}; {remedy}"
                ) from None

    def close(self) -> None:
        """Close everything; questions that wait get no answer."""
        for datagrams in self._udp:
            datagrams.close()
        for acceptor in self._tcp:
            acceptor.close()
        for client in list(self._clients):
            client.abort()
        self._udp.clear()
        self._tcp.clear()

    async def _listen(self, host: str) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as undo:
            stream = undo.enter_context(_bound(socket.SOCK_STREAM, host, self.port))
            self.port = stream.getsockname()[1]
            datagrams = undo.enter_context(_bound(socket.SOCK_DGRAM, host, self.port))
            stream.listen(_BACKLOG)
            acceptor = protocol_acceptor(loop, stream, lambda: _TcpClient(self._forwarder, self._clients))
            undo.pop_all()
        self._tcp.append(acceptor)
        acceptor.start()
        self._udp.append(_Datagrams(self._forwarder, datagrams))


def _bound(kind: socket.SocketKind, host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, kind)
    try:
        sock.setblocking(False)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


class _Datagrams:
    """One UDP socket."""

    def __init__(self, forwarder: Forwarder, sock: socket.socket) -> None:
        self._forwarder = forwarder
        self._sock = sock
        self._tasks: set[asyncio.Task[None]] = set()
        self._faults = Faults("leaves questions for names without an answer")
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._readable)

    def close(self) -> None:
        self._loop.remove_reader(self._sock)
        self._sock.close()
        for task in list(self._tasks):
            task.cancel()

    def _readable(self) -> None:
        try:
            self._drain()
        except Exception as error:  # noqa: BLE001  that question is lost: see cryprq_proxy/base/faults.py
            self._faults.report(error)

    def _drain(self) -> None:
        for _ in range(DRAIN):
            try:
                message, client = self._sock.recvfrom(65_535)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                # An ICMP error to an earlier reply.
                _log.debug("receiving a DNS question failed: %s", error)
                continue
            found = self._forwarder.consider(message, tcp=False)
            if isinstance(found, Query):
                task = spawn(self._resolve(found, client), "dns datagram")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            elif found is not None:
                self._send(found, client)

    async def _resolve(self, query: Query, client: _Address) -> None:
        self._send(await self._forwarder.resolve(query, tcp=False), client)

    def _send(self, reply: bytes, client: _Address) -> None:
        try:
            self._sock.sendto(reply, client)
        except OSError as error:
            # A full buffer, or a client that is gone: it asks again.
            _log.debug("sending a DNS answer failed: %s", error)


class _TcpClient(asyncio.Protocol):
    """One TCP connection of a client."""

    def __init__(self, forwarder: Forwarder, clients: dict[_TcpClient, None]) -> None:
        """`clients` are all of the server, the one that was silent for longest first."""
        self._forwarder = forwarder
        self._clients = clients
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._idle: asyncio.TimerHandle
        """These two from `connection_made` on."""
        self._buffer = bytearray()
        self._tasks: set[asyncio.Task[None]] = set()
        self._full = False
        """Whether the client does not take its answers."""
        self._eof = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if len(self._clients) >= MAX_CONNECTIONS:
            next(iter(self._clients)).abort()
        self._clients[self] = None
        self._idle = self._loop.call_later(IDLE_SECONDS, self.abort)

    def connection_lost(self, error: Exception | None) -> None:
        self._clients.pop(self, None)
        self._idle.cancel()
        for task in list(self._tasks):
            task.cancel()

    def abort(self) -> None:
        self._clients.pop(self, None)
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._advance()

    def eof_received(self) -> bool:
        """Answers that are due are still sent."""
        self._eof = True
        self._advance()
        return not self._transport.is_closing()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._loop.call_soon(self._advance)

    def _advance(self) -> None:
        """Take up the questions that have arrived, as far as more may be open."""
        try:
            self._take_up()
        except Exception as error:  # noqa: BLE001  a fault: see cryprq_proxy/base/faults.py
            report_fault("ends a connection of a DNS client", error)
            self.abort()

    def _take_up(self) -> None:
        buffer = self._buffer
        at = 0
        while not self._full and len(self._tasks) < MAX_PIPELINED and not self._transport.is_closing():
            end = message_end(buffer, at)
            if end > len(buffer):
                break
            self._received(bytes(buffer[at + 2 : end]))
            at = end
        del buffer[:at]
        if self._transport.is_closing():
            return
        if self._full or len(self._tasks) >= MAX_PIPELINED:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()
            if self._eof and not self._tasks:
                self._transport.close()

    def _received(self, message: bytes) -> None:
        self._alive()
        found = self._forwarder.consider(message, tcp=True)
        if isinstance(found, Query):
            task = spawn(self._resolve(found), "dns connection")
            self._tasks.add(task)
            task.add_done_callback(self._resolved)
        elif found is not None:
            self._send(found)
        else:
            # No client of DNS sends this.
            self.abort()

    async def _resolve(self, query: Query) -> None:
        self._send(await self._forwarder.resolve(query, tcp=True))

    def _resolved(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._alive()
        self._advance()

    def _send(self, reply: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(len(reply).to_bytes(2) + reply)

    def _alive(self) -> None:
        """It asked or was answered: the idle time begins anew, and others go first when room is needed."""
        if self in self._clients:
            self._clients[self] = self._clients.pop(self)
            self._idle.cancel()
            self._idle = self._loop.call_later(IDLE_SECONDS, self.abort)
