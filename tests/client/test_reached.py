"""What an exit has connected lately: bounded in number and in time, forgotten with a refusal, and shown nowhere."""

from __future__ import annotations

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.client.reached import MOST_REACHED, REACHED_SECONDS, ReachedTargets

TARGET = Destination("a.example", 443)


class Watch:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def reached(watch: Watch) -> ReachedTargets:
    return ReachedTargets(watch)


def test_it_is_about_a_host_and_a_port(reached: ReachedTargets) -> None:
    assert TARGET not in reached
    reached.add(TARGET)
    assert TARGET in reached
    assert Destination("a.example", 80) not in reached
    assert Destination("b.example", 443) not in reached


def test_a_refusal_ends_it(reached: ReachedTargets) -> None:
    reached.add(TARGET)
    reached.discard(TARGET)
    reached.discard(TARGET)
    assert TARGET not in reached


def test_it_is_forgotten_after_its_time(reached: ReachedTargets, watch: Watch) -> None:
    """Which begins anew each time; and not only the answer is forgotten, but the name."""
    reached.add(TARGET)
    reached.add(Destination("b.example", 443))
    watch.now += REACHED_SECONDS / 2
    reached.add(TARGET)
    watch.now += REACHED_SECONDS / 2
    assert TARGET in reached and len(reached) == 1
    watch.now += REACHED_SECONDS / 2
    assert TARGET not in reached and not len(reached)


def test_the_oldest_is_forgotten_beyond_the_bound(reached: ReachedTargets) -> None:
    reached.add(TARGET)
    for port in range(1, MOST_REACHED):
        reached.add(Destination("192.0.2.1", port))
    reached.add(TARGET)
    for port in range(1, 3):
        reached.add(Destination("192.0.2.2", port))
    assert len(reached) == MOST_REACHED
    assert TARGET in reached
    assert Destination("192.0.2.1", 2) not in reached and Destination("192.0.2.1", 3) in reached


def test_its_text_names_no_target(reached: ReachedTargets) -> None:
    reached.add(TARGET)
    assert "example" not in f"{reached!r}{reached}"
