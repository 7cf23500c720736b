"""The session: one peer, many streams, one or several paths at a time.

Out: a handler puts data into its stream's queue (streams.py), and the session wakes the path that it has chosen
(path_choice.py). The path's carrier calls `fill` (outgoing.py): the scheduler chooses a stream (scheduler.py), the
frame is sealed directly into the carrier's buffer and kept in the path's log (retention.py). In: the carrier calls
`receive` of its path, every record is opened, and a table tells what to do with each frame: in frame_actions.py, or
in stream_receiver.py for those that name a stream. Data goes to the stream's handler.

A path that is lost takes nothing with it: what it has carried and the peer has not acknowledged goes first on the next
path. That is all there is to resume a session. It lives as long as its owner keeps it.

No clock, no sockets: each call passes the time. What a stream's handler raises ends that stream only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from ..address import Destination
from ..crypto.handshake import EpochSecrets
from ..crypto.primitives import Cipher, Entropy, Provider
from ..errors import CloseReason, LocalError, PeerError, StreamReason
from ..status import EpochStatus
from . import wire
from .acknowledgements import drop_acknowledged
from .control_rates import CONTROL_FRAMES, ControlRates
from .datagrams import BasePacketLink, DatagramQueue
from .ending import reset_in_turns
from .epochs import EpochLedger
from .frame_actions import ACTIONS, PATH_ACTIONS
from .key_limits import RotationLimits
from .lane_path import LanePath
from .liveness import UNKNOWN_ROUND_TRIP, Liveness
from .path import ACK_BYTES, SessionPath
from .path_choice import choose
from .path_keys import CarrierKeys, PathKeys
from .retention import MemoryBudget, PathLog, Retention, SlotPool
from .rotation import Offload, Rotation, inline
from .scheduler import Scheduler
from .session_events import SessionEvents
from .stream_receiver import STREAM_FRAMES, AcceptStream, StreamReceiver, refuse_streams
from .stream_table import StreamTable
from .streams import Stream, StreamHandler
from .turns import DROPS_PER_UNIT, TurnBudget
from .windows import WindowBudget, WindowPool
from .wire import LaneUse, StreamProtocol

RESUME_SECONDS: Final = 300.0
"""Seconds for which a client keeps a session without a path, and an exit unless its configuration says otherwise."""
DATAGRAM_QUEUE: Final = 65_536
PACKET_QUEUE: Final = 262_144
"""Bytes of packets, and above of datagrams, that may wait for a path."""
MAX_SMALL: Final = 16 << 20
"""Bytes of small frames kept beyond the bound `retained` while the peer does not acknowledge them."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Bounds of one session; sizes in bytes, times in seconds."""

    retained: int
    window_pool: int
    streams: int
    keepalive: float
    rotation: RotationLimits


class Session:
    """One side of a session; `dialler` is True at the client.

    For `offload` see rotation.py. The first stream of a dialler has the number behind `last_stream`.
    """

    def __init__(
        self,
        *,
        dialler: bool,
        session_id: bytes,
        epoch: EpochSecrets,
        cipher: Cipher,
        provider: Provider,
        entropy: Entropy,
        limits: SessionLimits,
        budget: MemoryBudget,
        window_budget: WindowBudget,
        slots: SlotPool,
        turn: TurnBudget,
        now: float,
        accept_stream: AcceptStream = refuse_streams,
        offload: Offload = inline,
        last_stream: int = 0,
    ) -> None:
        self.dialler = dialler
        self.session_id = session_id
        self.limits = limits
        self.turn = turn
        """The work that the peer may still cause in this turn of the loop, by all of its sessions."""
        self.events = SessionEvents()
        self.scheduler = Scheduler()
        self.retention = Retention(limits.retained, budget, slots)
        self.windows = WindowPool(limits.window_pool, window_budget)
        self.rates = ControlRates()
        self.table = StreamTable(
            self,
            dialler=dialler,
            most=limits.streams,
            scheduler=self.scheduler,
            windows=self.windows,
            window_pool=limits.window_pool,
            slots=slots,
            turn=turn,
            rates=self.rates,
            events=self.events,
            last_stream=last_stream,
            now=now,
        )
        self.receiver = StreamReceiver(self.table, accept_stream)
        self.packet_link: BasePacketLink = BasePacketLink()
        self.ledger = EpochLedger()
        self.rotation = Rotation(
            epoch,
            cipher,
            now,
            dialler=dialler,
            session_id=session_id,
            provider=provider,
            limits=limits.rotation,
            entropy=entropy,
            offload=offload,
            session=self,
            ledger=self.ledger,
        )
        self.paths: dict[int, SessionPath] = {}
        self.current: SessionPath | None = None
        """The one that carries what belongs to the session, unless the lane does."""
        self.carrying: SessionPath | LanePath | None = None
        self.lane: LanePath | None = None
        """The datagram lane as a path, if there is one."""
        self.lane_use = LaneUse.AUTO
        """What streams may use of it, as the client is set."""
        self.liveness = Liveness(limits.keepalive)
        """That of the current path, or of the last one."""
        self.last_path = -1
        """The highest number of a path so far."""
        self._preferred = -1
        self._prefer_serial = 0
        self.closed: CloseReason | None = None
        self.bytes_sent = 0
        """Stream data and datagram payload since the session began."""
        self.datagrams = DatagramQueue(DATAGRAM_QUEUE)
        self.packets = DatagramQueue(PACKET_QUEUE)
        self.dropping = False
        """Whether acknowledged units are dropped in the next turn."""
        self.ending: list[Stream] = []
        """Streams of a closed session whose handlers are not yet told."""

    # --- paths -----------------------------------------------------------------------------------------------------

    def attach(
        self,
        number: int,
        keys: CarrierKeys,
        now: float,
        admitted: Callable[[], None] | None = None,
        *,
        epoch: int = 0,
        early: int | None = None,
    ) -> SessionPath:
        """Path `number` is there, a higher one than all before. `keys` continue where its handshake stopped; it has
        joined by the resume secret of `epoch`.

        With `admitted` the exit's verdict is still to come. Until then only reliable frames are sent, MAX_EARLY bytes
        of them, and `receive` waits for it: `admitted` is called if it is ACCEPT, NotAdmitted raised if not.
        With `early`, at an exit, the client may not have read it: until it has, no record may begin behind so many
        bytes of them.
        """
        if number <= self.last_path:
            raise LocalError("the number of a path was used before")
        self.now = now
        rotation = self.rotation
        path_keys = PathKeys(number, keys, now, dialler=self.dialler, epoch=epoch)
        path = SessionPath(
            self,
            number,
            path_keys,
            now,
            admitted,
            min(self.limits.retained >> 4, ACK_BYTES),
            self.limits.keepalive,
            early,
        )
        if self.last_path >= 0:
            rotation.joined(epoch, now)
        self.last_path = number
        self.paths[number] = path
        self.choose()
        path.wake()
        return path

    def attach_lane(self, now: float) -> LanePath:
        """There is a datagram lane: once in a session. It carries nothing before it is `set_up`."""
        if self.lane is not None:
            raise LocalError("a session has one lane")
        self.now = now
        self.lane = LanePath(self)
        self.choose()
        return self.lane

    def set_lane_use(self, use: LaneUse) -> None:
        """The client's setting: its own at the client, and what LANE says at the exit."""
        self.lane_use = use
        if self.lane is not None:
            self.lane.set_use(use)

    def path_lost(self, path: SessionPath, now: float) -> None:
        """See SessionPath.lost."""
        self.now = now
        self.paths.pop(path.number, None)
        if self.closed is None:
            self._lose(path)
        self.ledger.sealed(path.keys.send_epoch, path.keys.sealer)
        self.ledger.opened(path.keys.receive_epoch, path.keys.opener)
        self.rates.path_lost()
        if self.closed is None:
            self.send_control(wire.encode_records(wire.ABANDON, path.number, path.received))
        if not self.paths:
            self.datagrams.clear()
            self.packets.clear()
            if self.lane is not None:
                self.lane.alone()
        self.choose()

    def prefer(self, number: int) -> None:
        """At the dialler: both sides should send on this path while it works."""
        if number != self._preferred and self.closed is None:
            self._preferred = number
            self._prefer_serial += 1
            self.send_control(wire.encode_prefer(self._prefer_serial, number))
            self.choose()

    def choose(self) -> None:
        """See which path carries what belongs to the session."""
        before, lane = self.carrying, self.lane
        current = self.current = choose(self.paths.values(), self._preferred, self.current)
        if current is not None:
            self.liveness = current.liveness
        path = self.carrying = lane if lane is not None and lane.takes(current) else current
        if path is before or self.closed is not None:
            return
        if before is not None:
            self.turn.spend(len(before.log.units) // DROPS_PER_UNIT)
            if before.in_doubt and isinstance(before, SessionPath):
                self.retention.repeat_oldest(before.log)
            if self.dialler:
                self.retention.repeat_opens(before.log)
        if path is None:
            self.scheduler.open = False
            return
        path.begin_carrying()
        self.scheduler.open = self.retention.has_room()
        path.wake()

    def sends_at(self, rate: float) -> None:
        """The record path that carries sends so many bytes a second: this is what the lane is measured by."""
        if self.lane is not None:
            self.lane.tcp_rate(rate)

    @property
    def has_others(self) -> bool:
        """Whether there are any for the paths there are."""
        return len(self.paths) > 1 or (self.lane is not None and self.lane.up)

    def others_than(self, path: SessionPath) -> list[SessionPath | LanePath]:
        """What may carry in the place of `path`."""
        others: list[SessionPath | LanePath] = [other for other in self.paths.values() if other is not path]
        if self.lane is not None and self.lane.up:
            others.append(self.lane)
        return others

    def doubt(self, path: SessionPath, *, told: bool) -> None:
        """`path` does not answer: the oldest of what it has carried goes by another one too. An acknowledgement that
        comes by that one tells the peer, which may hear us on `path` and not know that we do not hear it."""
        if path is not self.carrying:
            self.retention.repeat_oldest(path.log)
        self.choose()
        other = self.current
        if other is not None and other is not path:
            if not told:
                other.announce(wire.encode_records(wire.ACK, path.number, path.received))
            other.measure()
        self.wake()

    def answered(self, path: SessionPath, asked: float) -> bool:
        """`path` has answered what it was asked at that time. Whether others are in doubt that were asked then too."""
        if path.in_doubt:
            return False
        doubted = [other.suspicion.since for other in self.paths.values() if other.in_doubt]
        if self.lane is not None and self.lane.outrun(asked, path.liveness.least_round_trip):
            path.measure()
        if any(since > asked for since in doubted):
            path.measure()
        return any(since <= asked for since in doubted)

    def overtake(self, path: SessionPath | LanePath, asked: float) -> None:
        """`path` is faster than those that are still in doubt: all that they have carried goes by another one, too."""
        if path.in_doubt:
            return
        for other in self.paths.values():
            if other.in_doubt and other.suspicion.since <= asked:
                other.suspicion.confirm()
                self._lose(other)
        self.wake()

    def _lose(self, path: SessionPath) -> None:
        log, path.log = path.log, PathLog(path.number, path.log.acknowledged)
        self.retention.lose(log)

    def trust(self, path: SessionPath) -> None:
        """`path` has answered again."""
        self.choose()
        if any(other.in_doubt for other in self.paths.values()):
            path.measure()

    @property
    def attached(self) -> bool:
        """Whether there is a path, or the lane works."""
        return bool(self.paths) or (self.lane is not None and self.lane.up)

    @property
    def heard(self) -> float:
        """When the peer last gave a sign of life, on the current path or the lane; 0 before the first one."""
        return max(self.liveness.last, 0.0 if self.lane is None else self.lane.heard_at)

    @property
    def round_trip(self) -> float:
        """That of the path that carries, without queues, in seconds."""
        return UNKNOWN_ROUND_TRIP if self.carrying is None else self.carrying.least_round_trip

    @property
    def now(self) -> float:
        """The time of the call that the session is in."""
        return self.table.now

    @now.setter
    def now(self, now: float) -> None:
        self.table.now = now

    # --- keys ------------------------------------------------------------------------------------------------------

    def rotation_deadline(self, path: SessionPath) -> float:
        return self.rotation.deadline(path.keys)

    def begin_lane(self, now: float) -> None:
        """The packet link is there: give it the first epoch."""
        self.rotation.begin_lane(now)

    def tick_rotation(self, path: SessionPath, now: float) -> None:
        """Raises CarrierError (REKEY) if the keys of `path` are too old."""
        self.rotation.tick(now, path.keys)

    def switch(self) -> None:
        """All paths are to go over to a newer epoch."""
        for path in self.paths.values():
            path.wake()

    def renewed(self) -> None:
        self.events.renewed()
        if self.lane is not None:
            if self.rotation.known.bound:
                self.lane.outbox.give_up()
            self.choose()

    @property
    def path_keys(self) -> Iterable[PathKeys]:
        return [path.keys for path in self.paths.values()]

    def epochs(self, now: float) -> tuple[EpochStatus, ...]:
        """The session's last epochs, newest first; the one in use with the bytes it has carried so far."""
        return self.ledger.report(now, self.path_keys)

    # --- end -------------------------------------------------------------------------------------------------------

    def close(self, reason: CloseReason, stream_reason: StreamReason = StreamReason.SESSION_LOST) -> None:
        """End the session: reset all streams, many of them a turn's worth at a time. The next `fill` of each path gives
        a CLOSE frame, later ones nothing."""
        if self.closed is None:
            self._close(reason, stream_reason)
            for path in self.paths.values():
                path.say_farewell(wire.encode_close(reason))
            if self.lane is not None:
                self.lane.say_farewell(wire.encode_close(reason))

    def _close(self, reason: CloseReason, stream_reason: StreamReason) -> None:
        self.closed = reason
        self.ending = self.table.clear()[::-1]
        self.receiver.clear()
        reset_in_turns(self.ending, stream_reason, self.turn, self.table.faults)
        self.datagrams.clear()
        self.packets.clear()
        self.rotation.end()
        logs = [path.log for path in self.paths.values()]
        if self.lane is not None:
            logs.append(self.lane.end())
        self.retention.clear(logs)
        if not self.dropping:
            drop_acknowledged(self)

    @property
    def idle(self) -> bool:
        """Whether there is no stream, and the peer has everything that was sent."""
        return not self.table.live and not self.retention.kept

    # --- for the owner ---------------------------------------------------------------------------------------------

    @property
    def streams(self) -> dict[int, Stream]:
        """Those that live, by number, oldest first."""
        return self.table.live

    @property
    def bytes_received(self) -> int:
        """Stream data and datagram payload since the session began."""
        return self.receiver.bytes_received

    @property
    def moved(self) -> int:
        """Bytes of streams and datagrams, both directions together."""
        return self.bytes_sent + self.bytes_received

    @property
    def last_stream(self) -> int:
        """The number of the newest stream."""
        return self.table.numbers.last

    def open(self, protocol: StreamProtocol, destination: Destination, handler: StreamHandler) -> Stream:
        """Request a stream, at the dialler. Data may be sent before `handler.opened` is called.

        Raises StreamRefused (LIMIT) if there are too many streams, LocalError on a closed session.
        """
        if self.closed is not None or not self.dialler:
            raise LocalError("streams are opened by the dialler of a live session")
        return self.table.open(protocol, destination, handler)

    def prove(self, within: float, now: float) -> None:
        """There is a doubt whether the peer is still there: request a sign of life within `within` seconds."""
        if self.current is not None:
            self.current.prove(within, now)

    def measure(self) -> None:
        """Measure the round trip now; see Liveness.measure."""
        if self.current is not None:
            self.current.measure()

    def announce(self, frame: bytes) -> None:
        """Send a LANE, NETWORK, TAKEN or GOAWAY frame. A NETWORK or TAKEN takes the place of one that waits: the peer
        can cause any number of them, and more than one may come while there is no path."""
        if self.closed is None:
            if frame[0] in (wire.NETWORK, wire.TAKEN):
                self.retention.withdraw(frame[0])
            self.send_control(frame)

    def send_packet(self, flags: int, segment: int, header: int, packet: memoryview) -> None:
        """Send an IP packet on a path while the lane is down. It may be dropped, as it is before the verdict."""
        if self.current is not None and self.current.admitted:
            self.packets.add(wire.encode_packet(flags, segment, header, packet))
            self.current.wake()

    # --- out -------------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """There is something to send."""
        if self.carrying is not None:
            self.carrying.wake()

    def send(self, frame: bytes) -> None:
        """See outbox.py."""
        self.retention.append(frame)
        if self.carrying is not None:
            self.carrying.wake()

    def send_control(self, frame: bytes) -> None:
        self.retention.append_control(frame)
        self.wake()

    def forget(self, stream: int) -> None:
        if self.lane is not None:
            self.lane.forget(stream)

    def send_datagram(self, stream: Stream, destination: Destination, payload: bytes | memoryview) -> None:
        if self.packet_link.send_datagram(stream.id, destination, payload):
            self.bytes_sent += len(payload)
        elif self.current is not None:
            self.bytes_sent += len(payload)
            self.datagrams.add(wire.encode_datagram(stream.id, destination, payload))
            self.current.wake()

    # --- in --------------------------------------------------------------------------------------------------------

    def act(self, path: SessionPath | LanePath, kind: int, id: int, value: Any) -> None:
        """Act on a frame that came on `path`. Raises PeerError."""
        receive = STREAM_FRAMES.get(kind)
        if receive is not None:
            receive(self.receiver, id, value)
            return
        if kind in CONTROL_FRAMES:
            self.rates.control(kind, self.rotation.current, self.now)
        if kind in PATH_ACTIONS and isinstance(path, SessionPath):
            PATH_ACTIONS[kind](self, path, value)
        else:
            ACTIONS[kind](self, value)

    def check_kept(self) -> None:
        """Raises PeerError (LIMIT) if the peer makes this side keep too much by not acknowledging it."""
        if self.retention.kept > self.limits.retained + MAX_SMALL and self.closed is None:
            raise PeerError(CloseReason.LIMIT, "the peer does not acknowledge what it has received")

    def receive_prefer(self, serial: int, number: int) -> None:
        """The client says which path both sides should send on."""
        if self.dialler:
            raise PeerError(CloseReason.PROTOCOL, "the exit prefers a path, which is for the client to do")
        if serial > self._prefer_serial:
            self._prefer_serial, self._preferred = serial, number
            self.choose()

    def receive_close(self, reason: CloseReason) -> None:
        """The peer has ended the session; nobody answers that."""
        if self.closed is None:
            self._close(reason, StreamReason.SESSION_LOST)
            for path in self.paths.values():
                path.wake()
