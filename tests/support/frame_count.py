"""What a peer makes a session do, counted from the frames that the session takes.

A session counts the same: its turn's work (turns.py) and the rates of frames (control_rates.py). A judge that read
those counts would believe a session that forgets one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cryprq_proxy.errors import PeerError
from cryprq_proxy.session import control_rates, wire
from cryprq_proxy.session.control_rates import CONTROL_BURST, CONTROL_FRAMES, CONTROL_RATE
from cryprq_proxy.session.session import Session
from cryprq_proxy.session.turns import FRAME_COSTS, TURN_WORK, TurnBudget

LATE_BURST: Final = 200
LATE_RATE: Final = 20.0
"""The allowance for late frames in a play, which is too short for the real one."""


def broken(promise: str) -> RuntimeError:
    return RuntimeError(f"a promise was broken: {promise}")


class Allowance:
    """Frames since the first one, against a burst and a rate that are told only when they are checked."""

    def __init__(self) -> None:
        self._frames = 0
        self._since: float | None = None

    def add(self, frames: int, now: float) -> None:
        if self._since is None:
            self._since = now
        self._frames += frames

    def check(self, what: str, burst: float, rate: float, now: float) -> None:
        if self._since is not None and self._frames > burst + rate * (now - self._since) + 1:
            raise broken(f"{self._frames} {what} frames were taken in {now - self._since:.1f} s")


class _Turn(TurnBudget):
    """A TurnBudget that tells the count of a new turn."""

    __slots__ = ("worked",)

    def __init__(self) -> None:
        super().__init__(lambda _: None)
        self.worked = 0

    def renew(self) -> None:
        self.worked = 0
        super().renew()


class FrameCount:
    """Counts what `session` takes from now on, and replaces its TurnBudget."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._turn = session.turn = _Turn()
        self._epoch: object = None
        self._control = Allowance()
        self._late = Allowance()
        self._forbidden: str | None = None
        self._receive = session.receive
        self._receive_data = session._receive_data
        session.receive = self._counted_receive  # type: ignore[method-assign]
        session._receive_data = self._counted_data  # type: ignore[method-assign]

    def check(self) -> None:
        """Raises RuntimeError if more was done than one turn may hold, or than the session knows of."""
        worked, spent = self._turn.worked, TURN_WORK - self._turn.left
        if worked > TURN_WORK + max(FRAME_COSTS):
            raise broken(f"a peer caused {worked} units of work in one turn")
        if worked > spent:
            raise broken(f"{worked} units of work were done, and {max(spent, 0)} were spent")

    def _counted_receive(self, data: memoryview, now: float) -> int:
        session, read_frames = self._session, wire.read_frames
        wire.read_frames = lambda plaintext: self._counted_frames(read_frames(plaintext))
        worked = self._turn.worked
        self._forbidden = None
        try:
            used = self._receive(data, now)
        except PeerError:
            # The carrier or the session ends, and its turn with it.
            self._turn.worked = worked
            raise
        finally:
            wire.read_frames = read_frames
        self.check()
        if session.closed is None and session.attached:
            if self._forbidden is not None:
                raise broken(self._forbidden)
            self._control.check("control", CONTROL_BURST, CONTROL_RATE, now)
            self._late.check("late", control_rates.LATE_BURST, control_rates.LATE_RATE, now)
        return used

    def _counted_data(self, id: int, payload: memoryview) -> None:
        self._judge(wire.DATA, id)
        self._receive_data(id, payload)

    def _counted_frames(self, frames: Iterator[wire.Frame]) -> Iterator[wire.Frame]:
        for frame in frames:
            if frame[0] != wire.DATA:
                self._judge(frame[0], frame[1])
            yield frame

    def _judge(self, kind: int, id: int) -> None:
        session, now = self._session, self._session._now
        self._turn.worked += FRAME_COSTS[kind]
        if kind in CONTROL_FRAMES:
            epoch = (session.rotation, session.rotation.number)
            if epoch != self._epoch:
                self._epoch, self._control = epoch, Allowance()
            self._control.add(CONTROL_FRAMES[kind], now)
        elif kind in _OF_STREAMS and id not in session.streams:
            if id in session._awaited and kind <= wire.RESET:
                return
            if 0 < id <= session._last_id and kind in _MAY_BE_LATE:
                self._late.add(1, now)
            else:
                self._forbidden = f"a {wire.Kind(kind).name} frame was taken for an unknown stream"


_MAY_BE_LATE: Final = frozenset((wire.RESET, wire.WINDOW, wire.DATAGRAM))
_OF_STREAMS: Final = _MAY_BE_LATE | {wire.OPENED, wire.REFUSED, wire.DATA, wire.FIN}
