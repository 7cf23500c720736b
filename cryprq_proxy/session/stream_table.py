"""The streams of a session that live, what they ask of it, and what all of them share: numbers and credit.

What the peer sends for them comes by stream_receiver.py.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from ..address import Destination
from ..base.faults import Faults
from ..errors import StreamReason
from . import wire
from .control_rates import ControlRates
from .outbox import NOWHERE, Outbox
from .retention import SlotPool
from .scheduler import Scheduler
from .session_credit import INITIAL_CREDIT, SessionCredit
from .session_events import SessionEvents, nothing
from .stream_numbers import StreamNumbers
from .streams import Half, Stream, StreamHandler
from .turns import DATAGRAM_WORK, TurnBudget
from .windows import WindowPool
from .wire import StreamProtocol


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
        self.now = now
        self.live: dict[int, Stream] = {}
        self.refused: Counter[StreamReason] = Counter()
        """Streams that the exit refused; both sides count them."""
        self.windows_due: dict[int, Stream] = {}
        self.credit = INITIAL_CREDIT
        self._credit_limit = INITIAL_CREDIT
        self._starved: dict[int, Stream] = {}
        """Streams that wait for credit of the session."""
        self.received_credit = SessionCredit(window_pool)
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
        self.renew_credit()
        self._outbox.send(wire.encode_open(stream.id, protocol, destination))
        return stream

    # --- for a stream ----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        self._outbox.wake()

    def wait_for_credit(self, stream: Stream) -> None:
        """Call the handler of `stream` when the session has credit again."""
        self._starved[stream.id] = stream

    def raise_credit(self, limit: int) -> None:
        """The peer takes so many bytes of all streams together."""
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
            self.remove(stream)
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
        self.abort(stream, handler, StreamReason.GENERAL)

    def abort(self, stream: Stream, handler: StreamHandler, reason: StreamReason) -> None:
        """Reset a stream, and tell both sides."""
        self.send_reset(stream, reason)
        try:
            handler.reset(reason)
        except Exception as error:  # noqa: BLE001  nothing more can be done for it
            self.faults.report(error)

    # --- end -------------------------------------------------------------------------------------------------------

    def answer_end(self, stream: Stream) -> None:
        """The peer ended both halves. It waits for our end, unless that is already sent."""
        if stream.send_half is not Half.CLOSED:
            self._forget_unsent(stream)
            self._outbox.send(wire.encode_reset(stream.id, StreamReason.CANCELLED, stream.sent))
        self._outbox.forget(stream.id)
        self.remove(stream)

    def _end(self, stream: Stream) -> None:
        """End both halves on this side; wait for the peer's end unless it came already."""
        if stream.receive_half is not Half.CLOSED and stream.final is None:
            self.numbers.awaited[stream.id] = stream.received
        self.remove(stream)
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

    def remove(self, stream: Stream) -> None:
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
        self.renew_count()
        if not self.live:
            self.events.idle()

    def count_consumed(self, stream: Stream) -> None:
        self._give_back(stream, stream.consumed_bytes)

    def _give_back(self, stream: Stream, consumed: int) -> None:
        self.received_credit.consumed += consumed - stream.credited
        stream.credited = consumed
        self.renew_credit()

    def renew_credit(self) -> None:
        limit = self.received_credit.next_limit(len(self.live))
        if limit is not None:
            self._outbox.send_control(wire.encode_window(0, limit))

    def take_most(self, most: int) -> None:
        """Streams that may live from now on; those that do stay."""
        self.numbers.take_most(most)
        self.renew_count()

    def renew_count(self) -> None:
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
        self.windows_due.clear()
        self._starved.clear()
        # None of these may keep the session in memory: it would wait for a collection of garbage.
        self._outbox = NOWHERE
        self.events.renewed = nothing
        return streams


ENDED: Final = StreamHandler()
"""The handler of a stream that has ended, so that neither of them keeps the other one in memory."""
