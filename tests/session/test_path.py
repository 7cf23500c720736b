"""Several paths at a time: what each of them carries, and what becomes of it when one fails."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.errors import CloseReason, PeerError, StreamReason
from cryprq_proxy.session import wire
from cryprq_proxy.session.path import ACK_DELAY, FILL_MINIMUM
from cryprq_proxy.session.rotation import NEVER
from cryprq_proxy.session.scheduler import MIN_FRAME
from cryprq_proxy.session.streams import Stream
from cryprq_proxy.session.turns import FRAME_COSTS, RECORD_WORK
from cryprq_proxy.session.wire import MAX_DATA, StreamProtocol
from tests.support.links import TARGET, App, Link
from tests.support.memory import CAPACITY
from tests.support.settings import rotation_limits, session_limits
from tests.support.two_paths import LONG_DOUBT, SIDES, Two, kinds


@SIDES
def test_a_path_beside_the_one_in_use_carries_only_what_is_about_itself(side: str) -> None:
    on = Two(side)
    sent = on.flow(on.second).sent
    on.one.say(bytes(500_000), finish=True)
    on.settle()
    assert len(on.other.received) == 500_000
    assert on.flow(on.second).sent == sent and not on.path(on.second).log.units


@SIDES
def test_frames_are_as_long_as_the_path_in_use_bears(side: str) -> None:
    """A slow path beside a fast one makes none shorter before it is used, and none afterwards."""
    on = Two(side)
    app = on.one
    assert app.stream is not None
    on.path(on.first).pace(1e9)
    on.path(on.second).pace(1e5)
    assert app.stream.frame_limit == MAX_DATA
    on.prefer(on.second)
    assert app.stream.frame_limit == MIN_FRAME
    on.prefer(on.first)
    assert app.stream.frame_limit == MAX_DATA


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


@SIDES
def test_a_path_that_the_peer_has_closed_ends_here_too(side: str) -> None:
    """The peer says so by another one. Nobody may find out here for long."""
    on = Two(side)
    path, peer = on.path(on.first), on.first.paths[on.side is on.client]
    told: list[int] = []
    path.abandoned = lambda: told.append(path.number)
    on.hold(on.first)
    on.one.say(b"on its way")
    on.settle()
    peer.lost(on.link.now)
    on.second.settle()
    assert told == [0] and path.ended and list(on.side.paths) == [1]
    assert path.fill(memoryview(bytearray(FILL_MINIMUM)), 0, on.link.now) == 0 and path.deadline() == NEVER
    assert on.other.received == b"on its way"


def test_a_path_that_the_exit_has_never_let_in_may_be_left() -> None:
    """A verdict that did not come in time: the exit knows nothing of the path."""
    on = Two()
    on.link.forge(on.exit, wire.encode_records(wire.ABANDON, 7, 0))
    assert on.exit.closed is None and len(on.exit.paths) == 2


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
