"""The lobby on a virtual clock: nobody is dropped without pressure, and who fills the room loses most of it."""

from __future__ import annotations

import random
from collections import Counter, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.exit.lobby import PATIENCE, SHORT_PATIENCE, Guest, Lobby
from cryprq_proxy.exit.prefixes import prefixes_of

ANY = 1_000_000


def guest(ip: str = "") -> Guest:
    return Guest(prefixes_of(ip) if ip else ())


def lobby(capacity: int, seed: int = 1) -> Lobby[Guest]:
    return Lobby(capacity, random.Random(seed))


def test_half_of_the_room_is_free_for_all() -> None:
    room = lobby(100)
    guests = [guest("192.0.2.1") for _ in range(50)]
    assert [room.enter(each, 0.0) for each in guests] == [None] * 50
    assert (room.pressure, room.patience) == (0.0, PATIENCE)
    assert room.expired(PATIENCE - 0.1, ANY) == []
    assert room.expired(PATIENCE, 20) == guests[:20]
    assert room.expired(PATIENCE, ANY) == guests[20:]
    assert len(room) == 0


@pytest.mark.parametrize("capacity", [1, 2, 3, 10, 101])
def test_the_room_never_holds_more_than_its_capacity(capacity: int) -> None:
    room = lobby(capacity)
    most = 0
    for number in range(20 * capacity):
        room.enter(guest(f"192.0.2.{number % 250}"), 0.0)
        most = max(most, len(room))
    assert most == len(room) == capacity


@pytest.mark.parametrize("capacity", [1, 2, 7])
def test_a_smaller_room_keeps_its_guests_and_takes_none_in_beyond_them(capacity: int) -> None:
    room = lobby(10)
    guests = [guest("192.0.2.1") for _ in range(5)]
    for each in guests:
        assert room.enter(each, 0.0) is None
    room.take_capacity(capacity)
    assert list(room) == guests
    for _ in range(50):
        room.enter(guest("192.0.2.2"), 1.0)
    assert len(room) == max(capacity, 5)
    room.expired(PATIENCE + 1.0, ANY)
    room.take_capacity(20)
    assert [room.enter(guest(), 20.0) for _ in range(10)] == [None] * 10


def test_pressure_rises_and_patience_shrinks_with_it() -> None:
    room = lobby(100)
    seen = []
    for _ in range(400):
        room.enter(guest(), 0.0)
        seen.append((len(room), room.pressure, room.patience))
    for size, pressure, patience in seen:
        assert pressure == pytest.approx(max(0, size - 50) / 51)
        assert patience == pytest.approx(PATIENCE - pressure * (PATIENCE - SHORT_PATIENCE))
    assert seen[-1][2] < SHORT_PATIENCE + 0.2
    gone = room.expired(SHORT_PATIENCE + 0.2, ANY)
    assert 0 < len(gone) < 100, "with each that goes, the others have more time again"


def test_the_chance_of_a_drop_is_the_pressure() -> None:
    """The newcomer is among those that may go."""
    room = lobby(1000)
    for _ in range(500):
        room.enter(guest(), 0.0)
    dropped = newcomers = 0
    for _ in range(5_000):
        room.leave(next(iter(room)))
        while len(room) < 749:
            room.enter(guest(), 0.0)
        arrived = guest()
        victim = room.enter(arrived, 0.0)
        dropped += victim is not None
        newcomers += victim is arrived
    assert dropped / 5_000 == pytest.approx(250 / 501, abs=0.03)
    assert 0 < newcomers < 30


@pytest.mark.parametrize("crowd", ["198.51.100.7", "198.51.100.{}", "198.51.{}.1", "2001:db8:0:{:x}::1"])
def test_a_crowd_drops_itself(crowd: str) -> None:
    """One customer, one /24, one /16, or one /48 fills the room; others come in between and stay."""
    room = lobby(1000)
    lost: Counter[bool] = Counter()
    others = []
    for number in range(5000):
        honest = number % 50 == 0
        arrived = guest(f"{1 + number // 50}.0.0.9" if honest else crowd.format(number % 250))
        if honest:
            others.append(arrived)
        if (victim := room.enter(arrived, 0.0)) is not None:
            lost[victim in others] += 1
    assert lost.total() == 4000
    assert lost[True] <= 3, "only where all picks are such, of which there are 100 among 1000 in the end"


def test_a_client_among_a_hundred_silent_ones_a_second_is_not_at_risk() -> None:
    room = lobby(4096)
    for tick in range(3000):
        now = tick / 100
        assert room.enter(guest(f"127.0.{tick % 200}.1"), now) is None
        room.expired(now, ANY)
    assert len(room) == 1000


def test_a_client_among_two_thousand_silent_ones_a_second_has_its_round_trip() -> None:
    """Each from an address of its own: nine of ten still have their place after 0.2 s."""
    room, numbers = lobby(4096), random.Random(2)
    recent: deque[Guest] = deque()
    lost: set[Guest] = set()
    kept = 0
    for tick in range(20_000):
        now = tick / 2000
        recent.append(guest(".".join(str(numbers.randrange(1, 255)) for _ in range(4))))
        victim = room.enter(recent[-1], now)
        lost.update(room.expired(now, ANY), () if victim is None else (victim,))
        if len(recent) > 400:
            kept += recent.popleft() not in lost
    assert 2048 < len(room) < 4096
    assert kept / 19_600 > 0.9


def test_an_address_that_becomes_known_counts_from_then_on() -> None:
    room = lobby(100)
    behind = guest()
    room.enter(behind, 0.0)
    near, far = prefixes_of("192.0.2.1"), prefixes_of("192.0.2.2")
    assert not room.holds(near[0])
    room.rename(behind, near)
    assert room.holds(near[0]) and room.holds(near[2])
    room.rename(behind, far)
    assert room.holds(far[0]) and not room.holds(near[0])
    room.leave(behind)
    assert not room.holds(far[2])


@given(st.lists(st.tuples(st.sampled_from(["enter", "leave", "expire"]), st.integers(0, 5), st.floats(0, 3))))
def test_the_room_knows_who_is_there(calls: list[tuple[str, int, float]]) -> None:
    room, here, now = lobby(4), [], 0.0
    for what, number, step in calls:
        now += step
        if what == "enter":
            arrived = guest(f"192.0.2.{number}")
            victim = room.enter(arrived, now)
            here.append(arrived)
            if victim is not None:
                here.remove(victim)
        elif what == "leave" and here:
            room.leave(here.pop(number % len(here)))
        elif what == "expire":
            for gone in room.expired(now, 2):
                assert now - gone.since >= SHORT_PATIENCE
                here.remove(gone)
        assert list(room) == here and len(room) == len(here) <= 4
        for known in range(6):
            prefix = prefixes_of(f"192.0.2.{known}")[0]
            assert room.holds(prefix) == any(prefix in each.prefixes for each in here)
