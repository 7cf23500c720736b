"""What a round trip delivered and lost."""

from __future__ import annotations

from cryprq_proxy.recovery.rounds import Round, Rounds


def test_a_round_lasts_from_departure_to_acknowledgement() -> None:
    rounds = Rounds(0.0)
    rounds.acked(10, 0, 10_000, True, 0.5)
    assert (rounds.count, rounds.last) == (1, Round(20_000, 0.0, True))
    rounds.acked(10, 0, 20_000, True, 0.6)  # it left before 10,000 were delivered
    assert rounds.count == 1
    rounds.lost(5)
    rounds.acked(5, 10_000, 25_000, False, 1.0)
    assert (rounds.count, rounds.last) == (2, Round(30_000, 0.25, True))
    rounds.acked(10, 25_000, 35_000, False, 2.0)
    assert (rounds.count, rounds.last) == (3, Round(10_000, 0.0, False))


def test_a_round_takes_time() -> None:
    rounds = Rounds(1.0)
    rounds.acked(1, 0, 1_000, False, 1.0)
    assert rounds.count == 0


def test_a_round_that_is_cut_short_does_not_count() -> None:
    rounds = Rounds(0.0)
    rounds.lost(7)
    rounds.restart(5.0, 4_000)
    rounds.acked(1, 3_000, 5_000, False, 5.1)
    assert rounds.count == 0
    rounds.acked(1, 4_000, 6_000, False, 7.0)
    assert rounds.last == Round(1_000, 0.0, False)
