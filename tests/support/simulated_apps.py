"""Applications of the simulator: each stream has a Talker at both ends, and each Talker knows what must come to it.

Every byte of a stream follows from its number, its direction and its offset, so what comes is checked where it comes. A
Talker also checks the order in which it is called, and in the end that the stream has ended as both sides meant it to.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from cryprq_proxy.address import Destination
from cryprq_proxy.errors import StreamReason
from cryprq_proxy.session.retention import SLOT_HEADROOM, SlotPool
from cryprq_proxy.session.streams import Half, Stream, StreamHandler
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.links import TARGET
from tests.support.simulator import Broken, Clock, Host

_PERIOD: Final = 251
_BYTES: Final = bytes(range(_PERIOD)) * 600


class Ending(IntEnum):
    """What a Talker does when it has sent all of its bytes."""

    FINISH = 0
    RESET = 1
    RESET_ON_DATA = 2
    """When it gets its first byte."""
    WAIT = 3
    """It keeps its half open until it is told to `wind_up`."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How a Talker talks. `size` is in bytes, sent in pieces of `piece` with `pause` seconds between them. `stall`:
    seconds until it takes what has come; 0 for at once. `delay`: seconds until the exit answers the OPEN, with a
    refusal if `refuse`."""

    size: int = 1_000
    piece: int = 1 << 20
    pause: float = 0.0
    ending: Ending = Ending.FINISH
    stall: float = 0.0
    delay: float = 0.0
    refuse: bool = False
    slots: bool = False
    datagrams: int = 0


class Talker(StreamHandler):
    """One end of a stream."""

    def __init__(self, host: Host, manner: Manner) -> None:
        self.host = host
        self.clock: Clock = host.clock
        self.manner = manner
        self.stream: Stream | None = None
        self.said = 0
        """Bytes that the stream has taken."""
        self.allowed = 0
        """Bytes that the pauses have let pass."""
        self.received = 0
        self.held = 0
        self.hurried = False
        self.answered = host.dialler
        self.opened_at: float | None = None
        self.finished = self.got_end = self.got_reset = self.did_reset = self.was_refused = (
            self.did_refuse
        ) = False
        self.turned_away = self.no_room = False
        """The exit's session has refused it: it has too many."""
        self.datagrams_sent = 0
        self.datagrams_seen: set[bytes] = set()
        self._pausing = self._taking = False
        self._direction = 0 if host.dialler else 100

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def id(self) -> int:
        assert self.stream is not None
        return self.stream.id

    @property
    def gone(self) -> bool:
        """Both halves ended at once."""
        return self.got_reset or self.did_reset or self.was_refused or self.did_refuse

    @property
    def over(self) -> bool:
        return self.gone or (self.finished and self.got_end)

    def __repr__(self) -> str:
        marks = [name for name in ("finished", "got_end", "got_reset", "did_reset", "was_refused", "did_refuse")
                 if getattr(self, name)]  # fmt: skip
        side = "client" if self.host.dialler else "exit"
        return f"<{side} {self.id}: {self.said} said, {self.received} received, {' '.join(marks) or 'open'}>"

    def _pattern(self, begin: int, size: int, direction: int) -> bytes:
        start = (begin + 7 * self.id + direction) % _PERIOD
        return _BYTES[start : start + size]

    # --- what it does -----------------------------------------------------------------------------------------------

    def begin(self, stream: Stream) -> None:
        self.stream = stream
        if self.host.dialler:
            self.go()
        elif self.manner.delay:
            self.later(self.manner.delay, self.answer)
        else:
            self.answer()

    def later(self, seconds: float, what: object) -> None:
        self.clock.after(seconds, lambda: self.host.do(what))  # type: ignore[arg-type]

    def answer(self) -> None:
        assert self.stream is not None
        if self.answered or self.gone:
            return
        self.answered = True
        if self.manner.refuse:
            self.did_refuse = True
            self.stream.refuse(StreamReason.NOT_ALLOWED)
        else:
            self.stream.accept()
            self.go()

    def go(self) -> None:
        """The next piece may go."""
        self._pausing = False
        if self.gone:
            return
        self.allowed = min(self.allowed + self.manner.piece, self.manner.size)
        if self.datagrams_sent < self.manner.datagrams:
            self._send_datagram()
        self.pump()

    def _send_datagram(self) -> None:
        assert self.stream is not None
        if self.stream.opened:
            self.datagrams_sent += 1
            payload = b"%d %d %d" % (self.id, self._direction, self.datagrams_sent)
            self.stream.send_datagram(TARGET, payload + bytes(self.datagrams_sent * 300))

    def pump(self) -> None:
        while self._pump():
            pass

    def _pump(self) -> bool:
        """Send one piece, or the end; True if there may be more to send now."""
        stream = self.stream
        if stream is None or self.gone or not self.answered or self.finished:
            return False
        if self.said < self.allowed and (room := stream.request_room()):
            self._send(min(room, self.allowed - self.said, len(_BYTES) - _PERIOD))
            return True
        if self.said < self.allowed:
            return False
        more = self.said < self.manner.size or self.datagrams_sent < self.manner.datagrams
        if more and not self.hurried:
            if not self._pausing:
                self._pausing = True
                self.later(self.manner.pause, self.go)
        elif more:
            self.allowed = self.manner.size
            self.datagrams_sent = self.manner.datagrams
            return True
        else:
            self._end()
        return False

    def _send(self, size: int) -> None:
        stream = self.stream
        assert stream is not None
        slots: SlotPool = self.host.slots
        if self.manner.slots:
            size = min(size, stream.frame_limit)
            slot = slots.take()
            slot[SLOT_HEADROOM : SLOT_HEADROOM + size] = self._pattern(self.said, size, self._direction)
            stream.send_slot(slot, size)
        else:
            stream.send(self._pattern(self.said, size, self._direction))
        self.said += size

    def _end(self) -> None:
        assert self.stream is not None
        ending = self.manner.ending
        if ending is Ending.RESET:
            self.leave(StreamReason.CANCELLED)
        elif ending is Ending.FINISH or self.hurried:
            self.finished = True
            if self.stream.send_half is Half.OPEN:
                self.stream.finish()

    def leave(self, reason: StreamReason) -> None:
        """End both halves from this side."""
        assert self.stream is not None
        if not self.over:
            self.did_reset = True
            self.stream.reset(reason)

    def wind_up(self) -> None:
        """Nothing waits any more: what is planned happens now."""
        self.hurried = True
        if self.stream is not None and not self.gone:
            self.answer()
            self.take()
            self.pump()

    def take(self) -> None:
        """What has come leaves the application."""
        self._taking = False
        size, self.held = self.held, 0
        if size and self.stream is not None and not self.gone:
            self.stream.consumed(size)

    # --- how it is called -------------------------------------------------------------------------------------------

    def _called(self, what: str) -> None:
        # An end that waits behind data may still be overtaken by a reset.
        if self.gone if what == "reset" else self.over:
            raise Broken(f"{what} was called on {self!r}")

    def opened(self) -> None:
        self._called("opened")
        if not self.host.dialler or self.opened_at is not None:
            raise Broken(f"opened was called on {self!r}")
        self.opened_at = self.clock.now
        if self.datagrams_sent < self.manner.datagrams:
            self._send_datagram()

    def refused(self, reason: StreamReason) -> None:
        self._called("refused")
        if not self.host.dialler or self.opened_at is not None or self.received:
            raise Broken(f"refused was called on {self!r}")
        self.was_refused = True
        self.turned_away = reason is StreamReason.LIMIT

    def data_received(self, data: memoryview) -> None:
        self._called("data_received")
        size = len(data)
        if not size or self.got_end or (self.host.dialler and self.opened_at is None):
            raise Broken(f"data_received was called on {self!r}")
        expected = self._pattern(self.received, size, 100 - self._direction)
        if data != expected:
            raise Broken(f"other bytes came to {self!r}: {bytes(data[:20])!r} for {expected[:20]!r}")
        self.received += size
        assert self.stream is not None or not self.host.dialler
        if self.stream is not None and self.received > self.stream.announced:
            raise Broken(f"more came than there was credit for: {self!r}")
        self.held += size
        if self.manner.ending is Ending.RESET_ON_DATA:
            self.leave(StreamReason.CANCELLED)
        elif not self.manner.stall or self.hurried:
            self.take()
        elif not self._taking:
            self._taking = True
            self.later(self.manner.stall, self.take)

    def eof_received(self) -> None:
        self._called("eof_received")
        if self.got_end or (self.host.dialler and self.opened_at is None):
            raise Broken(f"eof_received was called on {self!r}")
        self.got_end = True

    def reset(self, reason: StreamReason) -> None:
        self._called("reset")
        self.got_reset = True
        # For want of room for what came, by the session of one side itself.
        self.no_room = reason is StreamReason.LIMIT

    def writable(self) -> None:
        self._called("writable")
        said = self.said
        while self._pump():
            if self.said > said and self.stream is not None:
                self.stream.wait_for_turn()  # the next piece is for the next turn
                break

    def datagram_received(self, destination: Destination, payload: memoryview) -> None:
        self._called("datagram_received")
        assert self.stream is not None
        name, _, rest = bytes(payload).partition(b"\0")
        if self.stream.protocol is not StreamProtocol.UDP or destination != TARGET or any(rest):
            raise Broken(f"another datagram came to {self!r}")
        if name in self.datagrams_seen or not name.startswith(b"%d %d " % (self.id, 100 - self._direction)):
            raise Broken(f"{name!r} came to {self!r}")
        self.datagrams_seen.add(name)


def check_pair(client: Talker, exit: Talker | None) -> None:
    """Both ends of a stream, when everything is over. `exit` is None if the stream never came there."""
    if exit is None:
        if client.turned_away:
            return
        raise Broken(f"the exit never saw {client!r}")
    pair = (client, exit)
    for one, other in (pair, pair[::-1]):
        if not one.over:
            raise Broken(f"a stream does not end: {one!r}, {other!r}")
        if one.received > other.said:
            raise Broken(f"more came than was said: {one!r}, {other!r}")
        if one.got_reset and not other.did_reset and not one.no_room:
            raise Broken(f"a stream was reset by nobody: {one!r}, {other!r}")
        if one.was_refused and not other.did_refuse:
            raise Broken(f"a stream was refused by nobody: {one!r}, {other!r}")
        if one.got_end and (one.received != other.said or not (other.finished or other.gone)):
            raise Broken(f"a stream ended too early: {one!r}, {other!r}")
        if one.finished and not one.gone and not other.gone and not other.got_end:
            raise Broken(f"an end is lost: {one!r}, {other!r}")
