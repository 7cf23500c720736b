"""Which of several exits new streams go to. No clock, no I/O: the state of each exit goes in, `active` is the choice.

An exit is healthy while its link is up and a sign of life came within SILENT_SECONDS; links are asked for one every
PROBE_SECONDS. The choice leaves an exit that is not healthy at once, for the healthy one with the smallest priority
number, among equals for the nearest. It goes back slowly, so that it does not swing with a link that comes and goes:

    to a smaller number   once that exit has been healthy for `failback` seconds without a break
    among equal numbers   once the other has moreover been nearer by a quarter and by NEARER_SECONDS for as long

Silence counts only while this side could hear: after a suspend, or when the process stood still, it counts anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

PROBE_SECONDS: Final = 1.0
SILENT_SECONDS: Final = 2.0
STALL_SECONDS: Final = 2 * PROBE_SECONDS
"""If `observe` was not called for so long, the process stood still or the machine slept."""
START_SECONDS: Final = 5.0
"""So much later the preferred link may come, where all begin together: at the start, or on a new network."""
HOLD_SECONDS: Final = 2.0
"""A link that this side itself has cut may take so long to come back before another exit is chosen."""
NEARER: Final = 0.75
NEARER_SECONDS: Final = 0.01


class ExitState(NamedTuple):
    """What is known of one exit now."""

    up: bool
    """It has a link that can be used."""
    heard: float = 0.0
    """When it gave the last sign of life."""
    round_trip: float | None = None
    """Seconds, smoothed; None while it is not known."""
    least_round_trip: float | None = None
    """The shortest of this link: what the queues of our own traffic add does not count against the active exit."""


class Selection:
    """The state of the choice among exits, which go by their index. `observe` is to be called every PROBE_SECONDS, and
    when `deadline` comes, and when a link comes or goes."""

    def __init__(self, priorities: Sequence[int], failback: float, now: float) -> None:
        self._priorities = tuple(priorities)
        self._failback = failback
        self._states = [ExitState(False)] * len(self._priorities)
        self._since = [now] * len(self._priorities)
        self._settled = [False] * len(self._priorities)
        self._nearer_since: list[float | None] = [None] * len(self._priorities)
        self._observed = self._awake = now
        self._fresh_until = now + START_SECONDS
        self._hold_until = now
        self.healthy = [False] * len(self._priorities)
        self.pinned: int | None = None
        self.active = min(range(len(self._priorities)), key=self._priorities.__getitem__)

    def observe(self, states: Sequence[ExitState], now: float) -> None:
        """Take in what is known of each exit now."""
        if now - self._observed > STALL_SECONDS:
            self._awake = now
            self.begin_anew(now)
        self._observed = now
        self._states = list(states)
        for index, exit in enumerate(states):
            healthy = exit.up and now - max(exit.heard, self._awake) < SILENT_SECONDS
            if healthy and not self.healthy[index]:
                self._since[index] = now
                self._settled[index] = now < self._fresh_until
            self.healthy[index] = healthy
        self._choose(now)

    def pin(self, index: int | None, now: float) -> None:
        """A person's choice, which nothing but the person changes; None: choose again."""
        self.pinned = index
        self._choose(now)

    def rearrange(self, priorities: Sequence[int], before: Sequence[int | None], now: float) -> None:
        """Choose among other exits from now on. `before` has for each its index up to now, None for a new one. One that
        is still there stays the active one, and pinned if it was."""

        def carried[T](values: Sequence[T], fresh: T) -> list[T]:
            return [fresh if index is None else values[index] for index in before]

        self._priorities = tuple(priorities)
        self._states = carried(self._states, ExitState(False))
        self._since = carried(self._since, now)
        self._settled = carried(self._settled, False)
        self._nearer_since = [None] * len(self._priorities)
        self.healthy = carried(self.healthy, False)
        self.pinned = before.index(self.pinned) if self.pinned is not None and self.pinned in before else None
        if self.active in before:
            self.active = before.index(self.active)
        else:
            self.active = min(self._usable() or range(len(self._priorities)), key=self._rank)
        self.begin_anew(now)

    def begin_anew(self, now: float) -> None:
        """All links are about to be lost for no fault of the exits, and will be back in any order."""
        self._fresh_until = now + START_SECONDS
        self._hold_until = now + HOLD_SECONDS

    def deadline(self) -> float:
        """When an exit will have been silent for too long, or the choice need not wait any more."""
        ends = [
            max(exit.heard, self._awake) + SILENT_SECONDS
            for exit, healthy in zip(self._states, self.healthy, strict=True)
            if healthy
        ]
        if self._hold_until > self._observed:
            ends.append(self._hold_until)
        return min(ends, default=float("inf"))

    def _choose(self, now: float) -> None:
        before = self.active
        if self.pinned is not None:
            self.active = self.pinned
        elif any(self.healthy):
            if self.healthy[before]:
                candidates = [index for index in self._usable() if self._is_better(index, now)]
            else:
                candidates = [] if now < self._hold_until else self._usable()
            self.active = min(candidates, key=self._rank, default=before)
        if self.active != before:
            self._nearer_since = [None] * len(self._priorities)

    def _usable(self) -> list[int]:
        return [index for index, healthy in enumerate(self.healthy) if healthy]

    def _rank(self, index: int) -> tuple[int, float, int]:
        round_trip = self._states[index].round_trip
        return self._priorities[index], float("inf") if round_trip is None else round_trip, index

    def _is_better(self, index: int, now: float) -> bool:
        """Whether a healthy exit is to take the place of the active one, which is healthy too."""
        settled = self._settled[index] = self._settled[index] or now - self._since[index] >= self._failback
        ours, theirs = self._priorities[self.active], self._priorities[index]
        if theirs != ours:
            return settled and theirs < ours
        near, far = self._states[index].round_trip, self._states[self.active].least_round_trip
        if near is None or far is None or near >= NEARER * far or far - near < NEARER_SECONDS:
            self._nearer_since[index] = None
            return False
        since = self._nearer_since[index]
        if since is None:
            since = self._nearer_since[index] = now
        return settled and now - since >= self._failback
