"""Loads: what one train of the datagram lane carries of a session.

    StreamLoad   bytes of one unit, which are data of one stream; sealed in slices of `payload` bytes
    FramesLoad   whole frames, which are one datagram

A load is in one place at a time: with the carrier, which has it in flight, or with LanePath, which gives it once more
when the carrier says that it is lost. A part of a load is a range of its datagrams.
"""

from __future__ import annotations

from typing import Final

from .retention import SLOT_HEADROOM, Unit
from .wire import BOUND_LAYOUT, DATA_HEADER

MAX_SLICES: Final = 44
"""Datagrams of a load at most: a kernel takes no more of 1,443 bytes in one send."""


class StreamLoad:
    """Bytes of `stream` from `offset` on: buffer[start:end], behind SLOT_HEADROOM bytes or more that may be
    overwritten while they are sealed. It holds bytes `begin` to `finish` of the data of `unit`."""

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
        self, unit: Unit, begin: int, finish: int, payload: int, log: dict[Unit, int], now: float
    ) -> None:
        self.unit = unit
        self.begin, self.finish = begin, finish
        self.payload = payload
        self.log = log
        self.sent_at = now
        _, self.stream, offset = BOUND_LAYOUT.unpack_from(unit.frame)
        self.offset = offset + begin
        if unit.slot is not None:
            self.buffer = unit.slot
            self.start = SLOT_HEADROOM + begin
        else:
            # A small one: bytes of its own, which may not be written to.
            copy = bytearray(SLOT_HEADROOM)
            copy += unit.frame[DATA_HEADER + begin : DATA_HEADER + finish]
            self.buffer = memoryview(copy)
            self.start = SLOT_HEADROOM
        self.end = self.start + finish - begin


class FramesLoad:
    """Frames joined to `data`, at most `payload` bytes."""

    __slots__ = ("data", "log", "sent_at", "units")

    def __init__(self, units: list[Unit], data: bytes, log: dict[Unit, int], now: float) -> None:
        self.units = units
        self.data = data
        self.log = log
        self.sent_at = now


type Load = StreamLoad | FramesLoad
