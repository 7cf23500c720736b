"""Keepalive: when the peer is asked, when it is given up, and what its answers tell."""

from __future__ import annotations

from math import inf

import pytest

from cryprq_proxy.errors import CarrierError, CloseReason
from cryprq_proxy.session.liveness import AGAIN_SECONDS, OVERDUE, SMOOTHING, UNKNOWN_ROUND_TRIP, Liveness
from tests.support.links import Link
from tests.support.settings import session_limits

INTERVAL = 10.0
LIMITS = session_limits(keepalive=INTERVAL)


def attached(now: float = 100.0) -> Liveness:
    liveness = Liveness(INTERVAL)
    liveness.attach(now)
    return liveness


def dies_at(liveness: Liveness, start: float) -> float:
    """Ticks at the deadlines, with PINGs sent, until the carrier is given up."""
    now = start
    for _ in range(100):
        now = max(now, liveness.deadline())
        try:
            liveness.tick(now)
        except CarrierError as error:
            assert error.reason is CloseReason.TIMED_OUT
            return now
        if liveness.ping is not None:
            liveness.ping_sent(now)
    raise AssertionError("a dead peer is never found out")


def test_a_new_carrier_is_measured_at_once() -> None:
    liveness = attached()
    token = liveness.ping
    assert token is not None
    liveness.ping_sent(100.5)
    assert liveness.ping is None
    liveness.pong(token, 100.7)
    assert liveness.round_trip == liveness.least_round_trip == pytest.approx(0.2), "not mixed with a guess"


def measure(liveness: Liveness, now: float, sample: float) -> None:
    liveness.probe(1.0, now)
    assert liveness.ping is not None
    token = liveness.ping
    liveness.ping_sent(now)
    liveness.pong(token, now + sample)
    liveness.heard(now + sample)


def test_round_trips_are_smoothed_and_the_least_is_kept() -> None:
    liveness = attached()
    expected = 0.2
    for index, sample in enumerate([0.2, 0.6, 0.05, 3.0, 0.3]):
        measure(liveness, 101.0 + 5 * index, sample)
        expected += SMOOTHING * (sample - expected)
        assert liveness.round_trip == pytest.approx(expected)
    assert liveness.least_round_trip == pytest.approx(0.05)
    liveness.attach(200.0)
    assert liveness.round_trip == liveness.least_round_trip == UNKNOWN_ROUND_TRIP
    measure(liveness, 201.0, 0.7)
    assert liveness.round_trip == liveness.least_round_trip == pytest.approx(0.7), (
        "another path, a longer one"
    )


def test_only_the_answer_to_the_last_ping_counts() -> None:
    liveness = attached()
    first = liveness.ping
    liveness.ping_sent(100.0)
    liveness.heard(100.0)
    assert liveness.tick(110.0)
    assert first is not None and liveness.ping not in (None, first)
    before = liveness.round_trip
    liveness.pong(first, 110.0)  # before the new one was sent
    liveness.ping_sent(110.0)
    liveness.pong(first, 110.1)
    liveness.pong(first + 7, 110.1)
    assert liveness.round_trip == before
    liveness.pong(first + 1, 110.1)
    assert liveness.round_trip != before
    changed = liveness.round_trip
    liveness.pong(first + 1, 119.0)
    assert liveness.round_trip == changed, "once"


def test_a_silence_is_no_round_trip() -> None:
    liveness = attached()
    measure(liveness, 100.0, 0.05)
    liveness.measure()
    token = liveness.ping
    assert token is not None
    liveness.ping_sent(101.0)
    liveness.doubt()
    assert liveness.pong(token, 103.0) is None
    assert liveness.round_trip == pytest.approx(0.05)
    measure(liveness, 104.0, 0.05)
    assert liveness.round_trip == pytest.approx(0.05), "the next one counts"


def test_a_silent_peer_is_given_up_after_two_intervals() -> None:
    liveness = attached()
    liveness.ping_sent(100.0)
    liveness.heard(100.0)
    assert dies_at(liveness, 103.0) == 100.0 + 2 * INTERVAL


def test_a_peer_that_never_says_a_word() -> None:
    assert dies_at(attached(), 100.0) == 100.0 + INTERVAL


def test_a_carrier_that_takes_no_ping_is_given_up_too() -> None:
    liveness = attached()
    liveness.ping_sent(100.0)
    liveness.heard(100.0)
    assert liveness.tick(110.0)
    with pytest.raises(CarrierError):
        liveness.tick(120.0)


def test_a_peer_that_talks_lives() -> None:
    liveness = attached()
    for second in range(101, 400):
        asked = liveness.tick(float(second))
        assert asked == (second > 101 and second % 10 == 1)
        if liveness.ping is not None:
            liveness.ping_sent(float(second))
        liveness.heard(float(second))


def test_deadlines_lie_in_the_future() -> None:
    liveness, now = attached(), 100.0
    for _ in range(20):
        liveness.heard(now)
        now = liveness.deadline()
        liveness.tick(now)
        assert liveness.deadline() > now


def test_a_probe_is_short() -> None:
    liveness = attached()
    liveness.ping_sent(100.0)
    liveness.heard(100.0)
    liveness.probe(2.0, 102.0)
    assert liveness.ping is not None and liveness.deadline() == 104.0
    assert not liveness.tick(103.9)
    with pytest.raises(CarrierError):
        liveness.tick(104.0)


def test_an_answered_probe_is_over() -> None:
    liveness = attached()
    liveness.probe(2.0, 102.0)
    liveness.ping_sent(102.0)
    liveness.heard(102.0)
    assert not liveness.tick(104.0)


# --- in a session ---


def test_an_idle_link_stays_up_and_is_measured() -> None:
    link = Link(LIMITS)
    link.carrier.advance(1000)
    assert link.carrier.open
    assert link.client.liveness.round_trip < UNKNOWN_ROUND_TRIP / 10


def test_a_carrier_that_swallows_everything_ends() -> None:
    link = Link(LIMITS)
    link.quiesce()
    link.carrier.to_left.piece = 0
    start = link.carrier.now
    link.carrier.advance(2 * INTERVAL)
    assert not link.carrier.open
    assert isinstance(link.carrier.error, CarrierError) and link.carrier.error.reason is CloseReason.TIMED_OUT
    assert link.carrier.now <= start + 2 * INTERVAL
    assert link.client.closed is None and link.exit.closed is None, "only the carrier ended"
    link.resume()
    link.quiesce()
    assert link.carrier.open


def test_a_carrier_that_takes_nothing_ends_in_the_middle_of_an_upload() -> None:
    link = Link(LIMITS)
    up, _ = link.pair()
    link.quiesce()
    path = link.carrier.to_right
    up.say(bytes(10 << 20))
    path.pull(link.carrier.now)
    path.capacity = path.piece = 0
    link.carrier.to_left.capacity = 0
    link.carrier.advance(2 * INTERVAL)
    assert not link.carrier.open and link.client.closed is None
    link.resume()
    link.carrier.settle()
    link.quiesce()
    assert len(link.served[1].received) == 10 << 20


def test_an_enlarged_length_is_found_out_by_the_keepalive() -> None:
    """The bytes still come, but none of them opens."""
    link = Link(LIMITS)
    up, down = link.pair()
    link.quiesce()
    path = link.carrier.to_right
    up.say(b"lost")
    path.pull(link.carrier.now)
    path.in_flight[:4] = (60_000).to_bytes(4)
    start = link.carrier.now
    while link.carrier.open and link.carrier.now < start + 5 * INTERVAL:
        link.carrier.advance(1.0)
        if link.carrier.open:
            up.say(b"more")
    assert not link.carrier.open and link.carrier.now <= start + 2 * INTERVAL + 1
    assert down.received == b"" and link.exit.closed is None
    link.resume()
    link.quiesce()
    assert down.received.startswith(b"lostmore")


def test_probing_a_path() -> None:
    link = Link(LIMITS)
    link.quiesce()
    path, _ = link.carrier.paths
    path.probe(2.0, link.carrier.now)
    link.carrier.advance(3.0)
    assert link.carrier.open, "it answered"
    link.carrier.to_right.piece = 0
    path.probe(2.0, link.carrier.now)
    link.carrier.advance(2.0)
    assert not link.carrier.open


def test_measuring_asks_once_and_ends_nothing_sooner() -> None:
    liveness = attached()
    assert not liveness.measure(), "the first PING is still to be sent"
    token = liveness.ping
    assert token is not None
    liveness.ping_sent(100.0)
    assert not liveness.measure(), "the answer may be on its way"
    liveness.pong(token, 100.3)
    liveness.heard(100.3)
    assert liveness.last == 100.3
    assert liveness.measure()
    assert liveness.ping not in (None, token)
    liveness.ping_sent(101.0)
    assert dies_at(liveness, 101.0) == 101.0 + INTERVAL


def test_while_streams_move_the_peer_is_asked_twice_a_second_at_most() -> None:
    liveness = attached()
    measure(liveness, 100.0, 0.1)
    liveness.measure_again(100.0 + AGAIN_SECONDS - 0.01)
    assert liveness.ping is None
    liveness.measure_again(100.0 + AGAIN_SECONDS)
    assert liveness.ping is not None
    liveness.ping_sent(101.0)
    liveness.measure_again(105.0)
    assert liveness.ping is None, "one is on its path"
    assert dies_at(liveness, 105.0) == 101.0 + INTERVAL


def test_a_session_tells_when_it_last_heard_of_its_peer() -> None:
    link = Link(LIMITS)
    link.carrier.settle()
    before = link.client.liveness.last
    link.carrier.advance(1.0)
    link.client.measure()
    link.carrier.advance(0.5)
    assert link.client.liveness.last > before
    link.carrier.cut()
    link.client.measure()
    link.client.prove(3.0, link.carrier.now)
    assert link.client.liveness.ping is None, "there is no path to ask on"


def test_since_when_an_answer_is_owed() -> None:
    """Not for the first one: nobody knows how far the peer is."""
    liveness = attached()
    first = liveness.ping
    assert first is not None and liveness.asked_at == inf
    liveness.ping_sent(100.0)
    assert liveness.asked_at == inf
    liveness.pong(first, 100.5)
    assert liveness.asked_at == inf
    assert liveness.measure()
    second = liveness.ping
    assert second is not None and liveness.asked_at == inf, "it has not left"
    liveness.ping_sent(101.0)
    liveness.pong(first, 101.2)
    assert liveness.asked_at == 101.0
    liveness.pong(second, 101.5)
    assert liveness.asked_at == inf


def test_a_doubt_ends_with_the_answer_to_the_last_ping() -> None:
    """Whatever is heard before says nothing of what was sent."""
    liveness = attached()
    measure(liveness, 100.0, 0.05)
    round_trip = liveness.round_trip
    liveness.doubt()
    first = liveness.ping
    assert liveness.doubted and first is not None
    liveness.ping_sent(101.0)
    liveness.heard(105.0)
    assert liveness.doubted
    liveness.probe(2.0, 105.0)
    second = liveness.ping
    assert second is not None
    liveness.ping_sent(105.0)
    assert liveness.pong(first, 106.0) is None and liveness.doubted
    assert liveness.pong(second, 106.0) is None and not liveness.doubted
    assert liveness.round_trip == round_trip, "a silence is no round trip"


def test_doubts_one_after_the_other_give_the_peer_no_more_time() -> None:
    liveness = attached()
    measure(liveness, 100.0, 0.1)
    liveness.prove(3.0, 105.0)
    assert liveness.ping is not None
    assert liveness.deadline() == 108.0
    liveness.ping_sent(105.0)
    for now in (106.0, 107.0, 107.9):
        liveness.prove(3.0, now)
        assert liveness.ping is None, "one is on its path"
    assert dies_at(liveness, 107.9) == 108.0
    liveness.heard(107.95)
    assert liveness.deadline() > 108.0


def test_an_answer_is_overdue_two_round_trips_and_a_little_after_the_question() -> None:
    liveness = attached()
    liveness.ping_sent(100.0)
    liveness.pong(liveness._token, 100.04)
    liveness.heard(100.04)
    assert not liveness.overdue(200.0), "nobody has asked"
    liveness.prove(3.0, 200.0)
    assert not liveness.overdue(200.0), "the question has not left"
    liveness.ping_sent(200.0)
    late = 200.0 + 2 * 0.04 + OVERDUE
    assert not liveness.overdue(late - 0.001)
    assert liveness.overdue(late + 0.001)
    liveness.heard(late + 0.002)
    assert not liveness.overdue(late + 10), "any record is a sign of life"
