"""The datagram lane as a path of a session: what it is to carry, and what came by it.

    next           control frames -> what was lost -> windows, small frames -> data of streams, as the scheduler chooses
    acked, lost    of a load: a unit is dropped when all of its bytes are acknowledged; what is lost goes again, first
    stream_data, frames
                   what came, in any order (lane_inbox.py)

Its carrier seals and sends what `next` gives, detects losses and keeps the rate. It calls `next` after each `ready`,
even if nothing may be sent, and again until it is None or no more may be sent; then again when more may. Nothing is
known here of keys, datagrams and sockets.

If a call raises CarrierError, only the lane is over. For any other PeerError `close` the session.

Silence. At the first probe time-out the record path is asked (PING), too. If that has answered at the second one, all
that the lane has carried goes by it. If both are silent, the one that answers first gets what the other has carried:
so nothing is given up for what is silent as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from .acknowledgements import AcknowledgedSession, settle_freed
from .lane_inbox import LaneInbox
from .lane_loads import FramesLoad, LaneLog, Load, Part, StreamLoad
from .liveness import UNKNOWN_ROUND_TRIP
from .path import SessionPath
from .retention import PathLog, Retention, Unit
from .rotation import NEVER, Rotation
from .scheduler import MAX_SLICES, Scheduler
from .stream_table import StreamTable
from .streams import Half
from .suspicion import LEAST_LATE
from .turns import DROPS_PER_UNIT, FILL_WORK, FRAME_WORK, TurnBudget
from .wire import DATA, DATA_HEADER, OPEN

FASTEST_TCP: Final = 0.002
"""Seconds of a round trip below which TCP costs less and loses nothing."""
SILENT: Final = 2
"""Probe time-outs after which a record path that has answered takes over."""
MOST_RESETS: Final = 65_536
"""Streams of which it is known that lost bytes of them need not go again."""
LANE: Final = -1
"""In place of a path's number."""


class LaneSession(AcknowledgedSession, Protocol):
    """What a LanePath needs of its session besides (session.py)."""

    now: float
    bytes_sent: int

    @property
    def carrying(self) -> SessionPath | LanePath | None: ...
    @property
    def current(self) -> SessionPath | None: ...
    @property
    def paths(self) -> Mapping[int, SessionPath]: ...
    @property
    def round_trip(self) -> float: ...
    @property
    def table(self) -> StreamTable: ...
    @property
    def retention(self) -> Retention: ...
    @property
    def scheduler(self) -> Scheduler: ...
    @property
    def rotation(self) -> Rotation: ...
    @property
    def turn(self) -> TurnBudget: ...
    def act(self, path: LanePath, kind: int, id: int, value: Any, /) -> None: ...
    def check_kept(self) -> None: ...
    def choose(self) -> None: ...
    def overtake(self, path: LanePath, asked: float, /) -> None: ...


class LanePath:
    """That of one session; made by `Session.attach_lane`. `ready` is called when there is something to send, once
    until the next call of `next`.

    `log`: what it is carrying. `in_doubt`: whether it has fallen silent, and has not answered since. `up`: whether its
    check has succeeded.
    """

    admitted: Final = True
    """As what a session may send on at once."""

    def __init__(self, session: LaneSession) -> None:
        self.session = session
        self.ready: Callable[[], None] = _nothing
        self.up = self.in_doubt = self.wanted = False
        self.why = "it has not been tried"
        """Why it is up, or is not: part of a sentence."""
        self.least_round_trip = UNKNOWN_ROUND_TRIP
        """Seconds, without queues."""
        self.rate: float | None = None
        self.log = LaneLog()
        self.inbox = LaneInbox(session, lambda *frame: session.act(self, *frame), self.wake)
        self.silent_since = NEVER
        """When the first probe time-out came of the present silence."""
        self._timeouts = 0
        self._outrun = False
        """Whether the record path has answered what it was asked since then."""
        self._asked = self._overtakes_at = NEVER
        """As those of a SessionPath."""
        self._keys = _KeysOfLane(session)
        self._payload = 0
        self._small: deque[Unit] = deque()
        """Lost frames."""
        self._pieces: deque[tuple[Unit, int, int]] = deque()
        """Lost bytes of units."""
        self._rest: tuple[Unit, int, int] | None = None
        """What is still to leave of the unit that left last."""
        self._reset: set[int] = set()
        """Streams whose lost bytes need not go again."""
        self._farewell: bytes | None = None
        self._woken = False
        self._turn_due = False

    @property
    def carries(self) -> bool:
        """Whether new data and frames of the session leave by the lane."""
        return self.session.carrying is self

    # --- up and down, rate ------------------------------------------------------------------------------------------

    def set_up(self, up: bool, round_trip: float, why: str, now: float) -> None:
        """The lane's check has succeeded, or it works no longer: then all that it has carried goes by another path, and
        loads that are in flight are forgotten here. `round_trip`: seconds, the least; `why`: part of a sentence."""
        self.session.now = now
        self.why = why
        if up and not self.up:
            self._keys.joined = now
            self._trust()
        self.up = up
        if up:
            self._measured(round_trip)
        else:
            self._give_up()
        self.session.choose()
        self.wake()

    def paced(self, rate: float, round_trip: float) -> None:
        """The carrier sends `rate` bytes a second, with a least round trip of so many seconds."""
        self.rate = rate
        wanted = self.wanted
        self._measured(round_trip)
        if wanted is not self.wanted:
            self.session.choose()
        if self.carries:
            self.begin_carrying()

    def _measured(self, round_trip: float) -> None:
        self.least_round_trip = round_trip
        self.wanted = round_trip >= FASTEST_TCP

    def begin_carrying(self) -> None:
        """It is what carries: let units be what its trains can carry, and what waits follow its rate."""
        self.session.scheduler.pace(self.rate, self._payload)

    def takes(self, current: SessionPath | None) -> bool:
        """Whether the lane is to carry what belongs to the session, and not `current`."""
        if not self.up or current is None or not current.admitted:
            return self.up
        return not self.in_doubt and (self.wanted or current.in_doubt)

    # --- out --------------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """There is something to send: call `ready` if it was not called since the last `next`."""
        if not self._woken:
            self._woken = True
            self.ready()

    def _renew(self) -> None:
        self._turn_due = False
        self.wake()

    @property
    def waits(self) -> bool:
        """Whether there is something to send: if not, the carrier's rate is that of the applications."""
        if self._small or self._pieces or self._rest is not None:
            return True
        session = self.session
        return self.carries and (
            session.retention.waits
            or bool(session.table.windows_due)
            or (session.scheduler.open and session.scheduler.queued > 0)
        )

    def next(self, room: int, payload: int, now: float) -> Load | None:
        """What is to be sent next, in datagrams with up to `payload` bytes of stream data, `room` bytes at most. None
        if there is nothing that fits, or the work of this turn is done; `ready` is called when there is more."""
        session, turn = self.session, self.session.turn
        session.now = now
        self._woken = False
        self.inbox.go_on()
        if not self.up:
            return None
        if session.closed is not None:
            frame, self._farewell = self._farewell, None
            return None if frame is None else FramesLoad([Unit(frame)], LaneLog(), now)
        if payload != self._payload:
            self._resize(payload)
        if turn.left <= 0:
            if not self._turn_due:
                self._turn_due = True
                turn.wait(self._renew)
            return None
        turn.spend(FILL_WORK)
        # What handlers queue from here on leaves with this call, or with the next one.
        self._woken = True
        frames = self._take_frames(min(room, payload))
        load = FramesLoad(frames, self.log, now) if frames else self._take_piece(room, payload, now)
        self._woken = False
        return load

    def _resize(self, payload: int) -> None:
        self._payload = payload
        if self.carries:
            self.begin_carrying()
        small, self._small = self._small, deque()
        for unit in small:
            self._send_again(unit)

    def _take_frames(self, left: int) -> list[Unit]:
        """What leaves in one datagram of `left` bytes: frames, and the data of one stream if all that waits of it fits
        in. It is the last one."""
        frames: list[Unit] = []
        small = self._small
        while small and len(small[0].frame) <= left:
            frames.append(small.popleft())
            left -= len(frames[-1].frame)
        if not self.carries:
            return frames
        left = self._take_windows(frames, left)
        left = self._take_waiting(frames, left)
        if self._pieces or self._rest is not None:
            return frames
        unit = self._next_unit()
        if unit is None:
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
            elif size > self._payload:
                retention.aside.append(retention.take())
                if session.current is not None:
                    session.current.wake()
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

    def _take_piece(self, room: int, payload: int, now: float) -> StreamLoad | None:
        """Bytes of one unit, as many as one train carries."""
        while (piece := self._pieces[0] if self._pieces else self._rest) is not None:
            unit, begin, finish = piece
            size = finish - begin
            load = None
            if not self._is_reset(unit):
                most = min(room, MAX_SLICES * payload)
                if size > most:
                    size = most - most % payload
                    if not size:
                        return None
                load = StreamLoad(unit, begin, begin + size, payload, self.log, now)
            rest = (unit, begin + size, finish) if begin + size < finish else None
            if not self._pieces:
                self._rest = rest
            elif rest is not None:
                self._pieces[0] = rest
            else:
                self._pieces.popleft()
            if load is not None:
                return load
            if self.log.settle(unit, size):
                self._free([unit])
        return None

    # --- what became of it ------------------------------------------------------------------------------------------

    def acked(self, parts: Iterable[Part], now: float) -> None:
        """The peer has these datagrams of loads."""
        self.session.now = now
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
        self._heard(newest, now)

    def lost(self, parts: Iterable[Part], now: float) -> None:
        """These are lost, or were not sent, or the carrier has given them back: they go again, before all else."""
        self.session.now = now
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
        if self._small or pieces:
            self.wake()

    def _send_again(self, unit: Unit) -> None:
        """A lost frame, as whatever carries it now."""
        if unit.size:
            self._pieces.append((unit, 0, unit.size))
        elif len(unit.frame) <= self._payload:
            self._small.append(unit)
        else:
            del self.log.units[unit]
            self.session.retention.aside.append(unit)
            if self.session.current is not None:
                self.session.current.wake()

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

    def _give_up(self) -> None:
        """All that the lane is carrying goes by another path. There an OPEN goes before what belongs to its stream."""
        units, self.log = self.log.units, LaneLog()
        self._small.clear()
        self._pieces.clear()
        self._rest = None
        useless = [unit for unit in units if unit.size and self._is_reset(unit)]
        for unit in useless:
            del units[unit]
        self.session.turn.spend(len(units) // DROPS_PER_UNIT)
        log = PathLog(LANE)
        log.units.extend(unit for unit in units if unit.frame[0] == OPEN)
        log.units.extend(unit for unit in units if unit.frame[0] != OPEN)
        self.session.retention.lose(log)
        self._free(useless)
        self._reset.clear()

    # --- silence ----------------------------------------------------------------------------------------------------

    def silent(self, now: float, timeouts: int) -> None:
        """Nothing was acknowledged for so many probe time-outs in a row: 1, 2, and so on."""
        session = self.session
        session.now = now
        if self.silent_since == NEVER:
            self.silent_since = now
        self._timeouts = timeouts
        if self._outrun and timeouts >= SILENT:
            self._doubt()
        elif session.current is not None and session.current.admitted:
            session.current.measure()

    def outrun(self, asked: float) -> bool:
        """A record path has answered what it was asked at that time. Whether it is to be asked again, since the lane
        was not silent then."""
        if self.silent_since == NEVER or self.in_doubt:
            return False
        if self.silent_since > asked:
            return True
        self._outrun = True
        if self._timeouts >= SILENT:
            self._doubt()
        return False

    def _doubt(self) -> None:
        """A record path takes over."""
        if not self.in_doubt:
            self.in_doubt = True
            self._give_up()
            self.session.choose()
            self.session.wake()

    def alive(self, now: float) -> None:
        """The peer has acknowledged something of which no load tells. `acked` says so by itself."""
        self.session.now = now
        self._heard(-1.0, now)

    def _heard(self, sent_at: float, now: float) -> None:
        """The peer has acknowledged something that was sent at that time, at the latest."""
        session, doubted = self.session, self.in_doubt
        if self.silent_since != NEVER:
            self._trust()
        if doubted:
            session.choose()
        for path in session.paths.values():
            if path.in_doubt and path.suspicion.since <= sent_at and self._overtakes_at == NEVER:
                self._asked, self._overtakes_at = sent_at, now + LEAST_LATE

    def _trust(self) -> None:
        self.in_doubt = self._outrun = False
        self.silent_since = NEVER
        self._timeouts = 0

    # --- time and end -----------------------------------------------------------------------------------------------

    def deadline(self) -> float:
        """The time at which `tick` must be called."""
        if not self.up or self.session.closed is not None:
            return NEVER
        return min(self.session.rotation.deadline(self._keys), self._overtakes_at)

    def tick(self, now: float) -> None:
        """Time has passed. Raises CarrierError if the keys are too old: the lane is to be taken down."""
        session = self.session
        session.now = now
        if not self.up or session.closed is not None:
            return
        session.rotation.tick(now, self._keys)
        if now >= self._overtakes_at:
            self._overtakes_at = NEVER
            session.overtake(self, self._asked)

    def say_farewell(self, frame: bytes) -> None:
        """The session has ended here: tell the peer once."""
        self._farewell = frame
        self.wake()

    def end(self) -> PathLog:
        """The session is over: nothing is kept here. Returns what was."""
        units, self.log = self.log.units, LaneLog()
        self._small.clear()
        self._pieces.clear()
        self._rest = None
        self._reset.clear()
        self.inbox.clear()
        log = PathLog(LANE)
        log.units.extend(units)
        return log

    # --- in ---------------------------------------------------------------------------------------------------------

    def stream_data(self, stream: int, offset: int, data: memoryview, now: float) -> bool:
        """Bytes of a stream came, in any order. False if there is no room for them: then they must not be
        acknowledged. Raises PeerError."""
        self.session.now = now
        return self.session.closed is not None or self.inbox.take_data(stream, offset, data)

    def frames(self, data: memoryview, now: float) -> bool:
        """Frames came. As `stream_data`."""
        self.session.now = now
        return self.session.closed is not None or self.inbox.take_frames(bytes(data))


class _KeysOfLane:
    """What the rotation is to know of the keys of the lane (rotation.AgingKeys): it counts their use itself, and they
    follow the session's by themselves."""

    __slots__ = ("_session", "joined")

    def __init__(self, session: LaneSession) -> None:
        self._session = session
        self.joined = 0.0

    @property
    def since(self) -> float:
        return self._session.rotation.since

    def used(self, records: int, size: int) -> bool:
        return False

    def settled(self, epoch: int) -> bool:
        return True


def _nothing() -> None:
    """Nobody is told."""
