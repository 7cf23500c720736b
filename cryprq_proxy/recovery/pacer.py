"""When bytes may leave, so that they leave evenly (RFC 9002 section 7.7).

Each train is paid for with time: what has left is paid up to `_paid`, and a quantum may leave when the clock has come
there. The loop's clock ticks in milliseconds, so a quantum is what two of them hold. A sender that comes late may
catch up on CATCH_UP seconds; what is older is forgone, else a pause would end in a burst.

One that has waited for the pacer itself comes late because the loop is busy. It may catch up on LATE seconds, if they
are no more than LATE_DATAGRAMS: else it sends less than the rate, is measured with that, and is slower yet the next
time, with no end on a busy machine. At a high rate that many would stand in a queue.
"""

from __future__ import annotations

from math import inf
from typing import Final

QUANTUM: Final = 0.002
"""Seconds of the rate that may leave at once: with one millisecond both ends need a tenth more CPU,"""
QUANTUM_DATAGRAMS: Final = 2
"""and datagrams, whatever the rate."""
CATCH_UP: Final = 0.002
LATE: Final = 0.02
LATE_DATAGRAMS: Final = 32
AHEAD: Final = 1.0
"""Seconds that may be paid ahead at most; if there are more, the clock was put back."""
ENDLESS: Final = 1 << 30
"""Bytes that may leave where nothing is paced."""


class Pacer:
    """That of one path."""

    __slots__ = ("_catch_up", "_paid")

    def __init__(self, now: float) -> None:
        """`now`: seconds; it starts with one quantum to send."""
        self._paid = now
        self._catch_up = CATCH_UP
        """What a sender that is late may catch up on, in seconds."""

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
        if late <= CATCH_UP:
            self._catch_up = CATCH_UP
        elif late > self._catch_up:
            late = self._catch_up
        quantum = QUANTUM * rate
        least = QUANTUM_DATAGRAMS * datagram
        return int(late * rate + (quantum if quantum > least else least))

    def sent(self, size: int, now: float, rate: float) -> None:
        """`size` bytes leave; it may be more than the allowance, which is then paid back."""
        self._paid = min(max(self._paid, now - self._catch_up) + size / rate, now + AHEAD)

    def rest(self) -> None:
        """There is nothing to send, or no room for it: what is not sent from here on is forgone."""
        self._catch_up = CATCH_UP

    def next_at(self, now: float, rate: float, datagram: int) -> float:
        """The time at which a quantum may leave, for which the sender waits; in the past or `now` if it may at once."""
        self._catch_up = max(CATCH_UP, min(LATE, LATE_DATAGRAMS * datagram / rate))
        return now if rate == inf else self._paid
