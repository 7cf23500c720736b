"""Which of several paths carries what belongs to the session, and what happens when it falls silent or ends."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, cast

import pytest

from cryprq_proxy.errors import CloseReason, PeerError
from cryprq_proxy.session import wire
from cryprq_proxy.session.path import DOUBT_SECONDS, SessionPath
from cryprq_proxy.session.path_choice import choose
from cryprq_proxy.session.session import Session
from tests.support.links import Link
from tests.support.memory import MemoryCarrier, advance, settle

# --- what goes before what ---

NONE = -1


@dataclass
class FakePath:
    number: int
    admitted: bool = True
    in_doubt: bool = False


def chosen(*paths: FakePath, preferred: int = NONE, current: FakePath | None = None) -> int | None:
    """The number of the chosen path, whatever the order in which they are looked at."""
    orders = itertools.permutations(cast("tuple[SessionPath, ...]", paths))
    [number] = {
        None if path is None else path.number
        for path in (choose(order, preferred, cast("SessionPath | None", current)) for order in orders)
    }
    return number


def test_without_a_path_there_is_no_choice() -> None:
    assert chosen() is None
    assert chosen(preferred=3) is None


def test_the_newest_is_taken_where_none_is_in_use() -> None:
    assert chosen(FakePath(0), FakePath(4), FakePath(2)) == 4


def test_the_one_in_use_stays_in_use() -> None:
    present = FakePath(2)
    assert chosen(FakePath(0), present, FakePath(4), current=present) == 2


def test_the_one_that_is_preferred_takes_its_place() -> None:
    present = FakePath(2)
    assert chosen(FakePath(0), present, FakePath(4), current=present, preferred=0) == 0
    assert chosen(FakePath(0), present, FakePath(4), current=present, preferred=7) == 2, "it is not there"


@pytest.mark.parametrize("preferred", [NONE, 2])
def test_one_in_doubt_comes_after_all_others(preferred: int) -> None:
    present = FakePath(2, in_doubt=True)
    assert chosen(present, FakePath(0), current=present, preferred=preferred) == 0
    assert chosen(present, FakePath(0, in_doubt=True), current=present, preferred=preferred) == 2


@pytest.mark.parametrize("preferred", [NONE, 4])
def test_one_that_waits_for_its_verdict_comes_last(preferred: int) -> None:
    joining = FakePath(4, admitted=False)
    assert chosen(FakePath(0, in_doubt=True), joining, preferred=preferred) == 0
    assert chosen(joining, preferred=preferred) == 4, "early frames are better than none"


# --- in a session ---

SIDES = pytest.mark.parametrize("side", ["client", "exit"])


def several(count: int = 2) -> tuple[Link, list[MemoryCarrier]]:
    """A link with so many paths, on which a stream has begun."""
    link = Link()
    link.pair()
    carriers = [link.carrier, *[link.join() for _ in range(1, count)]]
    advance(carriers, 0.1)
    return link, carriers


def used(link: Link) -> tuple[int, int]:
    """The numbers of the paths that the client and the exit send on."""
    assert link.client.current is not None and link.exit.current is not None
    return link.client.current.number, link.exit.current.number


def app_of(link: Link, side: str) -> Any:
    return link.served[1] if side == "exit" else link.client.streams[1].handler


def other_side(side: str) -> str:
    return "client" if side == "exit" else "exit"


def test_the_one_in_use_stays_in_use_when_another_one_joins() -> None:
    link, _ = several(3)
    assert used(link) == (0, 0)


def test_both_sides_send_on_the_one_that_the_client_prefers() -> None:
    link, carriers = several(3)
    for number in (1, 2, 0):
        link.client.prefer(number)
        settle(carriers)
        assert used(link) == (number, number)


def test_of_two_choices_the_later_one_counts_however_late_the_first_one_comes() -> None:
    link, carriers = several(3)
    link.client.prefer(1)
    link.client.prefer(2)
    settle(carriers)
    link.forge(link.exit, wire.encode_prefer(1, 1))
    assert used(link) == (2, 2)
    link.forge(link.exit, wire.encode_prefer(3, 1))
    assert used(link) == (2, 1)


def test_an_exit_that_chooses_breaks_the_protocol() -> None:
    link, _ = several()
    with pytest.raises(PeerError) as caught:
        link.forge(link.client, wire.encode_prefer(1, 0))
    assert caught.value.reason is CloseReason.PROTOCOL


@SIDES
def test_a_side_that_has_left_a_path_says_so_by_another_one(side: str) -> None:
    """The other one may not find out for long. It then ends its half, and goes on with what the first has not got."""
    link, carriers = several()
    victim: Session = getattr(link, other_side(side))
    told: list[int] = []
    first = victim.paths[0]
    first.abandoned = lambda: told.append(0)
    app_of(link, other_side(side)).say(b"on its way")
    assert first.fill(memoryview(bytearray(1 << 20)), 1 << 16, link.carrier.now), "and lost"
    getattr(link, side).paths[0].lost(link.carrier.now)
    settle(carriers[1:])
    assert told == [0] and list(victim.paths) == [1]
    assert app_of(link, side).received == b"on its way"


def test_a_path_that_the_exit_has_never_let_in_may_be_left() -> None:
    """A verdict that did not come in time: the exit knows nothing of the path."""
    link, _ = several()
    link.forge(link.exit, wire.encode_records(wire.ABANDON, 7, 0))
    assert link.exit.closed is None and len(link.exit.paths) == 2


@SIDES
def test_a_silent_path_that_owes_an_acknowledgement_is_left(side: str) -> None:
    """Long before the keepalive. What it has carried goes by the other one. When that is heard again it is used
    again, since the client prefers it."""
    link, carriers = several()
    session: Session = getattr(link, side)
    link.client.prefer(0)
    advance(carriers, 0.1)
    app_of(link, side).say(b"held back")
    out = memoryview(bytearray(1 << 20))
    path = session.paths[0]
    size = path.fill(out, 1 << 16, link.carrier.now)
    assert size and path.deadline() < link.carrier.now + 2 * DOUBT_SECONDS
    path.tick(path.deadline())
    assert path.in_doubt and session.current is session.paths[1]
    settle(carriers[1:])
    assert app_of(link, other_side(side)).received == b"held back"
    peer: Session = getattr(link, other_side(side))
    peer.paths[0].receive(out[:size], link.carrier.now)
    assert app_of(link, other_side(side)).received == b"held back", "the second copy does no harm"
    peer.paths[0].ping_received(1)
    settle(carriers)
    assert not path.in_doubt and session.current is path


@SIDES
def test_a_silent_path_is_kept_while_there_is_no_other_one(side: str) -> None:
    """One that waits for the verdict is none."""
    link, _ = several(1)
    session: Session = getattr(link, side)
    app_of(link, side).say(b"held back")
    path = session.paths[0]
    assert path.fill(memoryview(bytearray(1 << 20)), 1 << 16, link.carrier.now)
    if side == "client":
        link.introduce()
    path.tick(link.carrier.now + 2 * DOUBT_SECONDS)
    assert not path.in_doubt and session.current is path


@SIDES
def test_an_idle_path_is_never_in_doubt(side: str) -> None:
    link, _ = several()
    path = getattr(link, side).paths[0]
    path.tick(link.carrier.now + 1.0)
    assert not path.in_doubt


def test_a_silent_path_that_is_no_longer_in_use_holds_nothing_back() -> None:
    link, carriers = several()
    app_of(link, "client").say(b"held back")
    path = link.client.paths[0]
    assert path.fill(memoryview(bytearray(1 << 20)), 1 << 16, link.carrier.now)
    link.client.prefer(1)
    settle(carriers[1:])
    assert not app_of(link, "exit").received
    path.tick(path.deadline())
    settle(carriers[1:])
    assert app_of(link, "exit").received == b"held back"
