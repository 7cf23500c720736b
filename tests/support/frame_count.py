"""What a peer makes a session do, counted from the frames that the session takes.

A session counts the same: its turn's work (turns.py) and the rates of frames (control_rates.py). A judge that read
those counts would believe a session that forgets one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from cryprq_proxy.errors import PeerError
from cryprq_proxy.session import control_rates, frame_reader, wire
from cryprq_proxy.session.control_rates import CONTROL_BURST, CONTROL_FRAMES, CONTROL_RATE
from cryprq_proxy.session.path import SessionPath
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
    """Counts what `session` takes on all of its paths from now on, and replaces its TurnBudget.

    `highest`: of each stream, the offset up to which the peer has used the credit of the session, `received` their sum.
    `opened`: the numbers of the streams that the peer has opened.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._table = table = session.table
        self._turn = session.turn = table.turn = _Turn()
        self._losses = 0
        self._epoch: object = None
        self._control = Allowance()
        self._late = Allowance()
        self._late_since: object = None
        self._forbidden: str | None = None
        self.highest: dict[int, int] = {}
        self.received = 0
        self.opened: set[int] = set()
        self._attach = session.attach
        self._receive_data = session.receiver.receive_data
        session.attach = self._counted_attach  # type: ignore[method-assign]
        session.receiver.receive_data = self._counted_data  # type: ignore[method-assign]

    def check(self) -> None:
        """Raises RuntimeError if more was done than one turn may hold, or than the session knows of."""
        worked, spent = self._turn.worked, TURN_WORK - self._turn.left
        if worked > TURN_WORK + max(FRAME_COSTS):
            raise broken(f"a peer caused {worked} units of work in one turn")
        if worked > spent:
            raise broken(f"{worked} units of work were done, and {max(spent, 0)} were spent")

    def _counted_attach(self, *arguments: Any, **more: Any) -> SessionPath:
        path = self._attach(*arguments, **more)
        receive, lost = path.receive, path.lost

        def counted_lost(now: float) -> None:
            self._losses += not path.ended
            lost(now)

        path.receive = lambda data, now: self._counted_receive(receive, data, now)  # type: ignore[method-assign]
        path.lost = counted_lost  # type: ignore[method-assign]
        return path

    def _counted_receive(
        self, receive: Callable[[memoryview, float], int], data: memoryview, now: float
    ) -> int:
        session, read_frames = self._session, frame_reader.read_frames
        frame_reader.read_frames = lambda plaintext: self._counted_frames(read_frames(plaintext))
        worked = self._turn.worked
        self._forbidden = None
        try:
            used = receive(data, now)
        except PeerError:
            # The carrier or the session ends, and its turn with it.
            self._turn.worked = worked
            raise
        finally:
            frame_reader.read_frames = read_frames
        self.check()
        if session.closed is None and session.attached:
            if self._forbidden is not None:
                raise broken(self._forbidden)
            self._control.check("control", CONTROL_BURST, CONTROL_RATE, now)
            self._late.check("late", control_rates.LATE_BURST, control_rates.LATE_RATE, now)
        return used

    def _counted_data(self, id: int, offset: int, payload: memoryview) -> None:
        self._judge(wire.DATA, id)
        end = offset + len(payload)
        self._use_credit(id, end)
        self._receive_data(id, offset, payload)

    def _counted_frames(self, frames: Iterator[wire.Frame]) -> Iterator[wire.Frame]:
        for kind, id, value in frames:
            if kind != wire.DATA:
                self._judge(kind, id)
                if kind == wire.FIN and isinstance(value, int):
                    self._use_credit(id, value)
                elif kind == wire.RESET and isinstance(value, tuple):
                    self._use_credit(id, value[1])
            yield kind, id, value

    def _use_credit(self, id: int, end: int) -> None:
        """Also where a stream ends: up to there its bytes came, are to come, or never will."""
        grown = end - self.highest.get(id, 0)
        if grown > 0 and (id in self._table.live or id in self._table.numbers.awaited):
            self.highest[id] = end
            self.received += grown
            if self.received > self._table.received_credit.announced:
                self._forbidden = "more data of all streams was taken than the session allows"

    def _judge(self, kind: int, id: int) -> None:
        session, table, now = self._session, self._table, self._session.now
        self._turn.worked += FRAME_COSTS[kind]
        if kind in _RATED:
            epoch = (session.rotation.current, self._losses)
            if epoch != self._epoch:
                self._epoch, self._control = epoch, Allowance()
            self._control.add(CONTROL_FRAMES[kind], now)
            return
        if self._late_since != self._losses:
            self._late_since, self._late = self._losses, Allowance()
        if kind == wire.OPEN and not session.dialler:
            if id in self.opened:
                self._late.add(1, now)
            self.opened.add(id)
        elif kind in _OF_STREAMS and id not in table.live and (id or kind != wire.WINDOW):
            if id in table.numbers.awaited and kind in _ENDINGS:
                return
            if 0 < id <= table.numbers.last if session.dialler else id in self.opened:
                self._late.add(1, now)
            else:
                self._forbidden = f"a {wire.Kind(kind).name} frame was taken for an unknown stream"


_RATED: Final = CONTROL_FRAMES.keys() - {wire.SWITCH}
"""How often SWITCH may come is for the rotation to say."""
_ENDINGS: Final = frozenset((wire.DATA, wire.FIN, wire.RESET, wire.REFUSED))
_OF_STREAMS: Final = _ENDINGS | {wire.OPENED, wire.WINDOW, wire.DATAGRAM}
