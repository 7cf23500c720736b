"""The TCP carrier: runs a session over one connected socket.

One callback chain per wake-up and no buffer of its own while idle: what arrives is read into one buffer of the whole
process and opened there; what leaves is sealed straight into another and handed to the kernel. Only the start of a
record whose rest has not come, and bytes that the kernel did not take, are kept for the carrier.

The kernel's queue of unsent bytes is kept short (TCP_NOTSENT_LOWAT), a few milliseconds at the measured rate, so that
what the scheduler puts first also leaves first.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import Final, Protocol

from ..errors import CarrierError, CloseReason, PeerError
from ..session.pacing import RateMeter
from ..session.records import HEADER, MAX_RECORD
from ..session.session import FILL_MINIMUM, NEVER, Session
from .farewell import Farewell

RECEIVE_SIZE: Final = 4 * (HEADER + MAX_RECORD)
"""Bytes read from the carrier in one wake-up."""
ROUNDS: Final = 4
"""Fills in one wake-up, before other sockets get their turn."""
SEND_SIZE: Final = 262_144
CHECK_SECONDS: Final = 5.0
"""How often, at least, the clock is looked at for a suspend."""
SUSPEND_JUMP: Final = 2.0
PROBE_SECONDS: Final = 2.0
TCP_NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", None)
LOWAT_SECONDS: Final = 0.004
MIN_LOWAT: Final = 16_384
MAX_LOWAT: Final = 524_288

_incoming: Final = memoryview(bytearray(HEADER + MAX_RECORD + RECEIVE_SIZE))
_outgoing: Final[list[memoryview]] = []
"""Idle buffers for leaving records. A carrier holds one only while its socket takes no bytes."""
MAX_IDLE: Final = 4

if hasattr(time, "CLOCK_BOOTTIME"):

    def clock() -> float:
        """Seconds of a clock that goes on while the machine sleeps."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:
    clock = time.monotonic


class CarrierOwner(Protocol):
    """Who is told that a carrier has ended."""

    def carrier_lost(self, carrier: TcpCarrier, error: PeerError | None) -> None:
        """`error` says why; None for an orderly end by this side. The session is detached, or closed if the error (or
        the peer) ended it."""


class TcpCarrier:
    """A session, already attached, on `sock`: connected, non-blocking; the carrier closes it. Call `start`."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, session: Session, owner: CarrierOwner
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._session = session
        self._owner = owner
        self._meter = RateMeter()
        self._partial = b""
        self._unsent: memoryview | None = None
        """What the kernel has not taken of `_buffer`."""
        self._reading = True
        self._record = 0
        """Bytes of the last record that a read did not end with."""
        self._taken = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER
        self._sleep_offset = clock() - time.monotonic()
        self.open = True
        self._set_lowat(MAX_LOWAT >> 2)

    def start(self) -> None:
        """Begin; the owner may be told at once that the carrier is lost."""
        self._session.ready = self._ready
        self._loop.add_reader(self._fd, self._on_readable)
        self._flush()

    def close(self, reason: CloseReason) -> None:
        """End the session and the carrier; the peer is told (farewell.py)."""
        if self.open:
            self._session.close(reason)
            self._end(None)

    def drop(self) -> None:
        """End the carrier only; what was not read from it is lost and comes again after a resume."""
        if self.open:
            self._end(None)

    # --- out -------------------------------------------------------------------------------------------------------

    def _ready(self) -> None:
        if self._unsent is None or not self._reading:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if not self.open:
            return
        try:
            if not self._reading and not self._session.rotation.paused:
                self._resume_reading()
            if self._unsent is None:
                self._send()
        except PeerError as error:
            self.fail(error)
        except OSError as error:
            self.fail(_broken(error))
        else:
            self._after()

    def _send(self) -> None:
        session = self._session
        for _ in range(ROUNDS):
            now = clock()
            buffer = _outgoing.pop() if _outgoing else memoryview(bytearray(FILL_MINIMUM + SEND_SIZE))
            size = session.fill(buffer, session.scheduler.queue_target, now)
            self._buffer, self._unsent = buffer, buffer[:size]
            if not size:
                self._release()
                self._meter.idle()
                return
            if not self._push():
                self._loop.add_writer(self._fd, self._on_writable)
                self._measure(now)
                return
        session.wake()

    def _push(self) -> bool:
        """Hand `_unsent` to the kernel; True if it took all. Raises OSError."""
        assert self._unsent is not None
        try:
            taken = self._sock.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            return False
        self._taken += taken
        if taken < len(self._unsent):
            self._unsent = self._unsent[taken:]
            return False
        self._release()
        return True

    def _release(self) -> None:
        """Nothing is waiting in the buffer."""
        if len(_outgoing) < MAX_IDLE:
            _outgoing.append(self._buffer)
        self._unsent = None

    def _on_writable(self) -> None:
        try:
            if self._unsent is not None and not self._push():
                return
        except OSError as error:
            self.fail(_broken(error))
            return
        self._flush()
        if self.open and self._unsent is None:
            self._loop.remove_writer(self._fd)

    def _measure(self, now: float) -> None:
        if self._meter.full(self._taken, now) and self._meter.rate is not None:
            self._session.scheduler.pace(self._meter.rate)
            self._set_lowat(int(min(max(self._meter.rate * LOWAT_SECONDS, MIN_LOWAT), MAX_LOWAT)))

    def _set_lowat(self, size: int) -> None:
        if TCP_NOTSENT_LOWAT is not None:
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, size)

    # --- in --------------------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        start = len(self._partial)
        _incoming[:start] = self._partial
        try:
            size = self._sock.recv_into(_incoming[start : start + self._next_read(start)])
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.fail(_broken(error))
            return
        if not size:
            self.fail(CarrierError(CloseReason.TIMED_OUT, "the peer ended the connection"))
            return
        try:
            self._take(start + size)
        except PeerError as error:
            self.fail(error)
        else:
            self._after()

    def _next_read(self, partial: int) -> int:
        """Bytes to read behind `partial` ones that wait: up to where a record ends if all to come are alike, so that
        in a steady transfer none is cut in two, to be kept and put in front again."""
        if partial >= HEADER:
            self._record = HEADER + int.from_bytes(self._partial[:HEADER])
        if partial < self._record <= HEADER + MAX_RECORD:
            return RECEIVE_SIZE - RECEIVE_SIZE % self._record - partial
        return RECEIVE_SIZE

    def _take(self, size: int) -> None:
        """Let the session have the first `size` bytes of the incoming buffer."""
        used = self._session.receive(_incoming[:size], clock())
        self._partial = bytes(_incoming[used:size])
        if self._session.rotation.paused and self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    def _resume_reading(self) -> None:
        self._reading = True
        self._loop.add_reader(self._fd, self._on_readable)
        size = len(self._partial)
        _incoming[:size] = self._partial
        self._take(size)

    # --- time and end ----------------------------------------------------------------------------------------------

    def _after(self) -> None:
        """After every call of the session: has it ended, when must it be called again?"""
        if self._session.closed is not None:
            reason = self._session.closed
            self._end(PeerError(reason, f"the peer closed the link: {reason.name.lower().replace('_', ' ')}"))
            return
        deadline = self._session.deadline()
        if deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._arm(deadline)

    def _arm(self, deadline: float) -> None:
        now = clock()
        self._timer_at = min(deadline, now + CHECK_SECONDS)
        self._timer = self._loop.call_later(max(self._timer_at - now, 0.0), self._on_timer)

    def _on_timer(self) -> None:
        now = clock()
        self._timer, self._timer_at = None, NEVER
        offset = now - time.monotonic()
        jumped = offset - self._sleep_offset > SUSPEND_JUMP
        self._sleep_offset = offset
        if jumped:
            self._session.probe(PROBE_SECONDS, now)
        try:
            self._session.tick(now)
        except PeerError as error:
            self.fail(error)
        else:
            self._after()

    def fail(self, error: PeerError) -> None:
        """End the carrier because of `error`, and the session too unless it is a CarrierError."""
        if not self.open:
            return
        if not isinstance(error, CarrierError):
            self._session.close(error.reason)
        self._end(error)

    def _end(self, error: PeerError | None) -> None:
        self.open = False
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        if self._timer is not None:
            self._timer.cancel()
        if self._session.closed is None:
            self._sock.close()
        else:
            buffer = memoryview(bytearray(FILL_MINIMUM))
            size = self._session.fill(buffer, 0, clock())
            Farewell(self._loop, self._sock, bytes(self._unsent or b"") + bytes(buffer[:size]))
        self._session.detach()
        self._owner.carrier_lost(self, error)


def _broken(error: OSError) -> CarrierError:
    return CarrierError(CloseReason.TIMED_OUT, f"the connection to the peer broke: {error.strerror or error}")
