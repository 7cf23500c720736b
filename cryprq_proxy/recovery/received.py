"""What came by a path, and the acknowledgements of it: RFC 9000 sections 13.2 and 19.3, with counters of datagrams.

The body of an acknowledgement, big-endian:

    largest u64 | delay in us u32 | CE-marked datagrams so far u32 | ranges u8 | length u32 | (gap u32 | length u32)*

Ranges come from the highest down: `length` counters up to `largest`, then `gap` that are missing, and so on. In memory
they are *bounds*, a flat rising list: the first counter of the lowest range, the one behind its last, and so on. So a
bisection tells whether a counter is inside (its place is odd), and wire and memory differ by one subtraction each.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from itertools import accumulate, pairwise
from math import inf
from operator import sub
from struct import Struct
from typing import Final, NamedTuple

from .round_trip import ACK_DELAY

GAPS_APART: Final = 1 / 8
"""Round trips between two acknowledgements that only tell of gaps: so much later at most a loss is made good."""
MAX_RANGES: Final = 256
"""Ranges that are kept. If there are more, the lowest are forgotten: what is in them is sent again."""
SENT_RANGES: Final = 64
"""Ranges in an acknowledgement, the highest."""
SPAN: Final = 1 << 17
"""Counters below the highest that are still acknowledged: twice what can be in flight."""
TOLD: Final = 16
"""Acknowledgements in which each counter is named: those of two windows, or what a short black-out swallows. Behind
them, old gaps cost nothing any more: a tenth of the ranges at 1 % loss."""

_COUNT_AT: Final = 16
_BODIES: Final = [Struct(f">QIIB{2 * count - 1}I") for count in range(1, SENT_RANGES + 1)]
_MOST: Final = (1 << 32) - 1
_NONE: Final = 1 << 64
MAX_BODY: Final = _BODIES[-1].size


class AckFrame(NamedTuple):
    """One acknowledgement."""

    bounds: list[int]
    """See the head of this file; 1 to 64 ranges."""
    delay: float
    """Seconds since the datagram with the highest counter came."""
    ce: int
    """Datagrams that the network has marked as congested (RFC 3168), so far."""


def encode(frame: AckFrame) -> bytes:
    """The body of `frame`, at most `MAX_BODY` bytes."""
    bounds = frame.bounds
    steps = [high - low for low, high in pairwise(bounds)]
    steps.reverse()
    delay = min(max(int(frame.delay * 1e6), 0), _MOST)
    count = len(bounds) // 2
    return _BODIES[count - 1].pack(bounds[-1] - 1, delay, min(frame.ce, _MOST), count, *steps)


def decode(body: bytes | memoryview) -> AckFrame | None:
    """What `encode` made; None for anything else: no byte too many, no empty range or gap, no counter below 0."""
    if len(body) <= _COUNT_AT or not 1 <= body[_COUNT_AT] <= SENT_RANGES:
        return None
    layout = _BODIES[body[_COUNT_AT] - 1]
    if len(body) != layout.size:
        return None
    largest, delay, ce, _, *steps = layout.unpack(body)
    if 0 in steps:
        return None
    bounds = list(accumulate(steps, sub, initial=largest + 1))
    if bounds[-1] < 0:
        return None
    bounds.reverse()
    return AckFrame(bounds, delay / 1e6, ce)


class Received:
    """The counters that came by a path and were acted on. `due` is the time at which an acknowledgement must leave;
    infinite if none is owed."""

    __slots__ = ("_bounds", "_ce", "_highest_at", "_low", "_lows", "_taken_at", "apart", "due")

    def __init__(self) -> None:
        self.due = inf
        self.apart = 0.0
        """Seconds between two acknowledgements that nobody has asked for, even if something is missing: at 1 % loss
        half of all were those. At most `ACK_DELAY`."""
        self._taken_at = -inf
        self._bounds: list[int] = []
        self._highest_at = 0.0
        self._ce = 0
        # The lowest counter that came since the last acknowledgement, and those of the ones before.
        self._low = _NONE
        self._lows: deque[int] = deque(maxlen=TOLD)

    def add(
        self, first: int, last: int, now: float, *, eliciting: bool, ask: bool = False, ce: int = 0
    ) -> None:
        """Datagrams with the counters `first` to `last` came, of which the network has marked `ce`.

        What elicits is acknowledged within `ACK_DELAY`; at once if the sender asks, or if it is not the next in order
        and the last acknowledgement is `apart` seconds old.
        What the owner refuses, for want of room, it does not add: it is sent again.
        """
        bounds, prompt = self._bounds, ask
        if bounds and first == bounds[-1]:
            bounds[-1] = last + 1
            self._highest_at = now
        else:
            prompt = prompt or (eliciting and bool(bounds))
            if not bounds or first > bounds[-1]:
                bounds += (first, last + 1)
                self._highest_at = now
            else:
                self._insert(first, last + 1, now)
            if len(bounds) > 2 * MAX_RANGES:
                del bounds[:2]
        self._ce += ce
        self._low = min(self._low, first)
        if prompt:
            self.due = min(self.due, now if ask else max(now, self._taken_at + self.apart))
        elif eliciting and self.due > now + ACK_DELAY:
            self.due = now + ACK_DELAY

    def take(self, now: float) -> AckFrame | None:
        """An acknowledgement of all that came, to be sent now; None before the first datagram."""
        self.due, self._taken_at = inf, now
        if not self._bounds:
            return None
        bounds = self._bounds[-2 * SENT_RANGES :]
        if self._low < _NONE:
            self._lows.append(self._low)
            self._low = _NONE
        floor = max(min(self._lows), bounds[-1] - SPAN)
        if bounds[0] < floor:
            at = bisect_right(bounds, floor)
            bounds = [floor, *bounds[at:]] if at % 2 else bounds[at:]
        return AckFrame(bounds, now - self._highest_at, self._ce)

    def _insert(self, first: int, behind: int, now: float) -> None:
        """Into an odd place or up to one means: that end touches a range that is there."""
        bounds = self._bounds
        if behind > bounds[-1]:
            self._highest_at = now
        low, high = bisect_left(bounds, first), bisect_right(bounds, behind)
        ends = [first] if low % 2 == 0 else []
        if high % 2 == 0:
            ends.append(behind)
        bounds[low:high] = ends
