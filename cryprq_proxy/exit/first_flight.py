"""Reading first flights from thousands of TCP connections, most of which never send one.

A connection costs no task, no timer and no entry in the event loop: one selector below the loop's watches all of them,
and of those that have sent something a bounded number has its turn in each turn of the loop. To list the ready ones
takes a microsecond for each, so it is done again only when all of one list have had their turn.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from ..base.accept_loop import ACCEPTS
from ..carriers.carrier import broken
from ..crypto.handshake import FIRST_SIZE, LENGTH
from ..errors import CarrierError, CloseReason, HandshakeError, PeerError

READS: Final = ACCEPTS
"""Connections that are read from in one turn of the loop. With fewer than are accepted in it, connections whose flights
nobody has read would fill the lobby, and lose their places there."""


class SilentSockets:
    """Calls `ready` of a socket when it has something to read, or has ended: for READS of them in each turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._selector: selectors.DefaultSelector | None = None
        self._due: deque[selectors.SelectorKey] = deque()
        """The ready ones of the last list that have not had their turn."""

    def watch(self, sock: socket.socket, ready: Callable[[], None]) -> None:
        """Call `ready` from now on, until `forget`. Raises OSError without a descriptor or memory."""
        if self._selector is None:
            self._selector = selectors.DefaultSelector()
            self._loop.add_reader(self._selector.fileno(), self._on_ready)
        self._selector.register(sock, selectors.EVENT_READ, ready)

    def forget(self, sock: socket.socket) -> None:
        """Needed before `sock` is closed or used elsewhere; harmless if it is not watched."""
        if self._selector is not None and sock in self._selector.get_map():
            self._selector.unregister(sock)

    def close(self) -> None:
        if self._selector is not None:
            self._loop.remove_reader(self._selector.fileno())
            self._selector.close()
            self._selector = None
            self._due.clear()

    def _on_ready(self) -> None:
        selector = self._selector
        if selector is None:
            return
        if not self._due:
            self._due.extend(key for key, _ in selector.select(0))
        registered = selector.get_map()
        for _ in range(min(READS, len(self._due))):
            if not self._due:
                return  # closed meanwhile
            key = self._due.popleft()
            # One that has been closed meanwhile is no longer registered, or another one has its number.
            if registered.get(key.fd) is key:
                key.data()


class Pieces(Protocol):
    """Reads a known number of bytes, perhaps known only step by step."""

    @property
    def missing(self) -> int:
        """Bytes that are still to come, as far as known; 0 when all are there."""

    def feed(self, data: bytes) -> None:
        """Take `missing` bytes or fewer. Raises HandshakeError."""


class FirstFlight:
    """The first flight behind its length."""

    __slots__ = ("_data", "_size")

    def __init__(self) -> None:
        self._data = bytearray()
        self._size = LENGTH.size

    @property
    def missing(self) -> int:
        return self._size - len(self._data)

    def feed(self, data: bytes) -> None:
        self._data += data
        if len(self._data) == LENGTH.size == self._size:
            (size,) = LENGTH.unpack(self._data)
            if size not in FIRST_SIZE:
                raise HandshakeError("a flight of impossible length arrived")
            self._size += size

    @property
    def flight(self) -> bytes:
        """Valid when nothing is missing."""
        return bytes(self._data[LENGTH.size :])


def read_pieces(sock: socket.socket, into: Pieces) -> PeerError | None:
    """Read what is there and no more than `into` misses. Returns the error after which nothing more comes."""
    try:
        while into.missing:
            data = sock.recv(into.missing)
            if not data:
                return CarrierError(
                    CloseReason.TIMED_OUT, "the other side ended the connection during the handshake"
                )
            into.feed(data)
    except (BlockingIOError, InterruptedError):
        return None
    except OSError as error:
        return broken(error)
    except HandshakeError as error:
        return error
    return None
