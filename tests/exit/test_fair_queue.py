"""The queue in which networks have turns, on a virtual clock."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.exit.fair_queue import FairQueue
from cryprq_proxy.exit.lobby import PATIENCE, Guest
from cryprq_proxy.exit.prefixes import prefixes_of

ANY = 1_000_000


class Caller(Guest):
    def __init__(self, ip: str) -> None:
        super().__init__(prefixes_of(ip))
        self.ip = ip


def queue_of(*ips: str, capacity: int = 1024) -> FairQueue[Caller]:
    queue: FairQueue[Caller] = FairQueue(capacity)
    for ip in ips:
        assert queue.enter(Caller(ip), 0.0) is None
    return queue


def turns(queue: FairQueue[Caller], count: int = ANY) -> list[str]:
    order: list[str] = []
    while len(order) < count and (caller := queue.next()) is not None:
        order.append(caller.ip)
    return order


def test_guests_of_one_customer_go_in_their_order() -> None:
    queue: FairQueue[Caller] = FairQueue(10)
    callers = [Caller("192.0.2.1") for _ in range(5)]
    for caller in callers:
        queue.enter(caller, 0.0)
    assert [queue.next() for _ in range(6)] == [*callers, None]


def test_each_customer_of_a_network_has_its_turn() -> None:
    queue = queue_of(*["192.0.2.1"] * 4, "192.0.2.2", "192.0.2.3")
    assert turns(queue) == ["192.0.2.1", "192.0.2.2", "192.0.2.3", *["192.0.2.1"] * 3]


def test_a_network_has_one_turn_however_many_customers_it_has() -> None:
    """A /16 with 500 addresses in all of its /24, and a /32 of IPv6 the same, against one client elsewhere."""
    crowd = [f"10.1.{number}.{host}" for number in range(250) for host in (1, 2)]
    crowd += [f"2001:db8:{number:x}::1" for number in range(500)]
    queue = queue_of(*crowd, "203.0.113.9", "203.0.113.9")
    assert turns(queue, 6).count("203.0.113.9") == 2


def test_a_newcomer_waits_for_one_round() -> None:
    queue = queue_of(*(f"10.{number}.0.1" for number in range(50) for _ in range(10)))
    turns(queue, 7)
    queue.enter(Caller("203.0.113.9"), 0.0)
    assert "203.0.113.9" in turns(queue, 51)


def test_it_knows_whose_guests_it_holds() -> None:
    queue = queue_of("192.0.2.1", "2001:db8::1")
    for ip, holds in (("192.0.2.1", True), ("192.0.2.2", False), ("10.0.0.1", False), ("2001:db8::2", True)):
        assert queue.holds(prefixes_of(ip)) is holds, ip
    turns(queue)
    assert not queue.holds(prefixes_of("192.0.2.1"))


def test_a_full_queue_loses_the_newest_of_its_largest_network() -> None:
    queue = queue_of(*["192.0.2.1"] * 3, "198.51.100.1", capacity=4)
    newest = list(queue)[2]
    assert queue.enter(Caller("203.0.113.9"), 0.0) is newest
    crowding = [Caller("192.0.2.1"), Caller("192.0.2.1")]
    assert [queue.enter(caller, 0.0) for caller in crowding] == crowding
    assert len(queue) == 4


def test_who_has_waited_too_long_goes() -> None:
    queue = queue_of("192.0.2.1", "192.0.2.2", "192.0.2.3")
    queue.enter(Caller("192.0.2.1"), 5.0)
    assert queue.expired(PATIENCE - 0.1, ANY) == []
    assert len(queue.expired(PATIENCE, 2)) == 2
    assert [caller.ip for caller in queue.expired(PATIENCE, ANY)] == ["192.0.2.3"]
    assert turns(queue) == ["192.0.2.1"]


@given(
    st.integers(1, 6),
    st.lists(
        st.tuples(st.sampled_from(["enter", "next", "leave"]), st.integers(0, 2), st.integers(0, 2)),
        max_size=60,
    ),
)
def test_nobody_is_lost_and_nobody_is_served_twice(capacity: int, calls: list[tuple[str, int, int]]) -> None:
    queue: FairQueue[Caller] = FairQueue(capacity)
    here: list[Caller] = []
    for what, wide, narrow in calls:
        if what == "enter":
            here.append(caller := Caller(f"10.{wide}.0.{narrow}"))
            victim = queue.enter(caller, 0.0)
            if victim is not None:
                here.remove(victim)
        elif what == "next":
            served = queue.next()
            assert (served is None) == (not here)
            if served is not None:
                first = next(one for one in here if one.ip == served.ip)
                assert served is first
                here.remove(served)
        elif here:
            queue.leave(here.pop(narrow % len(here)))
        assert list(queue) == here and len(queue) <= capacity
    left = Counter(caller.ip for caller in here)
    assert Counter(turns(queue)) == left
    assert not queue._all.parts, "no network is remembered that has nobody here"
