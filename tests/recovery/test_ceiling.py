"""The ceiling after each round. 100 datagrams of 1,000 bytes arrive in a tenth of a second: a megabyte a second."""

from __future__ import annotations

from math import inf

import pytest

from cryprq_proxy.recovery.ceiling import Ceiling

DATAGRAM = 1_000
BEST = 2_000_000.0


def end(
    ceiling: Ceiling,
    lost: int,
    acked: int = 100,
    *,
    marked: int = 0,
    limited: bool = False,
    starting: bool = False,
) -> bool:
    """A round of a tenth of a second with so many datagrams."""
    ceiling.lost, ceiling.acked, ceiling.marked = lost * DATAGRAM, acked * DATAGRAM, marked
    return ceiling.end_round(BEST, 0.1, DATAGRAM, limited=limited, starting=starting)


@pytest.mark.parametrize(("lost", "rate"), [(0, inf), (25, inf), (26, 1_000_000.0)])
def test_above_the_brake_it_is_what_arrived(lost: int, rate: float) -> None:
    ceiling = Ceiling()
    assert end(ceiling, lost) == (rate < inf)
    assert ceiling.rate == rate


def test_it_falls_with_the_share_if_what_arrived_says_nothing() -> None:
    ceiling = Ceiling()
    assert end(ceiling, 100, limited=True)
    assert ceiling.rate == BEST / 2


def test_it_rises_below_the_release_and_goes() -> None:
    ceiling = Ceiling()
    end(ceiling, 100)
    for lost, rate in ((20, 1_000_000.0), (17, 1_050_000.0), (20, 1_050_000.0), (0, 1_102_500.0)):
        assert not end(ceiling, lost)
        assert ceiling.rate == pytest.approx(rate)
    for _ in range(16):
        end(ceiling, 0)
    assert ceiling.rate < inf
    end(ceiling, 0)
    assert ceiling.rate == inf


def test_it_never_rises_by_much_loss() -> None:
    ceiling = Ceiling()
    end(ceiling, 100, 20)
    assert ceiling.rate == 200_000
    end(ceiling, 100, 100)
    assert ceiling.rate == 200_000


def test_a_few_datagrams_say_nothing() -> None:
    ceiling = Ceiling()
    assert not end(ceiling, 16, 15)
    assert ceiling.rate == inf
    assert end(ceiling, 16, 16)


def test_at_the_start_it_takes_two_rounds_in_a_row() -> None:
    ceiling = Ceiling()
    assert not end(ceiling, 100, starting=True)
    assert not end(ceiling, 0, starting=True)
    assert not end(ceiling, 100, starting=True)
    assert ceiling.rate == inf
    assert end(ceiling, 100, starting=True)
    assert ceiling.rate == 1_000_000


def test_marks_lower_it_once_a_round() -> None:
    ceiling = Ceiling()
    assert end(ceiling, 0, marked=30)
    assert ceiling.rate == 0.85 * BEST
    assert end(ceiling, 0, marked=1, starting=True)
    assert ceiling.rate == pytest.approx(0.85**2 * BEST)


def test_what_a_round_brought_is_not_counted_again() -> None:
    ceiling = Ceiling()
    end(ceiling, 100, marked=1)
    assert (ceiling.lost, ceiling.acked, ceiling.marked) == (0, 0, 0)
