"""The session: one peer, many streams, one carrier at a time.

Out: a handler puts data into its stream's queue (streams.py), and the session calls `ready`. The carrier then calls
`fill`: the scheduler chooses a stream (scheduler.py), the frame is kept (sendlog.py) and sealed (records.py) directly
into the carrier's buffer. In: the carrier calls `receive` with what it read. Every record is opened, a table gives the
method for each frame, and stream data goes to the stream's handler.

No clock, no sockets: the carrier passes the time. After each call it must read `deadline` and call `tick` at that time.
While `turn` has nothing left (turns.py), it calls neither `fill` nor `receive`.
If a call raises CarrierError or NotAdmitted, only the carrier is over: `detach` it. For any other PeerError `close` the
session.
What a stream's handler raises ends that stream only: the frame counts as received, and would not come again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from ..address import Destination
from ..base.faults import Faults
from ..crypto.primitives import Entropy, Provider
from ..errors import CloseReason, LocalError, PeerError, StreamReason, StreamRefused
from ..status import EpochStatus
from . import wire
from .control_rates import CONTROL_FRAMES, ControlRates
from .datagrams import BasePacketLink, DatagramQueue
from .epochs import EpochLedger
from .liveness import UNKNOWN_ROUND_TRIP, Liveness
from .path_length import PathLength
from .records import OVERHEAD, RecordOpener
from .rotation import CarrierKeys, Offload, Rotation, RotationLimits, inline
from .scheduler import Scheduler
from .sendlog import MemoryBudget, SendLog, SlotPool
from .streams import Half, Stream, StreamHandler
from .turns import (
    BYTES_PER_UNIT,
    DATA_COST,
    DATAGRAM_WORK,
    DROPS_PER_UNIT,
    END_WORK,
    FILL_WORK,
    FRAME_COSTS,
    FRAME_WORK,
    RECORD_WORK,
    TurnBudget,
)
from .verdict import open_verdict
from .windows import WindowBudget, WindowPool
from .wire import DATA, StreamProtocol
from .writer import MAX_JOINED, RecordWriter

RESUME_SECONDS: Final = 300.0
"""Seconds for which a client keeps a session without a carrier, and an exit unless its configuration says otherwise."""
ACK_BYTES: Final = 1 << 20
"""Bytes of data after which an ACK is due at once, or a sixteenth of `retained` if that is less."""
ACK_DELAY: Final = 0.025
"""Longest time in seconds until a received frame is acknowledged."""
DATAGRAM_QUEUE: Final = 65_536
PACKET_QUEUE: Final = 262_144
"""Bytes of packets, and above of datagrams, that may wait for the carrier."""
MAX_AWAITED: Final = 65_536
"""Largest number of streams that have ended here and whose end the peer has not sent yet."""
MAX_SMALL: Final = 16 << 20
"""Bytes of small frames kept beyond the bound `retained` while the peer does not acknowledge them."""
MAX_EARLY: Final = 65_536
"""Before the exit's verdict no record begins behind so many bytes of records."""
FILL_MINIMUM: Final = wire.MAX_PLAINTEXT + MAX_JOINED + 4 * OVERHEAD
"""Bytes of buffer that `fill` needs beyond its budget."""
NEVER: Final = float("inf")

type Refused = Callable[[Stream, StreamReason, bool], bool]
"""Called at the dialler when the exit refused a stream; True as third argument: nothing was sent on it. If it returns
True, the stream's handler is not called."""
type AcceptStream = Callable[[Stream], None]
"""Called at the exit for each OPEN. It sets `stream.handler` before it returns; it accepts or refuses the stream
then or later."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Bounds of one session; sizes in bytes, times in seconds."""

    retained: int
    window_pool: int
    streams: int
    keepalive: float
    rotation: RotationLimits


def refuse_streams(stream: Stream) -> None:
    """The dialler's AcceptStream: an exit may not open streams."""
    raise PeerError(CloseReason.PROTOCOL, "the exit tried to open a stream")


class Session:
    """One side of a session; `dialler` is True at the client.

    `ready` is called when there is something to send, once until the next `fill`. For `offload` see rotation.py. The
    first stream of a dialler has the number behind `last_stream`.
    """

    def __init__(
        self,
        *,
        dialler: bool,
        session_id: bytes,
        resume_secret: bytes,
        provider: Provider,
        entropy: Entropy,
        limits: SessionLimits,
        budget: MemoryBudget,
        window_budget: WindowBudget,
        slots: SlotPool,
        turn: TurnBudget,
        accept_stream: AcceptStream = refuse_streams,
        offload: Offload = inline,
        last_stream: int = 0,
    ) -> None:
        self.dialler = dialler
        self.session_id = session_id
        self.resume_secret = resume_secret
        self.limits = limits
        self.slots = slots
        self.turn = turn
        """The work that the peer may still cause in this turn of the loop, by all of its sessions."""
        self.scheduler = Scheduler()
        self.log = SendLog(limits.retained, budget, slots)
        self.windows = WindowPool(limits.window_pool, window_budget)
        self.liveness = Liveness(limits.keepalive)
        self.path = PathLength(UNKNOWN_ROUND_TRIP, 0, 0.0)
        self.ledger = EpochLedger()
        self._provider = provider
        self._entropy = entropy
        self._offload = offload
        self._rotation: Rotation | None = None
        """The keys of the carrier; None without a carrier, so that no key outlives its carrier."""
        self.packet_link: BasePacketLink = BasePacketLink()
        self.streams: dict[int, Stream] = {}
        self.attached = False
        self._admitted: Callable[[], None] | None = None
        """What waits for the exit's verdict."""
        self._early = 0
        """Bytes that may still be sent before it."""
        self.closed: CloseReason | None = None
        self.ready: Callable[[], None] = _nothing
        self.received = 0
        """Numbered frames received since the session began."""
        self.bytes_sent = 0
        self.bytes_received = 0
        """Stream data and datagram payload since the session began."""
        self.refused: Counter[StreamReason] = Counter()
        """Streams that the exit refused; both sides count them."""
        self.on_refused: Refused = _not_handled
        self.on_opened: Callable[[Stream], None] = _ignore_stream
        """Called at the dialler when the exit has connected the destination of a stream, before its handler is."""
        self.on_goaway: Callable[[], None] = _nothing
        """Called at the dialler when the exit says that it takes no new streams of this session."""
        self.on_advertise: Callable[[Destination], None] = ignore_address
        """Called at the dialler when the exit says where it is reached itself."""
        self.on_idle: Callable[[], None] = _nothing
        """Called when the session may have become `idle`, in the middle of its work."""
        self._accept_stream = accept_stream
        self._awaited: set[int] = set()
        """Streams that have ended here and whose end the peer has not sent yet."""
        self._last_id = last_stream
        self._acknowledged = 0
        self._unacknowledged_bytes = 0
        self._ack_bytes = min(limits.retained >> 4, ACK_BYTES)
        self._ack_by = NEVER
        self._windows_due: dict[int, Stream] = {}
        self._pong: int | None = None
        self._close_frame: bytes | None = None
        self.datagrams = DatagramQueue(DATAGRAM_QUEUE)
        self.packets = DatagramQueue(PACKET_QUEUE)
        self._announcements: list[bytes] = []
        self._woken = False
        self._now = 0.0
        self._frames: Iterator[wire.Frame] | None = None
        """The frames of an opened record that were left to a later turn."""
        self._dropping = False
        """Whether the log goes on dropping acknowledged frames in the next turn."""
        self._rates = ControlRates()
        self._faults = Faults("resets a stream")
        self._ending: list[Stream] = []
        """Streams of a closed session whose handlers are not yet told."""

    # --- life of a carrier -----------------------------------------------------------------------------------------

    def attach(
        self, keys: CarrierKeys, received: int, now: float, admitted: Callable[[], None] | None = None
    ) -> None:
        """A carrier is ready. The peer has received `received` numbered frames (0 for a new session).

        With `admitted` the exit's verdict on a new session is still to come. Until then only numbered frames are sent,
        MAX_EARLY bytes of them, and `receive` waits for it: `admitted` is called if it is ACCEPT, NotAdmitted raised if
        not. Raises PeerError (RESUME) for a count out of range. Call `fill` afterwards.
        """
        if self.attached:
            # A fault has kept it from the carrier before.
            self.detach()
        self.log.rewind(received)
        self._now = now
        self.attached = True
        self._admitted, self._early = admitted, MAX_EARLY
        self._rotation = Rotation(
            keys,
            now,
            dialler=self.dialler,
            session_id=self.session_id,
            provider=self._provider,
            limits=self.limits.rotation,
            entropy=self._entropy,
            offload=self._offload,
            ready=self.wake,
            packet_link=lambda: self.packet_link,
            ledger=self.ledger,
        )
        self.liveness.attach(now)
        self.path = PathLength(UNKNOWN_ROUND_TRIP, self.bytes_received, now)
        self._windows_due = {id: s for id, s in self.streams.items() if s.receive_half is not Half.UNBORN}
        self._acknowledged = -1
        self._pong = None
        if not self._dropping:
            self._drop_acknowledged()
        self.scheduler.open = self.log.has_room()
        if not self.streams:
            self.on_idle()
        self.wake()

    def detach(self) -> None:
        """The carrier is gone: streams wait, datagrams are dropped."""
        self.attached = False
        self._admitted = None
        rotation, self._rotation = self._rotation, None
        self.ready = _nothing
        self.scheduler.open = False
        self._frames = None
        self._announcements.clear()
        self.datagrams.clear()
        self.packets.clear()
        if rotation is not None:
            rotation.end(self._now)

    @property
    def rotation(self) -> Rotation:
        """The keys of the carrier. Raises LocalError without a carrier."""
        if self._rotation is None:
            raise LocalError("a session without a carrier has no keys")
        return self._rotation

    @property
    def paused(self) -> bool:
        """Whether no record may be opened now, because its key is being computed."""
        return self._rotation is not None and self._rotation.paused

    def epochs(self, now: float) -> tuple[EpochStatus, ...]:
        """The session's last epochs, newest first; the one in use with the bytes it has carried so far."""
        keys = self._rotation
        return self.ledger.report(now, None if keys is None else (keys.sealer, keys.opener))

    def close(self, reason: CloseReason, stream_reason: StreamReason = StreamReason.SESSION_LOST) -> None:
        """End the session: reset all streams, many of them a turn's worth at a time. The next `fill` gives a CLOSE
        frame, later ones nothing."""
        if self.closed is not None:
            return
        self.closed = reason
        self._accept_stream = refuse_streams
        self._close_frame = wire.encode_close(reason)
        self._frames = None
        streams = list(self.streams.values())
        self.streams.clear()
        for stream in streams:
            stream.send_half = stream.receive_half = Half.CLOSED
            self.scheduler.forget(stream)
            stream.release(self._now, self.windows)
        self._ending = streams[::-1]
        self._reset_ending(stream_reason)
        self._awaited.clear()
        self.datagrams.clear()
        self.packets.clear()
        self.log.clear()
        if not self._dropping:
            self._drop_acknowledged()
        self.wake()

    def _reset_ending(self, reason: StreamReason) -> None:
        """Tell the handlers of a closed session that their streams have ended, as many as one turn allows."""
        ending = self._ending
        for _ in range(max(self.turn.left // END_WORK, 1)):
            if not ending:
                return
            self.turn.spend(END_WORK)
            stream = ending.pop()
            handler, stream.handler = stream.handler, ENDED
            try:
                handler.reset(reason)
            except Exception as error:  # noqa: BLE001  the others are still to be told
                self._faults.report(error)
        if ending:
            self.turn.wait(lambda: self._reset_ending(reason))

    @property
    def moved(self) -> int:
        """Bytes of streams and datagrams, both directions together."""
        return self.bytes_sent + self.bytes_received

    @property
    def last_stream(self) -> int:
        """The number of the newest stream."""
        return self._last_id

    @property
    def idle(self) -> bool:
        """Whether there is no stream, and the peer has everything that was sent."""
        return not self.streams and self.log.acknowledged == self.log.sent and self.log.next_unsent() is None

    def deadline(self) -> float:
        """The time at which `tick` must be called."""
        if not self.attached or self._admitted is not None:
            return NEVER
        return min(self._ack_by, self.liveness.deadline(), self.rotation.deadline())

    def tick(self, now: float) -> None:
        """Time has passed. Raises CarrierError if the peer is silent or the keys are too old."""
        self._now = now
        if not self.attached or self._admitted is not None or self.closed is not None:
            return
        self.rotation.tick(now)
        if self.liveness.tick(now):
            self.wake()
        if now >= self._ack_by:
            self._ack_by = NEVER
            self.wake()

    def probe(self, within: float, now: float) -> None:
        """Request a sign of life within `within` seconds, for example after a suspend."""
        self.liveness.probe(within, now)
        self.wake()

    def prove(self, within: float, now: float) -> None:
        """There is a doubt whether the peer is still there: request a sign of life within `within` seconds."""
        if self.attached:
            self.liveness.prove(within, now)
            self.wake()

    def measure(self) -> None:
        """Measure the round trip now; see Liveness.measure."""
        if self.attached and self.liveness.measure():
            self.wake()

    # --- streams ---------------------------------------------------------------------------------------------------

    def open(self, protocol: StreamProtocol, destination: Destination, handler: StreamHandler) -> Stream:
        """Request a stream, at the dialler. Data may be sent before `handler.opened` is called.

        Raises StreamRefused (LIMIT) if there are too many streams, LocalError on a closed session.
        """
        if self.closed is not None or not self.dialler:
            raise LocalError("streams are opened by the dialler of a live session")
        if len(self.streams) + len(self._awaited) >= self.limits.streams or self._last_id >= wire.MAX_STREAM:
            raise StreamRefused(StreamReason.LIMIT)
        self._last_id += 1
        stream = Stream(self, self._last_id, protocol, destination, handler, self._now)
        self.streams[stream.id] = stream
        self._append(wire.encode_open(stream.id, protocol, destination))
        return stream

    def send_opened(self, stream: Stream) -> None:
        if stream.id in self.streams and not stream.opened:
            stream.opened = True
            self._append(wire.encode_opened(stream.id))

    def send_refused(self, stream: Stream, reason: StreamReason) -> None:
        if stream.id in self.streams:
            self.refused[reason] += 1
            self._append(wire.encode_refused(stream.id, reason))
            self._end(stream)

    def send_fin(self, stream: Stream) -> None:
        stream.send_half = Half.CLOSED
        self._append(wire.encode_fin(stream.id))
        if stream.receive_half is Half.CLOSED:
            self._remove(stream)
            stream.handler = ENDED

    def send_reset(self, stream: Stream, reason: StreamReason) -> None:
        if stream.id in self.streams:
            self._append(wire.encode_reset(stream.id, reason))
            self._end(stream)

    def stream_failed(self, stream: Stream, handler: StreamHandler, fault: Exception) -> None:
        """`handler` has raised: reset its stream, and let it free what it holds. Of all faults the first is logged."""
        self._faults.report(fault)
        self._abort(stream, handler, StreamReason.GENERAL)

    def _abort(self, stream: Stream, handler: StreamHandler, reason: StreamReason) -> None:
        """Reset a stream, and tell both sides."""
        self.send_reset(stream, reason)
        try:
            handler.reset(reason)
        except Exception as error:  # noqa: BLE001  nothing more can be done for it
            self._faults.report(error)

    def send_datagram(self, stream: Stream, destination: Destination, payload: bytes | memoryview) -> None:
        if not stream.opened or stream.id not in self.streams:
            # Before OPENED too: datagrams overtake numbered frames, and this one could arrive before its OPEN.
            return
        self.turn.spend(DATAGRAM_WORK)
        if self.packet_link.send_datagram(stream.id, destination, payload):
            self.bytes_sent += len(payload)
        elif self.attached:
            self.bytes_sent += len(payload)
            self.datagrams.add(wire.encode_datagram(stream.id, destination, payload))
            self.wake()

    def send_packet(self, flags: int, segment: int, header: int, packet: memoryview) -> None:
        """Send an IP packet on the carrier while the lane is down. It may be dropped, as it is before the verdict."""
        if self.attached and self._admitted is None:
            self.packets.add(wire.encode_packet(flags, segment, header, packet))
            self.wake()

    def announce(self, frame: bytes) -> None:
        """Send a LANE, NETWORK, TAKEN, GOAWAY or ADVERTISE frame. It is lost with the carrier.

        All but LANE take the place of one that waits: the peer can cause any number of them.
        """
        if self.attached:
            kind = frame[0]
            if kind != wire.LANE:
                self._announcements = [other for other in self._announcements if other[0] != kind]
            self._announcements.append(frame)
            self.wake()

    def window_due(self, stream: Stream) -> None:
        self._windows_due[stream.id] = stream
        self.wake()

    def _end(self, stream: Stream) -> None:
        """End both halves on this side; wait for the peer's end unless it came already."""
        if stream.receive_half is not Half.CLOSED:
            self._awaited.add(stream.id)
        self._remove(stream)
        stream.handler = ENDED

    def _remove(self, stream: Stream) -> None:
        stream.send_half = stream.receive_half = Half.CLOSED
        self.scheduler.forget(stream)
        stream.release(self._now, self.windows)
        self.streams.pop(stream.id, None)
        self._windows_due.pop(stream.id, None)
        if not self.streams:
            self.on_idle()

    # --- out -------------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """There is something to send: call `ready` if it was not called since the last `fill`."""
        if not self._woken:
            self._woken = True
            self.ready()

    def _append(self, frame: bytes) -> None:
        self.log.append(frame)
        self.wake()

    def fill(self, out: memoryview, budget: int, now: float) -> int:  # noqa: C901  the data path
        """Write records into `out` (at least FILL_MINIMUM + `budget` bytes) until about `budget` bytes are written, the
        turn's work is done, or nothing is left to send. Returns the number of bytes written."""
        self._now = now
        self._woken = False
        rotation = self._rotation
        if rotation is None:
            return 0
        writer = RecordWriter(rotation.sealer, out)
        if self._close_frame is not None:
            frame, self._close_frame = self._close_frame, None
            writer.add(frame)
            return writer.flush()
        early = self._admitted is not None
        if early:
            budget = min(budget, self._early)
        if self.closed is not None or (early and budget <= 0):
            return 0
        # What handlers queue from here on leaves with this call, or with the one that `wake` requests below.
        self._woken = True
        left = before = self.turn.left
        if not early:
            left = self._write_unnumbered(writer, rotation, budget, now, left)
        log, scheduler = self.log, self.scheduler
        scheduler.open = log.has_room()
        while True:
            while writer.position < budget and left > 0:
                left -= FRAME_WORK
                waiting = log.next_unsent()
                if waiting is not None:
                    writer.add(waiting)
                    log.mark_sent()
                    continue
                if not scheduler.open or (turn := scheduler.next()) is None:
                    break
                stream, chunk = turn
                writer.add(chunk.frame)
                scheduler.open = log.append_sent(chunk)
                self.bytes_sent += chunk.size
                if stream.send_half is Half.FINISHING and not stream.queue:
                    self.send_fin(stream)
            if writer.position >= budget or left <= 0:
                break
            queued = scheduler.queued
            left -= scheduler.call_waiting(left)
            if scheduler.queued == queued and log.next_unsent() is None:
                break
        written = writer.flush()
        if rotation.final is not None:
            writer.add(rotation.final)
            written = writer.flush()
            rotation.final_sent(now)
        self._woken = False
        if early:
            self._early -= written
        self.turn.spend(FILL_WORK + before - left + written // BYTES_PER_UNIT)
        if (
            left <= 0
            or log.next_unsent() is not None
            or self._windows_due
            or self.datagrams
            or self.packets
            or (scheduler.open and scheduler.queued)
        ):
            self.wake()
        return written

    def _write_unnumbered(
        self, writer: RecordWriter, rotation: Rotation, budget: int, now: float, left: int
    ) -> int:
        """Write what belongs to the carrier. Returns how much of the turn's work is left."""
        if self.received != self._acknowledged:
            self._acknowledged = self.received
            self._unacknowledged_bytes = 0
            writer.add(wire.encode_number(wire.ACK, self.received))
        self._ack_by = NEVER
        if self._pong is not None:
            writer.add(wire.encode_number(wire.PONG, self._pong))
            self._pong = None
        if self._windows_due:
            self.liveness.measure_again(now)
        if self.liveness.ping is not None:
            writer.add(wire.encode_number(wire.PING, self.liveness.ping))
            self.liveness.ping_sent(now)
        for frames in (rotation.frames, self._announcements):
            for frame in frames:
                writer.add(frame)
            frames.clear()
        while self._windows_due and writer.position < budget and left > 0:
            left -= FRAME_WORK
            _, stream = self._windows_due.popitem()
            if stream.receive_half is Half.CLOSED:
                stream.count_held(now, self.windows)
                continue
            limit = stream.next_window(now, self.path.round_trip, self.windows)
            writer.add(wire.encode_window(stream.id, limit))
        # The other half is for streams.
        half = (budget + 1) >> 1
        self.datagrams.write(writer, half, now)
        self.packets.write(writer, half, now)
        return left

    # --- in --------------------------------------------------------------------------------------------------------

    def receive(self, data: memoryview, now: float) -> int:
        """Open the records in `data` and act on them. Returns the number of bytes used up. The rest is the start of a
        record; while keys are being computed it is records, to be passed again after the next `ready`; and with
        nothing left in `turn`, records to be passed again when it has.

        Raises PeerError; see the head of the file.
        """
        self._now = now
        position = 0
        rotation = self._rotation
        if rotation is None:
            return 0
        if self._admitted is not None:
            position = self._receive_verdict(self._admitted, rotation.opener, data)
            if not position:
                return 0
        left = before = self.turn.left
        if self._frames is not None and left > 0:
            left = self._take_frames(self._frames, left)
        while left > 0 and not rotation.paused and self.attached and self.closed is None:
            plaintext, position = rotation.opener.open(data, position)
            if plaintext is None:
                break
            if plaintext[0] == DATA and wire.DATA_HEADER < len(plaintext) <= wire.DATA_HEADER + wire.MAX_DATA:
                left -= DATA_COST
                self.received += 1
                self._receive_data(int.from_bytes(plaintext[1:5]), memoryview(plaintext)[wire.DATA_HEADER :])
                continue
            left -= RECORD_WORK
            take = self._end_epoch if plaintext[0] in _EPOCH_ENDS else self._take_frames
            left = take(wire.read_frames(bytes(plaintext)), left)
        self.turn.spend(before - left + position // BYTES_PER_UNIT)
        if position:
            self.liveness.heard(now)
        if self.received != self._acknowledged:
            if self._unacknowledged_bytes >= self._ack_bytes:
                self.wake()
            elif self._ack_by == NEVER:
                self._ack_by = now + ACK_DELAY
        return position

    def _receive_verdict(self, admitted: Callable[[], None], opener: RecordOpener, data: memoryview) -> int:
        """Read the exit's first record; 0 while it has not come. Raises NotAdmitted or CarrierError."""
        frame, position = open_verdict(opener, data, wire.ACCEPT)
        if frame is None:
            return 0
        self.turn.spend(RECORD_WORK + FRAME_COSTS[frame[0]])
        self._admitted = None
        self.wake()
        admitted()
        return position

    def _take_frames(self, frames: Iterator[wire.Frame], left: int) -> int:
        """Act on the frames of one record while there is work left in this turn, and keep the others. Returns what is
        left then."""
        self._frames = frames
        streams = self.streams
        for kind, id, value in frames:
            left -= FRAME_COSTS[kind]
            if kind <= wire.RESET:
                self.received += 1
                if kind == DATA:
                    self._receive_data(id, value)  # type: ignore[arg-type]
                elif kind == wire.OPEN:
                    self._receive_open(id, *value)  # type: ignore[misc]
                elif (stream := streams.get(id)) is not None:
                    _ON_STREAM[kind](self, stream, value)
                else:
                    self._receive_late(kind, id)
            else:
                if kind in CONTROL_FRAMES:
                    self._rates.control(kind, self.rotation.number, self._now)
                _ON_SESSION[kind](self, id, value)
            if left <= 0 or self.closed is not None or not self.attached:
                return left
        self._frames = None
        return left

    def _end_epoch(self, frames: Iterator[wire.Frame], left: int) -> int:
        """Act on the one frame of a record that ends an epoch. Returns what is left of the turn's work."""
        kind, _, message = next(frames)
        if next(frames, None) is not None:
            self._receive_epoch_end(0, message)
        self.rotation.receive(kind, message, self._now)  # type: ignore[arg-type]
        return left - FRAME_COSTS[kind]

    def _receive_data(self, id: int, payload: memoryview) -> None:
        size = len(payload)
        self._unacknowledged_bytes += size
        self.bytes_received += size
        stream = self.streams.get(id)
        if stream is None:
            self._receive_late(DATA, id)
        elif not stream.take_data(size, self._now, self.windows):
            self._abort(stream, stream.handler, StreamReason.LIMIT)
        else:
            handler = stream.handler
            try:
                handler.data_received(payload)
            except Exception as error:  # noqa: BLE001  see the head of the file
                self.stream_failed(stream, handler, error)

    def _receive_late(self, kind: int, id: int) -> None:
        """A frame for a stream that has ended here: the peer's end of it, or a frame that was sent before that end."""
        if id in self._awaited:
            if kind in _ENDS:
                self._awaited.discard(id)
            return
        if kind == wire.RESET and 0 < id <= self._last_id:
            self._rates.late(kind, self._now)
            return
        raise PeerError(CloseReason.PROTOCOL, "the peer sent a frame for an unknown stream")

    def _receive_open(self, id: int, protocol: StreamProtocol, destination: Destination) -> None:
        if self.dialler or id <= self._last_id:
            raise PeerError(CloseReason.PROTOCOL, "the peer opened a stream that it may not open")
        if len(self._awaited) > MAX_AWAITED or self.log.kept > self.limits.retained + MAX_SMALL:
            raise PeerError(CloseReason.LIMIT, "the peer opens streams without acknowledging ended ones")
        self._last_id = id
        stream = Stream(self, id, protocol, destination, _UNBORN, self._now)
        self.streams[id] = stream
        if len(self.streams) + len(self._awaited) > self.limits.streams:
            self.send_refused(stream, StreamReason.LIMIT)
        else:
            try:
                self._accept_stream(stream)
            except PeerError:
                raise
            except Exception as error:  # noqa: BLE001  see the head of the file
                self.stream_failed(stream, stream.handler, error)

    def _receive_opened(self, stream: Stream, value: Any) -> None:
        if not self.dialler or stream.opened:
            raise PeerError(CloseReason.PROTOCOL, "the peer accepted a stream out of turn")
        stream.opened = True
        stream.receive_half = Half.OPEN
        handler = stream.handler
        try:
            self.on_opened(stream)
            handler.opened()
        except Exception as error:  # noqa: BLE001  see the head of the file
            self.stream_failed(stream, handler, error)

    def _receive_refused(self, stream: Stream, reason: Any) -> None:
        if not self.dialler or stream.opened:
            raise PeerError(CloseReason.PROTOCOL, "the peer refused a stream out of turn")
        self.refused[reason] += 1
        untouched = stream.untouched
        self._answer_end(stream)
        handler = stream.handler
        try:
            if not self.on_refused(stream, reason, untouched):
                handler.refused(reason)
        except Exception as error:  # noqa: BLE001  see the head of the file
            self.stream_failed(stream, handler, error)
        stream.handler = ENDED

    def _receive_fin(self, stream: Stream, value: Any) -> None:
        if stream.receive_half is not Half.OPEN:
            raise PeerError(CloseReason.PROTOCOL, "the peer ended a stream twice")
        stream.receive_half = Half.CLOSED
        stream.count_held(self._now, self.windows)
        handler = stream.handler
        if stream.send_half is Half.CLOSED:
            self._remove(stream)
            stream.handler = ENDED
        try:
            handler.eof_received()
        except Exception as error:  # noqa: BLE001  see the head of the file
            self.stream_failed(stream, handler, error)

    def _receive_reset(self, stream: Stream, reason: Any) -> None:
        self._answer_end(stream)
        handler, stream.handler = stream.handler, ENDED
        try:
            handler.reset(reason)
        except Exception as error:  # noqa: BLE001  see the head of the file
            self._faults.report(error)

    def _answer_end(self, stream: Stream) -> None:
        """The peer ended both halves. It waits for our end, unless that is already sent."""
        if stream.send_half is not Half.CLOSED:
            self._append(wire.encode_reset(stream.id, StreamReason.CANCELLED))
        self._remove(stream)

    def _receive_ack(self, id: int, count: Any) -> None:
        self.log.acknowledge(count)
        if not self._dropping:
            self._drop_acknowledged()
        if not self.streams:
            self.on_idle()

    def _drop_acknowledged(self) -> None:
        """Drop what the peer has, or what nobody needs, a bounded number of frames in one turn."""
        self._dropping = False
        more = True
        if self.turn.left > 0:
            before = self.log.dropped
            more = self.log.drop()
            self.turn.spend((self.log.dropped - before) // DROPS_PER_UNIT)
        self._dropping = more
        if self._dropping:
            self.turn.wait(self._drop_acknowledged)
        if self.closed is None and not self.scheduler.open and self.log.has_room():
            self.wake()

    def _receive_window(self, id: int, limit: Any) -> None:
        stream = self.streams.get(id)
        if stream is not None:
            if stream.raise_send_limit(limit):
                self.scheduler.wait(stream)
                self.wake()
        else:
            self._receive_overtaken(wire.WINDOW, id)

    def _receive_overtaken(self, kind: int, id: int) -> None:
        """An unnumbered frame for a stream that is not there: it must have been."""
        if not 0 < id <= self._last_id:
            raise PeerError(CloseReason.PROTOCOL, "the peer sent a frame for an unknown stream")
        self._rates.late(kind, self._now)

    def _receive_ping(self, id: int, token: Any) -> None:
        self._pong = token
        self.wake()

    def _receive_pong(self, id: int, token: Any) -> None:
        sample = self.liveness.pong(token, self._now)
        if sample is not None:
            self.path.measured(sample, self.bytes_received, self.windows.credit, self._now)

    def _receive_datagram(self, id: int, value: Any) -> None:
        stream = self.streams.get(id)
        destination, payload = value
        if stream is not None:
            if stream.protocol is not StreamProtocol.UDP:
                raise PeerError(CloseReason.PROTOCOL, "the peer sent a datagram on a stream of bytes")
            self._deliver_datagram(stream, destination, payload)
        else:
            self._receive_overtaken(wire.DATAGRAM, id)

    def datagram_from_lane(self, id: int, destination: Destination, payload: memoryview) -> None:
        """A datagram came on the lane. It is dropped if its stream has not begun or has ended."""
        stream = self.streams.get(id)
        if stream is not None and stream.protocol is StreamProtocol.UDP:
            self._deliver_datagram(stream, destination, payload)

    def _deliver_datagram(self, stream: Stream, destination: Destination, payload: memoryview) -> None:
        self.bytes_received += len(payload)
        handler = stream.handler
        try:
            handler.datagram_received(destination, payload)
        except Exception as error:  # noqa: BLE001  see the head of the file
            self.stream_failed(stream, handler, error)

    def _receive_lane(self, id: int, value: Any) -> None:
        self.packet_link.announced(*value)

    def _receive_packet(self, id: int, value: Any) -> None:
        self.packet_link.packet_received(*value)

    def _receive_network(self, id: int, value: Any) -> None:
        self.packet_link.network_received(*value)

    def _receive_taken(self, id: int, networks: Any) -> None:
        self.packet_link.taken_received(networks)

    def _check_from_exit(self) -> None:
        if not self.dialler:
            raise PeerError(CloseReason.PROTOCOL, "the client sent a frame that only an exit may send")

    def _receive_goaway(self, id: int, value: Any) -> None:
        self._check_from_exit()
        self.on_goaway()

    def _receive_advertise(self, id: int, address: Any) -> None:
        self._check_from_exit()
        self.on_advertise(address)

    def _receive_close(self, id: int, reason: Any) -> None:
        self.close(reason)
        self._close_frame = None

    def _receive_epoch_end(self, id: int, value: Any) -> None:
        raise PeerError(CloseReason.REKEY, "the peer ended an epoch in the middle of a record")

    def _receive_admission(self, id: int, value: Any) -> None:
        raise PeerError(CloseReason.PROTOCOL, "the peer admitted us twice")


def _nothing() -> None:
    """`ready` without a carrier: nothing can be sent. And what nobody waits for."""


def _ignore_stream(stream: Stream) -> None:
    """`on_opened` by default."""


def ignore_address(address: Destination) -> None:
    """`on_advertise` by default."""


def _not_handled(stream: Stream, reason: StreamReason, untouched: bool) -> bool:
    """`on_refused` by default: leave a refused stream to its handler."""
    return False


ENDED: Final = StreamHandler()
"""The handler of a stream that has ended, so that neither of them keeps the other one in memory."""
_UNBORN: Final = StreamHandler()
"""The handler of a stream until `accept_stream` sets one."""
_EPOCH_ENDS: Final = frozenset((wire.REKEY_ANSWER, wire.SWITCH))
_ENDS: Final = frozenset((wire.FIN, wire.RESET, wire.REFUSED))
_ON_STREAM: Final[dict[int, Callable[[Session, Stream, Any], None]]] = {
    wire.OPENED: Session._receive_opened,
    wire.REFUSED: Session._receive_refused,
    wire.FIN: Session._receive_fin,
    wire.RESET: Session._receive_reset,
}
_ON_SESSION: Final[dict[int, Callable[[Session, int, Any], None]]] = {
    wire.ACK: Session._receive_ack,
    wire.WINDOW: Session._receive_window,
    wire.PING: Session._receive_ping,
    wire.PONG: Session._receive_pong,
    wire.REKEY: lambda session, _, message: session.rotation.receive(wire.REKEY, message, session._now),
    wire.REKEY_ANSWER: Session._receive_epoch_end,
    wire.SWITCH: Session._receive_epoch_end,
    wire.REKEY_PLEASE: lambda session, _, __: session.rotation.receive(wire.REKEY_PLEASE, b"", session._now),
    wire.DATAGRAM: Session._receive_datagram,
    wire.LANE: Session._receive_lane,
    wire.PACKET: Session._receive_packet,
    wire.NETWORK: Session._receive_network,
    wire.TAKEN: Session._receive_taken,
    wire.GOAWAY: Session._receive_goaway,
    wire.ADVERTISE: Session._receive_advertise,
    wire.CLOSE: Session._receive_close,
    wire.ACCEPT: Session._receive_admission,
    wire.RESUMED: Session._receive_admission,
    wire.NO_SESSION: Session._receive_admission,
}
