"""The datagram lane as a path of a session: what it is to carry, and what came by it.

    next           control frames -> what was lost -> windows, small frames -> data of streams, as the scheduler chooses
    acked, lost    of a load: a unit is dropped when all of its bytes are acknowledged; what is lost goes again, first
    stream_data, frames
                   what came, in any order: act on it, or refuse it

Its carrier seals and sends what `next` gives, detects losses and keeps the rate. It calls `next` after each `ready`
while it may send, and again when it may send more. Nothing is known here of keys, datagrams and sockets.

If a call raises CarrierError, only the lane is over. For any other PeerError `close` the session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from .lane_loads import Load
from .rotation import NEVER


class LaneSession(Protocol):
    """What a LanePath needs of its session (session.py)."""

    now: float


class LanePath:
    """That of one session; made by `Session.attach_lane`. `ready` is called when there is something to send, once
    until the next call of `next`."""

    def __init__(self, session: LaneSession, now: float) -> None:
        self.session = session
        self.ready: Callable[[], None] = _nothing
        self.up = False
        self.why = "it has not been tried"
        """Why it carries the session's streams, or does not: part of a sentence."""
        self.round_trip = 0.0
        """Seconds, without queues."""
        self._now = now

    # --- for the carrier -------------------------------------------------------------------------------------------

    @property
    def carries(self) -> bool:
        """Whether the lane is what new data and frames of the session leave by."""
        return False

    @property
    def waits(self) -> bool:
        """Whether there is something to send: if not, the carrier's rate is that of the applications."""
        return False

    def set_up(self, up: bool, round_trip: float, why: str, now: float) -> None:
        """The lane's check has succeeded, or it works no longer: then all that it has carried goes by another path, and
        loads that are in flight are forgotten here. `round_trip`: seconds, the least; `why`: part of a sentence."""

    def paced(self, rate: float, round_trip: float) -> None:
        """The carrier sends `rate` bytes a second, with a least round trip of so many seconds."""

    def next(self, room: int, payload: int, now: float) -> Load | None:
        """What is to be sent next, in datagrams with up to `payload` bytes of stream data, `room` bytes at most. None
        if there is nothing, or the work of this turn is done; `ready` is called when there is more."""
        return None

    def acked(self, parts: Iterable[tuple[Load, int, int]], now: float) -> None:
        """The peer has these datagrams of loads: the first, and the one behind the last, counted in the load."""

    def lost(self, parts: Iterable[tuple[Load, int, int]], now: float) -> None:
        """These are lost, or were not sent, or the carrier has given them back: they go again, before all else."""

    def silent(self, now: float, timeouts: int) -> None:
        """Nothing was acknowledged for so many probe time-outs in a row: 1, 2, and so on."""

    def alive(self, now: float) -> None:
        """The peer has acknowledged something of which no load tells. `acked` says so by itself."""

    def deadline(self) -> float:
        """The time at which `tick` must be called."""
        return NEVER

    def tick(self, now: float) -> None:
        """Time has passed. Raises CarrierError if the keys are too old."""

    # --- in --------------------------------------------------------------------------------------------------------

    def stream_data(self, stream: int, offset: int, data: memoryview, now: float) -> bool:
        """Bytes of a stream came, in any order. False if there is no room for them: then they must not be
        acknowledged. Raises PeerError."""
        return True

    def frames(self, data: memoryview, now: float) -> bool:
        """Frames came. As `stream_data`."""
        return True


def _nothing() -> None:
    """Nobody is told."""
