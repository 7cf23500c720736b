"""Several paths at a time: one carries what belongs to the session, and what becomes of it when that one fails."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.errors import CloseReason, PeerError, StreamReason
from cryprq_proxy.session import wire
from cryprq_proxy.session.path import (
    ACK_DELAY,
    CALM_SECONDS,
    DOUBT_SECONDS,
    FILL_MINIMUM,
    MOST_PATIENCE,
    SessionPath,
)
from cryprq_proxy.session.rotation import NEVER
from cryprq_proxy.session.session import Session
from cryprq_proxy.session.streams import Stream
from cryprq_proxy.session.turns import FRAME_COSTS, RECORD_WORK
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.links import TARGET, App, Link, ToyProvider
from tests.support.memory import CAPACITY, Direction, MemoryCarrier, advance, settle
from tests.support.settings import rotation_limits, session_limits

SIDES = pytest.mark.parametrize("side", ["client", "exit"])
LONG_DOUBT = 1.0
"""Seconds after which a path on which nothing comes is in doubt."""


class Two:
    """A link with two paths, of which the first one is in use. `one` is at `side` and sends, `other` receives."""

    def __init__(self, side: str = "client", **options: object) -> None:
        self.link = Link(provider=ToyProvider(), **options)  # type: ignore[arg-type]
        self.client, self.exit = self.link.client, self.link.exit
        self.side: Session = getattr(self.link, side)
        self.first = self.link.carrier
        self.second = self.link.join()
        self.carriers = [self.first, self.second]
        self.settle()
        ends = self.pair()
        self.one, self.other = ends if side == "client" else ends[::-1]
        self.advance(2.0)
        assert self.client.current is self.first.paths[0] and self.exit.current is self.first.paths[1]

    def pair(self) -> tuple[App, App]:
        app = self.link.open()
        self.settle()
        assert app.stream is not None
        return app, self.link.served[app.stream.id]

    def settle(self) -> None:
        settle(self.open)

    def advance(self, seconds: float) -> None:
        advance(self.open, seconds)
        self.link.now = self.open[0].now

    @property
    def open(self) -> list[MemoryCarrier]:
        return [carrier for carrier in self.carriers if carrier.open]

    def join(self) -> MemoryCarrier:
        self.carriers.append(self.link.join())
        return self.carriers[-1]

    def path(self, carrier: MemoryCarrier) -> SessionPath:
        """The end of `carrier` at the side that sends."""
        return carrier.paths[self.side is self.exit]

    def flow(self, carrier: MemoryCarrier) -> Direction:
        """The direction in which that side sends."""
        return carrier.to_right if self.side is self.client else carrier.to_left

    def back(self, carrier: MemoryCarrier) -> Direction:
        """The other direction."""
        return carrier.to_left if self.side is self.client else carrier.to_right

    def prefer(self, carrier: MemoryCarrier) -> None:
        """Both sides know it before anything else moves."""
        number = carrier.paths[0].number
        self.client.prefer(number)
        serial = self.client._prefer_serial
        self.exit._receive_prefer(serial, number)

    def hold(self, *carriers: MemoryCarrier) -> None:
        """Nothing arrives there any more."""
        for carrier in carriers:
            carrier.to_right.piece = carrier.to_left.piece = 0

    def release(self, *carriers: MemoryCarrier) -> None:
        for carrier in carriers:
            carrier.to_right.piece = carrier.to_left.piece = 1 << 20


def kinds(path: SessionPath) -> list[int]:
    return [unit.frame[0] for unit in path.log.units]


# --- one at a time ---


@SIDES
def test_a_path_beside_the_one_in_use_carries_only_what_is_about_itself(side: str) -> None:
    on = Two(side)
    sent = on.flow(on.second).sent
    on.one.say(bytes(500_000), finish=True)
    on.settle()
    assert len(on.other.received) == 500_000
    assert on.flow(on.second).sent == sent and not on.path(on.second).log.units


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


# --- bytes by two paths ---


@SIDES
def test_bytes_of_the_slower_path_come_late(side: str) -> None:
    on = Two(side)
    on.hold(on.first)
    on.one.say(b"first, ")
    on.settle()
    on.prefer(on.second)
    on.one.say(b"second", finish=True)
    on.settle()
    assert on.other.received == b""
    on.release(on.first)
    on.settle()
    assert on.other.received == b"first, second" and on.other.events[-1] == ("eof",)


@SIDES
def test_bytes_that_both_paths_bring_count_once(side: str) -> None:
    """The first path is in doubt, so the second one carries all again; then the first one comes back."""
    on = Two(side)
    on.hold(on.first)
    text = bytes(range(256)) * 1_000
    on.one.say(text, finish=True)
    on.settle()
    on.advance(LONG_DOUBT)
    assert on.path(on.first).in_doubt
    assert on.other.received == text
    on.release(on.first)
    on.settle()
    assert on.other.received == text and on.other.events.count(("eof",)) == 1
    receiver = on.exit if on.side is on.client else on.client
    assert receiver.table.received_credit.received == len(text) == on.side.table.sent_bytes


@given(st.data())
def test_whatever_order_two_paths_deliver_in(data: st.DataObject) -> None:
    on = Two(data.draw(st.sampled_from(["client", "exit"])))
    said = bytearray()
    for number in range(data.draw(st.integers(1, 25))):
        act = data.draw(st.sampled_from(["say", "prefer", "move", "move", "advance"]))
        if act == "say":
            text = b"%d," % number * data.draw(st.sampled_from([1, 50, 5_000]))
            said += text
            on.one.say(text)
        elif act == "prefer":
            on.client.prefer(data.draw(st.integers(0, 1)))
        elif act == "move":
            carrier = data.draw(st.sampled_from(on.open))
            on.hold(carrier)
            carrier.to_right.piece = data.draw(st.sampled_from([0, 1, 100, 10_000]))
            carrier.to_left.piece = data.draw(st.sampled_from([0, 1, 100, 10_000]))
            for _ in range(3):
                carrier.step()
        else:
            on.advance(data.draw(st.sampled_from([0.0, ACK_DELAY, 0.3])))
        assert said.startswith(on.other.received)
        assert on.client.closed is None and on.exit.closed is None
    on.one.say(b"", finish=True)
    on.release(*on.open)
    on.advance(0.5)
    assert on.other.received == said and on.other.events[-1] == ("eof",)
    on.other.say(b"", finish=True)
    on.advance(0.5)
    on.link.assert_clean()


# --- requests by two paths ---


def test_an_open_goes_again_where_another_path_takes_over() -> None:
    """The data may come first by that, and there is no stream for them without it."""
    on = Two()
    on.hold(on.first)
    apps = [on.link.open() for _ in range(3)]
    apps[0].say(b"early")
    on.settle()
    on.prefer(on.second)
    for app in apps:
        app.say(b" and late", finish=True)
    on.settle()
    served = [on.link.served[app.stream.id] for app in apps]  # type: ignore[union-attr]
    assert [bytes(app.received) for app in served] == [b"", b" and late", b" and late"]
    on.release(on.first)
    on.settle()
    assert served[0].received == b"early and late"
    assert [on.link.served[app.stream.id] for app in apps] == served, "each was opened once"  # type: ignore[union-attr]
    assert on.exit.table.numbers.opens == 4


def test_an_open_that_is_acknowledged_does_not_go_again() -> None:
    on = Two()
    on.link.open()
    on.advance(1.0)
    on.prefer(on.second)
    assert wire.OPEN not in kinds(on.first.paths[0])
    on.second.to_right.pull(on.link.now)
    assert wire.OPEN not in kinds(on.second.paths[0])


def test_a_stream_that_was_reset_before_its_open_came_is_opened_and_ends() -> None:
    on = Two()
    on.hold(on.first)
    app = on.link.open()
    on.settle()
    on.prefer(on.second)
    assert app.stream is not None
    app.stream.reset(StreamReason.CANCELLED)
    on.settle()
    assert on.link.served[app.stream.id].events == [("reset", StreamReason.CANCELLED)]
    on.release(on.first)
    on.advance(1.0)
    assert list(on.exit.streams) == [1] and not on.exit.table.numbers.awaited


def test_a_refusal_by_one_path_ends_what_another_one_still_carries() -> None:
    def refuse(stream: Stream) -> App:
        stream.refuse(StreamReason.NOT_ALLOWED)
        return App()

    on = Two()
    on.link.serve = refuse
    on.hold(on.first)
    app = on.link.open()
    app.say(b"data")
    on.settle()
    on.prefer(on.second)
    on.second.settle()
    assert app.events == [("refused", StreamReason.NOT_ALLOWED)]
    on.release(on.first)
    on.advance(1.0)
    assert not on.exit.table.numbers.awaited and list(on.client.streams) == list(on.exit.streams) == [1]


# --- acknowledgements ---


@SIDES
def test_each_path_acknowledges_its_own_records(side: str) -> None:
    on = Two(side)
    for carrier in on.carriers:
        on.back(carrier).piece = 0
    on.one.say(b"a")
    on.settle()
    on.prefer(on.second)
    on.one.say(b"b")
    on.settle()
    assert on.other.received == b"ab"
    assert kinds(on.path(on.first)) == [wire.DATA] and wire.DATA in kinds(on.path(on.second))
    on.release(on.second)
    on.advance(2 * ACK_DELAY)
    assert kinds(on.path(on.first)) == [wire.DATA] and not kinds(on.path(on.second))
    on.release(on.first)
    on.settle()
    assert not kinds(on.path(on.first))


@SIDES
def test_an_acknowledgement_may_come_by_any_path(side: str) -> None:
    on = Two(side)
    path = on.path(on.first)
    on.one.say(b"a")
    on.settle()
    assert kinds(path) == [wire.DATA]
    on.link.carrier = on.second
    on.link.forge(on.side, wire.encode_records(wire.ACK, 0, path.keys.records_sent))
    assert not kinds(path) and on.side.retention.kept == 0


@SIDES
def test_a_record_counts_when_all_its_frames_are_acted_on(side: str) -> None:
    """Not when the first are: a path that is lost in between has not brought the others."""
    on = Two(side)
    peer = on.first.paths[on.side is on.client]
    victim = peer.session
    before = peer.received
    record = on.path(on.first).keys.sealer.seal(wire.encode_window(1, 1) * 1_000)
    victim.turn.renew()
    victim.turn.spend(victim.turn.left - 200)
    peer.receive(memoryview(record), on.link.now)
    assert peer.received == before
    while peer.received == before:
        victim.turn.renew()
        peer.receive(memoryview(b""), on.link.now)
    assert peer.received == before + 1


@SIDES
def test_a_record_that_a_turn_left_behind_its_last_frame_is_acknowledged(side: str) -> None:
    """Also if an acknowledgement of those before it was sent in between."""
    on = Two(side)
    on.advance(1.0)
    peer = on.first.paths[on.side is on.client]
    sealer, turn = on.path(on.first).keys.sealer, peer.session.turn
    before = peer.received
    frame = wire.encode_window(1, 1)
    turn.renew()
    turn.spend(turn.left - RECORD_WORK - FRAME_COSTS[wire.WINDOW] - 1)
    peer.receive(memoryview(sealer.seal(frame) + sealer.seal(frame)), on.link.now)
    assert peer.received == before + 1 and turn.left <= 0
    turn.renew()
    peer.fill(memoryview(bytearray(FILL_MINIMUM)), 0, on.link.now)
    peer.receive(memoryview(b""), on.link.now)
    assert peer.received == before + 2 and peer.deadline() <= on.link.now + ACK_DELAY


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


def wait_for_doubt(on: Two) -> float:
    """The first path falls silent; the seconds until it is in doubt. Then it is heard again, and in use again."""
    path = on.path(on.first)
    on.prefer(on.first)
    on.settle()
    on.hold(on.first)
    on.one.say(b"a")
    on.settle()
    waited = path._doubt_at() - on.link.now
    on.advance(waited + 0.001)
    assert path.in_doubt and on.side.current is on.path(on.second)
    on.release(on.first)
    on.advance(2 * ACK_DELAY)
    assert not path.in_doubt and on.side.current is path
    return waited


@SIDES
def test_wrong_doubts_teach_patience_and_calm_minutes_end_it(side: str) -> None:
    """Else a path that lives for days would at last be slow to be left for good."""
    on = Two(side)
    waits = [wait_for_doubt(on) for _ in range(6)]
    assert waits[1] == pytest.approx(2 * waits[0], rel=0.2)
    assert waits[-1] == waits[-2] == pytest.approx(MOST_PATIENCE * waits[0], rel=0.2)
    on.advance(CALM_SECONDS - 30.0)
    assert wait_for_doubt(on) == pytest.approx(waits[-1], rel=0.2), "a wrong doubt begins the minute anew"
    on.advance(2 * CALM_SECONDS + 30.0)
    assert wait_for_doubt(on) == pytest.approx(4 * waits[0], rel=0.2)
    on.advance(6 * CALM_SECONDS)
    assert wait_for_doubt(on) == pytest.approx(waits[0], rel=0.2)


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
def test_a_path_on_which_acknowledgements_come_is_never_in_doubt(side: str) -> None:
    on = Two(side)
    for _ in range(100):
        on.one.say(b"a")
        on.advance(DOUBT_SECONDS / 2)
        assert not on.path(on.first).in_doubt
    assert not on.path(on.second).in_doubt


@SIDES
def test_an_acknowledgement_by_another_path_is_a_sign_of_life_too(side: str) -> None:
    on = Two(side)
    path = on.path(on.first)
    on.back(on.first).piece = 0
    on.link.carrier = on.second
    for _ in range(20):
        on.one.say(b"a")
        on.settle()
        on.link.forge(on.side, wire.encode_records(wire.ACK, 0, path.keys.records_sent - 1))
        assert len(kinds(path)) == 1
        on.advance(DOUBT_SECONDS / 2)
        assert not path.in_doubt
    on.advance(LONG_DOUBT)
    assert path.in_doubt


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
    assert now + DOUBT_SECONDS <= at < now + LONG_DOUBT
    on.advance(at - now - 0.001)
    assert not path.in_doubt
    on.advance(0.002)
    assert path.in_doubt


# --- loss ---


@SIDES
def test_a_lost_path_beside_the_one_in_use_changes_nothing(side: str) -> None:
    on = Two(side)
    on.one.say(b"a")
    on.second.cut()
    on.one.say(b"b")
    on.settle()
    assert on.other.received == b"ab" and on.side.current is on.path(on.first)


@SIDES
def test_what_several_lost_paths_had_carried_comes_by_the_next_one(side: str) -> None:
    on = Two(side)
    on.hold(*on.carriers)
    for carrier in (on.first, on.second, on.first):
        on.prefer(carrier)
        on.one.say(b"%d" % carrier.paths[0].number)
        on.settle()
    for carrier in on.carriers[::-1]:
        carrier.cut()
    assert not on.side.attached and len(on.side.retention.lost_logs(0)) == 1
    on.join()
    on.one.say(b"2", finish=True)
    on.settle()
    assert on.other.received == b"0102" and on.other.events[-1] == ("eof",)


def test_datagrams_and_packets_are_kept_while_there_is_a_path() -> None:
    """They are not sent again; but those that have not left may leave by another path."""
    on = Two()
    app = on.link.open(protocol=StreamProtocol.UDP)
    on.settle()
    assert app.stream is not None
    app.stream.send_datagram(TARGET, b"waits")
    on.first.cut()
    on.settle()
    assert on.link.served[app.stream.id].datagrams == [(TARGET, b"waits")]
    app.stream.send_datagram(TARGET, b"is lost")
    on.second.cut()
    assert not on.client.datagrams


def test_a_path_that_the_peer_has_closed_ends_here_too() -> None:
    on = Two()
    path, peer = on.first.paths
    peer.lost(on.link.now)
    on.second.settle()
    assert path.ended and list(on.client.paths) == [1]
    assert path.fill(memoryview(bytearray(FILL_MINIMUM)), 0, on.link.now) == 0 and path.deadline() == NEVER
    on.one.say(b"a")
    on.second.settle()
    assert on.other.received == b"a"


# --- the end of the session ---


@SIDES
def test_each_path_says_that_the_session_is_closed(side: str) -> None:
    on = Two(side)
    on.side.close(CloseReason.SHUTTING_DOWN)
    out = memoryview(bytearray(FILL_MINIMUM))
    for carrier in on.carriers:
        path, peer = (carrier.paths, carrier.paths[::-1])[on.side is on.exit]
        size = path.fill(out, 0, on.link.now)
        assert size and path.fill(out, 0, on.link.now) == 0
        peer.receive(out[:size], on.link.now)
        assert peer.session.closed is CloseReason.SHUTTING_DOWN
        assert peer.fill(out, 0, on.link.now) == 0, "nobody answers"
        assert path.deadline() == peer.deadline() == NEVER


@SIDES
def test_one_path_is_enough_to_say_it(side: str) -> None:
    on = Two(side)
    on.hold(on.first)
    on.side.close(CloseReason.NORMAL)
    on.settle()
    assert on.client.closed is on.exit.closed is CloseReason.NORMAL
    assert not on.open and not on.client.attached and not on.exit.attached
    assert on.client.retention.kept == on.exit.retention.kept == 0


@SIDES
def test_a_peer_that_breaks_the_rules_on_one_path_loses_the_session_on_all(side: str) -> None:
    on = Two(side)
    on.link.carrier = on.second
    with pytest.raises(PeerError) as caught:
        on.link.forge(on.side, wire.encode_bare(wire.ACCEPT))
    on.side.close(caught.value.reason)
    on.settle()
    assert on.client.closed is on.exit.closed is CloseReason.PROTOCOL and not on.open


def test_data_waits_for_a_rotation_that_is_late() -> None:
    """Before it would use the keys up, and end the path. Nothing is lost, and all of it comes under the next keys."""
    limit = 20_000
    link = Link(session_limits(rotation=rotation_limits(bytes=limit)))
    app, end = link.pair()
    link.quiesce()
    path = link.carrier.paths[1]
    path.pace(1.0)
    link.carrier.to_left.budget = 4_096
    link.carrier.to_right.piece = 0
    end.say(bytes(60_000))
    link.carrier.advance(1.0)
    assert 3 * limit >> 1 <= path.keys.sealer.bytes < 2 * limit
    link.carrier.to_right.piece = CAPACITY
    link.carrier.advance(5.0)
    assert len(app.received) == 60_000
    assert link.carrier.open and link.carrier.error is None and link.exit.rotation.current >= 1
