"""Streams: one proxied connection each, with its credit in both directions.

The life of a stream, seen from one side (`send` and `receive` are its two halves):

                        sends FIN         sends RESET or REFUSED       gets FIN          gets RESET or REFUSED
    send half           -> closed         -> closed                    stays             -> closed, answers RESET
    receive half        stays             -> closed                    -> closed         -> closed

A side may close both halves before the peer has ended its own. It then keeps the stream's number until that end
arrives, so that frames still in flight differ from frames for a stream that never existed.

Credit is counted in bytes since the stream began. Each direction starts with INITIAL_WINDOW and is extended by WINDOW
frames with an absolute value. A stream that drains its window within a round trip, or nearly to nothing, gets a
larger one, taken from the session's pool; a slow one gives it back.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Final, Protocol

from ..address import Destination
from ..errors import CloseReason, LocalError, PeerError, StreamReason
from .sendlog import Chunk, SlotPool, frame_slot
from .wire import DATA, StreamProtocol, encode_data_header

INITIAL_WINDOW: Final = 65_536
"""Bytes that may be sent on a new stream, in either direction, before the first WINDOW."""
MAX_WINDOW: Final = 8 << 20
"""Bytes one stream's window may grow to."""
MODEST_WINDOW: Final = 131_072
"""Bytes up to which a window also grows because it was used up: enough for an even share of a busy link."""
FAST_DRAIN: Final = 0.001
"""Seconds: a window of which half drains in less than this, or than two round trips, is too small."""
SLOW_DRAIN: Final = 8
"""A window is too large if its half took this many times longer to drain: the surplus only waits in queues on the path,
and other streams wait behind it."""


class StreamHandler:
    """What a stream calls: override what concerns you, the others do nothing.

    No method may raise; each may call the stream back. After `refused` or `reset` nothing more is called.
    """

    __slots__ = ()

    def opened(self) -> None:
        """At the client: the exit has connected the destination."""

    def refused(self, reason: StreamReason) -> None:
        """At the client: the exit has not connected the destination."""

    def data_received(self, data: memoryview) -> None:
        """Bytes arrived. `data` is valid until this returns.

        Call `stream.consumed` once the bytes have left the handler, or the peer stops sending.
        """

    def eof_received(self) -> None:
        """The peer sends no more bytes."""

    def reset(self, reason: StreamReason) -> None:
        """The peer ended both halves, or the session is lost."""

    def writable(self) -> None:
        """It is the stream's turn to send: see `Stream.request_room`."""

    def datagram_received(self, destination: Destination, payload: memoryview) -> None:
        """A datagram arrived on a UDP stream. `payload` is valid until this returns."""


class AnyStream(Protocol):
    """What a handler may do with its stream, be it one of the link (Stream, where the words are) or one that leaves
    this machine past it (client/direct.py)."""

    handler: StreamHandler

    @property
    def send_half(self) -> Half: ...
    @property
    def receive_half(self) -> Half: ...
    @property
    def frame_limit(self) -> int: ...
    def request_room(self) -> int: ...
    def wait_for_turn(self) -> None: ...
    def waits(self) -> bool: ...
    def send_slot(self, slot: memoryview, size: int) -> None: ...
    def send(self, data: bytes | memoryview) -> None: ...
    def finish(self) -> None: ...
    def reset(self, reason: StreamReason) -> None: ...
    def consumed(self, size: int) -> None: ...
    def send_datagram(self, destination: Destination, payload: bytes | memoryview) -> None: ...


class StreamTurns(Protocol):
    """What a stream needs of the scheduler (scheduler.py)."""

    @property
    def frame_limit(self) -> int: ...
    def room_for(self, stream: Stream, /) -> int: ...
    def wait(self, stream: Stream, /) -> None: ...
    def enqueue(self, stream: Stream, chunk: Chunk, /) -> None: ...


class StreamOwner(Protocol):
    """What a stream needs of its session (session.py)."""

    @property
    def dialler(self) -> bool: ...
    @property
    def scheduler(self) -> StreamTurns: ...
    @property
    def slots(self) -> SlotPool: ...
    def wake(self) -> None: ...
    def window_due(self, stream: Stream, /) -> None: ...
    def send_opened(self, stream: Stream, /) -> None: ...
    def send_refused(self, stream: Stream, reason: StreamReason, /) -> None: ...
    def send_fin(self, stream: Stream, /) -> None: ...
    def send_reset(self, stream: Stream, reason: StreamReason, /) -> None: ...
    def send_datagram(
        self, stream: Stream, destination: Destination, payload: bytes | memoryview, /
    ) -> None: ...


class Half(Enum):
    """State of one half of a stream. UNBORN: the dialler has not heard OPENED yet, so nothing may arrive. FINISHING:
    FIN waits behind queued data."""

    UNBORN = 0
    OPEN = 1
    FINISHING = 2
    CLOSED = 3


class WindowPool:
    """Bytes by which the windows of a session's streams may exceed INITIAL_WINDOW, together."""

    __slots__ = ("free",)

    def __init__(self, total: int) -> None:
        self.free = total


class Stream:
    """One side of a stream. Made by `Session.open` or handed to the acceptor; not constructed by others.

    `label` is a value of the opener's choice that says what the stream is for.
    """

    __slots__ = (
        "_extra_window",
        "_header",
        "_session",
        "_window",
        "_window_since",
        "announced",
        "burst",
        "burst_mark",
        "consumed_bytes",
        "destination",
        "handler",
        "id",
        "label",
        "opened",
        "protocol",
        "queue",
        "receive_half",
        "received",
        "send_half",
        "send_limit",
        "sent",
        "starved",
        "waiting",
    )

    def __init__(
        self,
        session: StreamOwner,
        id: int,
        protocol: StreamProtocol,
        destination: Destination,
        handler: StreamHandler,
        now: float,
    ) -> None:
        self._session = session
        self.id = id
        self.protocol = protocol
        self.destination = destination
        self.handler = handler
        self.label: object = None
        self.opened = False
        self._header = encode_data_header(DATA, id)
        # Sending: bytes queued or sent so far, and how many may be.
        self.send_half = Half.OPEN
        self.sent = 0
        self.send_limit = INITIAL_WINDOW
        self.queue: deque[Chunk] = deque()
        self.starved = False
        self.waiting = False
        self.burst = 0
        self.burst_mark = 0
        # Receiving: bytes that came, left the handler, and may come.
        self.receive_half = Half.UNBORN if session.dialler else Half.OPEN
        self.received = 0
        self.consumed_bytes = 0
        self.announced = INITIAL_WINDOW
        self._window = INITIAL_WINDOW
        self._window_since = now
        self._extra_window = 0

    # --- for the handler -------------------------------------------------------------------------------------------

    def request_room(self) -> int:
        """Bytes that may be sent now, in pieces of `frame_limit`; 0 means that `handler.writable` will be called."""
        if self.send_half is not Half.OPEN:
            return 0
        credit = self.send_limit - self.sent
        if credit <= 0:
            self.starved = True
            return 0
        room = self._session.scheduler.room_for(self)
        return room if room < credit else credit

    @property
    def frame_limit(self) -> int:
        """Bytes in one DATA frame at most, at the carrier's present rate."""
        return self._session.scheduler.frame_limit

    def wait_for_turn(self) -> None:
        """There is more to send: have `handler.writable` called when it is this stream's turn."""
        self._session.scheduler.wait(self)

    def waits(self) -> bool:
        """Whether `handler.writable` is going to be called."""
        return self.waiting or self.starved

    def send_slot(self, slot: memoryview, size: int) -> None:
        """Send `size` bytes (at most `frame_limit` and `request_room()`) that were read into `slot` behind its
        head-room; the slot is no longer the caller's."""
        self._queue(frame_slot(slot, size, self._header, self._session.slots))

    def send(self, data: bytes | memoryview) -> None:
        """Send 1 to `request_room()` bytes, copied."""
        limit = self.frame_limit
        for start in range(0, len(data), limit):
            piece = data[start : start + limit]
            self._queue(Chunk(b"".join((self._header, piece)), len(piece), None))

    def finish(self) -> None:
        """No more data will be sent: half-close. Raises LocalError if that was said before."""
        if self.send_half is not Half.OPEN:
            raise LocalError("a stream was finished twice")
        self.send_half = Half.FINISHING
        if not self.queue:
            self._session.send_fin(self)

    def reset(self, reason: StreamReason) -> None:
        """End both halves at once; nothing more is called. Harmless on a stream that has ended."""
        self._session.send_reset(self, reason)

    def accept(self) -> None:
        """At the exit: the destination is connected."""
        self._session.send_opened(self)

    def refuse(self, reason: StreamReason) -> None:
        """At the exit: the destination cannot be had."""
        self._session.send_refused(self, reason)

    def consumed(self, size: int) -> None:
        """`size` bytes have left the handler: the peer may send as many more."""
        self.consumed_bytes += size
        if self.announced - self.consumed_bytes <= self._window >> 1 and self.receive_half is Half.OPEN:
            self._session.window_due(self)

    def send_datagram(self, destination: Destination, payload: bytes | memoryview) -> None:
        """On a UDP stream: send one datagram, at most MAX_DATAGRAM bytes. It may be dropped."""
        self._session.send_datagram(self, destination, payload)

    # --- for the session -------------------------------------------------------------------------------------------

    def _queue(self, chunk: Chunk) -> None:
        if self.send_half is not Half.OPEN:
            raise LocalError("data was sent on a stream whose sending half has ended")
        self.sent += chunk.size
        self._session.scheduler.enqueue(self, chunk)
        self._session.wake()

    def raise_send_limit(self, limit: int) -> bool:
        """A WINDOW arrived; True if the stream had been waiting for it."""
        if limit <= self.send_limit:
            return False
        self.send_limit = limit
        starved, self.starved = self.starved, False
        return starved

    def take_data(self, size: int) -> None:
        """`size` bytes arrived. Raises PeerError for data before OPENED or after the end (PROTOCOL), or beyond the
        window (CREDIT)."""
        if self.receive_half is not Half.OPEN:
            raise PeerError(CloseReason.PROTOCOL, "the peer sent data outside of a stream's life")
        self.received += size
        if self.received > self.announced:
            raise PeerError(CloseReason.CREDIT, "the peer sent more data than the window allows")

    def next_window(self, now: float, round_trip: float, pool: WindowPool) -> int:
        """The limit to announce now, after adapting the window to how fast the last half of it was drained.

        `round_trip` is that of the idle path: one that counts the queues would make them grow.
        """
        elapsed = now - self._window_since
        self._window_since = now
        fast = max(FAST_DRAIN, 2 * round_trip)
        share = (
            pool.free >> 1
        )  # of what is left, so that streams that came first leave as much for each that comes later
        if self._extra_window > share:
            growth = (share - self._extra_window) >> 1
        elif elapsed < fast or (
            self._window < MODEST_WINDOW and self.announced - self.consumed_bytes <= self._window >> 2
        ):
            growth = min(self._window, MAX_WINDOW - self._window, share - self._extra_window)
        elif elapsed > SLOW_DRAIN * fast:
            growth = -(self._extra_window >> 1)
        else:
            growth = 0
        self._window += growth
        self._extra_window += growth
        pool.free -= growth
        limit = max(self.announced, self.consumed_bytes + self._window)
        self.announced = limit
        return limit

    def release(self, pool: WindowPool) -> None:
        """The stream is gone: its window goes back to the pool."""
        pool.free += self._extra_window
        self._extra_window = 0
        self.queue.clear()
