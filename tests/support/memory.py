"""The in-memory carrier: joins the paths of two sessions on a virtual clock, without sockets, threads or waiting.

    left.fill -> to_right: in flight -> right.receive
    left.receive <- in flight: to_left <- right.fill

Nothing moves by itself. `step` moves what is there once, `settle` until all is quiet, `advance` lets time pass and
calls `tick` at the paths' deadlines. It keeps to the rules that every carrier keeps: it asks a path for bytes only
after `ready`, offers what was not used up again, and ends when a path raises. Each step is a turn of the loop. It can
be slow (`capacity`, `piece`) and can break after an exact number of bytes (`cut_after`). Several carriers of the same
two sessions move together by the functions of these names at the end of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cryprq_proxy.errors import CarrierError, LocalError, NotAdmitted, PeerError
from cryprq_proxy.session.path import FILL_MINIMUM, SessionPath
from cryprq_proxy.session.rotation import NEVER

CAPACITY: Final = 1 << 20
"""Bytes in flight in one direction, unless the test of a slow carrier says otherwise."""
BUDGET: Final = 262_144
"""Bytes asked of a path at a time."""
PATIENCE: Final = 8
"""Ticks in a row that may pass without any effect."""

_buffer: Final = memoryview(bytearray(FILL_MINIMUM + BUDGET))
"""Of all carriers, each of which copies at once what a session has written: tests make tens of thousands of them."""


class Direction:
    """One direction. Sizes in bytes.

    `in_flight` has left `source` and not yet arrived at `target`. `sent` and `arrived` count since the carrier began.
    """

    def __init__(self, source: SessionPath, target: SessionPath) -> None:
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
            self.in_flight += _buffer[:size]
            self.sent += size
        return size > 0

    def deliver(self, now: float) -> bool:
        """Let one piece arrive at `target`; True if it used anything up. Raises PeerError."""
        if self.target.ended:
            self.in_flight.clear()
            self._unused.clear()
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
    """Joins `left` and `right`. `now` is the virtual time in seconds.

    When it has ended, `open` is False, both paths are lost, and `error` says what one raised, if any.
    """

    def __init__(self, left: SessionPath, right: SessionPath, now: float = 0.0) -> None:
        self.now = now
        self.to_right = Direction(left, right)
        self.to_left = Direction(right, left)
        self.open = True
        self.error: PeerError | None = None
        self.lingers = False
        """One end may be lost before the other one hears of it."""
        self.paths = (left, right)

    def step(self) -> bool:
        """Move bytes once in each direction, in a new turn of the loop; True if anything moved."""
        return step([self])

    def settle(self) -> None:
        """Move bytes until nothing moves any more."""
        settle([self])

    def advance(self, seconds: float) -> None:
        """See `advance` at the end of the file."""
        advance([self], seconds)

    def move(self) -> bool:
        """Move bytes once in each direction, in the present turn; True if anything moved."""
        moved = False
        for direction in (self.to_right, self.to_left):
            for move, path in ((direction.pull, direction.source), (direction.deliver, direction.target)):
                if not self.open:
                    return moved
                try:
                    moved |= move(self.now)
                except PeerError as error:
                    self.fail(path, error)
            if self.open and (direction.broken or self._is_over()):
                self._end()
        return moved

    def _is_over(self) -> bool:
        if any(path.session.closed is not None for path in self.paths):
            return True
        ended = [path.ended for path in self.paths]
        return all(ended) if self.lingers else any(ended)

    def tick(self) -> None:
        """Call `tick` of each path that is due."""
        for path in self.paths:
            if self.open and path.deadline() <= self.now:
                try:
                    path.tick(self.now)
                except PeerError as error:
                    self.fail(path, error)

    @property
    def deadline(self) -> float:
        return min(path.deadline() for path in self.paths) if self.open else NEVER

    def cut(self) -> None:
        """The carrier breaks; what is in flight is lost."""
        if self.open:
            self._end()

    def fail(self, path: SessionPath, error: PeerError) -> None:
        """`path` raised `error`: the end of the carrier or, after a last record with the reason, of the session."""
        self.error = error
        if not isinstance(error, CarrierError | NotAdmitted):
            path.session.close(error.reason)
        self._end()

    def _end(self) -> None:
        """Closed sessions get their CLOSE through to the other side, unless the carrier is broken."""
        self.open = False
        for direction in (self.to_right, self.to_left):
            closed, open = direction.source.session.closed, direction.target.session.closed is None
            if closed is not None and open and not direction.broken:
                try:
                    while direction.pull(self.now) or direction.deliver(self.now):
                        pass
                except PeerError as error:
                    self.error = self.error or error
        for path in self.paths:
            path.lost(self.now)


# --- one or several carriers, on one clock ---------------------------------------------------------------------------


def step(carriers: Sequence[MemoryCarrier]) -> bool:
    """Move bytes of each carrier once, in one turn of the loop; True if anything moved."""
    moved = False
    for turn in {id(path.session): path.session.turn for each in carriers for path in each.paths}.values():
        moved |= turn.left <= 0
        turn.renew()
    for carrier in carriers:
        moved |= carrier.move()
    return moved


def settle(carriers: Sequence[MemoryCarrier]) -> None:
    """Move bytes until nothing moves any more."""
    while step(carriers):
        pass


def advance(carriers: Sequence[MemoryCarrier], seconds: float) -> None:
    """Let time pass, calling `tick` whenever a path wants it, and move all bytes. All carriers have the same `now`.

    Raises LocalError if a path asks to be called again and again without doing anything: on a real carrier that would
    be a busy loop.
    """
    now = carriers[0].now
    end = now + seconds
    settle(carriers)
    idle = 0
    while (deadline := min(carrier.deadline for carrier in carriers)) <= end:
        idle = idle + 1 if deadline <= now else 0
        now = max(now, deadline)
        for carrier in carriers:
            carrier.now = now
            carrier.tick()
        if step(carriers):
            idle = 0
        settle(carriers)
        if idle > PATIENCE:
            raise LocalError("a path asks for ticks that have no effect")
    for carrier in carriers:
        carrier.now = end
