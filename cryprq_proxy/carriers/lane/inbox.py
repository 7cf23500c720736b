"""How a UDP socket is read: all at once, opened a little at a time, urgent datagrams first.

A bulk transfer keeps a queue of a megabyte in front of the slowest hop, which is this process. In the socket, a ping or
a DNS question would wait behind all of it. So the socket is emptied at once, which is cheap. What its sender has marked
as able to overtake (opening.EXPRESS_KIND) is opened at once too, unless there is very much of it. Of the rest, one turn
of the loop opens so little that other callbacks do not wait long.

A super-packet that needs two sends comes in two receives. The second is put behind the first in one buffer, so that the
packet is opened in one piece, and not in two that must be copied together (lane/joining.py).

Many network cards and wireless links do not join datagrams (UDP_GRO): each would wake this process. Where much comes
like that, the socket is left alone for a millisecond or two, and then what it has is put behind each other, as the
kernel would have joined it. A datagram is looked at only where it differs from the one before. Both together leave the
client two thirds of the work for a download of 185 Mbit/s.

A fault of this program while a batch is handled drops that batch. The first one is logged with its traceback.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Final

from ...base.buffers import SHARED
from ...base.faults import Faults
from ...lane.layout import EXPRESS_KIND, KIND, MAX_TRAIN
from ...lane.sealed_train import MAX_SEND
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
POLL_SECONDS: Final = 0.002
MUCH: Final = 40_960
"""Bytes of a read after which the next one follows in half that time: the kernel's buffer holds 92 datagrams of 1,443
bytes where it may not be made larger."""
BUSY_WAKES: Final = 8
BUSY_BYTES: Final = 16_384
"""In datagrams that the kernel has not joined, with so many wake-ups, in about two POLL_SECONDS: so much that waking
for each is a waste."""
QUIET_POLLS: Final = 16
QUIET_BYTES: Final = 49_152
"""So many reads that bring less than this together end that: it is three datagrams each."""
CALM_SECONDS: Final = 0.5
"""After that, so long at least each datagram is read at once: large questions and answers in turn look busy, and a
millisecond is much for them."""


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
        self._read_bytes = 0
        """In this turn."""
        self._joined = False
        """Whether the kernel has joined some of them."""
        self._emptied = True
        """Whether nothing was left in the socket then. The kernel does not tell again of what the socket has read."""
        self._busy_since = self._calm_until = -inf
        self._busy_bytes = 0
        self._busy_reads = 0
        """Since `_busy_bytes` was 0."""
        self._polling = False
        self._poll: asyncio.TimerHandle | None = None
        self._faults = Faults("drops datagrams of the lane")
        loop.add_reader(sock.fileno(), self._readable)

    def close(self) -> None:
        """Stop reading and drop what waits. The caller closes the socket."""
        self._closed = True
        if self._poll is not None:
            self._poll.cancel()
        if not self._polling:
            self._loop.remove_reader(self._sock.fileno())
        self._polling = False
        for buffer in self._spare + [batch.data for batch in self._waiting]:
            self._buffers.give(buffer)
        self._spare.clear()
        self._waiting.clear()

    def _readable(self) -> None:
        if not self._again:  # else the turn of this moment has been, or comes
            self._turn()
            if not self._polling and not self._closed:
                self._look_for_load()

    def _turn(self) -> None:
        self._read_bytes = 0
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
        if self._polling and not self._again:
            self._poll_on()

    # --- one by one ------------------------------------------------------------------------------------------------

    def _look_for_load(self) -> None:
        """A wake-up is over: if datagrams come in great number and one by one, begin to poll."""
        if self._joined:
            self._busy_since = -inf  # without a look at the clock: most wake-ups of bulk end here
            return
        now = self._loop.time()
        if now - self._busy_since > 2 * POLL_SECONDS:
            self._busy_since, self._busy_bytes, self._busy_reads = now, 0, 0
        self._busy_bytes += self._read_bytes
        self._busy_reads += 1
        if self._busy_reads >= BUSY_WAKES and self._busy_bytes >= BUSY_BYTES and now >= self._calm_until:
            self._loop.remove_reader(self._sock.fileno())
            self._polling = True
            self._busy_reads = self._busy_bytes = 0
            if not self._again:
                self._poll = self._loop.call_later(POLL_SECONDS, self._on_poll)

    def _on_poll(self) -> None:
        self._poll = None
        if not self._again:
            self._turn()
            if self._polling and not self._again:
                self._poll_on()

    def _poll_on(self) -> None:
        """A read has been: poll again, sooner if there was much, or no more."""
        self._busy_reads += 1
        self._busy_bytes += self._read_bytes
        if self._joined or self._busy_reads == QUIET_POLLS:
            if self._joined or self._busy_bytes < QUIET_BYTES:
                self._polling = False
                self._calm_until = self._loop.time() + CALM_SECONDS
                self._loop.add_reader(self._sock.fileno(), self._readable)
                if not self._emptied:
                    self._again = True
                    self._loop.call_soon(self._next_turn)
                return
            self._busy_reads = self._busy_bytes = 0
        if self._read_bytes >= RECEIVE_SIZE:
            self._again = True
            self._loop.call_soon(self._next_turn)
        else:
            much = self._read_bytes >= MUCH
            self._poll = self._loop.call_later(POLL_SECONDS / 2 if much else POLL_SECONDS, self._on_poll)

    def _take(self, batch: Batch) -> None:
        try:
            self._handle(batch)
        except Exception as error:  # noqa: BLE001  see the head of the file
            self._faults.report(error)

    def _read(self) -> int:
        """Empty the socket as far as there are buffers. Returns the cost of what was opened at once."""
        waiting, taken = self._waiting, 0
        self._joined = self._emptied = False
        for _ in range(4 * BUFFERS):
            if len(waiting) >= BUFFERS:
                break
            last = waiting[-1] if waiting else None
            if last is not None and self._polling and (most := _most(last)):
                batch, dry = self._read_lone(last, most)
                if batch is None:
                    if dry:
                        self._emptied = True
                        break
                    continue
            else:
                cut = last if last is not None and _is_cut(last) else None
                batch = self._read_batch(cut)
                if batch is None:
                    self._emptied = True
                    break
                if cut is not None and _is_rest(batch, cut):
                    waiting[-1] = cut._replace(size=cut.size + batch.size)
                    continue
                if cut is not None:
                    batch = self._apart(batch, cut.size)
            buffer = batch.data
            if buffer[0] != EXPRESS_KIND or taken >= EXPRESS_COST:
                waiting.append(batch)
                continue
            taken += _cost(batch)
            self._take(batch)
            if self._closed:
                break
            self._spare.append(buffer)
        return taken

    def _read_batch(self, cut: Batch | None) -> Batch | None:
        """The next one, behind `cut` if there is one; None if nothing waits in the socket."""
        buffer = self._empty() if cut is None else cut.data
        batch = self._sock.receive(buffer, 0 if cut is None else cut.size)
        if batch is None:
            if cut is None:
                self._spare.append(buffer)
            return None
        self._note(batch)
        return batch

    def _read_lone(self, last: Batch, most: int) -> tuple[Batch | None, bool]:
        """Put what is like it behind the last one that waits. Returns what came that is not, and whether nothing waits
        in the socket now."""
        grown, other, dry = self._sock.receive_behind(last, most)
        self._waiting[-1] = grown
        self._read_bytes += grown.size - last.size
        if other is None:
            return None, dry or grown.size == last.size
        self._note(other)
        return self._apart(other, grown.size), False

    def _note(self, batch: Batch) -> None:
        self._read_bytes += batch.size
        if batch.size > batch.segment:
            self._joined = True

    def _apart(self, batch: Batch, at: int) -> Batch:
        """Moves what was received at `at` of another one's buffer to one of its own."""
        buffer, size = self._empty(), batch.size
        buffer[:size] = batch.data[at : at + size]
        return batch._replace(data=buffer)

    def _empty(self) -> memoryview:
        return self._spare.pop() if self._spare else self._buffers.take()


def _is_cut(batch: Batch) -> bool:
    """Whether it is as much as one send can be, so that the rest of a super-packet may follow."""
    return batch.size == batch.segment * min(MAX_SEGMENTS, MAX_SEND // batch.segment)


def _most(batch: Batch) -> int:
    """Bytes that it may have with others of its size behind it; 0 if there is no room for one, or it may overtake."""
    most = min(RECEIVE_SIZE, batch.segment * MAX_TRAIN)
    room = not batch.size % batch.segment and batch.size + batch.segment <= most
    return most if room and batch.data[0] == KIND else 0


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
