"""The driver of a lane's streams: what the session wants to send leaves, and what came is acknowledged.

    LanePath.next -> a load -> Lane.seal_stream, to the buffer of the process -> one sendmsg -> Recovery.sent
    STREAM, FRAMES -> LanePath -> Received -> ACK -> the peer's Recovery.acked -> LanePath.acked, lost

It joins four things that do not know each other: the lane's keys (lane/), loss detection and congestion control
(recovery/), the lane as a path of the session (session/lane_path.py), and the carrier, which has socket and timer.

Acknowledgements leave first, then what the window and the pacer let out, a bounded amount in one turn of the loop. An
idle driver sends nothing and wants no timer. Packets and datagrams beside the streams are never sent again: they count
in the window while streams are in flight, and wait for it only while streams do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from typing import Final, Protocol

from ...base.buffers import SHARED
from ...base.faults import report_fault
from ...errors import CarrierError, PeerError
from ...lane.layout import ACK, FRAMES, FRAMES_ASK, OVERHEAD, STREAM_OVERHEAD
from ...lane.path import Path
from ...lane.sealing import OUT_SIZE, Lane
from ...lane.slices import Shape
from ...recovery.pacer import Pacer
from ...recovery.received import GAPS_APART, Received, decode, encode
from ...recovery.recovery import Recovery, Settled
from ...recovery.round_trip import ACK_DELAY
from ...session.lane_loads import FramesLoad, Load, StreamLoad
from ...session.lane_path import LanePath
from .batch import Sent
from .held import HeldPackets
from .settings import MakeControl

TURN_BYTES: Final = 4 * 44 * 1_443
"""Bytes that leave in one turn of the loop: four trains of the most that a kernel takes at once."""
FULL_SECONDS: Final = 0.001
"""Seconds until a full socket queue is tried again."""
STUCK_SECONDS: Final = 0.1
"""How long a queue may be full. What it refuses afterwards counts as lost, so that the session hears of it."""

_ACK: Final = bytes((ACK,))
_FRAMES: Final = bytes((FRAMES,))
_FRAMES_ASK: Final = bytes((FRAMES_ASK,))


class DrivenLane(Protocol):
    """What a driver needs of its carrier (carrier.py)."""

    lane: Lane
    path: Path

    @property
    def why(self) -> str: ...
    def begin(self) -> bool:
        """Before sealing: let what is sealed already leave. False if nothing can be sent now."""

    def push(self, start: int, end: int, segment: int, ect: bool, /) -> tuple[Sent, int]:
        """Send these bytes of the process's buffer: what became of them, and how many datagrams left."""

    def send_held(self, data: memoryview, shape: Shape | None, /) -> None:
        """Send what has waited: a packet behind HEADROOM bytes, or a message."""

    def after(self, now: float, /) -> None: ...
    def close(self) -> None: ...


class LaneDriver:
    """That of one lane. The carrier calls `begin` when something comes, `after` at the end of each wake-up, and `tick`
    when `deadline` has come. `fail` is called with what the peer has done wrong: it ends the session."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        carrier: DrivenLane,
        streams: LanePath,
        fail: Callable[[PeerError], None],
        control: MakeControl,
        clock: Callable[[], float],
    ) -> None:
        self._loop = loop
        self._carrier = carrier
        self.streams = streams
        self._fail = fail
        self._control = control
        self._clock = clock
        self._output = SHARED.scratch("leaving datagrams", OUT_SIZE)
        self.received = Received()
        self.recovery = self._recover(0.0, clock())
        self.up = False
        """Whether the session knows that the lane works."""
        self._worn = ""
        """Why the lane carries nothing although it works: its keys are too old."""
        self._address: object = None
        self._rounds = 0
        self._wants = False
        """Whether the session may have something to send."""
        self.full = False
        """Whether something waits for room in the window."""
        self.shares = False
        """Whether packets and datagrams count in the window: from when streams have waited for room until nothing of
        them is in flight. The few frames of a session without streams fill no window, but what leaves beside them
        would, and then packets were dropped each time that the keys change."""
        self.held = HeldPackets()
        self._credit = 0
        """Bytes of them that may leave before the next train: as many as that of the last one, so that streams and
        packets get half of the window each where both want more."""
        self.stirred = True
        """Whether something has happened since `deadline` was read that can bring it nearer. Packets beside the streams
        cannot, and are not to pay for it."""
        self._probe = False
        """Whether something that elicits an acknowledgement must leave."""
        self._soon = self._inside = False
        self._again_at = -inf
        self._full_since = inf
        self._ect = True
        self._now = 0.0
        self._marked = 0
        """1 while datagrams are opened that a router has marked for congestion, else 0."""
        self.sent_bytes = self.received_bytes = 0
        """Of streams and frames, those that were sent again among them."""
        streams.ready = self._ready

    def _recover(self, round_trip: float, now: float) -> Recovery[Load]:
        control = self._control(now, self._carrier.path.size, round_trip)
        return Recovery(control, Pacer(now), now, round_trip=round_trip)

    # --- in --------------------------------------------------------------------------------------------------------

    def begin(self, marked: bool, now: float) -> None:
        """Datagrams are about to be opened. `after` follows."""
        self._now, self._marked, self._inside = now, marked, True

    def stream(
        self,
        stream: int,
        offset: int,
        buffer: memoryview,
        start: int,
        end: int,
        first: int,
        count: int,
        ask: bool,
    ) -> None:
        """Called by the lane, as are `frames` and `opened`."""
        now = self._now
        self.stirred = True
        self.received_bytes += end - start
        try:
            if not self.streams.stream_data(stream, offset, buffer[start:end], now):
                return  # it is sent again
        except PeerError as error:
            self._end(error)
            return
        last = first + count - 1
        self.received.add(first, last, now, eliciting=True, ask=ask, ce=count if self._marked else 0)

    def frames(self, body: memoryview, counter: int, ask: bool) -> None:
        now = self._now
        self.stirred = True
        self.received_bytes += len(body)
        try:
            # A probe carries nothing.
            if body and not self.streams.frames(body, now):
                return
        except PeerError as error:
            self._end(error)
            return
        self.received.add(counter, counter, now, eliciting=True, ask=ask, ce=self._marked)

    def opened(self, first: int, last: int) -> None:
        ce = last + 1 - first if self._marked else 0
        self.received.add(first, last, self._now, eliciting=False, ce=ce)

    def acknowledged(self, body: memoryview) -> bool:
        """An acknowledgement has come. False if it is malformed."""
        if not self.streams.takes_ack(len(body)):
            return True
        frame = decode(body)
        if frame is None:
            return False
        if not self.up:
            return True
        self.stirred = True
        now, recovery, streams = self._now, self.recovery, self.streams
        delivered = recovery.delivered
        try:
            settled = recovery.acked(frame, self._carrier.lane.counter, now)
            if settled.acked:
                streams.acked(settled.acked, now)
                self.shares = self.shares and bool(streams.log.units)
            elif recovery.delivered != delivered:
                streams.alive(now)
            self._lose(settled, now)
            if recovery.rounds.count != self._rounds:
                self._rounds = recovery.rounds.count
                if recovery.round_trip.samples:
                    self._carrier.path.round_trip = recovery.round_trip.smoothed
                streams.paced(recovery.rate, recovery.round_trip.least)
                streams.round_over(*recovery.rounds.last, now)
        except PeerError as error:
            self._end(error)
        self._wants = self._wants or self.full
        return True

    def _lose(self, settled: Settled[Load], now: float) -> None:
        if settled.lost:
            self.streams.lost(settled.lost, now)

    def _end(self, error: PeerError) -> None:
        if isinstance(error, CarrierError):
            self._worn = str(error)
        else:
            self._fail(error)

    # --- at the end of a wake-up -----------------------------------------------------------------------------------

    def after(self, works: bool, now: float) -> None:
        """`works`: whether the lane's check has succeeded. Send what is due."""
        if self.up is not (works and not self._worn):
            self._look(works, now)
        address = self._carrier.path.address
        if address is not self._address:
            if self._address is not None:
                self.moved(now)  # the client is elsewhere
            self._address = address
        if self.received.due <= now:
            self._acknowledge(now)
        self._inside = False
        if self._wants:
            self._pump(now)

    def _look(self, works: bool, now: float) -> None:
        """The lane has begun to work, or ended. At the exit the first address counts when it has answered a probe:
        until then it gets no more than what came from it (RFC 9000 section 8.1)."""
        trip = self._carrier.path.least_round_trip
        up = works and not self._worn and trip < inf
        if up is self.up:
            return
        self.up, self.full, self.shares, self._wants, self._probe = up, False, False, up, False
        if not up:
            self.held.clear()
        if up:
            self.recovery = self._recover(trip, now)
            self._rounds, self._ect = 0, True
        try:
            self.streams.set_up(up, trip, self._worn or self._carrier.why, now)
        except PeerError as error:
            self._end(error)

    def moved(self, now: float) -> None:
        """The path leads through another network."""
        self.stirred = True
        self.recovery.reset(now)
        self._ect = True
        self.streams.moved(now)

    def renew(self) -> None:
        """There are fresh keys."""
        self._worn = ""

    def _acknowledge(self, now: float) -> None:
        received = self.received
        frame = received.take(now)
        if frame is None:
            return
        received.apart = min(GAPS_APART * (self._carrier.path.round_trip or 0.0), ACK_DELAY)
        message = _ACK + encode(frame)
        if self._carrier.path.affords(OVERHEAD + len(message)) and self._carrier.begin():
            size = self._carrier.lane.seal(message, self._output, 0)
            self._carrier.push(0, size, size, False)

    # --- out -------------------------------------------------------------------------------------------------------

    def _ready(self) -> None:
        """The LanePath has something to send. One callback answers all; in a wake-up `after` does."""
        self._wants = True
        if not self._inside:
            self._go_on()

    def _go_on(self) -> None:
        if not self._soon:
            self._soon = True
            self._loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._soon = False
        try:
            self._carrier.after(self._clock())
        except Exception as error:  # noqa: BLE001  nobody would call the driver again
            report_fault("ends the datagram lane", error)
            self._carrier.close()

    def _pump(self, now: float) -> None:
        """Send as much as may leave in this turn."""
        self._wants, self.stirred = False, True
        left = TURN_BYTES
        streams, path, recovery = self.streams, self._carrier.path, self.recovery
        try:
            while left > 0:
                size = recovery.control.datagram = path.size
                room = recovery.room(now) if self.up and now >= self._again_at else 0
                while room and self.held and self._credit > 0:
                    left -= self._send_held(now)
                    room = recovery.room(now)
                if left < TURN_BYTES and room < size and streams.waits:
                    self._wants = self.full = self.shares = True
                    break
                payload = size - STREAM_OVERHEAD
                load = streams.next(room // size * payload, payload, now)
                if load is None:
                    self._wants = streams.waits
                    self.full = self._wants and room < size
                    self.shares = self.shares or self.full
                    if not self._wants:
                        while self.held:
                            self._send_held(now)
                        if room:
                            recovery.app_limited()
                    break
                sent = self._send(load, size, now)
                if not sent:
                    self._wants = True
                    break
                left -= sent
                self._credit = min(self._credit + sent, sent)
            else:
                self._wants = True
                self._go_on()
        except PeerError as error:
            self._end(error)
        if self._probe and self.up:
            self._send(FramesLoad([], streams.log, now), path.size, now)

    # --- beside the streams ----------------------------------------------------------------------------------------

    def beside(self, first: int, segment: int, size: int, now: float) -> None:
        """`size` bytes of them have left, in datagrams of `segment` bytes, with counters from `first` on."""
        self.recovery.sent(first, -(-size // segment), segment, size, now, None, eliciting=False)

    def hold(self, data: memoryview | bytes, shape: Shape | None) -> None:
        """Streams wait for room in the window, and so does this."""
        self.held.add(data, shape, self._clock())

    def _send_held(self, now: float) -> int:
        """Send the oldest. Returns its bytes."""
        item = self.held.take(now)
        if item is None:
            return 0
        self.full = False
        self._carrier.send_held(*item)
        self._credit -= len(item[0])
        return len(item[0])

    # --- one load --------------------------------------------------------------------------------------------------

    def _send(self, load: Load, size: int, now: float) -> int:
        """Seal `load` in datagrams of `size` bytes, and send it. Returns the bytes that left; 0 if none did, and no
        more can now."""
        carrier, recovery, lane = self._carrier, self.recovery, self._carrier.lane
        if not carrier.begin():
            self.streams.lost([(load, 0, 1 << 16)], now)
            return 0
        while recovery.skip(lane.counter):
            lane.skip()
        if isinstance(load, StreamLoad):
            payload = size - STREAM_OVERHEAD
            length = load.end - load.start
            total = length + STREAM_OVERHEAD * -(-length // payload)
            ask = recovery.wants_ask(total)
            sends, first, count = lane.seal_stream(
                load.stream, load.offset, load.buffer, load.start, load.end, size, self._output, 0, ask
            )
        else:
            ask = self._probe or recovery.wants_ask(size)
            first, count = lane.counter, 1
            total = lane.seal((_FRAMES_ASK if ask else _FRAMES) + load.data, self._output, 0)
            sends = [(0, total, total)]
        self._probe = False
        gone = left = 0
        for begin, end, segment in sends:
            outcome, number = carrier.push(begin, end, segment, self._ect)
            gone += number
            left += min(number * segment, end - begin)
            if outcome is not Sent.OK:
                gone, left = self._refused(outcome, gone, left, count, total, now)
                break
        else:
            self._full_since = inf
        if gone:
            self.sent_bytes += left
            recovery.sent(first, gone, sends[0][2], left, now, load, asked=ask and gone == count)
        if gone < count:
            self.streams.lost([(load, gone, count)], now)
            return max(left, size) if outcome is Sent.TOO_BIG else 0
        return left

    def _refused(
        self, outcome: Sent, gone: int, left: int, count: int, total: int, now: float
    ) -> tuple[int, int]:
        """The kernel has not taken all of a load. Returns how many datagrams, and bytes, count as in flight."""
        if outcome is Sent.TOO_BIG:
            return gone, left  # the path has another size now
        self._again_at = now + FULL_SECONDS
        if outcome is Sent.FULL:
            self._full_since = min(self._full_since, now)
            if now - self._full_since < STUCK_SECONDS:
                return gone, left
        return count, total

    # --- time ------------------------------------------------------------------------------------------------------

    def deadline(self, now: float) -> float:
        """When `tick` has something to do; infinite while nothing is to be done."""
        self.stirred = False
        due = self.received.due
        if self.up:
            recovery = self.recovery
            due = min(due, recovery.deadline(), self.streams.deadline())
            if self._wants and (self.full or self._again_at > now):
                due = min(due, max(self._again_at, recovery.next_at(now)))
        return due

    def tick(self, now: float) -> None:
        """Time has passed; `after` follows."""
        if not self.up:
            return
        recovery, streams = self.recovery, self.streams
        try:
            if recovery.deadline() <= now:
                settled = recovery.tick(now)
                self._lose(settled, now)
                if settled.probe:
                    self._wants = self._probe = True
                    if recovery.timeouts > 1:
                        self._ect = False  # some networks drop what is marked (RFC 9000 section 13.4.2)
                    self._carrier.path.doubt(now)
                    streams.silent(now, recovery.timeouts)
            if streams.deadline() <= now:
                streams.tick(now)
        except PeerError as error:
            self._end(error)

    def close(self, now: float) -> None:
        """The carrier ends: what the session says last leaves, and its streams go by another path."""
        self._again_at = -inf
        if self._wants:
            self._pump(now)
        self.streams.ready = _unheard
        if self.up:
            self.up = False
            self.streams.set_up(False, 0.0, "it has ended", now)


def _unheard() -> None:
    """The carrier has ended."""
