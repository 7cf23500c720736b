"""The streams of a session that live: how they begin, what comes for them, how they end.

What comes for others is a matter of their numbers (stream_numbers.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from ..address import Destination
from ..base.faults import Faults
from ..errors import CloseReason, PeerError, StreamReason
from . import wire
from .control_rates import ControlRates
from .frames_ahead import FramesAhead
from .outbox import NOWHERE, Outbox
from .reassembly import MAX_PIECES, MAX_SESSION_PIECES, PieceBudget, Reassembly
from .retention import SlotPool
from .scheduler import Scheduler
from .session_credit import INITIAL_CREDIT, SessionCredit
from .session_events import SessionEvents, nothing
from .stream_numbers import MOVED_END, StreamNumbers
from .streams import Half, Stream, StreamHandler
from .turns import DATAGRAM_WORK, FRAME_COSTS, TurnBudget
from .windows import WindowPool
from .wire import StreamProtocol

SPARE_PIECES: Final = 64
"""Of MAX_PIECES, for bytes that fill holes: the lane refuses others before (lane_path.py)."""

type AcceptStream = Callable[[Stream], None]
"""Called at the exit for each OPEN. It sets `stream.handler` before it returns; it accepts or refuses the stream
then or later."""


def refuse_streams(stream: Stream) -> None:
    """The dialler's AcceptStream: an exit may not open streams."""
    raise PeerError(CloseReason.PROTOCOL, "the exit tried to open a stream")


class StreamTable:
    """All streams of one side of a session. `now` is the time of the call that the session is in."""

    def __init__(
        self,
        outbox: Outbox,
        *,
        dialler: bool,
        most: int,
        scheduler: Scheduler,
        windows: WindowPool,
        window_pool: int,
        slots: SlotPool,
        turn: TurnBudget,
        rates: ControlRates,
        events: SessionEvents,
        accept_stream: AcceptStream,
        last_stream: int,
        now: float,
    ) -> None:
        self._outbox = outbox
        self.dialler = dialler
        self.scheduler = scheduler
        self.windows = windows
        self.slots = slots
        self.turn = turn
        self.events = events
        self.accept_stream = accept_stream
        self.now = now
        self.live: dict[int, Stream] = {}
        self.refused: Counter[StreamReason] = Counter()
        """Streams that the exit refused; both sides count them."""
        self.bytes_received = 0
        self.windows_due: dict[int, Stream] = {}
        self.credit = INITIAL_CREDIT
        self._credit_limit = INITIAL_CREDIT
        self._starved: dict[int, Stream] = {}
        """Streams that wait for credit of the session."""
        self.received_credit = SessionCredit(window_pool)
        self.pieces = PieceBudget()
        self.ahead = FramesAhead()
        self.numbers = StreamNumbers(
            dialler=dialler, most=most, last_stream=last_stream, rates=rates, credit=self.received_credit
        )
        self.faults = Faults("resets a stream")

    @property
    def sent_bytes(self) -> int:
        """What the peer's credit counts."""
        return self._credit_limit - self.credit

    # --- begin -----------------------------------------------------------------------------------------------------

    def open(self, protocol: StreamProtocol, destination: Destination, handler: StreamHandler) -> Stream:
        """Request a stream, at the dialler. Raises StreamRefused (LIMIT) if there are too many."""
        number = self.numbers.next(len(self.live))
        stream = Stream(self, number, protocol, destination, handler, self.now)
        self.live[stream.id] = stream
        self._renew_credit()
        self._outbox.send(wire.encode_open(stream.id, protocol, destination))
        return stream

    def receive_open(self, id: int, protocol: StreamProtocol, destination: Destination) -> None:
        if self.dialler:
            raise PeerError(CloseReason.PROTOCOL, "the exit opened a stream")
        if self.numbers.take(id, self.now):
            self._begin(id, protocol, destination)
            if self.ahead.bytes:
                self._act_on_ahead(id)

    def _begin(self, id: int, protocol: StreamProtocol, destination: Destination) -> None:
        """The first OPEN of a stream came."""
        numbers = self.numbers
        stream = Stream(self, id, protocol, destination, UNBORN, self.now)
        self.live[id] = stream
        if numbers.too_many(len(self.live)):
            self.send_refused(stream, StreamReason.LIMIT)
            return
        if numbers.opens == 1:
            self._renew_count()
        self._renew_credit()
        try:
            self.accept_stream(stream)
        except PeerError:
            raise
        except Exception as error:  # noqa: BLE001  see the head of session.py
            self.stream_failed(stream, stream.handler, error)

    def _act_on_ahead(self, id: int) -> None:
        """What came before the OPEN of its stream."""
        for kind, _, value in self.ahead.take(id):
            self.turn.spend(FRAME_COSTS[kind])
            STREAM_FRAMES[kind](self, id, value)

    def receive_opened(self, id: int, value: None) -> None:
        self._from_exit("accepted")
        stream = self.live.get(id)
        if stream is None:
            self.numbers.late(wire.OPENED, id, self.now)
        elif not stream.opened:
            self._connected(stream)

    def _connected(self, stream: Stream) -> None:
        """The exit has connected the destination: it says so, or its first bytes do."""
        stream.opened = True
        handler = stream.handler
        try:
            self.events.opened(stream)
            handler.opened()
        except Exception as error:  # noqa: BLE001  see the head of session.py
            self.stream_failed(stream, handler, error)

    def receive_refused(self, id: int, reason: StreamReason) -> None:
        self._from_exit("refused")
        stream = self.live.get(id)
        if stream is None:
            self._late_end(wire.REFUSED, id, 0)
            return
        if stream.opened:
            raise PeerError(CloseReason.PROTOCOL, "the exit refused a stream that it had accepted")
        self.refused[reason] += 1
        untouched = stream.untouched
        self._answer_end(stream)
        handler = stream.handler
        try:
            if not self.events.refused(stream, reason, untouched):
                handler.refused(reason)
        except Exception as error:  # noqa: BLE001  see the head of session.py
            self.stream_failed(stream, handler, error)
        stream.handler = ENDED

    def _from_exit(self, what: str) -> None:
        if not self.dialler:
            raise PeerError(CloseReason.PROTOCOL, f"the client {what} a stream")

    # --- data ------------------------------------------------------------------------------------------------------

    def receive_data(self, id: int, offset: int, payload: memoryview) -> None:
        """A DATA frame: `payload` belongs at `offset`."""
        end = offset + len(payload)
        stream = self.live.get(id)
        if stream is not None and not stream.opened:
            stream = self._opened_by(stream)
        if stream is None:
            self.numbers.late_data(id, end, self.now)
            self._renew_credit()
            return
        if end > stream.received:
            if stream.final is not None:
                raise PeerError(CloseReason.PROTOCOL, MOVED_END)
            if not self._take(stream, end):
                return
        if offset == stream.delivered and stream.pieces is None:
            self._deliver(stream, payload)
        elif end > stream.delivered:
            self._deliver_later(stream, offset, payload)
        if stream.final == stream.delivered and stream.receive_half is Half.OPEN:
            self._deliver_end(stream)

    def has_room(self, id: int, offset: int) -> bool:
        """Whether bytes of a stream at `offset` may be kept if they do not come in their order. What the lane loses
        leaves holes, so there may be more of them than a peer may leave on other paths."""
        stream = self.live.get(id)
        if stream is None or offset <= stream.delivered:
            return True
        pieces = 0 if stream.pieces is None else stream.pieces.pieces
        return pieces < MAX_PIECES - SPARE_PIECES and self.pieces.used < MAX_SESSION_PIECES - SPARE_PIECES

    def receive_fin(self, id: int, final: int) -> None:
        """A FIN frame: the peer sends `final` bytes in all."""
        stream = self.live.get(id)
        if stream is not None and not stream.opened:
            stream = self._opened_by(stream)
        if stream is None:
            self._late_end(wire.FIN, id, final)
            return
        self._set_final(stream, final)
        if final > stream.received and not self._take(stream, final):
            return
        if final == stream.delivered and stream.receive_half is Half.OPEN:
            self._deliver_end(stream)

    def _opened_by(self, stream: Stream) -> Stream | None:
        """At the dialler, the exit's first bytes or their end open a stream. None if its handler ends it then."""
        if self.dialler:
            self._connected(stream)
            if stream.handler is ENDED:
                return None
        return stream

    def _take(self, stream: Stream, end: int) -> bool:
        """Count bytes up to `end`. False if there is no room for them, and the stream is reset."""
        grown = end - stream.received
        self.bytes_received += grown
        self.received_credit.take(grown)
        if not stream.take_data(end, self.now, self.windows):
            self._abort(stream, stream.handler, StreamReason.LIMIT)
            return False
        return True

    @staticmethod
    def _set_final(stream: Stream, final: int) -> None:
        """Raises PeerError if it was another one, or more has come."""
        if final < stream.received or (stream.final is not None and final != stream.final):
            raise PeerError(CloseReason.PROTOCOL, MOVED_END)
        stream.final = final

    def _deliver(self, stream: Stream, payload: memoryview) -> None:
        stream.delivered += len(payload)
        handler = stream.handler
        try:
            handler.data_received(payload)
        except Exception as error:  # noqa: BLE001  see the head of session.py
            self.stream_failed(stream, handler, error)

    def _deliver_later(self, stream: Stream, offset: int, payload: memoryview) -> None:
        """Bytes that came in another order, or in part for the second time."""
        if offset < stream.delivered:
            payload, offset = payload[stream.delivered - offset :], stream.delivered
        if stream.pieces is None:
            if offset == stream.delivered:
                self._deliver(stream, payload)
                return
            stream.pieces = Reassembly(self.pieces)
        pieces = stream.pieces
        pieces.insert(offset, payload)
        while stream.receive_half is Half.OPEN and (piece := pieces.pop(stream.delivered)) is not None:
            # One frame can close a hole before very many.
            self.turn.spend(FRAME_COSTS[wire.DATA])
            self._deliver(stream, memoryview(piece))
        if not pieces.pieces:
            stream.pieces = None

    def _deliver_end(self, stream: Stream) -> None:
        stream.receive_half = Half.CLOSED
        stream.count_held(self.now, self.windows)
        handler = stream.handler
        if stream.send_half is Half.CLOSED:
            self._remove(stream)
            stream.handler = ENDED
        try:
            handler.eof_received()
        except Exception as error:  # noqa: BLE001  see the head of session.py
            self.stream_failed(stream, handler, error)

    def receive_reset(self, id: int, reason: StreamReason, final: int) -> None:
        stream = self.live.get(id)
        if stream is None:
            self._late_end(wire.RESET, id, final)
            return
        self._set_final(stream, final)
        if final > stream.announced:
            raise PeerError(CloseReason.CREDIT, "the peer ended a stream beyond its window")
        self.received_credit.take(final - stream.received)
        stream.received = final
        self._answer_end(stream)
        handler, stream.handler = stream.handler, ENDED
        try:
            handler.reset(reason)
        except Exception as error:  # noqa: BLE001  see the head of session.py
            self.faults.report(error)

    def receive_window(self, id: int, limit: int) -> None:
        if not id:
            self._receive_session_window(limit)
            return
        stream = self.live.get(id)
        if stream is None:
            self.numbers.late(wire.WINDOW, id, self.now)
        elif stream.raise_send_limit(limit):
            self.scheduler.wait(stream)
            self.wake()

    def _receive_session_window(self, limit: int) -> None:
        if limit > self._credit_limit:
            self.credit += limit - self._credit_limit
            self._credit_limit = limit
            self._feed_starved()

    def _feed_starved(self) -> None:
        """There is credit of the session for those that wait for it."""
        starved, self._starved = self._starved, {}
        for stream in starved.values():
            stream.starved = False
            self.scheduler.wait(stream)
        if starved:
            self.wake()

    def receive_streams(self, count: int) -> None:
        self._from_exit("allowed")
        self.numbers.allow(count)

    def receive_datagram(self, id: int, destination: Destination, payload: memoryview) -> None:
        stream = self.live.get(id)
        if stream is None:
            self.numbers.late(wire.DATAGRAM, id, self.now)
        elif stream.protocol is not StreamProtocol.UDP:
            raise PeerError(CloseReason.PROTOCOL, "the peer sent a datagram on a stream of bytes")
        else:
            self._deliver_datagram(stream, destination, payload)

    def datagram_from_lane(self, id: int, destination: Destination, payload: memoryview) -> None:
        """A datagram came on the lane. It is dropped if its stream has not begun or has ended."""
        stream = self.live.get(id)
        if stream is not None and stream.protocol is StreamProtocol.UDP:
            self._deliver_datagram(stream, destination, payload)

    def _deliver_datagram(self, stream: Stream, destination: Destination, payload: memoryview) -> None:
        self.bytes_received += len(payload)
        if stream.receive_half is not Half.OPEN:
            return  # its end has overtaken it, by another path
        handler = stream.handler
        try:
            handler.datagram_received(destination, payload)
        except Exception as error:  # noqa: BLE001  see the head of session.py
            self.stream_failed(stream, handler, error)

    # --- for a stream ----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        self._outbox.wake()

    def wait_for_credit(self, stream: Stream) -> None:
        """Call the handler of `stream` when the session has credit again."""
        self._starved[stream.id] = stream

    def window_due(self, stream: Stream) -> None:
        self.windows_due[stream.id] = stream
        self._outbox.wake()

    def next_window(self, stream: Stream, round_trip: float) -> bytes | None:
        """The WINDOW frame that is due for `stream`, if it is still of use."""
        if stream.receive_half is Half.CLOSED:
            stream.count_held(self.now, self.windows)
            return None
        before = stream.announced
        limit = stream.next_window(self.now, round_trip, self.windows)
        return wire.encode_window(stream.id, limit) if limit > before else None

    def send_opened(self, stream: Stream) -> None:
        if stream.id in self.live and not stream.opened:
            stream.opened = True
            self._outbox.send(wire.encode_opened(stream.id))

    def send_refused(self, stream: Stream, reason: StreamReason) -> None:
        if stream.id in self.live:
            self.refused[reason] += 1
            self._outbox.send(wire.encode_refused(stream.id, reason))
            self._end(stream)

    def send_fin(self, stream: Stream) -> None:
        stream.send_half = Half.CLOSED
        self._outbox.send(wire.encode_fin(stream.id, stream.sent))
        if stream.receive_half is Half.CLOSED:
            self._remove(stream)
            stream.handler = ENDED

    def send_reset(self, stream: Stream, reason: StreamReason) -> None:
        if stream.id in self.live:
            self._forget_unsent(stream)
            self._outbox.send(wire.encode_reset(stream.id, reason, stream.sent))
            self._outbox.forget(stream.id)
            self._end(stream)

    def send_datagram(self, stream: Stream, destination: Destination, payload: bytes | memoryview) -> None:
        if stream.opened and stream.id in self.live:
            # Before OPENED not: datagrams overtake what is kept, and this one could arrive before its OPEN.
            self.turn.spend(DATAGRAM_WORK)
            self._outbox.send_datagram(stream, destination, payload)

    def stream_failed(self, stream: Stream, handler: StreamHandler, fault: Exception) -> None:
        """`handler` has raised: reset its stream, and let it free what it holds. Of all faults the first is logged."""
        self.faults.report(fault)
        self._abort(stream, handler, StreamReason.GENERAL)

    def _abort(self, stream: Stream, handler: StreamHandler, reason: StreamReason) -> None:
        """Reset a stream, and tell both sides."""
        self.send_reset(stream, reason)
        try:
            handler.reset(reason)
        except Exception as error:  # noqa: BLE001  nothing more can be done for it
            self.faults.report(error)

    # --- end -------------------------------------------------------------------------------------------------------

    def _answer_end(self, stream: Stream) -> None:
        """The peer ended both halves. It waits for our end, unless that is already sent."""
        if stream.send_half is not Half.CLOSED:
            self._forget_unsent(stream)
            self._outbox.send(wire.encode_reset(stream.id, StreamReason.CANCELLED, stream.sent))
        self._outbox.forget(stream.id)
        self._remove(stream)

    def _end(self, stream: Stream) -> None:
        """End both halves on this side; wait for the peer's end unless it came already."""
        if stream.receive_half is not Half.CLOSED and stream.final is None:
            self.numbers.awaited[stream.id] = stream.received
        self._remove(stream)
        stream.handler = ENDED

    def _forget_unsent(self, stream: Stream) -> None:
        """Take back what is queued and will not be sent."""
        if not stream.queue:
            return
        unsent = sum(unit.size for unit in stream.queue)
        self.scheduler.forget(stream)
        if unsent:
            stream.sent -= unsent
            self.credit += unsent
            self._feed_starved()

    def _remove(self, stream: Stream) -> None:
        self._forget_unsent(stream)
        stream.send_half = stream.receive_half = Half.CLOSED
        stream.release(self.now, self.windows)
        if stream.pieces is not None:
            stream.pieces.clear()
            stream.pieces = None
        self._give_back(stream, stream.received)
        self.live.pop(stream.id, None)
        self.windows_due.pop(stream.id, None)
        self._starved.pop(stream.id, None)
        self._renew_count()
        if not self.live:
            self.events.idle()

    def _late_end(self, kind: int, id: int, final: int) -> None:
        """A FIN, RESET or REFUSED for a stream that does not live."""
        self.numbers.late_end(kind, id, final, self.now)
        self._renew_credit()
        self._renew_count()

    def count_consumed(self, stream: Stream) -> None:
        self._give_back(stream, stream.consumed_bytes)

    def _give_back(self, stream: Stream, consumed: int) -> None:
        self.received_credit.consumed += consumed - stream.credited
        stream.credited = consumed
        self._renew_credit()

    def _renew_credit(self) -> None:
        limit = self.received_credit.next_limit(len(self.live))
        if limit is not None:
            self._outbox.send_control(wire.encode_window(0, limit))

    def _renew_count(self) -> None:
        """At the exit: see to it that the dialler may open as many as there is room for."""
        if not self.dialler:
            count = self.numbers.next_count(len(self.live))
            if count is not None:
                self._outbox.send_control(wire.encode_number(wire.STREAMS, count))

    def clear(self) -> list[Stream]:
        """The session ended: forget all streams, whose handlers are still to be told. Returns them."""
        streams = list(self.live.values())
        self.live.clear()
        for stream in streams:
            stream.send_half = stream.receive_half = Half.CLOSED
            self.scheduler.forget(stream)
            stream.release(self.now, self.windows)
            if stream.pieces is not None:
                stream.pieces.clear()
                stream.pieces = None
        self.numbers.awaited.clear()
        self.ahead.clear()
        self.windows_due.clear()
        self._starved.clear()
        # None of these may keep the session in memory: it would wait for a collection of garbage.
        self._outbox = NOWHERE
        self.accept_stream = refuse_streams
        self.events.renewed = nothing
        return streams


ENDED: Final = StreamHandler()
"""The handler of a stream that has ended, so that neither of them keeps the other one in memory."""
UNBORN: Final = StreamHandler()
"""The handler of a stream until `accept_stream` sets one."""
STREAM_FRAMES: Final[dict[int, Callable[[StreamTable, int, Any], None]]] = {
    wire.OPEN: lambda table, id, value: table.receive_open(id, *value),
    wire.OPENED: StreamTable.receive_opened,
    wire.REFUSED: StreamTable.receive_refused,
    wire.DATA: lambda table, id, value: table.receive_data(id, *value),
    wire.FIN: StreamTable.receive_fin,
    wire.RESET: lambda table, id, value: table.receive_reset(id, *value),
    wire.WINDOW: StreamTable.receive_window,
    wire.DATAGRAM: lambda table, id, value: table.receive_datagram(id, *value),
}
"""What receives the frames that name a stream: number and value (see wire.Frame)."""
