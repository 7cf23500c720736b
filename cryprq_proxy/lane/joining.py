"""Joining what came in parts, of a packet or a stream: the second step of the lane's receiving half (opening.py).

A packet comes in parts if it was too large for one send, or if the network delivers datagrams one by one. Consecutive
parts of one wake-up are joined by copying: the kernel handles one super-packet faster than its parts. `flush` ends
that: nothing is held longer than a wake-up. Other parts wait in an Assembly (slices.py).
"""

from __future__ import annotations

from typing import Final

from .layout import MAX_STREAM, MAX_STREAM_SLICES, STREAM_SIZE
from .slices import HEADROOM, KIND_MASK, MAX_PACKET, Assembly, Drops, LaneSink, Rows, Run, Shape, total_length

type SliceGroup = tuple[int, int, int, int, int, int]
"""What all slices of a packet have in common: epoch, counter of slice 0, flags, number of slices, gso, header."""


BELOW: Final = 2 * MAX_PACKET
"""Bytes of a train, in front of its last datagram, that are opened at once."""
TOP: Final = HEADROOM + BELOW
"""Where the last datagram of a train is opened in `Room.opened`; the earlier ones are opened below it."""


class Room:
    """The buffers into which datagrams are opened, and the views on them. One Room serves all lanes of a thread."""

    __slots__ = ("held", "holder", "opened", "plain", "row", "stretch", "stretch_holder")

    def __init__(self) -> None:
        self.opened = memoryview(bytearray(TOP + MAX_PACKET))
        self.held = memoryview(bytearray(HEADROOM + MAX_PACKET))
        self.holder: Joiner | None = None
        """The owner of the slices in `held`."""
        self.stretch = memoryview(bytearray(MAX_PACKET))
        self.stretch_holder: StreamJoiner | None = None
        """The owner of the bytes in `stretch`."""
        self.plain = memoryview(bytearray(MAX_STREAM + MAX_STREAM_SLICES * STREAM_SIZE))
        """What is being sealed of a stream, with its headers."""
        self.row = Rows().row


class Joiner:
    """Joins the packets of one session."""

    __slots__ = (
        "_drops",
        "_held",
        "_held_count",
        "_held_end",
        "_held_for",
        "_held_from",
        "_room",
        "_sink",
        "assembly",
    )

    def __init__(self, sink: LaneSink, room: Room, drops: Drops) -> None:
        self._sink = sink
        self._room = room
        self._drops = drops
        self.assembly = Assembly()
        self._held = room.held
        self._held_for: SliceGroup | None = None
        self._held_from = 0
        self._held_count = 0
        self._held_end = 0

    def hold(self, start: int, end: int, index: int, count: int, group: SliceGroup) -> None:
        """Append `count` slices, from `index` on, to the earlier ones of their packet."""
        room = self._room
        if room.holder is not self:
            if room.holder is not None:
                room.holder.flush()
            room.holder = self
        held, (_, _, _, of, gso, header) = self._held, group
        if (
            group == self._held_for
            and index == self._held_from + self._held_count
            and self._held_end == HEADROOM + header + self._held_count * gso
            and self._held_end + end - start <= len(held)
        ):
            start += header
            self._held_count += count
        else:
            self.flush()
            self._held_for, self._held_from, self._held_count, self._held_end = group, index, count, HEADROOM
        after = self._held_end + end - start
        held[self._held_end : after] = self._room.opened[start:end]
        self._held_end = after
        if index + count == of:
            self.flush()

    def forget(self) -> None:
        """Drop what is held."""
        self._held_for = None

    def flush(self) -> None:
        """Deliver what is held."""
        group, self._held_for = self._held_for, None
        if group is not None and self._room.holder is self:
            index, number, flags, of, gso, header = group
            run = Run(Shape(flags, gso, header), self._held_from, self._held_count, of)
            self.deliver(self._held, HEADROOM, self._held_end, run, (index, number))

    def deliver(self, out: memoryview, start: int, end: int, run: Run, key: tuple[int, int]) -> None:
        """Deliver a run whose sizes agree with the packet's own length; keep a part of a split packet."""
        (flags, gso, header), first, count, of = run
        if gso:
            payload = total_length(out, start, flags & KIND_MASK) - header
            size = end - start - header
            if payload < 1 or (count == of and size != payload):
                self._drops.disagreement += count
                return
            segments = of == -(-payload // gso) and size == min(payload, (first + count) * gso) - first * gso
            deliverable = segments or count == of
        else:
            deliverable = count == of and end - start <= MAX_PACKET
        if deliverable:
            self._sink.run(out, start, end, run)
            return
        packet = self.assembly.add(key, run, out[start:end])
        if packet is not None:
            self._sink.run(memoryview(packet), HEADROOM, len(packet), Run(run.shape, 0, of, of))


class StreamJoiner:
    """Joins the bytes of one session's streams that come in datagrams one by one, as far as they follow each other:
    they cost their receiver one call then."""

    __slots__ = ("_count", "_end", "_first", "_next", "_room", "_sink", "_stream")

    def __init__(self, sink: LaneSink, room: Room) -> None:
        self._sink = sink
        self._room = room
        # What is held: bytes up to `_end`, of datagrams from counter `_first` on, up to offset `_next` of the stream.
        self._stream = self._next = self._first = self._count = self._end = 0

    def hold(self, start: int, end: int, stream: int, offset: int, counter: int, ask: bool) -> None:
        """Append what came in one datagram."""
        room = self._room
        if room.stretch_holder is not self:
            if room.stretch_holder is not None:
                room.stretch_holder.flush()
            room.stretch_holder = self
        held, at, size = room.stretch, self._end, end - start
        if (
            not self._count
            or offset != self._next
            or stream != self._stream
            or counter != self._first + self._count
            or at + size > len(held)
        ):
            self.flush()
            self._stream, self._next, self._first, at = stream, offset, counter, 0
        self._end = at + size
        held[at : self._end] = room.opened[start:end]
        self._next += size
        self._count += 1
        if ask:
            self.flush(True)

    def forget(self) -> None:
        """Drop what is held."""
        self._count = 0

    def flush(self, ask: bool = False) -> None:
        """Deliver what is held."""
        count, self._count = self._count, 0
        if count:
            end = self._end
            self._sink.stream(
                self._stream, self._next - end, self._room.stretch, 0, end, self._first, count, ask
            )
