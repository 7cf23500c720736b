"""How a UDP socket is read: all at once, opened a little at a time, urgent datagrams first.

A bulk transfer keeps a queue of a megabyte in front of the slowest hop, which is this process. In the socket, a ping or
a DNS question would wait behind all of it. So the socket is emptied at once, which is cheap. What its sender has marked
as able to overtake (opening.EXPRESS_KIND) is opened at once too, unless there is very much of it. Of the rest, one turn
of the loop opens so little that other callbacks do not wait long.

A super-packet that needs two sends comes in two receives. The second is put behind the first in one buffer, so that the
packet is opened in one piece, and not in two that must be copied together (lane/joining.py).

A fault of this program while a batch is handled drops that batch. The first one is logged with its traceback.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from ...base.buffers import SHARED
from ...base.faults import Faults
from ...lane.layout import EXPRESS_KIND, KIND, MAX_TRAIN
from ...lane.sealing import MAX_SEND
from .batch import MAX_SEGMENTS, RECEIVE_SIZE, Batch
from .udp_socket import UdpSocket

BUFFERS: Final = 32
"""Batches of 64 KiB, or up to twice as much where one was put behind the other, that wait here at most; further ones
wait in the socket."""
DATAGRAM_COST: Final = 512
"""Bytes for which each datagram counts besides its own: small ones take time too."""
TURN_COST: Final = 180_224
"""Bytes opened in one turn, so counted, about: 94 datagrams of 1,400 bytes, or 330 small ones."""
EXPRESS_COST: Final = TURN_COST // 2
"""Of what is marked as able to overtake; more of it waits with the rest."""


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
        self._buffers = SHARED.pool("arriving datagrams", 2 * RECEIVE_SIZE, BUFFERS)
        self._again = False
        self._closed = False
        self._faults = Faults("drops datagrams of the lane")
        loop.add_reader(sock.fileno(), self._readable)

    def close(self) -> None:
        """Stop reading and drop what waits. The caller closes the socket."""
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        for buffer in self._spare + [batch.data for batch in self._waiting]:
            self._buffers.give(buffer)
        self._spare.clear()
        self._waiting.clear()

    def _readable(self) -> None:
        if not self._again:  # else the turn of this moment has been, or comes
            self._turn()

    def _turn(self) -> None:
        taken = 0 if self._closed else self._read()
        if self._closed:
            return
        waiting = self._waiting
        while waiting and taken < TURN_COST:
            batch = waiting.popleft()
            taken += _cost(batch)
            self._take(batch)
            if self._closed:
                return
            self._spare.append(batch.data)
        if waiting and not self._again:
            self._again = True
            self._loop.call_soon(self._next_turn)
        self._turn_ended(bool(waiting))

    def _next_turn(self) -> None:
        self._again = False
        self._turn()

    def _take(self, batch: Batch) -> None:
        try:
            self._handle(batch)
        except Exception as error:  # noqa: BLE001  see the head of the file
            self._faults.report(error)

    def _read(self) -> int:
        """Empty the socket as far as there are buffers. Returns the cost of what was opened at once."""
        sock, waiting, spare = self._sock, self._waiting, self._spare
        taken = 0
        for _ in range(4 * BUFFERS):
            if len(waiting) >= BUFFERS:
                break
            cut = waiting[-1] if waiting and _is_cut(waiting[-1]) else None
            if cut is None:
                buffer, at = spare.pop() if spare else self._buffers.take(), 0
            else:
                buffer, at = cut.data, cut.size
            batch = sock.receive(buffer, at)
            if batch is None:
                if cut is None:
                    spare.append(buffer)
                break
            if cut is not None:
                if _is_rest(batch, cut):
                    waiting[-1] = cut._replace(size=at + batch.size)
                    continue
                buffer = spare.pop() if spare else self._buffers.take()
                buffer[: batch.size] = batch.data[at : at + batch.size]
                batch = batch._replace(data=buffer)
            if buffer[0] != EXPRESS_KIND or taken >= EXPRESS_COST:
                waiting.append(batch)
                continue
            taken += _cost(batch)
            self._take(batch)
            if self._closed:
                break
            spare.append(buffer)
        return taken


def _is_cut(batch: Batch) -> bool:
    """Whether it is as much as one send can be, so that the rest of a super-packet may follow."""
    return batch.size == batch.segment * min(MAX_SEGMENTS, MAX_SEND // batch.segment)


def _is_rest(batch: Batch, cut: Batch) -> bool:
    """Whether what was received behind `cut` can be of the same super-packet. Only its last datagram may be shorter."""
    return (
        batch.peer == cut.peer
        and batch.marked == cut.marked
        and batch.data[cut.size] == KIND
        and (batch.segment == cut.segment or batch.size < cut.segment)
        and cut.size + batch.size <= cut.segment * MAX_TRAIN
    )


def _cost(batch: Batch) -> int:
    return batch.size - DATAGRAM_COST * (-batch.size // batch.segment)
