"""The sender's half, by hand: room, asking, round trips, probe time-outs, and what the congestion control hears."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, pairwise, repeat
from math import inf

import pytest

from cryprq_proxy.errors import CloseReason, LocalError, PeerError
from cryprq_proxy.recovery import recovery as recovery_module
from cryprq_proxy.recovery.flight import FACTOR, MAX_DATAGRAMS, THRESHOLD
from cryprq_proxy.recovery.pacer import CATCH_UP, LATE, Pacer
from cryprq_proxy.recovery.received import AckFrame
from cryprq_proxy.recovery.recovery import (
    LONGEST_TIMEOUT,
    LONGEST_TIMEOUT_AT_FIRST,
    PERSISTENT,
    SKIPPED,
    Recovery,
    Settled,
)
from cryprq_proxy.recovery.round_trip import ACK_DELAY
from tests.support.recovery import DATAGRAM, NotedControl, OpenPacer

RTT = 0.1


class Sender:
    """A Recovery whose trains are letters, of ten datagrams each, with counters from 0 on."""

    def __init__(self, window: int = 1_000_000, round_trip: float = RTT) -> None:
        self.control, self.pacer = NotedControl(window), OpenPacer()
        self.recovery = Recovery[str](self.control, self.pacer, 0.0, round_trip=round_trip)
        self.counter = 0

    def send(self, letters: str, now: float = 0.0, count: int = 10, asked: bool = False) -> None:
        """Small letters are cargo that elicits; others are neither."""
        for letter in letters:
            self.recovery.sent(
                self.counter,
                count,
                DATAGRAM,
                count * DATAGRAM,
                now,
                letter if letter.islower() else None,
                eliciting=letter.islower(),
                asked=asked,
            )
            self.counter += count

    def acked(self, *bounds: int, now: float, delay: float = 0.0, ce: int = 0) -> str:
        return written(self.recovery.acked(AckFrame(list(bounds), delay, ce), self.counter, now))

    def tick(self, now: float) -> str:
        return written(self.recovery.tick(now))

    def silence(self, timeouts: int) -> list[float]:
        """The times of so many probe time-outs."""
        times = []
        for _ in range(timeouts):
            times.append(self.recovery.deadline())
            assert self.recovery.tick(times[-1]).probe
        return times


def written(settled: Settled[str]) -> str:
    parts = [*((part, "+") for part in settled.acked), *((part, "-") for part in settled.lost)]
    words = [f"{sign}{part.cargo}{part.first}-{part.behind}" for part, sign in parts]
    return " ".join([*words, *(["probe"] if settled.probe else [])])


TIMEOUT = RTT + 4 * RTT / 2 + 2 * ACK_DELAY
"""After the first sample."""


# --- room and asking -----------------------------------------------------------------------------------------------


def test_there_is_room_for_the_window() -> None:
    sender = Sender(window=25_000)
    assert sender.recovery.room(0.0) == 25_000
    sender.send("ab")
    assert (sender.recovery.room(0.0), sender.recovery.in_flight) == (5_000, 20_000)
    sender.acked(0, 10, now=0.1)
    assert sender.recovery.room(0.1) == 15_000


def test_less_than_a_datagram_is_no_room_and_wakes_nobody() -> None:
    sender = Sender(window=10_999)
    sender.send("a")
    assert (sender.recovery.room(0.0), sender.recovery.next_at(0.0)) == (0, inf)


def test_what_does_not_elicit_never_closes_the_window() -> None:
    sender = Sender(window=20_000)
    sender.send("AB")
    assert (sender.recovery.room(0.0), sender.recovery.deadline()) == (2_000, inf)
    assert sender.recovery.wants_ask(2_000)
    sender.send("c", count=2)
    assert sender.recovery.room(0.0) == 0
    sender.acked(0, 22, now=0.1)
    assert sender.recovery.room(0.1) == 20_000


def test_the_pacer_says_when_there_is_room_in_the_window() -> None:
    sender = Sender()
    sender.pacer.ready_at = 0.5
    assert (sender.recovery.room(0.0), sender.recovery.next_at(0.0)) == (0, 0.5)
    assert sender.recovery.room(0.5) == 1_000_000


def test_the_pacer_hears_of_all_that_leaves() -> None:
    sender = Sender()
    sender.send("aB")
    assert sender.pacer.passed == 20_000
    assert sender.control.notes == [("sent", 0), ("sent", 10_000)]


def test_the_sender_asks_for_each_eighth_of_the_window() -> None:
    sender = Sender(window=240_000)
    asked = []
    for _ in range(9):
        ask = sender.recovery.wants_ask(10_000)
        asked.append(ask)
        sender.send("a", asked=ask)
    assert asked == [False, False, True] * 3


def test_the_sender_asks_when_the_window_is_used_up() -> None:
    sender = Sender(window=240_500)
    sender.send("a" * 23, asked=True)
    assert sender.recovery.wants_ask(10_000)
    assert not sender.recovery.wants_ask(9_000)


def test_the_sender_asks_in_a_silence() -> None:
    sender = Sender()
    sender.send("a")
    assert not sender.recovery.wants_ask(100)
    sender.silence(1)
    assert sender.recovery.wants_ask(100)


# --- round trips ---------------------------------------------------------------------------------------------------


def test_an_acknowledgement_measures_the_round_trip() -> None:
    sender = Sender(round_trip=0.0)
    sender.send("a", 1.0)
    sender.send("b", 1.02)
    assert sender.acked(0, 20, now=1.1, delay=0.01) == "+a0-10 +b0-10"
    assert sender.recovery.round_trip.latest == pytest.approx(0.08)
    assert sender.control.samples[-1]["round_trip"] == pytest.approx(0.08)


@pytest.mark.parametrize(
    ("letters", "bounds"),
    [
        ("ab", [(0, 25), (0, 12)]),  # the highest counter is none of ours
        ("aB", [(10, 20)]),  # nothing that elicits: it may have been held back for long
    ],
)
def test_some_acknowledgements_measure_nothing(letters: str, bounds: list[tuple[int, ...]]) -> None:
    sender = Sender()
    sender.send(letters)
    sender.counter = 30
    for some in bounds:
        sender.acked(*some, now=0.7)
    assert sender.recovery.round_trip.samples == 1
    assert sender.control.samples[-1]["round_trip"] == 0.0


def test_an_acknowledgement_for_the_second_time_changes_nothing() -> None:
    sender = Sender()
    sender.send("abc")
    assert sender.acked(5, 25, now=0.1) == "+a5-10 +b0-10 +c0-5 -a0-5"
    notes, deadline = len(sender.control.notes), sender.recovery.deadline()
    assert sender.acked(5, 25, now=0.5) == ""
    assert (len(sender.control.notes), sender.recovery.deadline()) == (notes, deadline)
    assert sender.recovery.round_trip.samples == 2


def test_a_lost_acknowledgement_is_made_good_by_the_next() -> None:
    sender = Sender()
    sender.send("abc")
    assert sender.acked(0, 3, 4, 30, now=0.2) == "+a4-10 +b0-10 +c0-10 +a0-3 -a3-4"


def test_acknowledgements_in_the_wrong_order() -> None:
    sender = Sender()
    sender.send("abc")
    assert sender.acked(0, 28, now=0.1) == "+a0-10 +b0-10 +c0-8"
    assert sender.acked(0, 14, now=0.11) == ""
    assert sender.recovery.in_flight == 2_000


def test_counters_that_nobody_told_of_may_be_acknowledged() -> None:
    """Probes and acknowledgements: they raise the highest counter, nothing else."""
    sender = Sender()
    sender.send("a")
    sender.counter = 20
    assert sender.acked(0, 5, 15, 16, now=0.1) == "+a0-5 -a5-10"
    sender.send("b", 0.2)
    assert sender.acked(18, 19, now=0.3) == ""
    assert sender.recovery.in_flight == 10_000


# --- losses --------------------------------------------------------------------------------------------------------


def test_lost_by_the_threshold() -> None:
    sender = Sender()
    sender.send("ab")
    assert sender.acked(0, 4, 7, 20, now=0.1) == "+a7-10 +b0-10 +a0-4 -a4-7"
    assert sender.control.notes[2:] == [("lost", 3_000), ("acked", 17_000)]
    assert sender.control.samples[-1]["lost"] == 3_000
    assert (sender.recovery.lost, sender.recovery.loss) == (3, 3 / 20)


def test_within_the_threshold_it_is_lost_by_time() -> None:
    sender = Sender()
    sender.send("a")
    assert sender.acked(0, 8, 9, 10, now=0.1) == "+a9-10 +a0-8"
    assert sender.recovery.deadline() == pytest.approx(FACTOR * RTT)
    assert sender.tick(0.11) == ""
    assert sender.tick(sender.recovery.deadline()) == "-a8-9"
    assert sender.control.notes[-1] == ("lost", 1_000)
    assert sender.recovery.deadline() == inf


def test_reordering_is_learnt_and_forgotten() -> None:
    sender = Sender()
    sender.send("ab")
    assert sender.acked(10, 14, now=0.1) == "+b0-4 -a0-10"
    sender.acked(0, 14, now=0.11)
    assert sender.recovery.spurious == 10
    sender.send("cd", 0.2)
    assert sender.acked(0, 20, 30, 34, now=0.3) == "+d0-4 +b4-10"
    assert sender.recovery.in_flight == 16_000
    for at in range(40):
        sender.send("e", 10.0 + 10 * at)
        sender.acked(sender.counter - 10, sender.counter, now=10.1 + 10 * at)
    assert sender.recovery._flight.threshold == THRESHOLD


def test_loss_is_that_of_lately() -> None:
    sender = Sender()
    for at in range(1_000):
        sender.send("ab", at / 10)
        missing = 10 if at < 100 else 1
        sender.acked(sender.counter - 20 + missing, sender.counter, now=at / 10 + 0.05)
        if at == 99:
            assert sender.recovery.loss == pytest.approx(10 / 20)
    assert sender.recovery.loss == pytest.approx(1 / 20, abs=0.01)


# --- probe time-outs -----------------------------------------------------------------------------------------------


def test_one_train_and_silence() -> None:
    sender = Sender()
    sender.send("a")
    assert sender.recovery.deadline() == pytest.approx(TIMEOUT)
    assert sender.tick(TIMEOUT - 0.01) == ""
    assert sender.tick(TIMEOUT) == "-a0-2 probe"
    assert (sender.recovery.timeouts, sender.recovery.in_flight) == (1, 10_000)


def test_two_trains_and_silence() -> None:
    sender = Sender()
    sender.send("a", count=1)
    sender.send("b", 0.05, count=2)
    assert sender.recovery.deadline() == pytest.approx(TIMEOUT)
    assert sender.tick(TIMEOUT) == "-a0-1 -b0-1 probe"
    assert sender.tick(sender.recovery.deadline()) == "-b1-2 probe"
    assert sender.tick(sender.recovery.deadline()) == "probe"


def test_what_leaves_in_a_silence_does_not_put_it_off() -> None:
    sender = Sender()
    for at in range(30):
        sender.send("a", at / 100)
    assert sender.recovery.deadline() == pytest.approx(TIMEOUT)


def test_each_acknowledgement_puts_it_off() -> None:
    sender = Sender()
    sender.send("ab")
    sender.acked(0, 10, now=0.1)
    assert sender.recovery.deadline() == pytest.approx(0.1 + sender.recovery.round_trip.timeout())


def test_for_a_probe_there_is_room_for_two_datagrams() -> None:
    sender = Sender(window=10_000)
    sender.send("a")
    sender.pacer.ready_at = 100.0
    assert sender.recovery.room(TIMEOUT) == 0
    sender.tick(TIMEOUT)
    assert (sender.recovery.room(TIMEOUT), sender.recovery.next_at(TIMEOUT)) == (2_000, TIMEOUT)
    sender.send("b", TIMEOUT, count=1)
    assert sender.recovery.room(TIMEOUT) == 1_000
    sender.send("c", TIMEOUT, count=1)
    assert (sender.recovery.room(TIMEOUT), sender.recovery.next_at(TIMEOUT)) == (0, inf)


def test_a_probe_that_is_acknowledged_ends_the_silence() -> None:
    sender = Sender()
    sender.send("a")
    assert sender.tick(TIMEOUT) == "-a0-2 probe"
    sender.send("a", TIMEOUT, count=2)
    assert sender.acked(10, 12, now=TIMEOUT + RTT) == "+a0-2 -a2-10"
    assert (sender.recovery.timeouts, sender.recovery.lost, sender.recovery.in_flight) == (0, 10, 0)
    assert sender.recovery.room(2.0) == 1_000_000


def test_cargo_that_was_taken_out_is_not_acknowledged_as_well() -> None:
    sender = Sender()
    sender.send("ab")
    sender.tick(TIMEOUT)
    assert sender.acked(0, 20, now=TIMEOUT + 0.01) == "+a2-10 +b0-10"
    assert (sender.recovery.timeouts, sender.recovery.delivered) == (0, 20_000)


def test_time_outs_double_up_to_a_bound() -> None:
    sender = Sender(round_trip=0.01)
    sender.send("a")
    times = sender.silence(60)
    steps = [later - earlier for earlier, later in pairwise(times)]
    assert steps[0] == pytest.approx(2 * times[0])
    assert steps[1] == pytest.approx(LONGEST_TIMEOUT_AT_FIRST)
    at_first = [step for time, step in zip(times, steps, strict=False) if time < 10.0 + times[0]]
    assert max(at_first) <= LONGEST_TIMEOUT_AT_FIRST + 1e-9
    assert steps[-1] == pytest.approx(LONGEST_TIMEOUT)


def test_a_long_round_trip_is_waited_for_even_so() -> None:
    sender = Sender(round_trip=2.0)
    sender.send("a")
    first, second = sender.silence(2)
    assert second - first == pytest.approx(sender.recovery.round_trip.timeout())
    assert second - first > LONGEST_TIMEOUT_AT_FIRST


def test_three_in_a_row_are_told_once() -> None:
    sender = Sender()
    sender.send("a")
    sender.silence(PERSISTENT - 1)
    assert ("silent", 0) not in sender.control.notes
    sender.silence(4)
    assert sender.control.notes.count(("silent", 0)) == 1


def test_time_outs_are_reset_by_an_acknowledgement() -> None:
    sender = Sender()
    sender.send("a")
    sender.silence(8)
    sender.send("b", 5.0)
    sender.acked(10, 20, now=5.1)
    sender.send("c", 6.0)
    assert sender.recovery.deadline() == pytest.approx(6.0 + sender.recovery.round_trip.timeout())


def test_losses_come_before_a_probe() -> None:
    sender = Sender()
    sender.send("a")
    sender.acked(0, 8, 9, 10, now=0.1)
    assert sender.tick(100.0) == "-a8-9"
    assert sender.recovery.timeouts == 0


def test_what_does_not_elicit_is_not_waited_for() -> None:
    sender = Sender()
    sender.send("AB")
    assert sender.recovery.deadline() == inf
    assert sender.recovery.in_flight == 20_000


# --- delivery ------------------------------------------------------------------------------------------------------


def test_the_rate_is_that_of_a_train_from_departure_to_acknowledgement() -> None:
    sender = Sender()
    sender.send("a", 1.0)
    sender.acked(0, 10, now=1.1)
    sender.send("b", 1.1)
    sender.send("c", 1.15)
    sender.acked(0, 20, now=1.2)
    sample = sender.control.samples[-1]
    assert sample["interval"] == pytest.approx(0.1)
    assert sample["rate"] == pytest.approx(100_000)
    assert (sample["prior_delivered"], sample["delivered"]) == (10_000, 20_000)
    assert (sample["acked"], sample["in_flight"], sample["app_limited"]) == (10_000, 10_000, False)
    sender.acked(0, 30, now=1.21)  # acknowledgements that come in a bunch
    sample = sender.control.samples[-1]
    assert sample["interval"] == pytest.approx(0.11)
    assert sample["rate"] == pytest.approx(20_000 / 0.11)


def test_trains_that_left_in_a_bunch_are_measured_by_their_departure() -> None:
    """Or by their acknowledgement, whichever took longer."""
    sender = Sender()
    sender.send("a", 1.0)
    sender.send("b", 1.5)
    sender.acked(0, 20, now=1.51)
    assert sender.control.samples[-1]["interval"] == pytest.approx(0.51)


def test_an_idle_sender_teaches_nothing() -> None:
    sender = Sender()
    sender.send("a", 1.0)
    sender.recovery.app_limited()
    sender.acked(0, 10, now=1.1)
    sender.send("b", 9.0)
    sender.acked(0, 20, now=9.1)
    assert [sample["app_limited"] for sample in sender.control.samples] == [True, True]
    sender.send("c", 9.2)
    sender.acked(0, 30, now=9.3)
    assert not sender.control.samples[-1]["app_limited"]


@pytest.mark.parametrize("other", ["nothing to send", "no window"])
def test_only_who_waits_for_the_pacer_makes_up_for_being_late(other: str) -> None:
    """See pacer.py."""
    control = NotedControl()
    control.rate = 1_000_000.0
    rooms = []
    for waits in (True, False):
        recovery = Recovery[str](control, Pacer(0.0), 0.0)
        recovery.sent(0, 10, DATAGRAM, 10 * DATAGRAM, 0.0, "a")
        assert recovery.next_at(0.0) > 0.0
        if not waits and other == "nothing to send":
            recovery.app_limited()
        elif not waits:
            control.window = 0
            assert recovery.room(0.0) == 0
            control.window = 1_000_000
        rooms.append(recovery.room(1.0))
    assert rooms[0] - rooms[1] == pytest.approx((LATE - CATCH_UP) * control.rate, abs=2)


def test_marks_are_told_once() -> None:
    sender = Sender()
    sender.send("abc")
    for bounds, ce in [((0, 10), 2), ((0, 20), 5), ((0, 30), 4)]:
        sender.acked(*bounds, now=0.1, ce=ce)
    assert [sample["ce"] for sample in sender.control.samples] == [2, 3, 0]


def test_rounds_are_counted() -> None:
    sender = Sender()
    for at in range(5):
        sender.send("a", 1.0 + at)
        sender.acked(at * 10, at * 10 + 8, now=1.1 + at)
    assert sender.recovery.rounds.count == 5
    assert sender.recovery.rounds.last.rate == pytest.approx(8_000)
    assert sender.recovery.rounds.last.loss == pytest.approx(2 / 10)


# --- peers that lie, clocks that jump ------------------------------------------------------------------------------


def refused(sender: Sender, *bounds: int) -> bool:
    try:
        sender.acked(*bounds, now=0.1)
    except PeerError as error:
        return error.reason is CloseReason.PROTOCOL
    return False


@pytest.mark.parametrize(("bounds", "refuse"), [((0, 30), False), ((0, 31), True), ((0, 2, 99, 100), True)])
def test_what_was_never_sent_cannot_be_acknowledged(bounds: tuple[int, ...], refuse: bool) -> None:
    sender = Sender()
    sender.send("abc")
    assert refused(sender, *bounds) is refuse
    assert sender.recovery.in_flight == (30_000 if refuse else 0)


def chances(*first: float) -> Iterator[float]:
    return chain(first, repeat(0.0))


def test_a_counter_that_was_left_out_cannot_be_acknowledged() -> None:
    chance = chances(0.05)
    recovery = Recovery[str](NotedControl(), OpenPacer(), 0.0, chance=lambda: next(chance))
    left_out = [counter for counter in range(3_000) if recovery.skip(counter)]
    assert left_out == [13, 1_013, 2_013]
    sender = Sender()
    sender.recovery, sender.counter = recovery, 3_000
    assert not refused(sender, 0, 13, 14, 1_013, 1_014, 2_013, 2_014, 2_050)
    for counter in left_out:
        assert refused(sender, counter, counter + 1)
        assert refused(sender, 0, 3_000)


def test_counters_are_left_out_by_chance() -> None:
    found = set()
    for _ in range(20):
        recovery = Recovery[str](NotedControl(), OpenPacer(), 0.0)
        found.add(next(counter for counter in range(10_000) if recovery.skip(counter)))
    assert len(found) > 5


def test_few_left_out_counters_are_remembered() -> None:
    recovery = Recovery[str](NotedControl(), OpenPacer(), 0.0, chance=lambda: 0.0)
    counters = [counter for counter in range(100_000) if recovery.skip(counter)]
    assert len(counters) > SKIPPED
    assert list(recovery._skipped) == counters[-SKIPPED:]


def test_no_more_is_in_flight_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that acknowledges nothing, under a window without end."""
    monkeypatch.setattr(recovery_module, "MAX_DATAGRAMS", 25)
    sender = Sender(window=1 << 60)
    assert sender.recovery.room(0.0) == 25_000
    sender.send("ab")
    assert sender.recovery.room(0.0) == 5_000
    with pytest.raises(LocalError):
        sender.send("c")
    sender.send("d", count=5)
    assert sender.recovery.room(0.0) == 0
    for _ in range(10):  # but probes go on
        due = sender.recovery.deadline()
        assert sender.recovery.tick(due).probe
        assert sender.recovery.room(due) == 2_000
        sender.send("e", due, count=2)
    assert MAX_DATAGRAMS == 65_536


def test_what_does_not_elicit_takes_half_of_the_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery_module, "MAX_DATAGRAMS", 25)
    sender = Sender(window=1 << 60)
    sender.send("ABCD")
    assert (sender.recovery.in_flight, sender.recovery.room(0.0)) == (10_000, 15_000)
    assert sender.pacer.passed == 40_000


def test_a_machine_that_slept_measures_nothing() -> None:
    sender = Sender()
    sender.send("ab")
    assert sender.acked(0, 20, now=3_600.0) == "+a0-10 +b0-10"
    assert sender.recovery.round_trip.samples == 1
    sender.send("c", 3_600.1)
    assert sender.recovery.deadline() == pytest.approx(3_600.1 + TIMEOUT)


def test_a_clock_put_back_stops_nothing() -> None:
    sender = Sender()
    sender.send("a", 3_600.0)
    sender.recovery.tick(3_600.1)
    sender.recovery.tick(10.0)
    assert sender.recovery.deadline() <= 10.0 + TIMEOUT
    assert sender.tick(sender.recovery.deadline()) == "-a0-2 probe"
    sender.send("b", 11.0)
    assert sender.acked(10, 20, now=11.1) == "+b0-10 -a2-10"
    assert 0.0 < sender.control.samples[-1]["interval"] < 10.0
    assert sender.recovery.rounds.count == 1


# --- a new begin ---------------------------------------------------------------------------------------------------


def test_another_path_begins_anew() -> None:
    sender = Sender()
    sender.send("a")
    sender.silence(5)
    sender.recovery.reset(5.0)
    assert sender.control.notes[-1] == ("reset", 0)
    assert (sender.recovery.timeouts, sender.recovery.round_trip.samples) == (0, 0)
    assert sender.recovery.deadline() == pytest.approx(5.0 + sender.recovery.round_trip.timeout())
    assert sender.acked(0, 10, now=5.5) == ""
    sample = sender.control.samples[-1]
    assert (sample["round_trip"], sample["rate"], sample["interval"]) == (0.0, 0.0, 0.0)
    assert sender.recovery.round_trip.samples == 0
    sender.send("b", 5.6)
    sender.acked(0, 20, now=5.7)
    assert sender.recovery.round_trip.latest == pytest.approx(0.1)


def test_what_left_by_the_other_path_does_not_close_the_window() -> None:
    sender = Sender(window=40_000)
    sender.send("abcd")
    sender.control.window = 10_000
    assert sender.recovery.room(0.05) == 0
    sender.recovery.reset(0.05)
    assert sender.recovery.room(0.05) == 10_000
    sender.send("e", 0.05)
    assert sender.recovery.room(0.05) == 0
    assert sender.acked(40, 50, now=0.1) == "+e0-10 -a0-10 -b0-10 -c0-10 -d0-10"
    assert sender.recovery.room(0.1) == 10_000


def test_figures_for_the_status() -> None:
    sender = Sender()
    assert (sender.recovery.loss, sender.recovery.rate) == (0.0, inf)
    sender.send("ab")
    sender.acked(0, 10, now=0.1)
    assert (sender.recovery.in_flight, sender.recovery.delivered) == (10_000, 10_000)
