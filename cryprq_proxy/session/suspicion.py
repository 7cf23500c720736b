"""Suspicion: after which silence a path is in doubt, and how it is told from one that is only slow.

A path owes an answer while the peer has not acknowledged what it carried. How long that takes is measured as TCP does
(RFC 6298): a smoothed time and how much it varies. One record at a time is timed, so whatever waits in a queue is
measured too, and the peer's delay of acknowledgements.

An answer that takes longer is late. But a peer may be slow to answer, or its answer wait behind much, while the kernel
of the other end acknowledges what comes: then that is waited for, for a time. Not for ever: the other end may be a
proxy between us, which knows nothing of the peer.

    late      -> in doubt: what is new goes by another path, and so does the oldest of what this one has carried, again
              -> both paths are asked (PING). The path answers first: it was only slow, the doubt was wrong
              -> the other one answers first: all that this one has carried goes by the other one too

So a wrong doubt costs some thousand bytes, and a slow path is given up only for one that was seen to be faster.
"""

from __future__ import annotations

from typing import Final

from .liveness import UNKNOWN_ROUND_TRIP

LEAST_LATE: Final = 0.025
"""Seconds beyond the usual time after which no answer is late, however little that time varies. So late may another
path's answer be believed to be the first: both can wait in one turn of a peer's loop."""
MOST_PATIENCE: Final = 16
"""Each doubt that was wrong doubles the time, up to so many times as much, and each right one halves it: else two slow
hosts send all of it by one path after the other (RFC 9002 section 6.2.1 backs off for the same reason)."""
KERNEL_ROUNDS: Final = 3
"""So many times as long an answer may take of which the other end's kernel has acknowledged the question."""
CALM_SECONDS: Final = 60.0
"""Without a wrong doubt for so long, the time is halved again: a path that lives for days meets a bad hour, too."""
LOOK_SECONDS: Final = 0.1
"""When all other paths are in doubt, it is looked at again so much later."""
_RESOLUTION: Final = 0.001
"""Of what kernels tell, in seconds."""
_MEAN_WEIGHT: Final = 1 / 8
_DEVIATION_WEIGHT: Final = 1 / 4
_DEVIATIONS: Final = 4
"""RFC 6298, section 2."""


class Suspicion:
    """That of one path. `asked`: since when it owes an answer, or when it last gave a part of it. `since`: when the
    present doubt began, or the last one. Times are in seconds."""

    __slots__ = (
        "_calm_at",
        "_deviation",
        "_known",
        "_last",
        "_mean",
        "_not_before",
        "_patience",
        "_right",
        "_timed",
        "_timed_at",
        "_until",
        "asked",
        "since",
    )

    def __init__(self) -> None:
        self.asked = self.since = float("inf")
        self._mean = UNKNOWN_ROUND_TRIP + LEAST_LATE
        self._deviation = self._mean / 2
        self._known = False
        self._patience = 1
        self._right = False
        self._last = self._timed = -1
        """The newest record with units, and the one that is timed."""
        self._timed_at = 0.0
        self._until = 0.0
        """Before this the kernels tell of nothing that is late."""
        self._not_before = 0.0
        self._calm_at = float("inf")
        """When the patience is halved."""

    @property
    def seconds(self) -> float:
        """How long an answer may take."""
        return (self._mean + max(_DEVIATIONS * self._deviation, LEAST_LATE)) * self._patience

    @property
    def at(self) -> float:
        """When an answer is late, or it is to be looked at again whether it is."""
        seconds = self.seconds
        late = self.asked + max(seconds, min(self._until - self.asked, KERNEL_ROUNDS * seconds))
        return max(late, self._not_before)

    def confirmed(self, unanswered: float, now: float) -> bool:
        """`at` has come. Whether the path is to be in doubt, where the other end's kernel has acknowledged nothing for
        `unanswered` seconds."""
        seconds = self.seconds
        if unanswered < seconds - _RESOLUTION and now < self.asked + KERNEL_ROUNDS * seconds:
            self._until = now + seconds - unanswered
            return False
        return True

    def sent(self, record: int, now: float) -> None:
        """The newest unit that the peer has not acknowledged is in this record."""
        if record > self._last:
            self._last = record
            if self._timed < 0:
                self._timed, self._timed_at = record, now

    def answered(self, records: int, now: float) -> None:
        """The path has brought an acknowledgement of so many of its records."""
        self.asked = now
        if 0 <= self._timed < records:
            self._timed = -1
            self.measured(now - self._timed_at)

    def measured(self, sample: float) -> None:
        """An acknowledgement took so long, or would have taken."""
        if self._known:
            self._deviation += _DEVIATION_WEIGHT * (abs(sample - self._mean) - self._deviation)
            self._mean += _MEAN_WEIGHT * (sample - self._mean)
        else:
            self._known = True
            self._mean, self._deviation = sample, sample / 2

    def begin(self, now: float) -> None:
        """The path is in doubt."""
        self.since = now
        self._right = False

    def confirm(self) -> None:
        """Another path was faster. What the silence lasts says nothing about how fast answers are."""
        self._right = True
        self._timed = -1

    def end(self, now: float) -> None:
        """The path has answered: what it still owes may take its time again."""
        self.asked = now
        if self._right:
            self._patience = max(self._patience // 2, 1)
        else:
            self._patience = min(2 * self._patience, MOST_PATIENCE)
        self._calm_at = now + CALM_SECONDS

    def calm(self, now: float) -> None:
        """The path has answered, and was not in doubt."""
        if now >= self._calm_at:
            self._patience = max(self._patience // 2, 1)
            self._calm_at = now + CALM_SECONDS

    def postpone(self, now: float) -> None:
        """There is no other path to be used."""
        self._not_before = now + LOOK_SECONDS
