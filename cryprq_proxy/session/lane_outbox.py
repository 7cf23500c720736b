"""What the lane is to carry, and what became of it: the sender's half of a LanePath (lane_path.py).

    take    small frames, which share a datagram -> lost bytes -> what is left of a unit -> new data of streams
    acked   a unit is dropped when the peer has all of its bytes
    lost    frames and bytes go again, before what is new

A unit leaves in loads of a train each. It stays in one piece here, so what is lost of it can go again in datagrams of
another size, and all of it by a record path, as one frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final, Protocol

from .acknowledgements import AcknowledgedSession, settle_freed
from .lane_loads import FramesLoad, LaneLog, Load, Part, StreamLoad
from .path import SessionPath
from .retention import PathLog, Unit
from .scheduler import MAX_SLICES
from .streams import Half
from .turns import DROPS_PER_UNIT, FRAME_WORK
from .wire import DATA, DATA_HEADER, OPEN

MOST_RESETS: Final = 65_536
"""Streams of which it is known that lost bytes of them need not go again."""
LANE: Final = -1
"""In place of a path's number."""


class LaneSender(AcknowledgedSession, Protocol):
    """What this needs of its session besides."""

    bytes_sent: int

    @property
    def current(self) -> SessionPath | None: ...
    @property
    def round_trip(self) -> float: ...


class LaneOutbox:
    """That of one LanePath. `log`: what the lane is carrying; of each byte in it somebody knows where it is."""

    def __init__(self, session: LaneSender) -> None:
        self.session = session
        self.log = LaneLog()
        self.payload = 0
        """Bytes of stream data in a datagram. Any reliable frame without data fits in, however small the path's are."""
        self._small: deque[Unit] = deque()
        """Lost frames."""
        self._pieces: deque[tuple[Unit, int, int]] = deque()
        """Lost bytes of units."""
        self._rest: tuple[Unit, int, int] | None = None
        """What is still to leave of the unit that left last."""
        self._reset: set[int] = set()
        """Streams whose lost bytes need not go again."""

    @property
    def waits(self) -> bool:
        """Whether something of what the lane is carrying is to leave, or to leave again."""
        return bool(self._small or self._pieces) or self._rest is not None

    # --- out --------------------------------------------------------------------------------------------------------

    def take(self, room: int, now: float, *, new: bool) -> Load | None:
        """The next load, of `room` bytes at most. With `new` also of what the lane does not carry so far."""
        while True:
            frames = self._take_frames(min(room, self.payload), new=new)
            if frames:
                return FramesLoad(frames, self.log, now)
            if not self._skip_useless():
                return self._take_piece(room, now)

    def _take_frames(self, left: int, *, new: bool) -> list[Unit]:
        """What leaves in one datagram of `left` bytes: frames, and the data of one stream if all that waits of it fits
        in. It is the last one."""
        frames: list[Unit] = []
        small = self._small
        while small and len(small[0].frame) <= left:
            frames.append(small.popleft())
            left -= len(frames[-1].frame)
        if not new:
            return frames
        left = self._take_windows(frames, left)
        left = self._take_waiting(frames, left)
        if self._pieces or self._rest is not None or self.session.retention.next() is not None:
            # Also because no data may be carried before the OPEN of its stream: what the lane carries may have to go by
            # another path at any time, before what waits.
            return frames
        unit = self._next_unit()
        if unit is None:
            # Those that were asked for more may have ended their streams.
            self._take_waiting(frames, left)
            return frames
        self.log.add(unit)
        if len(unit.frame) > left:
            self._rest = unit, 0, unit.size
            return frames
        # Often its end.
        self._take_waiting(frames, left - len(unit.frame))
        frames.append(unit)
        return frames

    def _take_windows(self, frames: list[Unit], left: int) -> int:
        """Returns how many bytes are left of the datagram."""
        session, table = self.session, self.session.table
        while table.windows_due and left >= DATA_HEADER:
            session.turn.spend(FRAME_WORK)
            _, stream = table.windows_due.popitem()
            frame = table.next_window(stream, session.round_trip)
            if frame is not None:
                frames.append(unit := Unit(frame))
                session.retention.add_taken(unit)
                self.log.add(unit)
                left -= len(frame)
        return left

    def _take_waiting(self, frames: list[Unit], left: int) -> int:
        """Take what waits in retention.py. Returns how many bytes are left of the datagram."""
        session, retention = self.session, self.session.retention
        while (unit := retention.next()) is not None:
            size = len(unit.frame)
            session.turn.spend(FRAME_WORK)
            if unit.frame[0] == DATA:
                # A lost path has carried it.
                if len(self._pieces) >= MAX_SLICES:
                    break
                self.log.add(retention.take())
                self._pieces.append((unit, 0, unit.size))
            elif size <= left:
                self.log.add(retention.take())
                frames.append(unit)
                left -= size
            else:
                break
        return left

    def _next_unit(self) -> Unit | None:
        """New data of a stream."""
        session, scheduler, retention = self.session, self.session.scheduler, self.session.retention
        scheduler.open = retention.has_room() and not retention.stalls and not session.rotation.lane_presses()
        if not scheduler.open:
            return None
        turn = scheduler.next()
        if turn is None:
            session.turn.spend(scheduler.call_waiting(session.turn.left))
            turn = scheduler.next()
            if turn is None:
                return None
        stream, unit = turn
        retention.add_taken(unit)
        session.bytes_sent += unit.size
        if stream.send_half is Half.FINISHING and not stream.queue:
            session.table.send_fin(stream)
        return unit

    def _skip_useless(self) -> bool:
        """Whether there were bytes of streams that were reset, which come next and need not leave."""
        skipped = False
        while self._reset and (piece := self._pieces[0] if self._pieces else self._rest) is not None:
            unit, begin, finish = piece
            if not self._is_reset(unit):
                break
            self._go_on_at(finish)
            skipped = True
            if self.log.settle(unit, finish - begin):
                self._free([unit])
        return skipped

    def _take_piece(self, room: int, now: float) -> StreamLoad | None:
        """Bytes of one unit, as many as one train carries."""
        piece = self._pieces[0] if self._pieces else self._rest
        if piece is None:
            return None
        unit, begin, finish = piece
        payload, most = self.payload, min(room, MAX_SLICES * self.payload)
        size = finish - begin
        if size > most:
            size = most - most % payload
            if not size:
                return None
        self._go_on_at(begin + size)
        return StreamLoad(unit, begin, begin + size, payload, self.log, now)

    def _go_on_at(self, begin: int) -> None:
        """The bytes that come next have left, up to `begin`."""
        pieces = self._pieces
        unit, _, finish = pieces[0] if pieces else self._rest  # type: ignore[misc]
        rest = (unit, begin, finish) if begin < finish else None
        if not pieces:
            self._rest = rest
        elif rest is not None:
            pieces[0] = rest
        else:
            pieces.popleft()

    # --- what became of it ------------------------------------------------------------------------------------------

    def acked(self, parts: Iterable[Part]) -> float:
        """The peer has these datagrams of loads. Returns when the newest of them left."""
        log, newest = self.log, -1.0
        done: list[Unit] = []
        for load, first, behind in parts:
            newest = max(newest, load.sent_at)
            if load.log is not log:
                continue  # it has gone again by another path
            if isinstance(load, StreamLoad):
                begin, end = load.part(first, behind)
                if log.settle(load.unit, end - begin):
                    done.append(load.unit)
            else:
                for unit in load.units:
                    del log.units[unit]
                done += load.units
        self._free(done)
        return newest

    def lost(self, parts: Iterable[Part]) -> None:
        """These go again, before all else."""
        pieces = self._pieces
        for load, first, behind in parts:
            if load.log is not self.log:
                continue
            if isinstance(load, StreamLoad):
                begin, end = load.part(first, behind)
                if pieces and pieces[-1][0] is load.unit and pieces[-1][2] == begin:
                    begin = pieces.pop()[1]
                pieces.append((load.unit, begin, end))
            else:
                for unit in load.units:
                    self._send_again(unit)

    def _send_again(self, unit: Unit) -> None:
        """A lost frame, as whatever carries it now."""
        if unit.size:
            self._pieces.append((unit, 0, unit.size))
        else:
            self._small.append(unit)

    def forget(self, stream: int) -> None:
        """A stream was reset: what is lost of it need not go again."""
        if self.log.units and len(self._reset) < MOST_RESETS:
            self._reset.add(stream)

    def _is_reset(self, unit: Unit) -> bool:
        return bool(self._reset) and int.from_bytes(unit.frame[1:5]) in self._reset

    def _free(self, units: list[Unit]) -> None:
        """The peer has them, or nobody needs them."""
        session = self.session
        if units:
            session.turn.spend(len(units) // DROPS_PER_UNIT)
            session.retention.free(units)
            if not self.log.units:
                self._reset.clear()
            settle_freed(session)

    def give_up(self) -> None:
        """All that the lane is carrying goes by another path. There an OPEN goes before what belongs to its stream."""
        useless = [unit for unit in self.log.units if unit.size and self._is_reset(unit)]
        for unit in useless:
            del self.log.units[unit]
        units = self.end().units
        self.session.turn.spend(len(units) // DROPS_PER_UNIT)
        log = PathLog(LANE)
        log.units.extend(unit for unit in units if unit.frame[0] == OPEN)
        log.units.extend(unit for unit in units if unit.frame[0] != OPEN)
        self.session.retention.lose(log)
        self._free(useless)

    def end(self) -> PathLog:
        """Nothing is carried any more, whatever becomes of loads in flight. Returns what was."""
        log = PathLog(LANE)
        log.units.extend(self.log.units)
        self.log = LaneLog()
        self._small.clear()
        self._pieces.clear()
        self._rest = None
        self._reset.clear()
        return log
