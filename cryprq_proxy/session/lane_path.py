"""The datagram lane as a path of a session: what it is to carry, and what came by it.

    set_up         whether it works
    next           what it is to send now (lane_outbox.py), and acked, lost: what became of that
    silent, alive  whether the peer answers
    stream_data, frames
                   what came, in any order (lane_inbox.py)

Whether it is what carries, each side chooses for what it sends (lane_choice.py).

Its carrier seals and sends what `next` gives, detects losses and keeps the rate. It calls `next` after each `ready`,
even if nothing may be sent, and again until it is None or no more may be sent; then again when more may. Nothing is
known here of keys, datagrams and sockets.

If a call raises CarrierError, only the lane is over. For any other PeerError `close` the session.

Silence. At the first probe time-out the record path is asked (PING), too. If that has answered at the second one, all
that the lane has carried goes by it. If both are silent, the one that answers first gets what the other has carried:
so nothing is given up for what is silent as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from .lane_choice import LaneChoice
from .lane_inbox import InboxSession, LaneInbox
from .lane_loads import FramesLoad, LaneLog, Load, Part
from .lane_outbox import LaneOutbox, LaneSender
from .liveness import OVERDUE, UNKNOWN_ROUND_TRIP
from .path import SessionPath
from .retention import PathLog, Unit
from .rotation import NEVER
from .session_events import SessionEvents
from .suspicion import LEAST_LATE
from .turns import ACK_BYTES_PER_UNIT, ACK_WORK, FILL_WORK
from .wire import LaneUse

SILENT: Final = 2
"""Probe time-outs after which a record path that has answered takes over."""
LOSS_WEIGHT: Final = 1 / 8
"""Of a round trip's loss against that of those before it."""


class LaneSession(LaneSender, InboxSession, Protocol):
    """What a LanePath needs of its session besides (session.py)."""

    now: float
    lane_use: LaneUse

    @property
    def carrying(self) -> SessionPath | LanePath | None: ...
    @property
    def events(self) -> SessionEvents: ...
    def act(self, path: LanePath, kind: int, id: int, value: Any, /) -> None: ...
    def choose(self) -> None: ...
    def overtake(self, path: LanePath, asked: float, /) -> None: ...


class LanePath:
    """That of one session; made by `Session.attach_lane`. `ready` is called when there is something to send, once
    until the next call of `next`.

    `up`: whether its check has succeeded. `in_doubt`: whether it has fallen silent, and has not answered since.
    """

    admitted: Final = True
    """As what a session may send on at once."""

    def __init__(self, session: LaneSession) -> None:
        self.session = session
        self.ready: Callable[[], None] = _nothing
        self.up = self.in_doubt = False
        self.choice = LaneChoice(session.lane_use)
        self.least_round_trip = UNKNOWN_ROUND_TRIP
        """Without queues, in seconds."""
        self.rate: float | None = None
        """Bytes a second that it sends, as far as it is known."""
        self.loss: float | None = None
        """Share of the datagrams in the last rounds, as far as it is known."""
        self.bytes_sent = self.bytes_received = 0
        """Of streams and frames."""
        self.outbox = LaneOutbox(session)
        self.inbox = LaneInbox(session, lambda *frame: session.act(self, *frame), self.wake)
        self.heard_at = 0.0
        """When the peer last acknowledged something, or sent something."""
        self._unproven = False
        """Whether it has not, since the last path was lost: perhaps the peer itself is gone."""
        self.silent_since = NEVER
        """When the first probe time-out came of the present silence."""
        self._timeouts = 0
        self._outrun = False
        """Whether the record path has answered what it was asked since then."""
        self._alone = False
        """Whether it has done so at once: UDP alone fails, and not all of the network."""
        self._asked = self._overtakes_at = NEVER
        """As those of a SessionPath."""
        self._keys = _KeysOfLane(session)
        self._farewell: bytes | None = None
        self._woken = False
        self._turn_due = False
        self._due = NEVER
        """The last answer of `deadline`."""

    @property
    def log(self) -> LaneLog:
        """What it is carrying."""
        return self.outbox.log

    @property
    def carries(self) -> bool:
        """Whether new data and frames of the session leave by the lane."""
        return self.session.carrying is self

    @property
    def proven(self) -> bool:
        """Whether it carries the session, and the peer is known to be there: the loss of the last path, if there is
        none, was not the peer's end."""
        return self.carries and not self._unproven

    # --- up and down, choice ----------------------------------------------------------------------------------------

    def set_up(self, up: bool, round_trip: float, why: str, now: float) -> None:
        """The lane's check has succeeded, or it works no longer: then all that it has carried goes by another path, and
        loads that are in flight are forgotten here. `round_trip`: seconds, the least; `why`: part of a sentence."""
        session = self.session
        session.now = now
        if up:
            if not self.up:
                self._keys.joined = now
                self._trust()
            self.up = True
            self.least_round_trip = round_trip
            self.choice.up(round_trip, now)
        else:
            self._fall(why, now)
        session.choose()
        if up:
            self._prove()
        self.wake()

    def _fall(self, why: str, now: float) -> None:
        self.up = False
        self.choice.down(why, now)
        if self._alone:
            self.choice.alone(now)
        else:
            self._be_silent(now)
            self._ask_path()
        self.outbox.give_up()

    def alone(self) -> None:
        """The last path was lost."""
        self._unproven = True

    def _prove(self) -> None:
        """The peer is there."""
        self._unproven = False
        if self.carries and not self.session.paths:
            self.session.events.proven()

    def _hear(self, now: float) -> None:
        """The peer has sent something."""
        self.heard_at = now
        if self._unproven:
            self._prove()

    def paced(self, rate: float, round_trip: float) -> None:
        """The carrier sends `rate` bytes a second, with a least round trip of so many seconds."""
        session = self.session
        self.rate, self.least_round_trip = rate, round_trip
        if self.choice.measured(round_trip, session.now):
            session.choose()
        if self.carries:
            self.begin_carrying()

    def round_over(self, rate: float, loss: float, limited: bool, now: float) -> None:
        """A round trip is over in which `rate` bytes a second were delivered, and this share of the datagrams was lost;
        `limited`: the applications had less to send than could have been sent."""
        self.session.now = now
        self.loss = loss if self.loss is None else self.loss + LOSS_WEIGHT * (loss - self.loss)
        if self.carries and self.choice.round_over(rate, loss, limited, now):
            self.session.choose()

    def set_use(self, use: LaneUse) -> None:
        """What streams may use, as the client is set."""
        if self.choice.set_use(use, self.session.now):
            self.session.choose()
        self._see_deadline()

    def moved(self, now: float) -> None:
        """It goes through another network."""
        self.session.now = now
        if self.choice.moved(now):
            self.session.choose()

    def tcp_rate(self, rate: float) -> None:
        """The record path that carries sends so many bytes a second, and there is more to send."""
        if self.choice.tcp_rate(rate, self.session.now):
            self.session.choose()
        self._see_deadline()

    def begin_carrying(self) -> None:
        """It is what carries: let units be what its trains can carry, and what waits follow its rate."""
        self.session.scheduler.pace(self.rate, self.outbox.payload)

    def takes(self, current: SessionPath | None) -> bool:
        """Whether the lane is to carry what belongs to the session, and not `current`. While that is in doubt it does,
        if it may: no choice, since a moment later the path may have answered."""
        now = self.session.now
        there = current is not None and current.admitted
        if not there and self.up and self.in_doubt:
            # There is nothing else to be had.
            self._trust()
            self.choice.up(self.least_round_trip, now)
        self.choice.tcp(there, now)
        self._see_deadline()
        if not self.up or self.session.lane_use is LaneUse.TCP or self.session.rotation.known.bound:
            # Bound, because who has learned the secrets of this epoch can speak on the lane.
            return False
        return self.choice.lane or (current is not None and current.in_doubt and not self.in_doubt)

    # --- out --------------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """There is something to send: call `ready` if it was not called since the last `next`."""
        if not self._woken:
            self._woken = True
            self.ready()

    def _wait_for_turn(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            self.session.turn.wait(self._renew)

    def _renew(self) -> None:
        self._turn_due = False
        self.wake()

    @property
    def waits(self) -> bool:
        """Whether there is something to send: if not, the carrier's rate is that of the applications."""
        if self.outbox.waits:
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
        if payload != self.outbox.payload:
            self.outbox.payload = payload
            if self.carries:
                self.begin_carrying()
        if turn.left <= 0:
            self._wait_for_turn()
            return None
        turn.spend(FILL_WORK)
        # What handlers queue from here on leaves with this call, or with the next one.
        self._woken = True
        load = self.outbox.take(room, now, new=self.carries)
        self._woken = False
        if load is not None:
            self.bytes_sent += load.size
        elif turn.left <= 0:
            # Perhaps some that wait to send were not asked.
            self._wait_for_turn()
        return load

    def takes_ack(self, size: int) -> bool:
        """Whether an acknowledgement of `size` bytes is to be looked at. If this turn's work is done it is as if lost:
        a later one says the same."""
        turn = self.session.turn
        if turn.left <= 0:
            return False
        turn.spend(ACK_WORK + size // ACK_BYTES_PER_UNIT)
        return True

    def acked(self, parts: Iterable[Part], now: float) -> None:
        """The peer has these datagrams of loads."""
        self.session.now = now
        self._heard(self.outbox.acked(parts), now)

    def lost(self, parts: Iterable[Part], now: float) -> None:
        """These are lost, or were not sent, or the carrier has given them back: they go again, before all else."""
        self.session.now = now
        self.outbox.lost(parts)
        if self.outbox.waits:
            self.wake()

    def forget(self, stream: int) -> None:
        """A stream was reset: what is lost of it need not go again."""
        self.outbox.forget(stream)

    # --- silence ----------------------------------------------------------------------------------------------------

    def silent(self, now: float, timeouts: int) -> None:
        """Nothing was acknowledged for so many probe time-outs in a row: 1, 2, and so on."""
        self.session.now = now
        self._be_silent(now)
        self._timeouts = timeouts
        if self._outrun and timeouts >= SILENT:
            self._doubt()
        else:
            self._ask_path()

    def _be_silent(self, now: float) -> None:
        if self.silent_since == NEVER:
            self.silent_since = now

    def _ask_path(self) -> None:
        session = self.session
        if session.current is not None and session.current.admitted and session.closed is None:
            session.current.measure()

    def outrun(self, asked: float, round_trip: float) -> bool:
        """A record path, whose answers take so long without queues, has answered what it was asked at that
        time. Whether it is to be asked again, since the lane was not silent then."""
        if self.silent_since == NEVER or self._outrun:
            return False
        if self.silent_since > asked:
            return True
        now = self.session.now
        self._outrun = True
        self._alone = now - self.silent_since <= 2 * round_trip + OVERDUE
        if not self.up:
            if self._alone:
                self.choice.alone(now)
        elif self._timeouts >= SILENT:
            self._doubt()
        return False

    def _doubt(self) -> None:
        """A record path takes over."""
        if not self.in_doubt:
            self.in_doubt = True
            self.choice.down("UDP is silent while TCP answers", self.session.now)
            if self._alone:
                self.choice.alone(self.session.now)
            self.outbox.give_up()
            self.session.choose()
            self.session.wake()

    def alive(self, now: float) -> None:
        """The peer has acknowledged something of which no load tells. `acked` says so by itself."""
        self.session.now = now
        self._heard(-1.0, now)

    def _heard(self, sent_at: float, now: float) -> None:
        """The peer has acknowledged something that was sent at that time, at the latest."""
        session, doubted = self.session, self.in_doubt
        self._hear(now)
        if self.silent_since != NEVER:
            self._trust()
        if doubted:
            self.choice.up(self.least_round_trip, now)
            session.choose()
        for path in session.paths.values():
            if path.in_doubt and path.suspicion.since <= sent_at and self._overtakes_at == NEVER:
                self._asked, self._overtakes_at = sent_at, now + LEAST_LATE

    def _trust(self) -> None:
        self.in_doubt = self._outrun = self._alone = False
        self.silent_since = NEVER
        self._timeouts = 0

    # --- time and end -----------------------------------------------------------------------------------------------

    def deadline(self) -> float:
        """The time at which `tick` must be called."""
        if not self.up or self.session.closed is not None:
            return NEVER
        rotation = self.session.rotation.deadline(self._keys)
        self._due = min(rotation, self._overtakes_at, self.choice.deadline())
        return self._due

    def _see_deadline(self) -> None:
        """A record path has taught the choice something: the carrier, which may sleep, is to ask for `deadline` again
        if that has come nearer."""
        if self.choice.deadline() < self._due:
            self.wake()

    def tick(self, now: float) -> None:
        """Time has passed. Raises CarrierError if the keys are too old: the lane is to be taken down."""
        session = self.session
        session.now = now
        if not self.up or session.closed is not None:
            return
        session.rotation.tick(now, self._keys)
        if self.choice.tick(now):
            session.choose()
        if now >= self._overtakes_at:
            self._overtakes_at = NEVER
            session.overtake(self, self._asked)

    def say_farewell(self, frame: bytes) -> None:
        """The session has ended here: tell the peer once."""
        self._farewell = frame
        self.wake()

    def end(self) -> PathLog:
        """The session is over: nothing is kept here. Returns what was."""
        self.inbox.clear()
        return self.outbox.end()

    # --- in ---------------------------------------------------------------------------------------------------------

    def stream_data(self, stream: int, offset: int, data: memoryview, now: float) -> bool:
        """Bytes of a stream came, in any order. False if there is no room for them: then they must not be
        acknowledged. Raises PeerError."""
        self.session.now = now
        self._hear(now)
        self.bytes_received += len(data)
        return self.session.closed is not None or self.inbox.take_data(stream, offset, data)

    def frames(self, data: memoryview, now: float) -> bool:
        """Frames came. As `stream_data`."""
        self.session.now = now
        self._hear(now)
        self.bytes_received += len(data)
        return self.session.closed is not None or self.inbox.take_frames(bytes(data))


class _KeysOfLane:
    """What the rotation is to know of the keys of the lane (key_limits.AgingKeys): it counts their use itself, and they
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
