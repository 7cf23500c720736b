"""How a UDP socket is read: all at once, opened a little at a time, urgent datagrams first.

A bulk transfer keeps a queue of a megabyte in front of the slowest hop, which is this process. In the socket, a ping or
a DNS question would wait behind all of it. So the socket is emptied at once, which is cheap. What its sender has marked
as able to overtake (opening.EXPRESS_KIND) is opened at once too. Of the rest, one turn of the loop opens so little
that other callbacks do not wait long.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from ...base.buffers import SHARED
from ...lane.layout import EXPRESS_KIND
from .batch import RECEIVE_SIZE, Batch
from .udp_socket import UdpSocket

BUFFERS: Final = 32
"""Batches of 64 KiB that wait here at most; further ones wait in the socket."""
TURN_BYTES: Final = 131_072
"""Bytes opened in one turn, about: they take half a millisecond."""


class Inbox:
    """Reads `sock` and gives each batch to `handle`, which may use it until it returns. After each turn,
    `turn_ended` is called with whether more waits here already."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: UdpSocket,
        handle: Callable[[Batch], None],
        turn_ended: Callable[[bool], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._handle = handle
        self._turn_ended = turn_ended
        self._waiting: deque[Batch] = deque()
        self._spare: list[memoryview] = []
        # Buffers of closed inboxes are used again, because lanes keep views of them.
        self._buffers = SHARED.pool("arriving datagrams", RECEIVE_SIZE, BUFFERS)
        self._again = False
        self._closed = False
        loop.add_reader(sock.fileno(), self._turn)

    def close(self) -> None:
        """Stop reading and drop what waits. The caller closes the socket."""
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        for buffer in self._spare + [batch.data for batch in self._waiting]:
            self._buffers.give(buffer)
        self._spare.clear()
        self._waiting.clear()

    def _turn(self) -> None:
        if not self._closed:
            self._read()
        if self._closed:
            return
        waiting, taken = self._waiting, 0
        while waiting and taken < TURN_BYTES:
            batch = waiting.popleft()
            taken += batch.size
            self._handle(batch)
            if self._closed:
                return
            self._spare.append(batch.data)
        self._turn_ended(bool(waiting))
        if waiting and not self._again and not self._closed:
            self._again = True
            self._loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._again = False
        self._turn()

    def _read(self) -> None:
        """Empty the socket as far as there are buffers."""
        sock, waiting, spare = self._sock, self._waiting, self._spare
        for _ in range(4 * BUFFERS):
            if len(waiting) >= BUFFERS:
                return
            buffer = spare.pop() if spare else self._buffers.take()
            batch = sock.receive(buffer)
            if batch is None:
                spare.append(buffer)
                return
            if buffer[0] != EXPRESS_KIND:
                waiting.append(batch)
                continue
            self._handle(batch)
            if self._closed:
                return
            spare.append(buffer)
