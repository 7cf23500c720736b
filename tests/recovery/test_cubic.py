"""CUBIC by hand-made traces, with the numbers of RFC 9438; and once over a simulated line."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from cryprq_proxy.recovery.congestion import Sample
from cryprq_proxy.recovery.cubic import ALPHA, FIRST_WINDOW, Cubic
from tests.support.simulated_transfer import Stage

DATAGRAM = 1_000
TRIP = 0.1


class Trace:
    """A sender with a full window, told of one round trip after the other in four acknowledgements."""

    def __init__(self, window: int = 0, trip: float = TRIP) -> None:
        self.now, self.trip = 50.0, trip
        self.cubic = Cubic(self.now, DATAGRAM)
        self.delivered = 0
        self._before = 0
        if window:
            self.cubic.window = window * DATAGRAM
            self.cubic._threshold = window * DATAGRAM
            self.round()
            self.cubic.window = window * DATAGRAM

    @property
    def window(self) -> float:
        """In datagrams."""
        return self.cubic.window / DATAGRAM

    def ack(self, acked: int, **told: Any) -> None:
        """One acknowledgement of so many bytes."""
        sample = Sample()
        sample.now, sample.round_trip, sample.acked = self.now, self.trip, acked
        sample.prior_delivered, sample.app_limited = self._before, False
        self.delivered += acked
        sample.delivered, sample.in_flight = self.delivered, self.cubic.window
        for name, value in told.items():
            setattr(sample, name, value)
        self.cubic.acked(sample)

    def round(self, **told: Any) -> None:
        """A round trip."""
        part, prior = self.cubic.window // 4, self.delivered
        for _ in range(4):
            self.now += self.trip / 4
            self.ack(part, **told)
        self._before = prior

    def lose(self) -> None:
        """A datagram is lost, and all that was in flight then is acknowledged."""
        self.cubic.lost(DATAGRAM, self.now, self.cubic.window)
        window = self.cubic.window
        self.ack(DATAGRAM)
        assert self.cubic.window == window
        self._before = self.delivered + self.cubic.window
        self.ack(0, prior_delivered=self._before, delivered=self._before)
        self.delivered = self._before


def test_slow_start_doubles_in_a_round_trip() -> None:
    trace = Trace()
    for factor in (1, 2, 4, 8):
        assert trace.window == factor * FIRST_WINDOW
        trace.round()


def test_slow_start_ends_where_a_queue_shows() -> None:
    trace = Trace()
    trace.round()
    trace.round()
    assert trace.cubic.starting
    trace.trip = TRIP * 1.2
    for _ in range(4):
        trace.round()
    assert not trace.cubic.starting


def test_the_cubic_comes_back_to_its_plateau_after_k() -> None:
    """A window of 1,000 is cut to 700; K is the cubic root of 300 / 0.4, 9.09 s (section 4.2)."""
    trace = Trace(1_000)
    trace.lose()
    assert trace.window == 700
    begin = trace.now
    at: dict[int, float] = {}
    while trace.now - begin < 12:
        trace.round()
        at[round((trace.now - begin) * 10)] = trace.window
    # W_cubic(t) = 0.4 (t - 9.086)^3 + 1,000, reached within a round trip or two.
    for seconds in (1.0, 3.0, 6.0, 9.0, 11.0):
        expected = 0.4 * (seconds - 9.086) ** 3 + 1_000
        assert at[round(seconds * 10)] == pytest.approx(expected, rel=0.01), seconds


def test_it_is_not_slower_than_reno() -> None:
    """Section 4.3: on a short path the window grows by 0.53 datagrams a round trip, and by one from the plateau on."""
    trace = Trace(40, trip=0.01)
    trace.lose()
    assert trace.window == 28
    for _ in range(10):
        trace.round()
    assert pytest.approx(0.5294, abs=1e-4) == ALPHA
    assert trace.window == pytest.approx(28 + 10 * ALPHA, abs=0.3)
    for _ in range(40):
        trace.round()
    assert trace.window > 28 + 50 * ALPHA + 5


def test_the_window_grows_by_half_at_most_in_a_round_trip() -> None:
    """Section 4.4: the convex part is bounded."""
    trace = Trace(10)
    trace.lose()
    trace.round()
    trace.now += 60
    window = trace.window
    trace.round()
    assert 1.3 * window < trace.window < 1.7 * window


def test_losses_of_one_round_trip_are_one_event() -> None:
    trace = Trace(1_000)
    for _ in range(5):
        trace.cubic.lost(DATAGRAM, trace.now, trace.cubic.window)
        trace.ack(DATAGRAM)
    assert trace.window == 700


def test_a_plateau_that_was_not_reached_is_given_up_in_part() -> None:
    """Section 4.7: a second event at 700 makes 595 of it, for a flow that has just begun."""
    trace = Trace(1_000)
    trace.lose()
    trace.lose()
    assert trace.window == pytest.approx(490, abs=0.01)
    assert trace.cubic._peak == pytest.approx(700 * 0.85)


def test_marks_are_events_too() -> None:
    trace = Trace(1_000)
    trace.ack(DATAGRAM, ce=3)
    assert trace.window == 700
    trace.ack(DATAGRAM, ce=3)
    assert trace.window == 700


def test_a_window_that_is_not_used_does_not_grow() -> None:
    trace = Trace()
    for _ in range(10):
        trace.round(app_limited=True)
    assert trace.window == FIRST_WINDOW


def test_after_a_silence_it_starts_slowly_up_to_where_it_was_cut() -> None:
    trace = Trace(1_000)
    trace.cubic.silent(trace.now)
    assert trace.window == 2
    assert trace.cubic.starting
    trace._before = trace.delivered + DATAGRAM
    trace.ack(2 * DATAGRAM, in_flight=0)
    trace._before = trace.delivered
    trace.round()
    assert trace.window >= 4


def test_the_window_never_falls_below_two_datagrams() -> None:
    trace = Trace(3)
    for _ in range(10):
        trace.lose()
    assert trace.window == 2


def test_the_rate_follows_the_window() -> None:
    trace = Trace()
    trace.round()
    assert trace.cubic.rate == pytest.approx(2 * trace.cubic.window / TRIP)
    trace.lose()
    assert trace.cubic.rate == pytest.approx(1.25 * trace.cubic.window / TRIP)


def test_another_path_begins_anew() -> None:
    trace = Trace(1_000)
    trace.lose()
    trace.cubic.reset(trace.now)
    assert trace.window == FIRST_WINDOW
    assert trace.cubic.starting


@pytest.mark.parametrize(("loss", "least", "most"), [(0.0, 180, 201), (0.01, 1, 20)])
def test_over_a_line(loss: float, least: float, most: float) -> None:
    """It fills a line that loses nothing, and gets little where one in a hundred is lost at random."""
    stage = Stage(loss=loss)
    transfer = stage.transfer(Cubic)
    transfer.offer(inf)
    assert least <= stage.measure(transfer, 8).rate(2) <= most
