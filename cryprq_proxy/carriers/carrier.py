"""What every carrier does, whatever its bytes travel in.

It moves the bytes of one path of a session. It asks the path when to call it again, detects a suspend of the machine,
measures how fast bytes leave, and ends by one of three calls:

    close(reason)   the session ends with it; the peer is told with the last record
    drop()          only the carrier ends; the session may go on with another one
    fail(error)     a CarrierError or NotAdmitted ends the carrier only, any other PeerError the session too

What else is raised while a callback of the loop runs is a fault of this program. It ends the carrier too (`crash`):
a carrier that went on would have lost its place, and be silent until the peer gives it up. The session resumes.
The end has several steps, and each is taken although another one fails: without the last one there is no new carrier.

A subclass moves the bytes (`start`) and closes the connection (`_finish`, or `_abandon` where that fails).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import ClassVar, Final, Protocol

from ..base.buffers import SHARED
from ..base.clock import clock
from ..base.far_end import unanswered
from ..base.faults import Faults, contained, report_fault
from ..errors import CarrierError, CarrierFault, CloseReason, NotAdmitted, PeerError, reason_of, words_of
from ..session.path import FILL_MINIMUM, SessionPath
from ..session.rotation import NEVER
from .congestion import choose
from .pacing import RateMeter

SEND_SIZE: Final = 262_144
CHECK_SECONDS: Final = 5.0
"""Seconds between two looks at the clock at most."""
SUSPEND_JUMP: Final = 2.0
"""Seconds of sleep from which on the machine counts as suspended."""
PROBE_SECONDS: Final = 2.0
"""How long the peer has to answer after a suspend."""
TCP_NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", None)
LOWAT_SECONDS: Final = 0.004
"""What the kernel keeps unsent, in seconds at the measured rate."""
MIN_LOWAT: Final = 16_384
MAX_LOWAT: Final = 524_288

TELL_AGAIN: Final = 0.25
MAX_TELL_AGAIN: Final = 60.0
"""Seconds until an owner that failed is told again that the carrier is lost; each time twice as many, up to this."""

MAX_IDLE: Final = 4
"""Idle buffers for leaving records. A carrier holds one only while its socket takes no bytes, so few are needed."""


class CarrierOwner(Protocol):
    """Called when a carrier has ended."""

    def carrier_lost(self, carrier: Carrier, error: PeerError | None) -> None:
        """`error` says why; it is None if this side ended the carrier. Its path is lost. The session is closed too if
        the error or the peer ended it. If this raises, it is called again later."""


class Carrier:
    """A path of a session on a connection that the carrier closes. Call `start`."""

    kind: ClassVar[str]
    """For the status."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, path: SessionPath, owner: CarrierOwner
    ) -> None:
        self._loop = loop
        self._sock = sock
        self.path = path
        self._session = path.session
        self._owner = owner
        self._meter = RateMeter()
        # In each buffer one fill of SEND_SIZE has room.
        self._buffers = SHARED.pool("leaving records", FILL_MINIMUM + SEND_SIZE, MAX_IDLE)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER
        self._sleep_offset = clock() - time.monotonic()
        self.open = True
        self.congestion = choose(sock)
        """The kernel's congestion control for what is sent."""
        self._set_lowat(MAX_LOWAT >> 2)
        path.abandoned = self._abandoned
        path.unanswered = lambda: unanswered(sock)

    @property
    def local(self) -> str:
        """The address from which it is connected, while it is open. Raises OSError."""
        return str(self._sock.getsockname()[0])

    def pass_to(self, owner: CarrierOwner) -> None:
        """From now on `owner` is told of the end, and no other."""
        self._owner = owner

    def start(self) -> None:
        """Begin to move bytes. The owner may be told during the call that the carrier is lost."""
        raise NotImplementedError

    def close(self, reason: CloseReason) -> None:
        """End the session and the carrier, and tell the peer."""
        if self.open:
            self._close_session(reason)
            self._end(None)

    def drop(self) -> None:
        """End the carrier only. What was not read from it comes again after a resume."""
        if self.open:
            self._end(None)

    def fail(self, error: PeerError) -> None:
        """End the carrier because of `error`, and the session too unless it is a CarrierError or NotAdmitted."""
        if not self.open:
            return
        if not isinstance(error, CarrierError | NotAdmitted):
            self._close_session(error.reason)
        self._end(error)

    def crash(self, error: Exception) -> None:
        """End the carrier because of a fault of this program, and log it."""
        report_fault("ends the connection to the peer", error)
        self.fail(CarrierFault())

    def _abandoned(self) -> None:
        """The peer has closed the path: end it here too, when the session is done with what it does now."""
        error = CarrierError(CloseReason.TIMED_OUT, "the peer has closed it")
        self._loop.call_soon(lambda: self.fail(error))

    # --- for the kinds of carriers ---------------------------------------------------------------------------------

    def _finish(self, last: bytes | None, error: PeerError | None) -> None:
        """Stop reading and writing, and close the connection. If the session ended, `last` is its last record, which
        is to be sent before."""
        raise NotImplementedError

    def _abandon(self) -> None:
        """Close the connection at once, after `_finish` has failed somewhere."""
        raise NotImplementedError

    def _after(self) -> None:
        """End with the session, or arm the timer for its deadline; to be called after every call of the session."""
        if self._session.closed is not None:
            reason = self._session.closed
            self._end(PeerError(reason, f"the peer closed the link: {words_of(reason)}"))
            return
        deadline = self.path.deadline()
        if deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._arm(deadline)

    def _measure(self, taken: int, now: float) -> None:
        """Adapt both queues to the rate. The connection is full now and has taken `taken` bytes since it began."""
        if self._meter.full(taken, now) and self._meter.rate is not None:
            self.path.pace(self._meter.rate)
            self._set_lowat(int(min(max(self._meter.rate * LOWAT_SECONDS, MIN_LOWAT), MAX_LOWAT)))

    def _set_lowat(self, size: int) -> None:
        if TCP_NOTSENT_LOWAT is not None:
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, size)

    # --- time and end ----------------------------------------------------------------------------------------------

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
        try:
            if jumped:
                self.path.probe(PROBE_SECONDS, now)
            self.path.tick(now)
            self._after()
        except PeerError as error:
            self.fail(error)
        except Exception as error:  # noqa: BLE001  see the head of the file
            self.crash(error)

    def _end(self, error: PeerError | None) -> None:
        if not self.open:
            return
        self.open = False
        if self._timer is not None:
            self._timer.cancel()
        last: bytes | None = None
        with contained("keeps the end of the link from the peer"):
            last = self._last_record()
        try:
            self._finish(last, error)
        except Exception as fault:  # noqa: BLE001  see the head of the file
            report_fault("cuts a connection to the peer short", fault)
            with contained("leaves a connection to the peer open"):
                self._abandon()
        with contained("leaves a path in a session whose carrier is lost"):
            self.path.lost(clock())
        self._tell(error, Faults("delays what follows a lost carrier"), TELL_AGAIN)

    def _last_record(self) -> bytes | None:
        if self._session.closed is None:
            return None
        buffer = memoryview(bytearray(FILL_MINIMUM))
        return bytes(buffer[: self.path.fill(buffer, 0, clock())])

    def _close_session(self, reason: CloseReason) -> None:
        with contained("leaves the streams of a link that has ended"):
            self._session.close(reason)

    def _tell(self, error: PeerError | None, faults: Faults, again: float) -> None:
        """Tell the owner of the end, until it has heard."""
        try:
            self._owner.carrier_lost(self, error)
        except Exception as fault:  # noqa: BLE001  see the head of the file
            faults.report(fault)
            self._loop.call_later(again, lambda: self._tell(error, faults, min(2 * again, MAX_TELL_AGAIN)))


def broken(error: OSError) -> CarrierError:
    # Without a number it is asyncio's or aiohttp's own, for a write after the end, and its words are about transports.
    ended = isinstance(error, ConnectionResetError) and not error.errno
    reason = "it has ended" if ended else reason_of(error)
    return CarrierError(CloseReason.TIMED_OUT, f"the connection to the peer broke: {reason}")
