"""A path of a session: the records of one carrier, both directions.

A path has its own keys (path_keys.py), acknowledgements, keepalive and round trip. Its log holds what it has carried
until the peer acknowledges the records (retention.py). What it carries belongs to the session, which gives it to one
path at a time (path_choice.py); the others carry what is about themselves.

    fill     ACK -> keys change (SWITCH) -> PONG, PING, what is about the path -> if it is the chosen one, the units
    receive  open a record -> act on its frames, perhaps in several turns -> it counts for the next ACK

Its carrier calls `fill` after each `ready`, `receive` with what it read, and `tick` at `deadline`, which it reads again
after each call. While `turn` has nothing left (turns.py), it calls neither `fill` nor `receive`. If a call raises
CarrierError or NotAdmitted, only the path is over: call `lost`. For any other PeerError `close` the session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from ..errors import CloseReason, PeerError
from . import frame_reader, wire
from .epochs import EpochLedger
from .frame_reader import read_data
from .lane_inbox import LaneInbox
from .liveness import UNKNOWN_ROUND_TRIP, Liveness
from .outgoing import OutgoingSession, others_wait, outgoing_waits, write_others, write_outgoing
from .path_keys import PathKeys
from .path_length import PathLength
from .records import OVERHEAD, RecordOpener
from .retention import PathLog
from .rotation import NEVER
from .stream_receiver import StreamReceiver
from .suspicion import LEAST_LATE, Suspicion
from .turns import BYTES_PER_UNIT, DATA_COST, FILL_WORK, FRAME_COSTS, RECORD_WORK, TurnBudget
from .verdict import open_verdict
from .windows import WindowPool
from .wire import DATA
from .writer import MAX_JOINED, RecordWriter

ACK_BYTES: Final = 1 << 20
"""Bytes of data after which an ACK is due at once, or a sixteenth of `retained` if that is less."""
ACK_DELAY: Final = 0.025
"""Longest time in seconds until a record is acknowledged."""
MAX_EARLY: Final = 65_536
"""Before the exit's verdict no record begins behind so many bytes of records."""
FILL_MINIMUM: Final = wire.MAX_PLAINTEXT + MAX_JOINED + 5 * OVERHEAD
"""Bytes of buffer that `fill` needs beyond its budget."""


class Other(Protocol):
    """What may carry in the place of a path."""

    @property
    def in_doubt(self) -> bool: ...
    @property
    def admitted(self) -> bool: ...


class LaneBeside(Protocol):
    """What a path needs of the lane."""

    @property
    def inbox(self) -> LaneInbox: ...


class PathSession(OutgoingSession, Protocol):
    """What a path and its carrier need of their session (session.py)."""

    now: float

    @property
    def closed(self) -> CloseReason | None: ...
    @property
    def current(self) -> SessionPath | None: ...
    @property
    def carrying(self) -> object: ...
    @property
    def lane(self) -> LaneBeside | None: ...
    @property
    def paths(self) -> Mapping[int, SessionPath]: ...
    @property
    def turn(self) -> TurnBudget: ...
    @property
    def windows(self) -> WindowPool: ...
    @property
    def receiver(self) -> StreamReceiver: ...
    @property
    def ledger(self) -> EpochLedger: ...
    @property
    def bytes_received(self) -> int: ...
    def act(self, path: SessionPath, kind: int, id: int, value: Any, /) -> None: ...
    def check_kept(self) -> None: ...
    def rotation_deadline(self, path: SessionPath, /) -> float: ...
    def tick_rotation(self, path: SessionPath, now: float, /) -> None: ...
    def choose(self) -> None: ...
    def sends_at(self, rate: float, /) -> None: ...
    @property
    def has_others(self) -> bool: ...
    def others_than(self, path: SessionPath, /) -> Sequence[Other]: ...
    def doubt(self, path: SessionPath, /, *, told: bool) -> None: ...
    def trust(self, path: SessionPath, /) -> None: ...
    def answered(self, path: SessionPath, asked: float, /) -> bool: ...
    def overtake(self, path: SessionPath, asked: float, /) -> None: ...
    def path_lost(self, path: SessionPath, now: float, /) -> None: ...
    def close(self, reason: CloseReason, /) -> None: ...


class SessionPath:
    """One path; made by `Session.attach`. `ready` is called when there is something to send, once until the next
    `fill`; `abandoned` when the peer says that it has closed the path."""

    def __init__(
        self,
        session: PathSession,
        number: int,
        keys: PathKeys,
        now: float,
        admitted: Callable[[], None] | None,
        ack_bytes: int,
        keepalive: float,
        early: int | None,
    ) -> None:
        self.session = session
        self.number = number
        self.keys = keys
        self.ready: Callable[[], None] = _nothing
        self.abandoned: Callable[[], None] = _nothing
        self.unanswered: Callable[[], float] = _unknown
        """For how many seconds the kernel of the other end has acknowledged nothing; see base/far_end.py."""
        self.ended = False
        self.log = PathLog(number)
        self.liveness = Liveness(keepalive)
        self.liveness.attach(now)
        self.length = PathLength(UNKNOWN_ROUND_TRIP, session.bytes_received, now)
        self.rate: float | None = None
        """Bytes per second that it sends, as far as it is known."""
        self.suspicion = Suspicion()
        self._asked = self._overtakes_at = NEVER
        """It has answered what it was asked at the first time, and is believed at the second one to be faster than
        paths that were asked then too and have not answered yet."""
        self._admitted = admitted
        """What waits for the exit's verdict."""
        self._early = MAX_EARLY
        """Bytes that may still be sent before it."""
        self._early_left = early
        """At the exit: bytes behind which no early record may begin; None since the client has read the verdict."""
        self._ack_bytes = ack_bytes
        self._ack_due = False
        self._ack_now = keys.opener.records > 0
        """Whether an ACK leaves with the next `fill`. One with each would cost more than what it acknowledges. The
        verdict, which may have been read before, is acknowledged at once: so the exit knows what comes behind it."""
        self._ack_by = NEVER
        self._acknowledged = 0
        """Records that the last ACK told of."""
        self._unacknowledged = 0
        """Bytes of data that came since then."""
        self._pong: int | None = None
        self._announcements: list[bytes] = []
        self._farewell: bytes | None = None
        self._frames: Iterator[wire.Frame] | None = None
        """The frames of an opened record that were left to a later turn."""
        self._woken = False

    @property
    def in_doubt(self) -> bool:
        """Whether it has fallen silent, and has not answered since."""
        return self.liveness.doubted

    @property
    def admitted(self) -> bool:
        """Whether the exit has given its verdict."""
        return self._admitted is None

    @property
    def least_round_trip(self) -> float:
        """Without queues, in seconds."""
        return self.length.round_trip

    @property
    def queue_target(self) -> int:
        """Bytes that are worth sealing in one `fill`."""
        return self.session.scheduler.queue_target

    @property
    def received(self) -> int:
        """Records that came and whose frames are acted on."""
        return self.keys.records_received - (self._frames is not None)

    # --- time ------------------------------------------------------------------------------------------------------

    def deadline(self) -> float:
        """The time at which `tick` must be called."""
        if self.ended or self._admitted is not None or self.session.closed is not None:
            return NEVER
        return min(
            self._ack_by,
            self.liveness.deadline(),
            self.session.rotation_deadline(self),
            self._doubt_at(),
            self._overtakes_at,
        )

    def tick(self, now: float) -> None:
        """Time has passed. Raises CarrierError if the peer is silent or the keys are too old."""
        session = self.session
        session.now = now
        if self.ended or self._admitted is not None or session.closed is not None:
            return
        session.tick_rotation(self, now)
        if self.liveness.tick(now):
            self.wake()
        if now >= self._ack_by:
            self._ack_by = NEVER
            self._ack_now = True
            self.wake()
        if now >= self._doubt_at():
            if all(path.in_doubt for path in session.others_than(self) if path.admitted):
                # All would go twice by the same path.
                self.suspicion.postpone(now)
            elif self.suspicion.confirmed(self.unanswered(), now):
                self.doubt(now)
        if now >= self._overtakes_at:
            self._overtakes_at = NEVER
            session.overtake(self, self._asked)

    def doubt(self, now: float, *, told: bool = False) -> None:
        """It is silent, or the peer has `told` so: ask it, and meanwhile use another one."""
        self.liveness.doubt()
        self.suspicion.begin(now)
        self.wake()
        self.session.doubt(self, told=told)

    def _doubt_at(self) -> float:
        if not self.session.has_others or self.in_doubt or not (self.log.units or self._pong_owed):
            return NEVER
        return self.suspicion.at

    @property
    def _pong_owed(self) -> bool:
        """Whether the path is in use and owes a PONG, perhaps nothing else: datagrams are not acknowledged."""
        return self.session.current is self and self.liveness.asked_at != NEVER

    def probe(self, within: float, now: float) -> None:
        """Request a sign of life within `within` seconds, for example after a suspend."""
        self.liveness.probe(within, now)
        self.wake()

    def prove(self, within: float, now: float) -> None:
        """There is a doubt whether the peer is still there: request a sign of life within `within` seconds."""
        self.liveness.prove(within, now)
        self.wake()

    def measure(self) -> None:
        """Measure the round trip now; see Liveness.measure."""
        if self.liveness.measure():
            self.wake()

    def pace(self, rate: float) -> None:
        """The carrier sends `rate` bytes per second."""
        self.rate = rate
        if self.session.carrying is self:
            self.begin_carrying()
            self.session.sends_at(rate)

    def begin_carrying(self) -> None:
        """It is what carries: let what waits follow its rate."""
        self.session.scheduler.pace(self.rate)

    # --- end -------------------------------------------------------------------------------------------------------

    def lost(self, now: float) -> None:
        """The carrier is gone: what the path has carried goes by another one. A second call does nothing."""
        self.ended = True
        self.ready = self.abandoned = _nothing
        self._admitted = None
        self._announcements.clear()
        if self.session.paths.get(self.number) is self:
            self.session.path_lost(self, now)
        self._frames = None

    def say_farewell(self, frame: bytes) -> None:
        """The session has ended here: tell the peer with the next `fill`."""
        self._farewell = frame
        self._frames = None
        self.wake()

    # --- out -------------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """There is something to send: call `ready` if it was not called since the last `fill`."""
        if not self._woken:
            self._woken = True
            self.ready()

    def announce(self, frame: bytes) -> None:
        """Send a frame that is about this path; it is lost with it."""
        self._announcements.append(frame)
        self.wake()

    def fill(self, out: memoryview, budget: int, now: float) -> int:
        """Write records into `out` (at least FILL_MINIMUM + `budget` bytes) until about `budget` bytes are written, the
        turn's work is done, or nothing is left to send. Returns the number of bytes written. If there may be more to
        send, `ready` has been called again."""
        session = self.session
        session.now = now
        self._woken = False
        if self.ended:
            return 0
        keys = self.keys
        writer = RecordWriter(keys.sealer, keys.sent_before, out)
        if session.closed is not None:
            frame, self._farewell = self._farewell, None
            if frame is None:
                return 0
            writer.add(frame)
            return writer.flush()
        early = self._admitted is not None
        if early:
            budget = min(budget, self._early)
            if budget <= 0:
                return 0
        # What handlers queue from here on leaves with this call, or with the one that `wake` requests below.
        self._woken = True
        turn = session.turn
        left = before = turn.left
        if not early:
            self._write_own(writer, now)
        chosen = session.carrying is self
        others = not chosen and session.current is self and self.admitted and others_wait(session)
        if chosen or others:
            if not self.log.units and not self._pong_owed:
                self.suspicion.asked = now
            write = write_outgoing if chosen else write_others
            left = write(session, self, writer, budget, left, now)
            if self.log.units:
                self.suspicion.sent(self.log.units[-1].record, now)
        written = writer.flush()
        self._woken = False
        if early:
            self._early -= written
        turn.spend(FILL_WORK + before - left + written // BYTES_PER_UNIT)
        if (
            left <= 0
            or written >= budget
            or (chosen and outgoing_waits(session, self))
            or (others and others_wait(session))
        ):
            self.wake()
        return written

    def _write_own(self, writer: RecordWriter, now: float) -> None:
        """Write what is about this path."""
        session, keys = self.session, self.keys
        if session.carrying is self and session.table.windows_due:
            # Credit leaves, for data that can be acknowledged along with it.
            self._ack_now = self._ack_now or self._ack_due
        if session.current is self and (session.table.windows_due or session.datagrams or session.packets):
            # Datagrams and packets are not acknowledged: without a PING nobody would miss them.
            self.liveness.measure_again(now)
        if self._ack_now and (received := self.received) > self._acknowledged:
            # The record that is acted on in several turns is acknowledged after the last one.
            self._ack_due = self._frames is not None
            self._ack_now = False
            self._ack_by = now + ACK_DELAY if self._ack_due else NEVER
            self._unacknowledged = 0
            self._acknowledged = received
            writer.add(wire.encode_records(wire.ACK, self.number, received))
        if session.rotation.sending > keys.send_epoch:
            self._switch(writer, now)
        if self._pong is not None:
            writer.add(wire.encode_number(wire.PONG, self._pong))
            self._pong = None
        if self.liveness.ping is not None:
            writer.add(wire.encode_number(wire.PING, self.liveness.ping))
            self.liveness.ping_sent(now)
            if not self.log.units:
                self.suspicion.asked = now
        for frame in self._announcements:
            writer.add(frame)
        self._announcements.clear()

    def _switch(self, writer: RecordWriter, now: float) -> None:
        """End the epoch of what is sent: SWITCH stands alone in its record."""
        session, keys = self.session, self.keys
        epoch = session.rotation.sending
        secret = session.rotation.known.secret(epoch)
        assert secret is not None
        writer.flush()
        writer.add(wire.encode_epoch(wire.SWITCH, epoch))
        writer.flush()
        session.ledger.sealed(keys.send_epoch, keys.sealer)
        keys.switch_sending(epoch, secret, now)
        writer.change_keys(keys.sealer, keys.sent_before)

    # --- in --------------------------------------------------------------------------------------------------------

    def receive(self, data: memoryview, now: float) -> int:
        """Open the records in `data` and act on them. Returns the number of bytes used up. The rest is the start of a
        record; with nothing left in `turn`, records to be passed again when it has.

        Raises PeerError; see the head of the file.
        """
        session = self.session
        session.now = now
        position = 0
        if self.ended:
            return 0
        if self._admitted is not None:
            position = self._receive_verdict(self._admitted, self.keys.opener, data)
            if not position:
                return 0
        if session.lane is not None:
            # It was acknowledged, so what comes here may rely on it.
            session.lane.inbox.go_on()
        left = before = session.turn.left
        if self._frames is not None and left > 0:
            left = self._take_frames(self._frames, left)
        if self._early_left is not None:
            position, left = self._receive_early(data, left)
        receive_data, keys = session.receiver.receive_data, self.keys
        while left > 0 and not self.ended and session.closed is None:
            plaintext, position = keys.opener.open(data, position)
            if plaintext is None:
                break
            if plaintext[0] == DATA:
                left -= DATA_COST
                stream, offset, payload = read_data(plaintext)
                self._ack_due = True
                self._unacknowledged += len(payload)
                receive_data(stream, offset, payload)
                continue
            left = self._take_record(
                frame_reader.read_frames(bytes(plaintext)), plaintext[0], left - RECORD_WORK, now
            )
        session.turn.spend(before - left + position // BYTES_PER_UNIT)
        if position:
            self.liveness.heard(now)
        self._see_to_ack(now)
        session.check_kept()
        return position

    def _see_to_ack(self, now: float) -> None:
        if self._ack_due:
            if self._unacknowledged >= self._ack_bytes:
                self._ack_now = True
                self.wake()
            elif self._ack_by == NEVER:
                self._ack_by = now + ACK_DELAY

    def _take_record(self, frames: Iterator[wire.Frame], first: int, left: int, now: float) -> int:
        """Act on a record whose first frame is of kind `first`. Returns what is left of the turn's work."""
        return self._end_epoch(frames, left, now) if first == wire.SWITCH else self._take_frames(frames, left)

    def _receive_verdict(self, admitted: Callable[[], None], opener: RecordOpener, data: memoryview) -> int:
        """Read the exit's first record; 0 while it has not come. Raises NotAdmitted or CarrierError."""
        frame, position = open_verdict(opener, data, wire.ACCEPT)
        if frame is None:
            return 0
        self.session.turn.spend(RECORD_WORK + FRAME_COSTS[frame[0]])
        self._admitted = None
        self._ack_now = True
        self.session.choose()
        self.wake()
        admitted()
        return position

    def _receive_early(self, data: memoryview, left: int) -> tuple[int, int]:
        """At the exit: open what the client sends up to the record that begins with ACK, by which it has read the
        verdict. Returns where the next record begins, and what is left of the turn's work. Raises PeerError for what
        may not be early."""
        session, position = self.session, 0
        ack = wire.encode_records(wire.ACK, self.number, 0)[:-8]  # all but the number of records
        while left > 0 and self._early_left is not None and not self.ended and session.closed is None:
            begin = position
            plaintext, position = self.keys.opener.open(data, begin)
            if plaintext is None:
                break
            frames = frame_reader.read_frames(bytes(plaintext))
            if plaintext[: len(ack)] == ack:
                self._early_left = None
            elif self._early_left <= 0:
                raise PeerError(
                    CloseReason.PROTOCOL, "the client sent too much before it had read the verdict"
                )
            else:
                self._early_left -= position - begin
                frames = _only_early(frames)
            left = self._take_frames(frames, left - RECORD_WORK)
        return position, left

    def _take_frames(self, frames: Iterator[wire.Frame], left: int) -> int:
        """Act on the frames of one record while there is work left in this turn, and keep the others. Returns what is
        left then."""
        self._frames = frames
        session = self.session
        act = session.act
        for kind, id, value in frames:
            left -= FRAME_COSTS[kind]
            if kind < wire.RELIABLE:
                self._ack_due = True
                if kind == DATA:
                    self._unacknowledged += len(value[1])  # type: ignore[index]
            act(self, kind, id, value)
            if left <= 0 or session.closed is not None or self.ended:
                return left
        self._frames = None
        return left

    def _end_epoch(self, frames: Iterator[wire.Frame], left: int, now: float) -> int:
        """Act on the one frame of a record that ends an epoch. Returns what is left of the turn's work."""
        kind, _, epoch = next(frames)
        if next(frames, None) is not None:
            raise PeerError(CloseReason.REKEY, "the peer ended an epoch in the middle of a record")
        session = self.session
        assert isinstance(epoch, int)
        keys = self.keys
        before = keys.receive_epoch, keys.opener
        keys.switch_receiving(epoch, session.rotation.known.secret(epoch), now)
        session.ledger.opened(*before)
        session.rotation.peer_switched(epoch, now)
        # At once: the next rotation waits for it.
        self._ack_due = self._ack_now = True
        self.wake()
        return left - FRAME_COSTS[kind]

    def ping_received(self, token: int) -> None:
        self._pong = token
        self.wake()

    def pong_received(self, token: int, now: float) -> None:
        session = self.session
        doubted = self.in_doubt
        sample = self.liveness.pong(token, now)
        if doubted and not self.in_doubt:
            self.suspicion.end(now)
            session.trust(self)
        elif not doubted:
            self.suspicion.calm(now)
        if sample is not None:
            self.suspicion.measured(sample + ACK_DELAY)
            if session.answered(self, now - sample):
                self._asked = now - sample
                self._overtakes_at = min(self._overtakes_at, now + LEAST_LATE)
            self.length.measured(sample, session.bytes_received, session.windows.credit, now)


def _only_early(frames: Iterator[wire.Frame]) -> Iterator[wire.Frame]:
    """`frames`, up to one that may not be early. Raises PeerError there."""
    for frame in frames:
        if frame[0] >= wire.RELIABLE and frame[0] != wire.CLOSE:
            raise PeerError(CloseReason.PROTOCOL, "the client sent a frame before it had read the verdict")
        yield frame


def _nothing() -> None:
    """Nobody is told."""


def _unknown() -> float:
    """Nobody knows."""
    return float("inf")
