"""The judge of a session: the promises that hold whatever its peer sends. Each raises RuntimeError when it is broken.

`Witness` is an application that checks the order of what it is told, `OpenPacketLink` a packet link that checks what it
is handed, and `Judge` looks at what a session keeps and owes, while it lives and after its end. What a peer makes its
session do, a Judge counts from the frames themselves (frame_count.py).
"""

from __future__ import annotations

from typing import Final

from cryprq_proxy.address import Destination
from cryprq_proxy.errors import StreamReason
from cryprq_proxy.session import wire
from cryprq_proxy.session.datagrams import BasePacketLink
from cryprq_proxy.session.path import FILL_MINIMUM
from cryprq_proxy.session.retention import MemoryBudget, PathLog, SlotPool, Unit
from cryprq_proxy.session.session import DATAGRAM_QUEUE, PACKET_QUEUE, Session
from cryprq_proxy.session.streams import Half
from cryprq_proxy.session.turns import BYTES_PER_UNIT, FRAME_COSTS
from cryprq_proxy.session.windows import INITIAL_WINDOW, WindowBudget
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.first_copies import FirstCopies
from tests.support.frame_count import FrameCount, broken
from tests.support.links import App
from tests.support.memory import CAPACITY

RETAINED: Final = 1 << 18
POOL: Final = 1 << 20
"""Bounds of the sessions of a play, in bytes."""
SMALL: Final = 1 << 15
AWAITED: Final = 250
OPENS: Final = 300
CREDIT: Final = 200_000
PIECES: Final = 50
SESSION_PIECES: Final = 55
GAPS: Final = 30
"""The values of MAX_SMALL, MAX_AWAITED, INITIAL_STREAMS, INITIAL_CREDIT, MAX_PIECES, MAX_SESSION_PIECES and MAX_GAPS in
a play, which is too short for the real ones."""
_SINK: Final = memoryview(bytearray(FILL_MINIMUM + 65_536))


class Witness(App):
    """An application that checks the order of what it is told: see `StreamHandler` and the table in streams.py."""

    def __init__(self, *, dialler: bool, eager: bool, slots: SlotPool | None) -> None:
        super().__init__(eager=eager, slots=slots)
        self.dialler = dialler
        self.told: bytearray = bytearray()
        """Everything that it ever sent or will send."""
        self.gone = False
        """It has ended the stream itself, so it may not be called any more."""

    def say(self, data: bytes, *, finish: bool = False) -> None:
        self.told += data
        super().say(data, finish=finish)

    def leave(self, reason: StreamReason) -> None:
        """End the stream from this side."""
        assert self.stream is not None
        if not self.ended:
            self.gone = True
            self.stream.reset(reason)

    def _called(self, what: str, *, ended: bool = False) -> None:
        happened = {event[0] for event in self.events}
        if self.gone or self.ended:
            raise broken(f"{what} was called after the end of the stream")
        if not ended and "eof" in happened and what in ("data", "eof"):
            raise broken(f"{what} was called after the peer's end")
        if self.dialler and "opened" not in happened and what in ("data", "eof"):
            raise broken(f"{what} was called before `opened`")
        if "opened" in happened and what in ("opened", "refused"):
            raise broken(f"{what} was called on an open stream")
        if what in ("opened", "refused") and not self.dialler:
            raise broken(f"{what} was called at the exit")

    def opened(self) -> None:
        self._called("opened")
        super().opened()

    def refused(self, reason: StreamReason) -> None:
        self._called("refused")
        super().refused(reason)

    def data_received(self, data: memoryview) -> None:
        self._called("data")
        if self.stream is not None and len(self.received) + len(data) > self.stream.announced:
            raise broken("more data was received than there was credit for")
        super().data_received(data)

    def eof_received(self) -> None:
        self._called("eof")
        super().eof_received()

    def reset(self, reason: StreamReason) -> None:
        self._called("reset")
        super().reset(reason)

    def writable(self) -> None:
        self._called("writable")
        super().writable()

    def datagram_received(self, destination: Destination, payload: memoryview) -> None:
        self._called("datagram")
        if self.stream is not None and self.stream.protocol is not StreamProtocol.UDP:
            raise broken("a datagram came on a stream of bytes")


class OpenPacketLink(BasePacketLink):
    """Agreed on everything, and moves nothing."""

    def announced(self, number: int, index: int) -> None:
        pass

    def packet_received(self, flags: int, segment: int, header: int, packet: memoryview) -> None:
        if not packet:
            raise broken("an empty packet was received")

    def network_received(self, serial: int, ipv4: bytes, ipv6: bytes) -> None:
        if (len(ipv4), len(ipv6)) != (4, 16):
            raise broken("a network of another size was received")

    def taken_received(self, serial: int, networks: tuple[object, ...]) -> None:
        if not 0 < len(networks) <= wire.MAX_TAKEN:
            raise broken("more networks were received than one frame may have")


class Judge:
    """Looks at one session after each step. No other has its budgets. `streams`: its bound on them."""

    def __init__(
        self,
        session: Session,
        budget: MemoryBudget,
        window_budget: WindowBudget,
        slots: SlotPool,
        streams: int,
    ) -> None:
        self.session = session
        self.budget = budget
        self._window_budget = window_budget
        self._slots = slots
        self.streams = streams
        self.count = FrameCount(session)
        self.copies = FirstCopies(session)
        self._was_idle = session.idle
        self._told_idle = False
        session.events.idle = self._idle
        session.events.goaway = self._goaway
        session.events.advertised = self._advertised

    def _idle(self) -> None:
        self._told_idle = True

    def _goaway(self) -> None:
        if not self.session.dialler:
            raise broken("an exit was asked to go away by its client")

    def _advertised(self, address: Destination) -> None:
        if not self.session.dialler or not address.is_ip or not address.port:
            raise broken(f"{address} was taken for the address of an exit")

    def check(self) -> None:
        """What the session keeps for its peer, and what the peer may make it do in one turn."""
        session = self.session
        self._check_kept()
        for queue, bound in ((session.datagrams, DATAGRAM_QUEUE), (session.packets, PACKET_QUEUE)):
            if not 0 <= queue.bytes <= max(bound, wire.MAX_DATAGRAM + 512):
                raise broken(f"{queue.bytes} bytes of datagrams wait")
        self.count.check()
        if session.turn.left < -(CAPACITY // BYTES_PER_UNIT) - 2 * max(FRAME_COSTS):
            raise broken(f"a turn went {-session.turn.left} units beyond its budget")
        if session.closed is None:
            self._check_paths()
            self._check_numbers()
            self._check_streams()
            self._check_credit()
            if session.idle and not self._was_idle and not self._told_idle:
                raise broken("nobody was told that the session has become idle")
        self._was_idle, self._told_idle = session.idle, False

    # --- what is sent ----------------------------------------------------------------------------------------------

    def _check_kept(self) -> None:
        retention = self.session.retention
        units = [*retention._control, *retention._streams]
        for log in self._logs():
            units += log.units
        cost = sum(unit.cost for unit in units)
        if not cost == retention.kept == self.budget.used:
            raise broken(
                f"{cost} bytes are kept, {retention.kept} are counted, {self.budget.used} are charged"
            )
        if cost > RETAINED + SMALL + 2 * wire.MAX_PLAINTEXT:
            raise broken(f"{cost} bytes are kept")
        if len({id(unit) for unit in units}) < len(units):
            raise broken("a frame is kept in two places")
        self._check_slots(units)

    def _logs(self) -> list[PathLog]:
        retention = self.session.retention
        logs = [path.log for path in self.session.paths.values()]
        logs += retention._lost
        return [*logs, *(log for log in retention._dropping if not any(log is other for other in logs))]

    def _check_slots(self, units: list[Unit]) -> None:
        queued = [unit for stream in self.session.streams.values() for unit in stream.queue]
        slots = [unit.slot for unit in units + queued if unit.slot is not None] + self._slots._free
        if len({id(slot) for slot in slots}) < len(slots):
            raise broken("a slot is in two places")

    # --- paths -----------------------------------------------------------------------------------------------------

    def _check_paths(self) -> None:
        session = self.session
        for path in session.paths.values():
            numbers = [unit.record for unit in path.log.units]
            if numbers != sorted(numbers) or (numbers and numbers[-1] >= path.keys.records_sent):
                raise broken("the log of a path is not in the order of its records")
            if path.ended:
                raise broken("a path that has ended is kept")
        if (
            session.paths.get(-1 if session.current is None else session.current.number)
            is not session.current
        ):
            raise broken("what belongs to the session goes by a path that is lost")
        if session.paths and session.current is None:
            raise broken("no path is chosen")
        if len(session.rotation.known._records) > 2 or len(session.rotation.known._resume) > 2:
            raise broken("the secrets of old epochs are kept")

    # --- streams ---------------------------------------------------------------------------------------------------

    def _check_numbers(self) -> None:
        table = self.session.table
        if len(table.live) > self.streams or len(table.numbers.awaited) > AWAITED + 1:
            raise broken(f"{len(table.live)} streams and {len(table.numbers.awaited)} ended ones are kept")
        if len(table.live) + len(table.numbers.awaited) > max(self.streams, OPENS):
            raise broken(
                f"{len(table.live)} streams and {len(table.numbers.awaited)} ended ones were opened too early"
            )
        if table.numbers._seen.gaps > GAPS:
            raise broken(f"{table.numbers._seen.gaps} gaps between the numbers of streams are kept")
        pieces = [stream.pieces.pieces for stream in table.live.values() if stream.pieces is not None]
        counted = self.session.receiver.pieces.used
        if sum(pieces) != counted or 0 in pieces:
            raise broken(f"{sum(pieces)} pieces wait, {counted} are counted")
        if max(pieces, default=0) > PIECES or sum(pieces) > SESSION_PIECES:
            raise broken(f"{sum(pieces)} pieces wait, {max(pieces)} of one stream")

    def _check_streams(self) -> None:
        session = self.session
        extra = queued = 0
        for stream in session.streams.values():
            extra += stream._window - INITIAL_WINDOW
            queued += sum(chunk.size for chunk in stream.queue)
            # What the session itself counts is what a fault would falsify.
            app = stream.handler
            assert isinstance(app, Witness)
            received, sent = len(app.received), len(app.told) - len(app.outgoing)
            if (received, sent) != (stream.delivered, stream.sent):
                raise broken(
                    f"{received} and {sent} bytes passed, {stream.delivered} and {stream.sent} are counted"
                )
            waiting = 0 if stream.pieces is None else stream.pieces.bytes
            if received + waiting > stream.received or stream.received > self.count.highest.get(stream.id, 0):
                raise broken("bytes are counted that never came")
            if stream.received > stream.announced or sent > stream.send_limit:
                raise broken("more bytes passed than there was credit for")
            if app.unconsumed + waiting > stream._window:
                raise broken("more is held than the pool counts")
            if stream.send_half is Half.CLOSED and stream.receive_half is Half.CLOSED:
                raise broken("a stream that has ended on both sides is kept")
        if session.windows.free < 0 or extra + session.windows.free != POOL:
            raise broken(f"the windows use {extra} bytes of the pool and leave {session.windows.free}")
        if queued != session.scheduler.queued:
            raise broken("the scheduler counts other bytes than the streams have queued")

    def _check_credit(self) -> None:
        """Of all streams together."""
        table = self.session.table
        credit, highest = table.received_credit, self.count.highest
        if credit.received != self.count.received:
            raise broken(f"{self.count.received} bytes of all streams came, {credit.received} are counted")
        for id, offset in table.numbers.awaited.items():
            if offset != highest.get(id, 0):
                raise broken("of a stream that has ended here, other bytes came than are counted")
        untaken = sum(stream.received - stream.credited for stream in table.live.values())
        if credit.consumed + untaken != credit.received:
            raise broken(f"{credit.received - credit.consumed - untaken} bytes never give credit again")
        for stream in table.live.values():
            if stream.received - stream.credited > stream._window:
                raise broken("a stream keeps more of the session's credit than the pool counts for it")
        if table.credit < 0:
            raise broken("more bytes of all streams were sent than the peer allows")

    # --- the end ---------------------------------------------------------------------------------------------------

    def check_closed(self, now: float) -> None:
        """After the end of the session, and the turns in which it tells its handlers."""
        session, table = self.session, self.session.table
        self._check_nothing_kept()
        if session.scheduler.queued or session.datagrams or session.packets or session.ending:
            raise broken("a closed session has something to send")
        paths = list(session.paths.values())
        for path in paths:
            session.turn.renew()
            path.fill(_SINK, 65_536, now)
            if path.fill(_SINK, 65_536, now):
                raise broken("a closed session writes more than its CLOSE")
            path.lost(now)
        self._check_nothing_kept()
        if session.paths or session.retention.waits or any(path.log.units or path._frames for path in paths):
            raise broken("a path of a closed session keeps something")
        if session.receiver.pieces.used or table.windows_due or table._starved:
            raise broken("the streams of a closed session keep something")
        if (
            session.rotation.known._records
            or session.rotation.known.resume_secrets
            or session.rotation.known.newest is not None
        ):
            raise broken("a closed session keeps its secrets")

    def _check_nothing_kept(self) -> None:
        session, table = self.session, self.session.table
        if table.live or table.numbers.awaited or session.retention.kept or self.budget.used:
            raise broken("a closed session keeps something")
        if session.windows.free != POOL or self._window_budget.used:
            raise broken("a closed session keeps something of the windows' pool")
