"""Whether what belongs to the session leaves by the lane or by a record path. Each side chooses for what it sends.

    the lane is down           -> TCP                     the client's setting is "tcp" -> TCP
    no record path answers     -> the lane                it is "udp"                   -> the lane
    its round trip is short    -> TCP, which costs less and loses nothing there
    it loses much, or some and is slow, or brings less than TCP did, for BAD_ROUNDS round trips of bulk
                               -> TCP on trial. More rate: UDP is throttled, and rests. Not more: the lane again
    else                       -> the lane

A rest is followed by another attempt with the lane. Rests double while each attempt ends badly. So neither a network
that throttles UDP nor one that loses much on every path makes the choice go to and fro: a change whose reason is not
that the one in use is gone comes HOLD_SECONDS after the one before at the earliest. But to TCP, for a round trip that
has turned out to be short, it comes at once.

A lane that falls rests only if TCP answers meanwhile. Where TCP is silent too, all of the network was dark: this says
nothing about UDP.

Nothing is measured here. A method that learns something returns whether `lane` has changed by it. Rates are in bytes,
and times in seconds.
"""

from __future__ import annotations

from math import inf
from typing import Final

from .rotation import NEVER
from .wire import LaneUse

LONG_ROUND_TRIP: Final = 0.002
"""From this round trip on the lane is worth its cost."""
SHORT_ROUND_TRIP: Final = 0.0015
"""Below this one it is no more. Between them it stays as it is."""
MOST_LOSS: Final = 0.2
"""Share of the datagrams. More is hardly chance."""
SOME_LOSS: Final = 0.02
SLOW: Final = 1.25e6
"""A lane below this rate that loses more than SOME_LOSS now and then may be policed: what passes then arrives without a
queue, and nothing but TCP tells whether the line could carry more. Where it is the line that loses, TCP is no faster,
and what the trial costs is little, since little was carried."""
LOSSY_SECONDS: Final = 5.0
"""So long one round with such a loss counts: the congestion control finds the policed rate, and asks for more, with
losses, every 2 to 3 s."""
CLEARLY: Final = 1.25
"""A rate that is so many times another one is higher: less can be due to how it is measured."""
GROWTH: Final = 1.1
"""A rate that is so many times that of the round before still grows; how high it gets is not known."""
BAD_ROUNDS: Final = 5
BAD_SECONDS: Final = 1.0
"""So long they last at least. On a short round trip five are over before a burst of loss is."""
FORGET_SECONDS: Final = 10.0
"""After so long without a bad round they are counted anew."""
HOLD_SECONDS: Final = 5.0
"""Between a change and the next one. So long TCP is tried, too."""
FIRST_REST: Final = 60.0
LONGEST_REST: Final = 900.0
STEADY_SECONDS: Final = 60.0
"""A lane that has carried for so long, and as long as its last rest, had no bad attempt."""
MEMORY_SECONDS: Final = 900.0
"""So long the rate that TCP once had is held against the lane's."""


class LaneChoice:
    """That of one side of a session. `lane`: whether it sends by the lane; `why`: part of a sentence."""

    def __init__(self, use: LaneUse = LaneUse.AUTO) -> None:
        self.lane = False
        self.why = self._down_why = "the lane has not been up yet"
        self._use = use
        self._up = False
        self._tcp = False
        """Whether a record path can carry."""
        self._round_trip = 0.0
        self._short: bool | None = None
        self._changed_at = -inf
        self._due = NEVER
        self._last_rest = 0.0
        self._rests_until = -inf
        self._rests_why = ""
        self._fell_after: float | None = None
        """Since the lane fell that carried, and it is not known whether UDP alone failed: how long it had been well."""
        self._trouble_at = -inf
        """When the lane's rounds were bad."""
        self._trial: float | None = None
        """While TCP is tried: the rate that the lane had."""
        self._tried_why = ""
        """Why TCP, once tried, is no better."""
        self._next_trial = -inf
        self._tcp_rate = 0.0
        self._tcp_rate_at = -inf
        self._last_rate = 0.0
        self._lossy_at = -inf
        self._bad = 0
        self._bad_since = self._bad_at = -inf
        self._bad_rate = 0.0

    # --- what there is ----------------------------------------------------------------------------------------------

    def set_use(self, use: LaneUse, now: float) -> bool:
        """The client's setting, which its exit learns from LANE frames."""
        self._use = use
        return self._choose(now)

    def up(self, round_trip: float, now: float) -> bool:
        """The lane's check has succeeded, or it answers again. `round_trip` is the least, without queues."""
        self._up, self._fell_after = True, None
        self._see_round_trip(round_trip)
        return self._choose(now)

    def down(self, why: str, now: float) -> bool:
        """It works no longer, or is silent. `why`: part of a sentence. Call `alone` if TCP answers."""
        if self._up and self.lane:
            self._fell_after = self._well(now)
        self._up = False
        self._down_why = why
        return self._choose(now)

    def alone(self, now: float) -> None:
        """TCP answers while the lane, which fell a moment ago, does not."""
        if self._fell_after is not None:
            rest = self._rest(HOLD_SECONDS, self._fell_after)
            self._rests_until = max(self._rests_until, now + rest)
            self._rests_why = f"the lane fell a short time ago: {self._down_why}"
            self._fell_after = None

    def tcp(self, there: bool, now: float) -> bool:
        """Whether there is a record path that is admitted and not in doubt."""
        self._tcp = there
        return self._choose(now)

    def moved(self, now: float) -> bool:
        """The lane goes through another network: what was found out about the last one says nothing."""
        self._last_rest = self._tcp_rate = 0.0
        self._rests_until = self._next_trial = self._trouble_at = -inf
        self._trial = None
        self._tried_why = ""
        self._bad = 0
        return self._choose(now)

    # --- what is measured -------------------------------------------------------------------------------------------

    def measured(self, round_trip: float, now: float) -> bool:
        """The least round trip of the lane, without queues. A short one moves all to TCP at once: a busy host measures
        too long ones first, but never too short ones."""
        self._see_round_trip(round_trip)
        return self._choose(now, at_once=self._short is True)

    def tcp_rate(self, rate: float, now: float) -> bool:
        """The record path in use sends so many bytes a second while there is always more to send."""
        self._tcp_rate, self._tcp_rate_at = rate, now
        if self._trial is None or self.lane or now < self._changed_at + HOLD_SECONDS:
            return False
        lane, self._trial = self._trial, None
        if rate > lane * CLEARLY:
            self._rests_why = f"UDP is throttled: {_megabits(lane)} of {_megabits(rate)} Mbit/s"
        else:
            self._rests_until = now
            self._tried_why = f"TCP was tried and brought {_megabits(rate)} of {_megabits(lane)} Mbit/s"
        return self._choose(now)

    def round_over(self, rate: float, loss: float, limited: bool, now: float) -> bool:
        """A round trip in which the lane carried is over: bytes delivered a second, the share of lost datagrams, and
        whether the applications had less to send than could have been sent."""
        if not self.lane or limited:
            return False
        grows = rate > self._last_rate * GROWTH
        self._last_rate = rate
        if loss > SOME_LOSS:
            self._lossy_at = now
        policed = now - self._lossy_at < LOSSY_SECONDS and rate < SLOW
        known = self._tcp_rate if now - self._tcp_rate_at < MEMORY_SECONDS else 0.0
        if loss <= MOST_LOSS and not policed and (grows or rate * CLEARLY >= known):
            self._bad = 0
            return False
        if not self._bad or now - self._bad_at > FORGET_SECONDS:
            self._bad, self._bad_since, self._bad_rate = 0, now, 0.0
        self._bad += 1
        self._bad_at = now
        self._bad_rate = max(self._bad_rate, rate)
        if self._bad < BAD_ROUNDS or now - self._bad_since < BAD_SECONDS:
            return False
        return self._try_tcp(loss, now)

    def _try_tcp(self, loss: float, now: float) -> bool:
        if (
            self._use is LaneUse.AUTO
            and self._tcp
            and now >= max(self._next_trial, self._changed_at + HOLD_SECONDS)
        ):
            self._trial = self._bad_rate
            self._rests_until = self._next_trial = now + self._rest(FIRST_REST, self._well(now))
            self._rests_why = (
                f"UDP loses {loss:.0%}, so TCP is tried"
                if loss > MOST_LOSS
                else f"UDP brought only {_megabits(self._bad_rate)} Mbit/s, so TCP is tried"
            )
        self._trouble_at = now
        return self._choose(now)

    def _well(self, now: float) -> float:
        """For how long the lane has had no trouble."""
        return now - max(self._changed_at, self._trouble_at)

    def _rest(self, least: float, well: float) -> float:
        """How long the lane rests after this attempt, or TCP is not tried again. `well`: for how long it was."""
        if well >= max(STEADY_SECONDS, self._last_rest):
            self._last_rest = 0.0
        self._last_rest = min(max(2 * self._last_rest, least), LONGEST_REST)
        return self._last_rest

    def _see_round_trip(self, round_trip: float) -> None:
        self._round_trip = round_trip
        self._short = round_trip < (SHORT_ROUND_TRIP if self._short is False else LONG_ROUND_TRIP)

    # --- time -------------------------------------------------------------------------------------------------------

    def deadline(self) -> float:
        """The time at which `tick` must be called."""
        return self._due

    def tick(self, now: float) -> bool:
        """Time has passed."""
        return now >= self._due and self._choose(now)

    # --- the choice -------------------------------------------------------------------------------------------------

    def _choose(self, now: float, *, at_once: bool = False) -> bool:
        lane, why = self._best(now)
        self._due = self._rests_until if self._up and now < self._rests_until else NEVER
        if lane is self.lane:
            self.why = why
            return False
        usable = self._up if self.lane else self._tcp
        held = self._use is LaneUse.AUTO and now < self._changed_at + HOLD_SECONDS and not at_once
        if usable and held:
            self.why = "it was chosen only a moment ago"
            self._due = self._changed_at + HOLD_SECONDS
            return False
        self.lane, self.why = lane, why
        self._changed_at = now
        self._last_rate = 0.0
        self._lossy_at = -inf
        self._bad = 0
        return True

    def _best(self, now: float) -> tuple[bool, str]:
        if self._use is LaneUse.TCP:
            return False, "the client is set to TCP"
        if not self._up:
            return False, self._down_why
        if self._use is LaneUse.UDP:
            return True, "the client is set to UDP"
        if not self._tcp:
            return True, "no TCP connection works"
        if self._short:
            return (
                False,
                f"the round trip of {self._round_trip * 1000:.2g} ms is so short that TCP costs less",
            )
        if now < self._rests_until:
            return False, self._rests_why
        self._trial = None
        return True, self._tried_why or "UDP passes"


def _megabits(rate: float) -> str:
    return f"{rate * 8 / 1e6:.2g}" if rate < 1.25e6 else f"{rate * 8 / 1e6:.0f}"
