"""Which objects a collection of garbage looks at, and when it looks at all."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from cryprq_proxy.process import garbage
from cryprq_proxy.process.garbage import MOST_THAW_SECONDS, THAW_SECONDS, Collector


class Ring:
    """Garbage that only a collection finds."""

    def __init__(self) -> None:
        self.me = self


class Hours:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def hours() -> Hours:
    return Hours()


@pytest.fixture
def collector(hours: Hours) -> Iterator[Collector]:
    collector = Collector(hours)
    collector.start()
    yield collector
    collector.stop()


def looked_at(thing: object) -> bool:
    """Whether the next collection looks at `thing`."""
    return any(other is thing for other in gc.get_objects())


def test_what_has_survived_one_collection_is_left_out_of_the_next_ones(collector: Collector) -> None:
    """A collection of an exit's 7,300 streams took 14 to 61 ms."""
    new = Ring()
    gc.collect(1)
    assert looked_at(new)
    gc.collect()
    assert not looked_at(new)


def test_garbage_that_is_new_is_found(collector: Collector) -> None:
    gone = weakref.ref(Ring())
    gc.collect()
    assert gone() is None


def test_what_is_left_out_is_freed_when_nothing_refers_to_it(collector: Collector) -> None:
    new = Ring()
    gone = weakref.ref(new)
    gc.collect()
    new.me = None  # type: ignore[assignment]
    del new
    assert gone() is None


@pytest.mark.parametrize("many", [False, True])
def test_all_is_looked_at_once_an_hour_or_if_it_is_much_once_a_day(
    collector: Collector, hours: Hours, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if many:
        monkeypatch.setattr(garbage, "QUICK", -(1 << 60))
    ring = Ring()
    gone = weakref.ref(ring)
    gc.collect()
    del ring
    gc.collect()
    assert gone() is not None
    hours.now += THAW_SECONDS
    gc.collect()
    assert (gone() is not None) is many
    hours.now = MOST_THAW_SECONDS
    gc.collect()
    assert gone() is None, "no garbage stays for good"
    later = Ring()
    gc.collect()
    assert not looked_at(later), "and all is left out again"


def test_a_second_start_changes_nothing(collector: Collector) -> None:
    before = len(gc.callbacks)
    collector.start()
    assert len(gc.callbacks) == before
