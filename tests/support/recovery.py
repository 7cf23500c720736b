"""What tests of recovery/ share: a congestion control that notes what it is told, and a pacer that lets all through."""

from __future__ import annotations

from math import inf

from cryprq_proxy.recovery.congestion import Sample
from cryprq_proxy.recovery.pacer import Pacer

DATAGRAM = 1_000


class NotedControl:
    """A CongestionControl with a fixed window."""

    def __init__(self, window: int = 1_000_000) -> None:
        self.window = window
        self.rate = inf
        self.datagram = DATAGRAM
        self.notes: list[tuple[str, int]] = []
        self.samples: list[dict[str, float]] = []

    def sent(self, size: int, now: float, in_flight: int) -> None:
        self.notes.append(("sent", in_flight))

    def acked(self, sample: Sample) -> None:
        self.notes.append(("acked", sample.acked))
        self.samples.append({name: getattr(sample, name) for name in Sample.__slots__})

    def lost(self, size: int, now: float, in_flight: int) -> None:
        self.notes.append(("lost", size))

    def silent(self, now: float) -> None:
        self.notes.append(("silent", 0))

    def reset(self, now: float) -> None:
        self.notes.append(("reset", 0))


class OpenPacer(Pacer):
    """Lets everything through, and counts it."""

    __slots__ = ("passed", "ready_at")

    def __init__(self) -> None:
        self.passed = 0
        self.ready_at = 0.0
        """Until then, nothing passes."""

    def allowance(self, now: float, rate: float, datagram: int) -> int:
        return 1 << 30 if now >= self.ready_at else 0

    def sent(self, size: int, now: float, rate: float) -> None:
        self.passed += size

    def next_at(self, now: float, rate: float, datagram: int) -> float:
        return self.ready_at
