"""A stream whose other end is the test: it has the room that the test gives it, and writes down every call."""

from __future__ import annotations

from cryprq_proxy.address import Destination
from cryprq_proxy.errors import StreamReason
from cryprq_proxy.session.retention import SLOT_HEADROOM, SlotPool
from cryprq_proxy.session.streams import Half, StreamHandler


class FakeStream:
    """An AnyStream, open in both directions. `room` is what may be sent at a time; with none the stream is starved."""

    def __init__(self, slots: SlotPool | None = None, room: int = 1 << 20) -> None:
        self.handler: StreamHandler = StreamHandler()
        self.send_half = Half.OPEN
        self.receive_half = Half.OPEN
        self.frame_limit = 1_024
        self.room = room
        self.asked = 0
        """How often `request_room` was called."""
        self.turns = 0
        """How often `wait_for_turn` was called."""
        self.sent = bytearray()
        self.taken = 0
        """Bytes that the handler has consumed."""
        self.datagrams: list[tuple[Destination, bytes]] = []
        self.accepted = False
        self.resets: list[StreamReason] = []
        self._slots = slots or SlotPool()
        self._starved = False
        self._granted = 0

    # --- as the handler calls it ---

    def accept(self) -> None:
        self.accepted = True

    def request_room(self) -> int:
        self.asked += 1
        self._starved = not self.room
        self._granted = self.room
        return self.room

    def wait_for_turn(self) -> None:
        self.turns += 1

    def waits(self) -> bool:
        return self._starved or self.turns > 0

    def send_slot(self, slot: memoryview, size: int) -> None:
        self._granted -= size
        assert 0 < size <= self.frame_limit and self._granted >= 0, "more than there is room for"
        self.send(slot[SLOT_HEADROOM : SLOT_HEADROOM + size])
        self._slots.give(slot)

    def send(self, data: bytes | memoryview) -> None:
        assert self.send_half is Half.OPEN
        self.sent += data

    def finish(self) -> None:
        assert self.send_half is Half.OPEN, "finished twice"
        self.send_half = Half.CLOSED

    def consumed(self, size: int) -> None:
        self.taken += size

    def progress(self) -> int:
        return len(self.sent) + self.taken

    def reset(self, reason: StreamReason) -> None:
        self.resets.append(reason)
        self.send_half = self.receive_half = Half.CLOSED

    def send_datagram(self, destination: Destination, payload: bytes | memoryview) -> None:
        self.datagrams.append((destination, bytes(payload)))

    # --- as the session calls the handler ---

    def turn(self) -> None:
        """The stream has room, and it is its turn."""
        self.turns = 0
        self._starved = False
        self.handler.writable()

    def end(self) -> None:
        """The peer's FIN."""
        self.receive_half = Half.CLOSED
        self.handler.eof_received()
