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
from cryprq_proxy.session.sendlog import MemoryBudget, SlotPool
from cryprq_proxy.session.session import (
    DATAGRAM_QUEUE,
    FILL_MINIMUM,
    MAX_SMALL,
    PACKET_QUEUE,
    Session,
)
from cryprq_proxy.session.streams import Half
from cryprq_proxy.session.turns import BYTES_PER_UNIT, FRAME_COSTS
from cryprq_proxy.session.windows import INITIAL_WINDOW
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.frame_count import FrameCount, broken
from tests.support.links import App
from tests.support.memory import CAPACITY

RETAINED: Final = 1 << 18
POOL: Final = 1 << 20
"""Bounds of the sessions of a play, in bytes."""
AWAITED: Final = 500
"""The value of MAX_AWAITED in a play, which is too short for the real one."""
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

    def network_received(self, ipv4: bytes, ipv6: bytes) -> None:
        if (len(ipv4), len(ipv6)) != (4, 16):
            raise broken("a network of another size was received")

    def taken_received(self, networks: tuple[object, ...]) -> None:
        if not 0 < len(networks) <= wire.MAX_TAKEN:
            raise broken("more networks were received than one frame may have")


class Judge:
    """Looks at one session after each step. `streams`: its bound on them."""

    def __init__(self, session: Session, budget: MemoryBudget, streams: int) -> None:
        self.session = session
        self.budget = budget
        self.streams = streams
        self.count = FrameCount(session)
        self._was_idle = session.idle
        self._told_idle = False
        session.on_idle = self._idle
        session.on_goaway = self._goaway
        session.on_advertise = self._advertised

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
        session, log = self.session, self.session.log
        if log.kept > RETAINED + MAX_SMALL + 2 * wire.MAX_PLAINTEXT or log.kept != self.budget.used:
            raise broken(f"{log.kept} bytes are kept, {self.budget.used} are charged")
        if len(session.streams) > self.streams or len(session._awaited) > AWAITED + 1:
            raise broken(f"{len(session.streams)} streams and {len(session._awaited)} ended ones are kept")
        for queue, bound in ((session.datagrams, DATAGRAM_QUEUE), (session.packets, PACKET_QUEUE)):
            if not 0 <= queue.bytes <= max(bound, wire.MAX_DATAGRAM + 512):
                raise broken(f"{queue.bytes} bytes of datagrams wait")
        if session.attached and len(session.rotation.frames) > 4:
            raise broken("frames of rotations pile up")
        self.count.check()
        if session.turn.left < -(CAPACITY // BYTES_PER_UNIT) - 2 * max(FRAME_COSTS):
            raise broken(f"a turn went {-session.turn.left} units beyond its budget")
        if session.closed is None:
            self._check_streams()
            if session.idle and not self._was_idle and not self._told_idle:
                raise broken("nobody was told that the session has become idle")
        self._was_idle, self._told_idle = session.idle, False

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
            if (received, sent) != (stream.received, stream.sent):
                raise broken(
                    f"{received} and {sent} bytes passed, {stream.received} and {stream.sent} are counted"
                )
            if received > stream.announced or sent > stream.send_limit:
                raise broken("more bytes passed than there was credit for")
            if app.unconsumed > stream._window:
                raise broken("more is held than the pool counts")
            if stream.send_half is Half.CLOSED and stream.receive_half is Half.CLOSED:
                raise broken("a stream that has ended on both sides is kept")
        if session.windows.free < 0 or extra + session.windows.free != POOL:
            raise broken(f"the windows use {extra} bytes of the pool and leave {session.windows.free}")
        if queued != session.scheduler.queued:
            raise broken("the scheduler counts other bytes than the streams have queued")

    def check_closed(self, now: float) -> None:
        """After the end of the session, and the turns in which it tells its handlers."""
        session = self.session
        if session.streams or session._awaited or session.log.kept or self.budget.used:
            raise broken("a closed session keeps something")
        if session.scheduler.queued or session.datagrams or session.packets or session._ending:
            raise broken("a closed session has something to send")
        session.turn.renew()
        session.fill(_SINK, 65_536, now)
        if session.fill(_SINK, 65_536, now):
            raise broken("a closed session writes more than its CLOSE")
