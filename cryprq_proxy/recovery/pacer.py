"""When bytes may leave, so that they leave evenly (RFC 9002 section 7.7).

Each train is paid for with time: what has left is paid up to `_paid`, and a quantum may leave when the clock has come
there. The loop's clock ticks in milliseconds, so a quantum is what two of them hold. A loop that is late may
catch up on CATCH_UP seconds; what is older is forgone, else a pause would end in a burst.
"""

from __future__ import annotations

from math import inf
from typing import Final

QUANTUM: Final = 0.002
"""Seconds of the rate that may leave at once: with one millisecond both ends need a tenth more CPU,"""
QUANTUM_DATAGRAMS: Final = 2
"""and datagrams, whatever the rate."""
CATCH_UP: Final = 0.002
AHEAD: Final = 1.0
"""Seconds that may be paid ahead at most; if there are more, the clock was put back."""
ENDLESS: Final = 1 << 30
"""Bytes that may leave where nothing is paced."""


class Pacer:
    """That of one path."""

    __slots__ = ("_paid",)

    def __init__(self, now: float) -> None:
        """`now`: seconds; it starts with one quantum to send."""
        self._paid = now

    def allowance(self, now: float, rate: float, datagram: int) -> int:
        """Bytes that may leave now: 0, or at least one quantum. `rate`: bytes a second, or infinite; `datagram`: bytes
        of a full one."""
        if rate == inf:
            return ENDLESS
        late = now - self._paid
        if late < 0:
            if late > -AHEAD:
                return 0
            self._paid, late = now, 0.0
        if late > CATCH_UP:
            late = CATCH_UP
        quantum = QUANTUM * rate
        least = QUANTUM_DATAGRAMS * datagram
        return int(late * rate + (quantum if quantum > least else least))

    def sent(self, size: int, now: float, rate: float) -> None:
        """`size` bytes leave; it may be more than the allowance, which is then paid back."""
        self._paid = min(max(self._paid, now - CATCH_UP) + size / rate, now + AHEAD)

    def next_at(self, now: float, rate: float, datagram: int) -> float:
        """The time at which a quantum may leave; in the past or `now` if it may at once."""
        return now if rate == inf else self._paid
