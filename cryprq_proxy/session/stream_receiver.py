"""What the peer does to the streams of a session: each frame that names one, and what the lane brings for one.

What comes for a stream that does not live is a matter of its number (stream_numbers.py); what the lane has brought
before the OPEN of its stream waits for that (frames_ahead.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ..address import Destination
from ..errors import CloseReason, PeerError, StreamReason
from . import wire
from .frames_ahead import FramesAhead
from .reassembly import MAX_PIECES, MAX_SESSION_PIECES, PieceBudget, Reassembly
from .stream_numbers import MOVED_END
from .stream_table import ENDED, StreamTable
from .streams import Half, Stream, StreamHandler
from .turns import FRAME_COSTS
from .wire import StreamProtocol

SPARE_PIECES: Final = 64
"""Of MAX_PIECES, for bytes that fill holes: the lane refuses others before (lane_path.py)."""

type AcceptStream = Callable[[Stream], None]
"""Called at the exit for each OPEN. It sets `stream.handler` before it returns; it accepts or refuses the stream
then or later."""


def refuse_streams(stream: Stream) -> None:
    """The dialler's AcceptStream: an exit may not open streams."""
    raise PeerError(CloseReason.PROTOCOL, "the exit tried to open a stream")


class StreamReceiver:
    """That of one session, whose streams are in `table`."""

    def __init__(self, table: StreamTable, accept_stream: AcceptStream) -> None:
        self._table = table
        self.accept_stream = accept_stream
        self.bytes_received = 0
        """Stream data and datagram payload."""
        self.pieces = PieceBudget()
        self.ahead = FramesAhead()

    def clear(self) -> None:
        """The session ended."""
        self.ahead.clear()
        # It must not keep the session in memory, which would wait for a collection of garbage.
        self.accept_stream = refuse_streams

    # --- begin -----------------------------------------------------------------------------------------------------

    def receive_open(self, id: int, protocol: StreamProtocol, destination: Destination) -> None:
        table = self._table
        if table.dialler:
            raise PeerError(CloseReason.PROTOCOL, "the exit opened a stream")
        if table.numbers.take(id, table.now):
            self._begin(id, protocol, destination)
            if self.ahead.bytes:
                self._act_on_ahead(id)

    def _begin(self, id: int, protocol: StreamProtocol, destination: Destination) -> None:
        """The first OPEN of a stream came."""
        table = self._table
        stream = Stream(table, id, protocol, destination, UNBORN, table.now)
        table.live[id] = stream
        if table.numbers.too_many(len(table.live)):
            table.send_refused(stream, StreamReason.LIMIT)
            return
        if table.numbers.opens == 1:
            table.renew_count()
        table.renew_credit()
        try:
            self.accept_stream(stream)
        except PeerError:
            raise
        except Exception as error:  # noqa: BLE001  see the head of session.py
            table.stream_failed(stream, stream.handler, error)

    def _act_on_ahead(self, id: int) -> None:
        """What came before the OPEN of its stream."""
        for kind, _, value in self.ahead.take(id):
            self._table.turn.spend(FRAME_COSTS[kind])
            STREAM_FRAMES[kind](self, id, value)

    def receive_opened(self, id: int, value: None) -> None:
        table = self._table
        self._from_exit("accepted")
        stream = table.live.get(id)
        if stream is None:
            table.numbers.late(wire.OPENED, id, table.now)
        elif not stream.opened:
            self._connected(stream)

    def _connected(self, stream: Stream) -> None:
        """The exit has connected the destination: it says so, or its first bytes do."""
        table = self._table
        stream.opened = True
        handler = stream.handler
        try:
            table.events.opened(stream)
            handler.opened()
        except Exception as error:  # noqa: BLE001  see the head of session.py
            table.stream_failed(stream, handler, error)

    def receive_refused(self, id: int, reason: StreamReason) -> None:
        table = self._table
        self._from_exit("refused")
        stream = table.live.get(id)
        if stream is None:
            self._late_end(wire.REFUSED, id, 0)
            return
        if stream.opened:
            raise PeerError(CloseReason.PROTOCOL, "the exit refused a stream that it had accepted")
        table.refused[reason] += 1
        untouched = stream.untouched
        table.answer_end(stream)
        handler = stream.handler
        try:
            if not table.events.refused(stream, reason, untouched):
                handler.refused(reason)
        except Exception as error:  # noqa: BLE001  see the head of session.py
            table.stream_failed(stream, handler, error)
        stream.handler = ENDED

    def _from_exit(self, what: str) -> None:
        if not self._table.dialler:
            raise PeerError(CloseReason.PROTOCOL, f"the client {what} a stream")

    # --- data ------------------------------------------------------------------------------------------------------

    def receive_data(self, id: int, offset: int, payload: memoryview) -> None:
        """A DATA frame: `payload` belongs at `offset`."""
        table = self._table
        end = offset + len(payload)
        stream = table.live.get(id)
        if stream is not None and not stream.opened:
            stream = self._opened_by(stream)
        if stream is None:
            table.numbers.late_data(id, end, table.now)
            table.renew_credit()
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
        stream = self._table.live.get(id)
        if stream is None or offset <= stream.delivered:
            return True
        pieces = 0 if stream.pieces is None else stream.pieces.pieces
        return pieces < MAX_PIECES - SPARE_PIECES and self.pieces.used < MAX_SESSION_PIECES - SPARE_PIECES

    def receive_fin(self, id: int, final: int) -> None:
        """A FIN frame: the peer sends `final` bytes in all."""
        stream = self._table.live.get(id)
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
        if self._table.dialler:
            self._connected(stream)
            if stream.handler is ENDED:
                return None
        return stream

    def _take(self, stream: Stream, end: int) -> bool:
        """Count bytes up to `end`. False if there is no room for them, and the stream is reset."""
        table = self._table
        grown = end - stream.received
        self.bytes_received += grown
        table.received_credit.take(grown)
        if not stream.take_data(end, table.now, table.windows):
            table.abort(stream, stream.handler, StreamReason.LIMIT)
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
            self._table.stream_failed(stream, handler, error)

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
            self._table.turn.spend(FRAME_COSTS[wire.DATA])
            self._deliver(stream, memoryview(piece))
        if not pieces.pieces:
            stream.pieces = None

    def _deliver_end(self, stream: Stream) -> None:
        table = self._table
        stream.receive_half = Half.CLOSED
        stream.count_held(table.now, table.windows)
        handler = stream.handler
        if stream.send_half is Half.CLOSED:
            table.remove(stream)
            stream.handler = ENDED
        try:
            handler.eof_received()
        except Exception as error:  # noqa: BLE001  see the head of session.py
            table.stream_failed(stream, handler, error)

    def receive_reset(self, id: int, reason: StreamReason, final: int) -> None:
        table = self._table
        stream = table.live.get(id)
        if stream is None:
            self._late_end(wire.RESET, id, final)
            return
        self._set_final(stream, final)
        if final > stream.announced:
            raise PeerError(CloseReason.CREDIT, "the peer ended a stream beyond its window")
        table.received_credit.take(final - stream.received)
        stream.received = final
        table.answer_end(stream)
        handler, stream.handler = stream.handler, ENDED
        try:
            handler.reset(reason)
        except Exception as error:  # noqa: BLE001  see the head of session.py
            table.faults.report(error)

    def receive_window(self, id: int, limit: int) -> None:
        table = self._table
        if not id:
            self._table.raise_credit(limit)
            return
        stream = table.live.get(id)
        if stream is None:
            table.numbers.late(wire.WINDOW, id, table.now)
        elif stream.raise_send_limit(limit):
            table.scheduler.wait(stream)
            table.wake()

    def receive_streams(self, count: int) -> None:
        self._from_exit("allowed")
        self._table.numbers.allow(count)

    def receive_datagram(self, id: int, destination: Destination, payload: memoryview) -> None:
        table = self._table
        stream = table.live.get(id)
        if stream is None:
            table.numbers.late(wire.DATAGRAM, id, table.now)
        elif stream.protocol is not StreamProtocol.UDP:
            raise PeerError(CloseReason.PROTOCOL, "the peer sent a datagram on a stream of bytes")
        else:
            self._deliver_datagram(stream, destination, payload)

    def datagram_from_lane(self, id: int, destination: Destination, payload: memoryview) -> None:
        """A datagram came on the lane. It is dropped if its stream has not begun or has ended."""
        stream = self._table.live.get(id)
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
            self._table.stream_failed(stream, handler, error)

    def _late_end(self, kind: int, id: int, final: int) -> None:
        """A FIN, RESET or REFUSED for a stream that does not live."""
        table = self._table
        table.numbers.late_end(kind, id, final, table.now)
        table.renew_credit()
        table.renew_count()


UNBORN: Final = StreamHandler()
"""The handler of a stream until `accept_stream` sets one."""
STREAM_FRAMES: Final[dict[int, Callable[[StreamReceiver, int, Any], None]]] = {
    wire.OPEN: lambda receiver, id, value: receiver.receive_open(id, *value),
    wire.OPENED: StreamReceiver.receive_opened,
    wire.REFUSED: StreamReceiver.receive_refused,
    wire.DATA: lambda receiver, id, value: receiver.receive_data(id, *value),
    wire.FIN: StreamReceiver.receive_fin,
    wire.RESET: lambda receiver, id, value: receiver.receive_reset(id, *value),
    wire.WINDOW: StreamReceiver.receive_window,
    wire.DATAGRAM: lambda receiver, id, value: receiver.receive_datagram(id, *value),
}
"""What receives the frames that name a stream: number and value (see wire.Frame)."""
