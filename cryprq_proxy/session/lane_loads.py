"""Loads: what one train of the datagram lane carries of a session.

    StreamLoad   bytes of one unit, which are data of one stream; sealed in slices of `payload` bytes
    FramesLoad   whole frames, which are one datagram

A load is in one place at a time: with the carrier, which has it in flight, or with LanePath, which gives it once more
when the carrier says that it is lost. A part of a load is a range of its datagrams. So of each byte it is known where
it is, and none is counted twice.
"""

from __future__ import annotations

from .retention import Unit
from .wire import BOUND_LAYOUT, DATA_HEADER


class LaneLog:
    """What the lane is carrying: of each unit, in the order in which they left, how many bytes of data the peer has not
    acknowledged. A frame without data counts as one."""

    __slots__ = ("units",)

    def __init__(self) -> None:
        self.units: dict[Unit, int] = {}

    def add(self, unit: Unit) -> None:
        self.units[unit] = unit.size or 1

    def settle(self, unit: Unit, size: int) -> bool:
        """So many bytes of `unit` need not go again. Whether that is all of it; then it is forgotten here."""
        units = self.units
        left = units[unit] - size
        if left > 0:
            units[unit] = left
            return False
        del units[unit]
        return True


class StreamLoad:
    """Bytes of `stream` from `offset` on: buffer[start:end], to be sealed before anything else is asked of the session.
    They are bytes `begin` to `finish` of the data of `unit`."""

    __slots__ = (
        "begin",
        "buffer",
        "end",
        "finish",
        "log",
        "offset",
        "payload",
        "sent_at",
        "start",
        "stream",
        "unit",
    )

    def __init__(
        self, unit: Unit, begin: int, finish: int, payload: int, log: LaneLog, sent_at: float
    ) -> None:
        self.unit = unit
        self.begin, self.finish = begin, finish
        self.payload = payload
        self.log = log
        self.sent_at = sent_at
        _, self.stream, offset = BOUND_LAYOUT.unpack_from(unit.frame)
        self.offset = offset + begin
        self.buffer = memoryview(unit.frame)
        self.start, self.end = DATA_HEADER + begin, DATA_HEADER + finish

    @property
    def size(self) -> int:
        """In bytes."""
        return self.finish - self.begin

    def part(self, first: int, behind: int) -> tuple[int, int]:
        """Where the bytes of these datagrams begin and end in the data of `unit`."""
        begin = self.begin + first * self.payload
        return begin, min(self.begin + behind * self.payload, self.finish)


class FramesLoad:
    """The frames of `units`, joined."""

    __slots__ = ("data", "log", "sent_at", "units")

    def __init__(self, units: list[Unit], log: LaneLog, sent_at: float) -> None:
        self.units = units
        self.data = b"".join([unit.frame for unit in units])
        self.log = log
        self.sent_at = sent_at

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.data)


type Load = StreamLoad | FramesLoad
type Part = tuple[Load, int, int]
"""Datagrams of a load: the first, and the one behind the last."""
