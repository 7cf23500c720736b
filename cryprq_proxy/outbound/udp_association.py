"""UDP associations at the exit: a stream of datagrams on one side, UDP sockets on the other.

An association has one socket per family, so an application keeps one outer port for all its targets. Answers pass only
from hosts to which the application has sent (address-dependent filtering, RFC 4787 section 5). The egress policy judges
each datagram after the name is resolved and before it is sent.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from ..address import Destination
from ..base.descriptors import EXHAUSTED, SHORTAGE
from ..base.faults import report_fault
from ..base.sockets import let_send_largest
from ..errors import StreamReason
from ..session.streams import StreamHandler
from ..session.turns import JUDGE_WORK, TurnBudget
from ..session.wire import MAX_DATAGRAM
from .dialer import TargetPolicy
from .resolving.resolver import Resolver
from .socket_group import SocketLoop
from .waiting_datagrams import HeldBytes, WaitingDatagrams

MAX_SOCKETS: Final = 2
"""One for each family."""
MAX_HOSTS: Final = 1_024
"""Hosts that may answer one association; the least recently used one is forgotten first."""
READS: Final = 8
"""Datagrams read in one wake-up."""


class UdpAssociation(StreamHandler):
    """Handler of a UDP stream at the exit, and behind a direct one at the client (client/direct.py).

    `answered` gets the datagrams of hosts with their source, `reset_stream` ends the stream, `held` and
    `turn` are those of its peer, `closed` is called when the sockets are closed, perhaps twice.
    """

    def __init__(
        self,
        loop: SocketLoop,
        answered: Callable[[Destination, bytes], None],
        reset_stream: Callable[[StreamReason], None],
        policy: TargetPolicy,
        resolver: Resolver,
        held: HeldBytes,
        turn: TurnBudget,
        closed: Callable[[], None] = lambda: None,
    ) -> None:
        self._loop = loop
        self._answered = answered
        self._reset_stream = reset_stream
        self._policy = policy
        self._resolver = resolver
        self._on_closed = closed
        self._sockets: dict[int, socket.socket] = {}
        self._hosts: OrderedDict[str, None] = OrderedDict()
        self._turn = turn
        self._waiting = WaitingDatagrams(resolver, turn, held, self._send_to_name)
        self._closed = False

    def datagram_received(self, destination: Destination, payload: bytes | memoryview) -> None:
        if destination.is_ip:
            self._send(destination.host, destination.port, payload, None)
        elif self._policy.check_name(destination.host, destination.port):
            name, port = destination
            addresses = None if name in self._waiting else self._resolver.remembered(name)
            if addresses is None:
                self._waiting.add(name, port, payload)
            else:
                self._send_to_name(name, addresses, port, payload)

    def _send_to_name(
        self, name: str, addresses: Sequence[str], port: int, payload: bytes | memoryview
    ) -> None:
        """Send a datagram to the first address that is allowed and reachable, IPv4 first."""
        for address in sorted(addresses, key=lambda address: ":" in address):
            if self._closed or self._send(address, port, payload, name):
                return
            self._turn.spend(JUDGE_WORK)

    def _send(self, host: str, port: int, payload: bytes | memoryview, name: str | None) -> bool:
        """Send a datagram. Returns whether it was allowed and sent."""
        if not port or not self._policy.check_address(host, port, name):
            return False
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            sock = self._sockets.get(family) or self._bind(family)
            sock.sendto(payload, (host, port))
        except OSError:
            return False
        self._hosts[host] = None
        self._hosts.move_to_end(host)
        if len(self._hosts) > MAX_HOSTS:
            self._hosts.popitem(last=False)
        return True

    def _bind(self, family: int) -> socket.socket:
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM)
        except OSError as error:
            if error.errno in EXHAUSTED:
                SHORTAGE.note(error)
            raise
        try:
            sock.setblocking(False)
            let_send_largest(sock)
            sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", 0))
        except OSError:
            sock.close()
            raise
        self._sockets[family] = sock
        self._loop.add_reader(sock.fileno(), partial(self._on_readable, sock))
        return sock

    def _on_readable(self, sock: socket.socket) -> None:
        try:
            self._read(sock)
        except Exception as error:  # noqa: BLE001  the socket stays readable: the loop would call again at once
            report_fault("ends a UDP association", error)
            self._reset_stream(StreamReason.GENERAL)
            self._close()

    def _read(self, sock: socket.socket) -> None:
        for _ in range(READS):
            try:
                payload, address = sock.recvfrom(MAX_DATAGRAM)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                continue  # an ICMP error of an earlier datagram
            host = address[0]
            if host in self._hosts:
                self._answered(Destination(host, address[1]), payload)

    def eof_received(self) -> None:
        self._reset_stream(StreamReason.CANCELLED)
        self._close()

    def reset(self, reason: StreamReason) -> None:
        self._close()

    def _close(self) -> None:
        self._closed = True
        self._waiting.close()
        for sock in self._sockets.values():
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._sockets.clear()
        self._on_closed()
