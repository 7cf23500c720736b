"""The in-memory carrier: joins two sessions on a virtual clock, without sockets, threads or waiting.

    left.fill -> to_right: in flight -> right.receive
    left.receive <- in flight: to_left <- right.fill

Nothing moves by itself. `step` moves what is there once, `settle` until all is quiet, `advance` lets time pass and
calls `tick` at the sessions' deadlines. It keeps to the rules that every carrier keeps: it asks a session for bytes
only after `ready`, offers what was not used up again, reads nothing while keys are being computed, and ends when a
session raises. Each step is a turn of the loop. It can be slow (`capacity`, `piece`) and can break after an exact
number of bytes (`cut_after`).
"""

from __future__ import annotations

from typing import Final

from cryprq_proxy.errors import CarrierError, LocalError, NotAdmitted, PeerError
from cryprq_proxy.session.session import FILL_MINIMUM, Session

CAPACITY: Final = 1 << 20
"""Bytes in flight in one direction, unless the test of a slow carrier says otherwise."""
BUDGET: Final = 262_144
"""Bytes asked of a session at a time."""
PATIENCE: Final = 8
"""Ticks in a row that may pass without any effect."""

_buffer: Final = memoryview(bytearray(FILL_MINIMUM + BUDGET))
"""Of all carriers, each of which copies at once what a session has written: tests make tens of thousands of them."""


class Direction:
    """One direction. Sizes in bytes.

    `in_flight` has left `source` and not yet arrived at `target`. `sent` and `arrived` count since the carrier began.
    """

    def __init__(self, source: Session, target: Session) -> None:
        self.source = source
        self.target = target
        self.in_flight = bytearray()
        self.sent = 0
        self.arrived = 0
        self.capacity = CAPACITY
        """`source` is asked for more only while less than this is in flight: 0 for a carrier that takes nothing."""
        self.budget = BUDGET
        """What `source` is asked for at a time, at most."""
        self.piece = CAPACITY
        """What arrives in one step: 1 for byte by byte, 0 to hold everything back."""
        self.cut_after: int | None = None
        """The carrier breaks when so many bytes have arrived; the rest is lost."""
        self._due = True
        self._unused = bytearray()
        source.ready = self._ready

    def _ready(self) -> None:
        self._due = True

    def pull(self, now: float) -> bool:
        """Ask `source` once for what it has to send; True if there was something. Raises PeerError."""
        if not self._due or len(self.in_flight) >= self.capacity:
            return False
        self._due = False
        size = self.source.fill(_buffer, min(self.budget, self.capacity), now)
        if size:
            self._due = True  # there may be more
            self.in_flight += _buffer[:size]
            self.sent += size
        return size > 0

    def deliver(self, now: float) -> bool:
        """Let one piece arrive at `target`; True if it used anything up. Raises PeerError."""
        if self.target.paused:
            return False
        size = min(self.piece, len(self.in_flight))
        if self.cut_after is not None:
            size = min(size, self.cut_after - self.arrived)
        self._unused += self.in_flight[:size]
        del self.in_flight[:size]
        self.arrived += size
        used = self.target.receive(memoryview(bytes(self._unused)), now)
        del self._unused[:used]
        return size > 0 or used > 0

    @property
    def broken(self) -> bool:
        return self.cut_after is not None and self.arrived >= self.cut_after


class MemoryCarrier:
    """Joins `left` and `right`, both attached. `now` is the virtual time in seconds.

    When it has ended, `open` is False, both sessions are detached, and `error` says what a session raised, if any.
    """

    def __init__(self, left: Session, right: Session, now: float = 0.0) -> None:
        self.now = now
        self.to_right = Direction(left, right)
        self.to_left = Direction(right, left)
        self.open = True
        self.error: PeerError | None = None
        self._sessions = (left, right)

    def step(self) -> bool:
        """Move bytes once in each direction, in a new turn of the loop; True if anything moved."""
        moved = False
        for session in self._sessions:
            moved |= session.turn.left <= 0
            session.turn.renew()
        for path in (self.to_right, self.to_left):
            for move, session in ((path.pull, path.source), (path.deliver, path.target)):
                if not self.open:
                    return moved
                try:
                    moved |= move(self.now)
                except PeerError as error:
                    self._fail(session, error)
            if path.broken or any(session.closed is not None for session in self._sessions):
                self._end()
        return moved

    def settle(self) -> None:
        """Move bytes until nothing moves any more."""
        while self.step():
            pass

    def advance(self, seconds: float) -> None:
        """Let time pass, calling `tick` whenever a session wants it, and move all bytes.

        Raises LocalError if a session asks to be called again and again without doing anything: on a real carrier
        that would be a busy loop.
        """
        end = self.now + seconds
        self.settle()
        idle = 0
        while self.open and (deadline := min(session.deadline() for session in self._sessions)) <= end:
            idle = idle + 1 if deadline <= self.now else 0
            self.now = max(self.now, deadline)
            for session in self._sessions:
                if self.open and session.deadline() <= self.now:
                    try:
                        session.tick(self.now)
                    except PeerError as error:
                        self._fail(session, error)
            if self.step():
                idle = 0
            self.settle()
            if idle > PATIENCE:
                raise LocalError("a session asks for ticks that have no effect")
        self.now = end

    def cut(self) -> None:
        """The carrier breaks; what is in flight is lost."""
        if self.open:
            self._end()

    def _fail(self, session: Session, error: PeerError) -> None:
        """`session` raised `error`: the end of the carrier or, after a last record with the reason, of the session."""
        self.error = error
        if not isinstance(error, CarrierError | NotAdmitted):
            session.close(error.reason)
        self._end()

    def _end(self) -> None:
        """Closed sessions get their CLOSE through to the other side, unless the carrier is broken."""
        self.open = False
        for path in (self.to_right, self.to_left):
            if path.source.closed is not None and path.target.closed is None and not path.broken:
                try:
                    while path.pull(self.now) or path.deliver(self.now):
                        pass
                except PeerError as error:
                    self.error = self.error or error
        for session in self._sessions:
            session.detach()
