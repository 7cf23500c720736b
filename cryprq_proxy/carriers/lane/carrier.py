"""The lane carrier: moves the datagrams of one session's lane over a UDP socket.

    packets, datagrams  --seal-->  one buffer of the process  --one sendmsg-->  UDP
    UDP  --one recvmsg-->  one buffer of the process  --open, in place-->  handler

`LaneCarrier` is what both sides have in common; the client's side is in client.py, the exit's in listener.py.

While a lane is down it sends only a probe now and then, and packets go over the session's carrier. No task or future
exists here, and a wake-up takes a bounded number of batches (inbox.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Container
from dataclasses import asdict
from math import inf
from struct import Struct
from typing import Final, Protocol

from ... import address
from ...address import AddressError, Destination
from ...base.buffers import SHARED
from ...base.clock import clock
from ...base.faults import report_fault
from ...crypto.handshake import EpochSecrets
from ...crypto.primitives import Cipher, Entropy, system_entropy
from ...errors import PeerError
from ...lane.joining import Room
from ...lane.layout import ACK, DATAGRAM, KEEPALIVE, OVERHEAD, PROBE
from ...lane.path import Path
from ...lane.sealing import OUT_SIZE, Lane
from ...lane.slices import EXPRESS, HEADROOM, SLICE_SIZE, Run, Shape
from ...session.lane_path import LanePath
from ...status import LaneStatus
from .batch import MAX_BATCH, MAX_SEGMENTS, Batch, Sent, UdpOffload
from .driver import LaneDriver
from .settings import MakeControl
from .train import Outlet, PacketTrain

LEAST_DELAY: Final = 0.001
"""Seconds of the shortest timer, so that other callbacks get their turn whatever the deadlines are."""

MAX_PAYLOAD: Final = 8_972
"""Bytes of UDP payload at an MTU of 9,000. Only loopback devices take more, and there larger ones gain nothing."""
PACKET_OVERHEAD: Final = OVERHEAD + SLICE_SIZE
_STREAM: Final = Struct("!BI")

_log = logging.getLogger(__name__)


class LaneHandler(Protocol):
    """Receiver of what a lane delivers. Buffers are valid during the call only."""

    def announce(self, number: int, index: int) -> None:
        """Tell the peer in a LANE frame on the current carrier."""

    def packet(self, buffer: memoryview, start: int, end: int, run: Run) -> None:
        """Slices of a packet stand at buffer[start:end]; the slices.HEADROOM bytes before them may be overwritten."""

    def datagram(self, stream: int, destination: Destination, payload: memoryview) -> None:
        """A datagram of a proxied UDP stream. The stream may not exist, or no longer."""

    def lane_changed(self) -> None:
        """`up` or `size` of the lane has changed."""


class LaneCarrier:
    """One side of one session's lane: a `ClientLane`, or an `ExitLane` from `LaneListener.carrier`. Close it.

    `epoch`, `announced`, `datagrams` and `send_datagram` are as `session.datagrams.BasePacketLink` has them.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handler: LaneHandler,
        *,
        dialler: bool,
        ceiling: int,
        taken: Container[int] = (),
        entropy: Entropy = system_entropy,
        indices: Entropy | None = None,
        clock: Callable[[], float] = clock,
    ) -> None:
        """Indices are drawn from `indices`, or as all else from `entropy`."""
        self._loop = loop
        self._handler = handler
        self._clock = clock
        self._dialler = dialler
        self.lane = Lane(dialler, indices or entropy, self, SHARED.one(Room), taken)
        self._train = SHARED.one(PacketTrain)
        # The kernel takes what is sealed here, or it is dropped, before the next seal.
        self._output = SHARED.scratch("leaving datagrams", OUT_SIZE)
        self.path = Path(dialler, min(ceiling, MAX_PAYLOAD), entropy, clock())
        self._source: Outlet | None = None
        self._now = 0.0
        self._started = not dialler
        self._shown = (False, self.path.size)
        self._falls = 0
        self.driver: LaneDriver | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._closed = False
        self._sent = self._sent_bytes = self._received = self._received_bytes = 0
        self._unsent = dict.fromkeys(Sent, 0)
        self._malformed = 0

    def carry(self, streams: LanePath, fail: Callable[[PeerError], None], control: MakeControl) -> None:
        """Carry streams of a session too. `fail` is called with what ends it."""
        self.driver = LaneDriver(self._loop, self, streams, fail, control, self._clock)

    # --- keys ------------------------------------------------------------------------------------------------------

    def epoch(self, cipher: Cipher, number: int, secrets: EpochSecrets, now: float) -> None:
        """Install secrets that the peer knows too, and announce the index under which it may use them."""
        if self._closed:
            return
        index = self.lane.install(cipher, number, secrets, now)
        self._register(index)
        self._handler.announce(number, index)
        if self.driver is not None:
            self.driver.renew()
        self.after(now)

    def announced(self, number: int, index: int) -> None:
        """The peer's LANE frame. Raises PeerError."""
        now = self._clock()
        self.lane.announced(number, index, now)
        self._begin(now)
        self.after(now)

    def datagrams(self) -> int:
        """Datagrams under the newest keys, in the busier direction."""
        return self.lane.spent

    # --- out -------------------------------------------------------------------------------------------------------

    @property
    def up(self) -> bool:
        """Whether packets may take the lane."""
        return self.path.up and self.lane.ready and self._outlet() is not None

    @property
    def size(self) -> int:
        """The largest UDP payload that the path takes now, in bytes, layout.OVERHEAD included."""
        return self.path.size

    def send_packet(self, buffer: memoryview, start: int, end: int, shape: Shape, more: bool = False) -> bool:
        """Send the packet at buffer[start:end] and overwrite it; False, with nothing done, if the lane is not up.

        `more` promises that the process's PacketTrain is flushed soon: a small packet then leaves together with others.
        """
        outlet = self._outlet()
        if outlet is None or not self.path.up or not self.lane.ready:
            return False
        driver = self.driver
        if driver is not None and driver.full:
            driver.hold(buffer[start:end], shape)
            return True
        size = PACKET_OVERHEAD + end - start
        if more and size <= self.path.size and not shape.gso_size:
            train = self._train
            if (
                train.sender is not self
                or size > train.segment
                or train.end + size > MAX_BATCH
                or shape.flags & EXPRESS != train.express
            ):
                train.flush()
                train.sender, train.outlet, train.segment = self, outlet, size
                train.first = self.lane.counter
                train.express = shape.flags & EXPRESS
            for _, finish, _ in self.lane.seal_super(
                buffer, start, end, shape, self.path.size, train.buffer, train.end
            ):
                train.end = finish
                train.count += 1
            if size < train.segment or train.count == MAX_SEGMENTS:
                train.flush()  # only the last datagram of a send may be shorter
            return True
        self._train.flush()
        first = self.lane.counter
        sends = self.lane.seal_super(buffer, start, end, shape, self.path.size, self._output)
        for begin, finish, segment in sends:
            self._push_beside(self._output, begin, finish, segment, outlet, first)
            first -= (begin - finish) // segment
        return True

    def send_datagram(self, stream: int, destination: Destination, payload: bytes | memoryview) -> bool:
        """Send a proxied datagram; False, with nothing done, if the lane is not up or the datagram too large."""
        outlet = self._outlet()
        if outlet is None or not self.path.up or not self.lane.ready:
            return False
        message = b"".join((_STREAM.pack(DATAGRAM, stream), address.encode(destination), payload))
        if OVERHEAD + len(message) > self.path.size:
            return False
        if self.driver is not None and self.driver.full:
            self.driver.hold(message, None)
        else:
            self._send_message(message, outlet)
        return True

    def _send_message(self, message: bytes | memoryview, outlet: Outlet) -> None:
        self._train.flush()
        first = self.lane.counter
        size = self.lane.seal(bytes(message), self._output, 0)
        self._push_beside(self._output, 0, size, size, outlet, first)

    def send_held(self, data: memoryview, shape: Shape | None) -> None:
        """Called by the driver."""
        outlet = self._outlet()
        if outlet is not None and self.lane.ready:
            if shape is None:
                self._send_message(data, outlet)
            else:
                self.send_packet(data, HEADROOM, len(data), shape)

    def push_train(self, data: memoryview, segment: int, outlet: Outlet, first: int) -> None:
        """Send `data`, datagrams of `segment` bytes with counters from `first` on; called by the train."""
        self._push_beside(data, 0, len(data), segment, outlet, first)

    def _push_beside(
        self, data: memoryview, begin: int, end: int, segment: int, outlet: Outlet, first: int
    ) -> None:
        """Send what is never sent again. It counts in the window of the streams."""
        outcome = self._push(data, begin, end, segment, outlet)
        now = self._clock()
        if self.path.sent(now):
            self._arm(now)
        driver = self.driver
        if driver is not None and driver.shares and outcome is Sent.OK:
            driver.beside(first, segment, end - begin, now)

    def begin(self) -> bool:
        """Called by the driver."""
        self._train.flush()
        return self.lane.ready and self._outlet() is not None

    def push(self, start: int, end: int, segment: int, ect: bool) -> tuple[Sent, int]:
        """Called by the driver."""
        outlet = self._outlet()
        if outlet is None:
            return Sent.UNREACHABLE, 0
        before = outlet.socket.sent
        outcome = self._push(self._output, start, end, segment, outlet, ect)
        self.path.sent(self._clock())  # `after` follows
        return outcome, outlet.socket.sent - before

    def _push(
        self, data: memoryview, begin: int, end: int, segment: int, outlet: Outlet, ect: bool = False
    ) -> Sent:
        """Hand `data[begin:end]` to the kernel, and tell the path what became of it."""
        outcome = outlet.socket.send(data[begin:end], segment, outlet.to, ect)
        number = -(-(end - begin) // segment)
        if outcome is Sent.OK:
            self._sent += number
            self._sent_bytes += end - begin
            return outcome
        self._unsent[outcome] += number
        now = self._clock()
        if outcome is Sent.TOO_BIG:
            self.path.too_big(segment, now)
            self._arm(now)
        elif outcome is Sent.UNREACHABLE:
            self._unreachable(now)
        return outcome

    def _flush(self) -> None:
        """Send the path's messages."""
        if not self.path.outgoing:
            return
        messages, self.path.outgoing = self.path.outgoing, []
        self._train.flush()
        for message, to in messages:
            outlet = self._outlet() if to is None else to
            affords = to is not None or self.path.affords(OVERHEAD + len(message))
            if affords and isinstance(outlet, Outlet) and self.lane.ready:
                size = self.lane.seal(message, self._output, 0)
                self._push(self._output, 0, size, size, outlet)

    # --- in --------------------------------------------------------------------------------------------------------

    def receive(self, batch: Batch, source: Outlet, now: float) -> None:
        """Open what one receive brought. Call `after` at the end of the wake-up at the latest."""
        data, size, segment = batch[:3]
        self._source, self._now = source, now
        if self.driver is not None:
            self.driver.begin(batch.marked, now)
        self._received += -(-size // segment)
        self._received_bytes += size
        heard = self.lane.open_batch(data, size, segment, now)
        if heard:
            self.path.received_from(source, heard, self.lane.advanced, now)

    def run(self, buffer: memoryview, start: int, end: int, run: Run) -> None:
        """Called by the lane."""
        self._handler.packet(buffer, start, end, run)

    def message(self, kind: int, body: memoryview, size: int) -> None:
        """Called by the lane."""
        if kind == DATAGRAM:
            try:
                destination, end = address.decode(body, 4)
            except AddressError:
                self._malformed += 1
            else:
                self._handler.datagram(int.from_bytes(body[:4]), destination, body[end:])
        elif kind == ACK:
            if self.driver is None or not self.driver.acknowledged(body):
                self._malformed += 1
        elif not PROBE <= kind <= KEEPALIVE:
            self._malformed += 1
        elif self._source is not None:
            self.path.message(kind, body, size, self._source, self._now)

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
        """Called by the lane."""
        if self.driver is not None:
            self.driver.stream(stream, offset, buffer, start, end, first, count, ask)
        else:
            self._malformed += count

    def frames(self, body: memoryview, counter: int, ask: bool) -> None:
        """Called by the lane."""
        if self.driver is not None:
            self.driver.frames(body, counter, ask)
        else:
            self._malformed += 1

    def opened(self, first: int, last: int) -> None:
        """Called by the lane."""
        if self.driver is not None:
            self.driver.opened(first, last)

    # --- time ------------------------------------------------------------------------------------------------------

    def _begin(self, now: float) -> None:
        """Start the path as soon as something can be sent; probes before that would count as lost."""

    def after(self, now: float, more: bool = False) -> None:
        """Send what is due, tell the handler what has changed, and arm the timer; to be called after all input.

        `more`: further batches have arrived already, so slices of one packet may still be put together.
        """
        if self._closed:
            return
        lane, path, driver = self.lane, self.path, self.driver
        if not more:
            lane.flush()
        if lane.dropped:
            for index in lane.dropped:
                self._unregister(index)
            lane.dropped.clear()
        if driver is not None:
            driver.after(self.up, now)
        self._flush()
        shown = (self.up, path.size)
        if shown != self._shown:
            changed, self._shown = self._shown[0] != shown[0], shown
            if changed:
                _log.info("the datagram lane is %s: %s", "up" if shown[0] else "down", self.why)
            self._handler.lane_changed()
        if self._falls != path.counters.falls:
            self._falls = path.counters.falls
            self._fell(now)
        # The timer of a path that is steady and does not doze comes before anything that input can bring forward.
        if path.dozes:
            self._arm_anew(now)
        elif self._timer is None or not path.steady or self._timer_at > now + 1.0:
            self._arm(now)
        elif driver is not None and driver.stirred:
            self._arm_for(driver.deadline(now), now)

    def _deadline(self) -> float:
        return min(self.lane.deadline(), self.path.deadline() if self._started else inf)

    def _arm(self, now: float) -> None:
        deadline = self._deadline()
        self._arm_for(deadline if self.driver is None else min(deadline, self.driver.deadline(now)), now)

    def _arm_for(self, deadline: float, now: float) -> None:
        if deadline < self._timer_at and not self._closed:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = deadline
            self._timer = self._loop.call_later(max(deadline - now, LEAST_DELAY), self._on_timer)

    def _arm_anew(self, now: float) -> None:
        """As `_arm`, but what was due before and is no more does not wake the process."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_at = None, inf
        self._arm(now)

    def _on_timer(self) -> None:
        self._timer, self._timer_at = None, inf
        try:
            self._tick(self._clock())
        except Exception as error:  # noqa: BLE001  without its timer a lane would never notice that it is down
            report_fault("ends the datagram lane", error)
            self.close()

    def _tick(self, now: float) -> None:
        if self.lane.deadline() <= now:
            self.lane.expire(now)
        if self._started:
            self.path.tick(now)
        if self.driver is not None:
            self.driver.tick(now)
        self.after(now)

    # --- where the two sides differ --------------------------------------------------------------------------------

    def _outlet(self) -> Outlet | None:
        """Where to send; None while that is unknown."""
        raise NotImplementedError

    def _register(self, index: int) -> None:
        """Datagrams with `index` are for this lane from now on."""

    def _unregister(self, index: int) -> None:
        """Datagrams with `index` are no longer for this lane."""

    def _unreachable(self, now: float) -> None:
        """The kernel has no route to the peer."""

    def _fell(self, now: float) -> None:
        """The path went down after it had been up."""

    # --- the rest --------------------------------------------------------------------------------------------------

    @property
    def why(self) -> str:
        """Why the lane is up or down: part of a sentence."""
        if self._outlet() is None and self._dialler:
            return "there is no route to the exit"
        return self.path.reason if self._started else "the peer has not announced its side yet"

    def status(self) -> LaneStatus:
        outlet = self._outlet()
        unused = UdpOffload(False, False, "no socket")
        offload = unused if outlet is None else outlet.socket.offload
        drops = asdict(self.lane.drops)
        drops["malformed"] += self._malformed
        drops["incomplete"] = self.lane.incomplete
        drops["held"] = 0 if self.driver is None else self.driver.held.dropped
        for outcome in (Sent.FULL, Sent.TOO_BIG, Sent.UNREACHABLE, Sent.FAILED):
            drops[outcome.name.lower()] = self._unsent[outcome]
        return LaneStatus(
            up=self.up,
            why=self.why,
            peer="" if outlet is None else str(outlet.to or outlet.socket.peer),
            size=self.path.size,
            searching=self.path.searching,
            round_trip=None if self.path.round_trip is None else round(self.path.round_trip, 6),
            offload=offload.status(),
            sent=self._sent,
            sent_bytes=self._sent_bytes,
            received=self._received,
            received_bytes=self._received_bytes,
            drops=drops,
            path=self.path.counters,
        )

    def close(self) -> None:
        """Release sockets, indices and timers. Nothing is sent or delivered any more."""
        if self.driver is not None and not self._closed:
            self.driver.close(self._clock())
        self._train.forget(self)
        self._closed = True
        self.lane.forget()
        if self._timer is not None:
            self._timer.cancel()
        for index in (*self.lane.indices, *self.lane.dropped):
            self._unregister(index)
