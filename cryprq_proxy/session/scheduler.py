"""The scheduler: which stream's data goes into the next record.

Data waits in the sockets. The program reads only as much as the carrier sends in a few milliseconds (`queue_target`).
A stream that finds no room goes into `_waiting`; it is called back in turn, and then it reads.

Two queues hold streams with data. *Sparse* streams have sent little of the link's recent traffic. They go first: a
small request must not wait behind downloads. *Bulk* streams take turns, one frame each. Time is counted in bytes sent:
a stream is sparse for its first SPARSE_BURST bytes in every SPARSE_SPAN bytes of the link's traffic. Bulk streams
get at least every fifth frame, however many sparse ones there are.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from .retention import Unit
from .streams import Half, Stream
from .turns import BYTES_PER_UNIT, READ_WORK
from .wire import MAX_DATA

SPARSE_BURST: Final = 32_768
SPARSE_SPAN: Final = 1 << 20
SPARSE_ROOM: Final = 16_384
"""Bytes that one sparse stream may queue although the queue is full."""
SPARSE_QUEUE: Final = 1 << 20
"""Bytes that all sparse streams together may queue beyond `queue_target`."""
SPARSE_RUN: Final = 4
FRAME_SECONDS: Final = 0.002
QUEUE_SECONDS: Final = 0.004
MIN_FRAME: Final = 4_096
MIN_QUEUE: Final = 16_384
MAX_QUEUE: Final = 262_144
MAX_SLICES: Final = 44
"""Datagrams of one train of the lane at most: a kernel takes no more of 1,443 bytes in one send."""


class Scheduler:
    """Queues of one session. `frame_limit` and `queue_target` are in bytes and follow the carrier's rate."""

    __slots__ = (
        "_bulk",
        "_clock",
        "_run",
        "_sparse",
        "_turn",
        "_waiting",
        "frame_limit",
        "open",
        "queue_target",
        "queued",
    )

    def __init__(self) -> None:
        self._sparse: deque[Stream] = deque()
        self._bulk: deque[Stream] = deque()
        self._waiting: deque[Stream] = deque()
        self._clock = 0
        self._run = 0
        self._turn: Stream | None = None
        self.queued = 0
        self.open = False
        """Whether stream data may be queued: there is a path, and room to keep what it carries."""
        self.frame_limit = MAX_DATA
        self.queue_target = MAX_QUEUE

    def pace(self, rate: float | None, payload: int = 0) -> None:
        """The path sends `rate` bytes per second: bound the frames and the queue by time. None: it is not known yet.
        On the lane, units fill its datagrams of `payload` bytes, and large ones its trains."""
        if rate is None:
            limit, self.queue_target = MAX_DATA, MAX_QUEUE
        else:
            limit = int(min(max(rate * FRAME_SECONDS, MIN_FRAME), MAX_DATA))
            self.queue_target = int(min(max(rate * QUEUE_SECONDS, MIN_QUEUE), MAX_QUEUE))
        if payload:
            train = payload * MAX_SLICES
            limit -= limit % (train if train <= limit else min(payload, limit))
        self.frame_limit = limit

    def room_for(self, stream: Stream) -> int:
        """Bytes that `stream` may queue now. If 0, the stream waits for its turn from now on."""
        if self.open:
            free = self.queue_target - self.queued
            if free > 0 and (not self._waiting or stream is self._turn):
                return max(free, self.frame_limit)
            if (
                not stream.queue
                and self.queued < self.queue_target + SPARSE_QUEUE
                and self._is_sparse(stream)
            ):
                return min(SPARSE_ROOM, self.frame_limit)
        self.wait(stream)
        return 0

    def wait(self, stream: Stream) -> None:
        """Call `stream`'s handler when it is its turn to read."""
        if not stream.waiting:
            stream.waiting = True
            self._waiting.append(stream)

    def enqueue(self, stream: Stream, unit: Unit) -> None:
        """Data of `stream` is ready to be sent."""
        if not stream.queue:
            (self._sparse if self._is_sparse(stream) else self._bulk).append(stream)
        stream.queue.append(unit)
        self.queued += unit.size

    def next(self) -> tuple[Stream, Unit] | None:
        """Take the next unit out of the queues."""
        sparse, bulk = self._sparse, self._bulk
        while True:
            if sparse and (self._run < SPARSE_RUN or not bulk):
                self._run += 1
                queue = sparse
            elif bulk:
                self._run = 0
                queue = bulk
            else:
                return None
            stream = queue.popleft()
            if stream.queue:
                break
            # A reset emptied this stream's queue.
        unit = stream.queue.popleft()
        self.queued -= unit.size
        self._clock += unit.size
        stream.burst += unit.size
        if stream.queue:
            (sparse if stream.burst < SPARSE_BURST else bulk).append(stream)
        return stream, unit

    def call_waiting(self, work: int) -> int:
        """Let waiting streams read, in turn, until the queue is full: `writable` queues data before it returns. Returns
        the work that this was, about `work` at most (turns.py)."""
        waiting, done = self._waiting, 0
        for _ in range(len(waiting)):
            if self.queued >= self.queue_target or not self.open or done >= work:
                break
            before = self.queued
            stream = self._turn = waiting.popleft()
            stream.waiting = False
            if stream.send_half is Half.OPEN:
                handler = stream.handler
                try:
                    handler.writable()
                except Exception as error:  # noqa: BLE001  a fault in one stream: the others go on
                    stream.failed(handler, error)
            # A stream that has ended has taken its bytes out again.
            done += READ_WORK + max(self.queued - before, 0) // BYTES_PER_UNIT
        self._turn = None
        return done

    def forget(self, stream: Stream) -> None:
        """The stream ended: drop what it has queued."""
        for unit in stream.queue:
            self.queued -= unit.size
        stream.queue.clear()

    def _is_sparse(self, stream: Stream) -> bool:
        if self._clock - stream.burst_mark >= SPARSE_SPAN:
            stream.burst_mark = self._clock
            stream.burst = 0
        return stream.burst < SPARSE_BURST
