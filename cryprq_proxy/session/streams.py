"""Streams: each is one proxied connection, with credit in both directions.

The life of a stream, seen from one side (its two halves are `send` and `receive`):

                        sends FIN         sends RESET or REFUSED       gets FIN          gets RESET or REFUSED
    send half           -> closed         -> closed                    stays             -> closed, answers RESET
    receive half        stays             -> closed                    -> closed         -> closed

Each direction is bytes by offset (RFC 9000 section 2.2). They come in order while one path carries them; what comes
too early, after a change of paths, waits in a Reassembly, and what comes twice is dropped. FIN and RESET name the final
offset. A side may close both halves before the peer has ended its own. It then keeps the stream's number until that end
arrives, so that frames still in flight differ from frames for a stream that never existed.

Credit is counted in bytes since the stream began. Each direction starts with INITIAL_WINDOW; WINDOW frames, which hold
an absolute value, extend it. How large the window is that they give follows what was measured, and how much of it is
counted in a pool, whether the stream moves (windows.py).
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Final, Protocol

from ..address import Destination
from ..errors import CloseReason, LocalError, PeerError, StreamReason
from .reassembly import Reassembly
from .retention import SlotPool, Unit, frame_slot
from .windows import INITIAL_WINDOW, SHORTEST_ROUND, WindowPool, step, wanted, wanted_at_least
from .wire import DATA, StreamProtocol, encode_data_header

_NEVER: Final = float("inf")
"""More bytes than are ever taken."""


class StreamHandler:
    """What a stream calls: override the methods that you need; the others do nothing.

    No method may raise: what one raises is logged and resets its stream, and the handler's `reset` is called. Each may
    call the stream back. After `refused` or `reset` nothing more is called.
    """

    __slots__ = ()

    def expected(self) -> None:
        """At the client, before `opened`: go on as if the exit had connected the destination. `refused` may follow."""

    def opened(self) -> None:
        """At the client: the exit has connected the destination."""

    def refused(self, reason: StreamReason) -> None:
        """At the client: the exit has not connected the destination."""

    def data_received(self, data: memoryview) -> None:
        """Bytes arrived. `data` is valid until this returns.

        Call `stream.consumed` when the bytes have left the handler; else the peer stops sending.
        """

    def eof_received(self) -> None:
        """The peer sends no more bytes."""

    def reset(self, reason: StreamReason) -> None:
        """The peer ended both halves, or the session is lost."""

    def writable(self) -> None:
        """It is the stream's turn to send: see `Stream.request_room`."""

    def moved(self, stream: AnyStream) -> None:
        """At the client: its stream, on which nothing was sent, was given up, and this one takes its place."""

    def session_left(self) -> None:
        """At the client: the exit has asked it to leave the session. A stream that is kept for later is to end."""

    def datagram_received(self, destination: Destination, payload: memoryview) -> None:
        """A datagram arrived on a UDP stream. `payload` is valid until this returns."""


class AnyStream(Protocol):
    """What a handler may do with its stream: one of the link (Stream has the docstrings) or a direct connection
    (client/direct.py)."""

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
    def progress(self) -> int: ...
    def send_datagram(self, destination: Destination, payload: bytes | memoryview) -> None: ...


class StreamTurns(Protocol):
    """What a stream needs of the scheduler (scheduler.py)."""

    @property
    def frame_limit(self) -> int: ...
    def room_for(self, stream: Stream, /) -> int: ...
    def wait(self, stream: Stream, /) -> None: ...
    def enqueue(self, stream: Stream, unit: Unit, /) -> None: ...


class StreamOwner(Protocol):
    """What a stream needs of its session (stream_table.py)."""

    credit: int
    """Bytes that all streams together may still send."""

    @property
    def dialler(self) -> bool: ...
    @property
    def scheduler(self) -> StreamTurns: ...
    @property
    def slots(self) -> SlotPool: ...
    def wake(self) -> None: ...
    def wait_for_credit(self, stream: Stream, /) -> None: ...
    def window_due(self, stream: Stream, /) -> None: ...
    def count_consumed(self, stream: Stream, /) -> None:
        """What the handler of `stream` has taken goes back to the credit of the session."""

    def send_opened(self, stream: Stream, /) -> None: ...
    def send_refused(self, stream: Stream, reason: StreamReason, /) -> None: ...
    def send_fin(self, stream: Stream, /) -> None: ...
    def send_reset(self, stream: Stream, reason: StreamReason, /) -> None: ...
    def stream_failed(self, stream: Stream, handler: StreamHandler, fault: Exception, /) -> None: ...
    def send_datagram(
        self, stream: Stream, destination: Destination, payload: bytes | memoryview, /
    ) -> None: ...


class Half(Enum):
    """State of one half of a stream. FINISHING: FIN waits behind queued data. UNBORN, for connections that do not use
    the link (client/direct.py): there is none yet."""

    UNBORN = 0
    OPEN = 1
    FINISHING = 2
    CLOSED = 3


class Stream:
    """One side of a stream. Only Session makes one: `Session.open` returns it, or its `accept_stream` gets it.

    `label` is any value that says what the stream is for; the caller of `Session.open` sets it.
    """

    __slots__ = (
        "_covered",
        "_due",
        "_round_own",
        "_round_since",
        "_session",
        "_window",
        "announced",
        "burst",
        "burst_mark",
        "consumed_bytes",
        "credited",
        "delivered",
        "destination",
        "final",
        "handler",
        "id",
        "label",
        "last_data",
        "opened",
        "pieces",
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
        # Sending: bytes queued or sent so far, and how many may be sent.
        self.send_half = Half.OPEN
        self.sent = 0
        self.send_limit = INITIAL_WINDOW
        self.queue: deque[Unit] = deque()
        self.starved = False
        self.waiting = False
        self.burst = 0
        self.burst_mark = 0
        # Receiving: the highest offset that came (and when), the first one that is still to come, how many bytes have
        # left the handler, how many of those the session's credit knows of, which offset may come, and where it ends.
        self.receive_half = Half.OPEN
        self.received = 0
        self.last_data = now
        self.delivered = 0
        self.pieces: Reassembly | None = None
        self.consumed_bytes = 0
        self.credited = 0
        self.announced = INITIAL_WINDOW
        self.final: int | None = None
        # Of what may come and was not taken, how much is counted, and up to which byte that reaches.
        self._window = INITIAL_WINDOW
        self._covered = INITIAL_WINDOW
        self._due: float = INITIAL_WINDOW >> 1
        # The measurement that goes on: since when, and what was taken before.
        self._round_since = now
        self._round_own = 0

    # --- for the handler -------------------------------------------------------------------------------------------

    def request_room(self) -> int:
        """Bytes that may be sent now, in pieces of `frame_limit`. If 0, `handler.writable` will be called later."""
        if self.send_half is not Half.OPEN:
            return 0
        session = self._session
        credit = self.send_limit - self.sent
        if credit <= 0:
            self.starved = True
            return 0
        if credit > session.credit:
            credit = session.credit
            if credit <= 0:
                self.starved = True
                session.wait_for_credit(self)
                return 0
        room = session.scheduler.room_for(self)
        return room if room < credit else credit

    @property
    def frame_limit(self) -> int:
        """Largest number of bytes in one DATA frame at the carrier's present rate."""
        return self._session.scheduler.frame_limit

    def wait_for_turn(self) -> None:
        """There is more to send: call `handler.writable` when it is this stream's turn."""
        self._session.scheduler.wait(self)

    def waits(self) -> bool:
        """Whether `handler.writable` is going to be called."""
        return self.waiting or self.starved

    @property
    def untouched(self) -> bool:
        """Whether it is requested, and nothing else was sent or received on it."""
        return not self.opened and not self.sent and self.send_half is Half.OPEN

    def send_slot(self, slot: memoryview, size: int) -> None:
        """Send `size` bytes (at most `frame_limit` and `request_room()`) that were read into `slot` after its headroom.
        The stream takes the slot over."""
        header = encode_data_header(DATA, self.id, self.sent)
        self._queue(frame_slot(slot, size, header, self._session.slots))

    def send(self, data: bytes | memoryview) -> None:
        """Send a copy of 1 to `request_room()` bytes."""
        limit = self.frame_limit
        for start in range(0, len(data), limit):
            piece = data[start : start + limit]
            header = encode_data_header(DATA, self.id, self.sent)
            self._queue(Unit(b"".join((header, piece)), len(piece)))

    def finish(self) -> None:
        """No more data will be sent: half-close. Raises LocalError if called twice."""
        if self.send_half is not Half.OPEN:
            raise LocalError("a stream was finished twice")
        self.send_half = Half.FINISHING
        if not self.queue:
            self._session.send_fin(self)

    def reset(self, reason: StreamReason) -> None:
        """End both halves at once; no handler is called any more. No effect on a stream that has ended."""
        self._session.send_reset(self, reason)

    def accept(self) -> None:
        """At the exit: the destination is connected."""
        self._session.send_opened(self)

    def refuse(self, reason: StreamReason) -> None:
        """At the exit: the destination cannot be connected."""
        self._session.send_refused(self, reason)

    def consumed(self, size: int) -> None:
        """`size` bytes have left the handler: the peer may send as many again."""
        self.consumed_bytes += size
        if self.consumed_bytes >= self._due:
            self._session.window_due(self)

    def progress(self) -> int:
        """A number that grows with each byte sent and received, and with each credit of the peer."""
        return self.sent + self.received + self.send_limit

    def send_datagram(self, destination: Destination, payload: bytes | memoryview) -> None:
        """On a UDP stream: send one datagram, at most MAX_DATAGRAM bytes. It may be dropped."""
        self._session.send_datagram(self, destination, payload)

    # --- for the session -------------------------------------------------------------------------------------------

    def failed(self, handler: StreamHandler, fault: Exception) -> None:
        """`handler` has raised."""
        self._session.stream_failed(self, handler, fault)

    def _queue(self, unit: Unit) -> None:
        if self.send_half is not Half.OPEN:
            raise LocalError("data was sent on a stream whose sending half has ended")
        self.sent += unit.size
        session = self._session
        session.credit -= unit.size
        session.scheduler.enqueue(self, unit)
        session.wake()

    def raise_send_limit(self, limit: int) -> bool:
        """A WINDOW arrived. True if the stream has waited for it."""
        if limit <= self.send_limit:
            return False
        self.send_limit = limit
        starved, self.starved = self.starved, False
        return starved

    def take_data(self, end: int, now: float, pool: WindowPool) -> bool:
        """Bytes up to offset `end` arrived, which is above `received`. False if they came on credit that was counted no
        more, and there is no room for them: the stream is to be reset. Raises PeerError (CREDIT) for more than the
        window allows."""
        self.received = end
        self.last_data = now
        if self.received <= self._covered:
            return True
        if self.received > self.announced:
            raise PeerError(CloseReason.CREDIT, "the peer sent more data than the window allows")
        held = self.received - self.consumed_bytes
        if held - self._window > pool.room:
            return False
        self._count(max(held, self._window), now, pool)
        return True

    def next_window(self, now: float, round_trip: float, pool: WindowPool) -> int:
        """The limit to announce now, with a window that follows what was measured. `round_trip` as in windows.py."""
        consumed, extra = self.consumed_bytes, self._window - INITIAL_WINDOW
        own, elapsed = consumed - self._round_own, now - self._round_since
        if elapsed >= max(round_trip, SHORTEST_ROUND):
            extra = wanted(own, elapsed, round_trip, pool.moving(self._round_since, now, round_trip))
            self._round_since, self._round_own = now, consumed
        else:
            extra = max(extra, wanted_at_least(own, round_trip))
        if pool.share(self._window - INITIAL_WINDOW) < extra:
            pool.reclaim(now)
        most = INITIAL_WINDOW + pool.share(self._window - INITIAL_WINDOW)
        # What is announced already cannot be taken back: it counts until it is consumed. Of what was counted no more
        # while the stream was quiet, as much counts again as there is room for.
        promised = self.announced - consumed
        window = max(min(INITIAL_WINDOW + extra, most), promised)
        self._count(max(min(window, most), min(promised, self._window)), now, pool)
        self._due = consumed + step(self._window, round_trip)
        self.announced = consumed + window
        return self.announced

    def count_held(self, now: float, pool: WindowPool) -> None:
        """Little or nothing comes any more: count only what is held. The next window is due when half of that is taken,
        or this again once the peer has ended its half."""
        window = max(INITIAL_WINDOW, self.received - self.consumed_bytes)
        if window != self._window:
            self._count(window, now, pool)
        if self.receive_half is Half.CLOSED and window == INITIAL_WINDOW:
            self._due = _NEVER
        else:
            self._due = min(self._due, self.consumed_bytes + (window >> 1))

    def release(self, now: float, pool: WindowPool) -> None:
        """The stream is gone: its window goes back to the pool."""
        if self._window != INITIAL_WINDOW:
            pool.count(self, self._window, INITIAL_WINDOW, now)
            self._window = INITIAL_WINDOW
        self._due = _NEVER

    def _count(self, window: int, now: float, pool: WindowPool) -> None:
        pool.count(self, self._window, window, now)
        # So a stream never has more of the session's credit than is counted here.
        self._session.count_consumed(self)
        self._window = window
        self._covered = self.consumed_bytes + window
