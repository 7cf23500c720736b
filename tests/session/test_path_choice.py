"""Which of several paths carries what belongs to the session, and when one that has fallen silent does no more."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import cast

import pytest

from cryprq_proxy.errors import CloseReason, PeerError
from cryprq_proxy.session import wire
from cryprq_proxy.session.frame_actions import PATH_ACTIONS, ActingSession
from cryprq_proxy.session.path import ACK_DELAY, SessionPath
from cryprq_proxy.session.path_choice import choose
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.links import TARGET, Link
from tests.support.settings import session_limits
from tests.support.two_paths import LONG_DOUBT, SIDES, Two, kinds

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


# --- what the client prefers ---


@SIDES
def test_what_was_preferred_last_is_used_by_both_sides(side: str) -> None:
    on = Two(side)
    on.client.prefer(1)
    on.settle()
    assert on.exit.current is on.second.paths[1]
    sent = on.flow(on.first).sent
    on.one.say(bytes(100_000))
    on.settle()
    assert len(on.other.received) == 100_000 and on.flow(on.first).sent - sent < 100
    on.client.prefer(0)
    on.settle()
    assert on.client.current is on.first.paths[0] and on.exit.current is on.first.paths[1]


def test_of_several_preferences_the_one_with_the_highest_serial_counts() -> None:
    """Whatever order paths bring them in."""
    on = Two()
    on.link.forge(on.exit, wire.encode_prefer(7, 1))
    assert on.exit.current is on.second.paths[1]
    for serial in (0, 6, 7):
        on.link.forge(on.exit, wire.encode_prefer(serial, 0))
        assert on.exit.current is on.second.paths[1]
    on.link.forge(on.exit, wire.encode_prefer(2**32 - 1, 0))
    assert on.exit.current is on.first.paths[1]


def test_a_preference_may_come_before_its_path_and_outlives_it() -> None:
    on = Two()
    on.link.forge(on.exit, wire.encode_prefer(1, 2))
    assert on.exit.current is on.first.paths[1]
    third = on.join()
    assert on.exit.current is third.paths[1]
    third.cut()
    assert on.exit.current in (on.first.paths[1], on.second.paths[1])


def test_a_preference_is_not_lost_with_its_path() -> None:
    on = Two()
    on.hold(on.first)
    on.client.prefer(1)
    on.first.cut()
    on.settle()
    third = on.join()
    on.settle()
    assert on.exit._preferred == 1 and on.exit.current is on.second.paths[1] is not third.paths[1]


def test_preferring_the_same_again_says_nothing() -> None:
    on = Two()
    on.client.prefer(1)
    on.settle()
    serial = on.client._prefer_serial
    on.client.prefer(1)
    assert on.client._prefer_serial == serial and not on.client.retention.waits


def test_an_exit_that_chooses_breaks_the_protocol() -> None:
    on = Two()
    with pytest.raises(PeerError) as caught:
        on.link.forge(on.client, wire.encode_prefer(1, 0))
    assert caught.value.reason is CloseReason.PROTOCOL


# --- doubt ---


def doubted(side: str) -> Two:
    """The path in use stands still, and what it has carried has gone by the other one."""
    on = Two(side)
    on.hold(on.first)
    on.one.say(b"a")
    on.advance(LONG_DOUBT)
    assert on.path(on.first).in_doubt and on.side.current is on.path(on.second)
    assert on.other.received == b"a"
    return on


@SIDES
def test_a_path_on_which_nothing_comes_is_in_doubt_and_another_takes_over(side: str) -> None:
    on = doubted(side)
    assert on.first.open, "its keepalive decides whether it is lost"
    on.one.say(b"b")
    on.settle()
    assert on.other.received == b"ab"


@SIDES
def test_a_path_that_comes_back_is_trusted_again(side: str) -> None:
    on = doubted(side)
    on.prefer(on.first)
    assert on.side.current is on.path(on.second), "not before something is heard on it"
    on.release(on.first)
    on.advance(2 * ACK_DELAY)
    assert not on.path(on.first).in_doubt and on.side.current is on.path(on.first)
    on.one.say(b"b", finish=True)
    on.settle()
    assert on.other.received == b"ab"
    on.advance(1.0)
    assert on.side.retention.kept == 0 and not on.side.retention.waits


@SIDES
def test_a_path_in_doubt_that_is_lost_has_lost_nothing_more(side: str) -> None:
    on = doubted(side)
    on.one.say(b"b")
    on.first.cut()
    on.one.say(b"c", finish=True)
    on.advance(1.0)
    assert on.other.received == b"abc" and on.other.events[-1] == ("eof",)
    assert on.side.retention.kept == 0


@SIDES
def test_a_path_in_doubt_that_is_the_last_one_left_carries_on(side: str) -> None:
    """And what it carries goes once more by the next path that comes, since the doubt is still there."""
    on = doubted(side)
    on.second.cut()
    assert on.side.current is on.path(on.first)
    on.one.say(b"b")
    on.settle()
    assert wire.DATA in kinds(on.path(on.first))
    on.join()
    on.one.say(b"c", finish=True)
    on.settle()
    assert on.other.received == b"abc" and on.other.events[-1] == ("eof",)


def test_an_open_that_a_path_in_doubt_has_carried_goes_before_its_data() -> None:
    on = doubted("client")
    on.second.cut()
    app = on.link.open()
    on.settle()
    on.join()
    app.say(b"data")
    on.settle()
    assert app.stream is not None and on.link.served[app.stream.id].received == b"data"
    assert on.exit.closed is None


@SIDES
def test_what_two_silent_paths_have_carried_goes_by_each_of_them_once(side: str) -> None:
    """The second one is not in doubt before the first one answers again: until then it would take its own place."""
    on = Two(side)
    on.hold(on.first, on.second)
    before = on.flow(on.first).sent, on.flow(on.second).sent
    on.one.say(bytes(60_000))
    on.advance(3.0)
    assert on.path(on.first).in_doubt and not on.path(on.second).in_doubt
    for flow, sent in zip((on.flow(on.first), on.flow(on.second)), before, strict=True):
        assert 60_000 <= flow.sent - sent < 61_000
    on.release(on.first)
    on.advance(LONG_DOUBT)
    assert not on.path(on.first).in_doubt and on.path(on.second).in_doubt
    assert on.side.current is on.path(on.first)
    on.one.say(b"more")
    on.settle()
    assert len(on.other.received) == 60_004


@SIDES
def test_nothing_is_in_doubt_without_another_path(side: str) -> None:
    on = Two(side)
    on.second.cut()
    on.hold(on.first)
    on.one.say(b"a")
    on.advance(5.0)
    assert not on.path(on.first).in_doubt and kinds(on.path(on.first))


def test_nothing_is_in_doubt_while_the_other_path_waits_for_its_verdict() -> None:
    link = Link()
    app, _ = link.pair()
    link.quiesce()
    link.introduce()
    path, _ = link.carrier.paths
    link.carrier.to_left.piece = link.carrier.to_right.piece = 0
    app.say(b"a")
    link.carrier.advance(5.0)
    assert link.carrier.open and not path.in_doubt and wire.DATA in kinds(path)


@SIDES
def test_a_path_that_owes_nothing_is_never_in_doubt(side: str) -> None:
    on = Two(side)
    on.advance(0.5)
    on.hold(on.first)
    on.advance(5.0)
    assert not kinds(on.path(on.first)) and not on.path(on.first).in_doubt


@SIDES
@pytest.mark.parametrize("what", ["datagrams", "packets"])
def test_a_silent_path_is_missed_by_what_nobody_acknowledges(side: str, what: str) -> None:
    """Nothing that is kept is under way, so only a PING without an answer tells it."""
    on = Two(side)
    for session in (on.client, on.exit):
        session.packet_link.packet_received = lambda *packet: None  # type: ignore[method-assign]
    app = on.link.open(protocol=StreamProtocol.UDP)
    on.settle()
    on.advance(1.0)
    assert app.stream is not None
    sender = app if side == "client" else on.link.served[app.stream.id]
    path = on.path(on.first)

    def send() -> None:
        if what == "packets":
            on.side.send_packet(0, 0, 0, memoryview(b"packet"))
        else:
            assert sender.stream is not None
            sender.stream.send_datagram(TARGET, b"datagram")

    send()
    on.settle()
    on.hold(on.first)
    for _ in range(10):
        send()
        on.advance(0.1)
    assert not kinds(path) and path.in_doubt and on.side.current is on.path(on.second)
    before = on.flow(on.second).sent
    send()
    on.settle()
    assert on.flow(on.second).sent > before


@SIDES
def test_a_keepalive_without_an_answer_is_a_doubt_too(side: str) -> None:
    on = Two(side)
    on.hold(on.first)
    on.advance(session_limits().keepalive + LONG_DOUBT)
    assert on.path(on.first).in_doubt and on.side.current is on.path(on.second)


@SIDES
def test_a_path_on_which_acknowledgements_come_is_never_in_doubt(side: str) -> None:
    on = Two(side)
    for _ in range(100):
        on.one.say(b"a")
        on.advance(ACK_DELAY)
        assert not on.path(on.first).in_doubt
    assert not on.path(on.second).in_doubt


@SIDES
def test_an_acknowledgement_by_another_path_tells_that_the_peer_is_in_doubt(side: str) -> None:
    """It hears nothing on this one, and we could not know."""
    on = Two(side)
    path = on.path(on.first)
    on.back(on.first).piece = on.flow(on.first).piece = 0
    on.one.say(b"a")
    on.settle()
    on.link.carrier = on.second
    on.link.forge(on.side, wire.encode_records(wire.ACK, 0, path.log.acknowledged))
    assert path.in_doubt and on.side.current is on.path(on.second)
    on.settle()
    assert on.other.received == b"a"


@SIDES
def test_an_acknowledgement_of_a_path_by_itself_tells_of_no_doubt(side: str) -> None:
    on = Two(side)
    path = on.path(on.first)
    on.link.forge(on.side, wire.encode_records(wire.ACK, 0, path.log.acknowledged))
    assert not path.in_doubt


@SIDES
def test_of_a_doubt_the_peer_is_told_once(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not tell it back, or two sides would tell each other for ever."""
    on = Two(side)
    on.hold(on.first)
    on.one.say(b"a")
    on.settle()
    told = []
    received = PATH_ACTIONS[wire.ACK]

    def receive(session: ActingSession, path: SessionPath, value: tuple[int, int]) -> None:
        if path.number != value[0]:
            told.append(session is on.side)
        received(session, path, value)

    monkeypatch.setitem(PATH_ACTIONS, wire.ACK, receive)
    on.advance(LONG_DOUBT)
    assert told == [False]
    assert all(session.paths[0].in_doubt for session in (on.client, on.exit))


@SIDES
def test_the_time_of_a_doubt_begins_with_what_is_sent(side: str) -> None:
    """Not with what was heard last, which is long ago after a silence."""
    on = Two(side)
    on.advance(5.0)
    on.hold(on.first)
    on.one.say(b"a")
    on.settle()
    path = on.path(on.first)
    now = on.link.now
    at = path._doubt_at()
    assert at == now + path.suspicion.seconds < now + LONG_DOUBT
    on.advance(at - now - 0.001)
    assert not path.in_doubt
    on.advance(0.002)
    assert path.in_doubt


@SIDES
def test_a_silent_path_that_is_no_longer_in_use_holds_nothing_back(side: str) -> None:
    on = Two(side)
    on.hold(on.first)
    on.one.say(b"a")
    on.settle()
    on.prefer(on.second)
    on.settle()
    assert not on.other.received
    on.advance(LONG_DOUBT)
    assert on.other.received == b"a"
