"""The lane as a path of the session: what it gives to be sent, what becomes of it, and who carries when."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.crypto.rekey import REKEY_ANSWER_SIZE, REKEY_SIZE
from cryprq_proxy.errors import CarrierError, CloseReason, LocalError, PeerError, StreamReason
from cryprq_proxy.lane.layout import STREAM_OVERHEAD
from cryprq_proxy.lane.path import LEAST
from cryprq_proxy.session import lane_inbox, lane_outbox, wire
from cryprq_proxy.session.frames_ahead import MAX_AHEAD
from cryprq_proxy.session.lane_choice import HOLD_SECONDS, LONG_ROUND_TRIP, SHORT_ROUND_TRIP
from cryprq_proxy.session.lane_loads import FramesLoad, StreamLoad
from cryprq_proxy.session.path import ACK_DELAY
from cryprq_proxy.session.reassembly import MAX_PIECES
from cryprq_proxy.session.scheduler import MAX_SLICES
from cryprq_proxy.session.stream_receiver import SPARE_PIECES
from cryprq_proxy.session.suspicion import LEAST_LATE
from cryprq_proxy.session.turns import FILL_WORK, READ_WORK, TURN_WORK
from cryprq_proxy.session.wire import DATA, FIN, OPEN, RELIABLE, LaneUse, StreamProtocol
from tests.support.lane_pair import PAYLOAD, ROUND_TRIP, LanePair, kinds, whole
from tests.support.links import TARGET, App
from tests.support.settings import rotation_limits, session_limits

TRAIN = MAX_SLICES * PAYLOAD
TEXT = bytes(range(256)) * 2_000


def stream_loads(loads: Sequence[object]) -> list[StreamLoad]:
    return [load for load in loads if isinstance(load, StreamLoad)]


# --- what it gives ---


def test_a_request_and_its_end_leave_in_one_datagram() -> None:
    on = LanePair()
    app = on.link.open()
    app.say(b"a request", finish=True)
    loads = on.take(on.client)
    assert [kinds(load) for load in loads] == [[OPEN, FIN, DATA]]
    assert on.deliver(on.client, loads[0])
    served = on.link.served[1]
    assert served.received == b"a request" and served.events[-1] == ("eof",)


def test_a_large_unit_leaves_in_trains_and_its_bytes_stay_as_they_were() -> None:
    on = LanePair()
    app, other = on.slotted()
    app.say(TEXT[:60_000])
    loads = on.take(on.client)
    assert [load.finish - load.begin for load in stream_loads(loads)] == [TRAIN, 16_000]
    for load in loads:
        assert isinstance(load, StreamLoad) and load.stream == 1
        assert (
            bytes(load.buffer[load.start : load.end])
            == TEXT[load.offset : load.offset + load.end - load.start]
        )
        assert on.deliver(on.client, load)
    assert other.received == TEXT[:60_000]
    assert on.client.retention.kept > 60_000
    on.lane(on.client).acked([whole(load) for load in loads], on.now)
    on.settle()
    assert on.client.retention.kept == 0 and not on.lane(on.client).log.units


def test_small_bytes_that_do_not_fit_into_one_datagram_leave_as_a_load() -> None:
    on = LanePair()
    app, _ = on.pair()
    app.say(TEXT[: 3 * PAYLOAD])
    (load,) = stream_loads(on.take(on.client))
    assert bytes(load.buffer[load.start : load.end]) == TEXT[: 3 * PAYLOAD]


@pytest.mark.parametrize("room", [0, PAYLOAD - 1, PAYLOAD, 5 * PAYLOAD + 1, 10 * TRAIN])
def test_no_more_leaves_than_there_is_room_for(room: int) -> None:
    on = LanePair()
    app, _ = on.slotted()
    app.say(TEXT[:60_000])
    load = on.lane(on.client).next(room, PAYLOAD, on.now)
    if room < PAYLOAD:
        assert load is None and on.lane(on.client).waits
    else:
        assert isinstance(load, StreamLoad)
        assert load.finish - load.begin == min(room - room % PAYLOAD, TRAIN)


def test_units_fill_the_trains() -> None:
    on = LanePair()
    app, _ = on.slotted()
    on.lane(on.client).next(0, 1_400, on.now)
    assert app.stream is not None
    assert app.stream.frame_limit == 2 * MAX_SLICES * 1_400 == 123_200
    on.lane(on.client).paced(40e6, ROUND_TRIP)
    assert app.stream.frame_limit == MAX_SLICES * 1_400
    on.lane(on.client).paced(10e6, ROUND_TRIP)
    assert app.stream.frame_limit == 14 * 1_400


def test_the_carrier_is_woken_once_until_it_asks() -> None:
    on = LanePair()
    app, _ = on.pair()
    before = on.woken[on.client]
    app.say(b"a")
    app.say(b"b")
    assert on.woken[on.client] == before + 1
    on.take(on.client)
    app.say(b"c")
    assert on.woken[on.client] == before + 2


def test_the_carrier_is_woken_for_a_choice_that_comes_due_earlier_than_it_knows() -> None:
    on = LanePair()
    lane = on.lane(on.client)
    on.link.carrier.now += HOLD_SECONDS
    lane.tick(on.now)
    on.take(on.client)
    lane.set_use(LaneUse.TCP)
    on.take(on.client)
    assert lane.deadline() > on.now + HOLD_SECONDS
    before = on.woken[on.client]
    lane.set_use(LaneUse.AUTO)  # which waits, since the last choice is a moment old
    assert on.woken[on.client] == before + 1
    assert lane.deadline() <= on.now + HOLD_SECONDS


def test_what_is_the_work_of_several_turns_leaves_in_several() -> None:
    on = LanePair()
    for _ in range(400):
        app = on.link.open()
        app.say(b"x" * 900)
    first = on.take(on.client)
    assert 0 < len(first) < 400 and on.client.turn.left <= 0
    before = on.woken[on.client]
    on.client.turn.renew()
    assert on.woken[on.client] == before + 1 and on.take(on.client)


@pytest.mark.parametrize("payload", [LEAST - STREAM_OVERHEAD, 1_200 - STREAM_OVERHEAD])
def test_the_keys_rotate_over_a_lane_alone_however_small_its_datagrams_are(payload: int) -> None:
    on = LanePair()
    app, other = on.pair()
    on.cut()
    for epoch in (1, 2, 3):
        on.client.rotation.start(on.now)
        app.say(b"goes on ")
        on.settle(payload)
        assert on.client.rotation.current == on.exit.rotation.current == epoch
    assert other.received == b"goes on " * 3


def test_each_reliable_frame_fits_the_smallest_datagram() -> None:
    longest = [
        wire.encode_open(1, StreamProtocol.TCP, Destination(".".join(["a" * 63] * 3 + ["b" * 61]), 1)),
        wire.encode_part(wire.REKEY, 1, 0, bytes(wire.MAX_PART)),
        wire.encode_taken(1, [ip_network("10.0.0.0/8")] * wire.MAX_TAKEN),
    ]
    assert -(-max(REKEY_SIZE, REKEY_ANSWER_SIZE) // wire.PARTS) == wire.MAX_PART
    assert max(map(len, longest)) <= LEAST - STREAM_OVERHEAD


def test_what_is_lost_goes_again_in_smaller_datagrams() -> None:
    """The path takes no others any more."""
    on = LanePair()
    app, other = on.pair()
    app.say(b"x" * 900)
    on.client.rotation.start(on.now)
    loads = on.take(on.client, payload=1_400)
    lane = on.lane(on.client)
    lane.lost([whole(load) for load in loads], on.now)
    for load in on.take(on.client, payload=LEAST - STREAM_OVERHEAD):
        assert on.deliver(on.client, load)
        lane.acked([whole(load)], on.now)
    assert other.received == b"x" * 900
    on.link.carrier.settle()
    assert on.exit.rotation.current == 1


def test_no_data_leave_before_the_open_of_their_stream() -> None:
    """When the lane falls, what it carries goes before what waits."""
    on = LanePair()
    apps = [on.link.open() for _ in range(200)]
    apps[-1].say(b"hello")
    lane = on.lane(on.client)
    assert lane.next(PAYLOAD, PAYLOAD, on.now) is not None and apps[-1].stream is not None
    assert apps[-1].stream.queue, "its OPEN waits for another datagram"
    lane.set_up(False, 0.0, "a test says so", on.now)
    on.link.carrier.settle()
    assert on.link.served[200].received == b"hello"


def test_an_end_leaves_that_is_said_when_it_is_asked_for_more() -> None:
    on = LanePair()
    app, other = on.pair()
    assert app.stream is not None
    app.finishing = True
    app.stream.wait_for_turn()
    (load,) = on.take(on.client)
    assert kinds(load) == [FIN] and on.deliver(on.client, load)
    assert other.events[-1] == ("eof",)


@pytest.mark.parametrize("left", range(1, FILL_WORK + 2))
def test_a_stream_that_waits_is_asked_in_the_next_turn_if_the_work_of_this_one_ends_before(left: int) -> None:
    on = LanePair()
    app, other = on.pair()
    assert app.stream is not None
    app.outgoing += b"hello"
    app.stream.wait_for_turn()
    on.client.turn.left = left
    loads = on.take(on.client)
    assert bool(loads) is (left > FILL_WORK)
    before = on.woken[on.client]
    on.client.turn.renew()
    assert on.woken[on.client] > before
    for load in loads or on.take(on.client):
        assert on.deliver(on.client, load)
    assert other.received == b"hello"


def test_streams_with_nothing_to_say_keep_no_other_waiting_beyond_the_work_of_a_turn() -> None:
    on = LanePair()
    pairs = [on.pair() for _ in range(TURN_WORK // READ_WORK + 1)]
    for app, _ in pairs:
        assert app.stream is not None
        app.stream.wait_for_turn()
    pairs[-1][0].outgoing += b"hello"
    on.client.turn.renew()
    before = on.woken[on.client]
    assert not on.take(on.client)
    on.client.turn.renew()
    assert on.woken[on.client] > before
    (load,) = on.take(on.client)
    assert on.deliver(on.client, load) and pairs[-1][1].received == b"hello"


def test_bytes_of_a_stream_that_was_reset_do_not_keep_others_waiting() -> None:
    on = LanePair()
    first, second = on.slotted()[0], on.pair()[0]
    first.say(TEXT[:60_000])
    lane = on.lane(on.client)
    lane.lost([whole(load) for load in on.take(on.client)], on.now)
    assert first.stream is not None
    first.stream.reset(StreamReason.CANCELLED)
    second.say(b"hello")
    loads = on.take(on.client)
    assert [kinds(load) for load in loads] == [[wire.RESET], [DATA]]


# --- what becomes of it ---


def test_lost_bytes_go_again_before_all_else() -> None:
    on = LanePair()
    app, other = on.slotted()
    app.say(TEXT[:60_000])
    lane = on.lane(on.client)
    loads = stream_loads(on.take(on.client))
    app.say(b"later")
    lane.acked([(loads[0], 0, 10), (loads[0], 12, 44), whole(loads[1])], on.now)
    lane.lost([(loads[0], 10, 11), (loads[0], 11, 12)], on.now)
    again = on.take(on.client, room=5 * PAYLOAD)
    assert isinstance(again[0], StreamLoad) and (again[0].offset, again[0].finish) == (
        10 * PAYLOAD,
        12 * PAYLOAD,
    )
    for load in (*loads, *again):
        on.deliver(on.client, load)
    assert other.received == TEXT[:60_000] + b"later"


def test_lost_bytes_go_again_in_smaller_datagrams() -> None:
    on = LanePair()
    app, other = on.slotted()
    app.say(TEXT[:50_000])
    lane = on.lane(on.client)
    loads = on.take(on.client)
    lane.lost([whole(load) for load in loads], on.now)
    again = on.take(on.client, payload=300)
    assert all(load.finish - load.begin <= MAX_SLICES * 300 for load in stream_loads(again))
    for load in again:
        assert on.deliver(on.client, load)
    assert other.received == TEXT[:50_000]
    lane.acked([whole(load) for load in again], on.now)
    on.settle()
    assert on.client.retention.kept == 0


def test_lost_frames_go_again() -> None:
    on = LanePair()
    app = on.link.open()
    app.say(b"hello", finish=True)
    lane = on.lane(on.client)
    lane.lost([whole(load) for load in on.take(on.client)], on.now)
    on.settle()
    assert on.link.served[1].received == b"hello" and on.link.served[1].events[-1] == ("eof",)


def test_of_a_stream_that_was_reset_nothing_goes_again() -> None:
    on = LanePair()
    app, other = on.slotted()
    app.say(TEXT[:60_000])
    lane = on.lane(on.client)
    loads = [lane.next(20 * PAYLOAD, PAYLOAD, on.now)]
    assert app.stream is not None and loads[0] is not None
    app.stream.reset(StreamReason.CANCELLED)
    lane.lost([whole(loads[0])], on.now)
    again = on.take(on.client)
    assert [kinds(load) for load in again] == [[wire.RESET]]
    assert on.deliver(on.client, again[0])
    lane.acked([whole(again[0])], on.now)
    on.settle()
    assert other.events[-1] == ("reset", StreamReason.CANCELLED)
    assert on.client.retention.kept == 0 and not lane.log.units
    on.link.assert_clean()


def test_more_resets_than_are_remembered_cost_bytes_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_outbox, "MOST_RESETS", 1)
    on = LanePair()
    apps = [on.pair()[0] for _ in range(3)]
    for app in apps:
        app.say(b"x" * 5_000)
    lane = on.lane(on.client)
    loads = on.take(on.client)
    for app in apps:
        assert app.stream is not None
        app.stream.reset(StreamReason.CANCELLED)
    assert len(lane.outbox._reset) == 1
    lane.lost([whole(load) for load in loads], on.now)
    assert len(stream_loads(on.take(on.client))) == 2


def test_what_was_given_back_goes_again() -> None:
    """The kernel's buffer was full."""
    on = LanePair()
    app, other = on.slotted()
    app.say(TEXT[:50_000])
    lane = on.lane(on.client)
    load = lane.next(1 << 20, PAYLOAD, on.now)
    assert load is not None
    lane.lost([whole(load)], on.now)
    on.settle()
    assert other.received == TEXT[:50_000]


def test_what_is_acknowledged_makes_room() -> None:
    on = LanePair(exit_limits=session_limits(), limits=session_limits(retained=1 << 18))
    pairs = [on.slotted() for _ in range(4)]
    for app, _ in pairs:
        app.say(TEXT)
    lane = on.lane(on.client)
    loads = on.take(on.client)
    assert not on.client.scheduler.open
    before = on.woken[on.client]
    lane.acked([whole(load) for load in loads], on.now)
    assert on.woken[on.client] == before + 1
    for load in loads:
        on.deliver(on.client, load)
    on.settle()
    assert all(other.received == TEXT for _, other in pairs)


# --- what comes ---


def test_bytes_in_any_order_arrive_once() -> None:
    on = LanePair()
    app, other = on.slotted()
    app.say(TEXT[:30_000], finish=True)
    loads = on.take(on.client)
    for load in reversed(loads):
        _, _, count = whole(load)
        for slice in reversed(range(count)):
            for _ in range(2):
                assert on.deliver(on.client, load, slice, slice + 1)
    assert other.received == TEXT[:30_000] and other.events[-1] == ("eof",)


def test_what_belongs_to_a_stream_waits_for_its_open() -> None:
    on = LanePair()
    app = on.link.open()
    (opening,) = on.take(on.client)
    app.say(TEXT[:5_000], finish=True)
    for load in on.take(on.client):
        assert on.deliver(on.client, load)
    assert not on.link.served and on.exit.receiver.ahead.bytes > 5_000 and len(on.exit.receiver.ahead) == 1
    assert on.deliver(on.client, opening)
    assert on.link.served[1].received == TEXT[:5_000] and on.link.served[1].events[-1] == ("eof",)
    assert not on.exit.receiver.ahead.bytes


def test_what_waits_for_an_open_is_there_when_a_record_path_brings_that() -> None:
    on = LanePair(up=False)
    on.link.carrier.to_right.piece = 0
    app = on.link.open()
    on.link.carrier.settle()
    on.set_up()
    on.take(on.client)
    app.say(TEXT[:5_000])
    for load in stream_loads(on.take(on.client)):
        assert on.deliver(on.client, load)
    assert not on.link.served
    on.link.carrier.to_right.piece = 1 << 20
    on.link.carrier.settle()
    assert on.link.served[1].received == TEXT[:5_000]


def test_what_finds_no_room_before_its_open_is_refused() -> None:
    on = LanePair()
    on.link.open()
    on.take(on.client)
    lane, data = on.lane(on.exit), memoryview(bytes(60_000))
    taken = [lane.stream_data(1, 60_000 * number, data, on.now) for number in range(8)]
    assert taken == [True] * 4 + [False] * 4
    assert on.exit.receiver.ahead.bytes <= MAX_AHEAD
    # Many small ones count for the objects that they are.
    accepted = sum(lane.frames(memoryview(wire.encode_fin(2 + number, 0)), on.now) for number in range(2_000))
    assert accepted < 2_000 and on.exit.receiver.ahead.bytes <= MAX_AHEAD


def test_of_a_datagram_all_frames_are_refused_or_none() -> None:
    on = LanePair()
    lane = on.lane(on.exit)
    while lane.frames(memoryview(wire.encode_fin(3, 0)), on.now):
        pass
    on.exit.turn.renew()
    frames = wire.encode_open(1, StreamProtocol.TCP, TARGET) + wire.encode_fin(3, 0)
    assert not lane.frames(memoryview(frames), on.now) and not on.exit.streams


def test_a_client_holds_nothing_for_streams_that_it_did_not_open() -> None:
    on = LanePair()
    with pytest.raises(PeerError) as caught:
        on.lane(on.client).stream_data(7, 0, memoryview(b"x"), on.now)
    assert caught.value.reason is CloseReason.PROTOCOL


def test_frames_beyond_the_work_of_a_turn_wait_for_the_next_and_are_bounded() -> None:
    on = LanePair(limits=session_limits(streams=10_000))
    lane = on.lane(on.exit)
    on.exit.turn.renew()
    number = taken = 0
    while True:
        frames = b"".join(
            wire.encode_open(number + index, StreamProtocol.TCP, TARGET) for index in range(1, 101)
        )
        if not lane.frames(memoryview(frames), on.now):
            break
        number += 100
        taken += len(frames)
    assert taken <= lane_inbox.MAX_UNREAD + 2 * len(frames)
    opened = len(on.exit.streams)
    assert 0 < opened <= TURN_WORK // 100
    assert on.take(on.exit) == []
    before = on.woken[on.exit]
    on.exit.turn.renew()
    assert on.woken[on.exit] == before + 1
    on.take(on.exit)
    assert len(on.exit.streams) > opened
    while len(on.exit.streams) < number:
        on.exit.turn.renew()
        on.lane(on.exit).next(0, PAYLOAD, on.now)
    assert lane.frames(memoryview(frames), on.now)


@pytest.mark.parametrize(
    "kind", [kind for kind in wire.Kind if kind >= RELIABLE and kind is not wire.Kind.CLOSE]
)
def test_what_is_not_reliable_does_not_come_by_the_lane(kind: wire.Kind) -> None:
    frames = {
        wire.Kind.ACK: wire.encode_records(wire.ACK, 0, 1),
        wire.Kind.PING: wire.encode_number(wire.PING, 1),
        wire.Kind.PONG: wire.encode_number(wire.PONG, 1),
        wire.Kind.SWITCH: wire.encode_epoch(wire.SWITCH, 1),
        wire.Kind.DATAGRAM: wire.encode_datagram(1, TARGET, b"x"),
        wire.Kind.PACKET: wire.encode_packet(0, 0, 0, b"x"),
        wire.Kind.ADVERTISE: wire.encode_advertise(TARGET),
        wire.Kind.ACCEPT: wire.encode_bare(wire.ACCEPT),
        wire.Kind.NO_SESSION: wire.encode_bare(wire.NO_SESSION),
        wire.Kind.JOINED: wire.encode_joined(bytes(32)),
    }
    on = LanePair()
    with pytest.raises(PeerError, match=f"{kind.name} frame on the lane"):
        on.lane(on.client).frames(memoryview(frames[kind]), on.now)


@pytest.mark.parametrize("data", [b"", b"\xff", b"\x04\0\0\0\1", b"\x11\0\0"])
def test_malformed_frames_end_the_session(data: bytes) -> None:
    on = LanePair()
    if data:
        with pytest.raises(PeerError) as caught:
            on.lane(on.exit).frames(memoryview(data), on.now)
        assert caught.value.reason is CloseReason.PROTOCOL


@pytest.mark.parametrize(("stream", "offset", "data"), [(0, 0, b"x"), (1, 0, b""), (1, 1 << 62, b"x")])
def test_malformed_stream_data_ends_the_session(stream: int, offset: int, data: bytes) -> None:
    on = LanePair()
    on.pair()
    with pytest.raises(PeerError, match="malformed"):
        on.lane(on.exit).stream_data(stream, offset, memoryview(data), on.now)


def test_more_holes_than_are_kept_are_refused_and_filled_ones_are_not() -> None:
    on = LanePair(limits=session_limits(window_pool=1 << 26))
    _, other = on.pair()
    assert other.stream is not None
    other.stream.announced = other.stream._covered = 1 << 24
    on.exit.windows.free = 1 << 26
    lane = on.lane(on.exit)
    taken = 0
    on.exit.turn.left = 1 << 30
    while lane.stream_data(1, 2_000 * taken + 1_000, memoryview(bytes(1_000)), on.now):
        taken += 1
    assert taken == MAX_PIECES - SPARE_PIECES
    assert lane.stream_data(1, 0, memoryview(bytes(1_000)), on.now)
    assert len(other.received) == 2_000
    assert lane.stream_data(1, 2_000 * taken + 1_000, memoryview(bytes(1_000)), on.now)


def test_what_a_record_brings_comes_after_what_waits_for_a_turn() -> None:
    """That was acknowledged, so the client relies on it."""
    on = LanePair(limits=session_limits(streams=10_000))
    app = [on.link.open() for _ in range(61)][-1]
    loads = on.take(on.client)
    on.client.turn.renew()
    for load in reversed(loads):
        assert on.lane(on.exit).frames(memoryview(load.data), on.now)  # type: ignore[union-attr]
        on.lane(on.client).acked([whole(load)], on.now)
    assert on.exit.turn.left <= 0 and 61 not in on.exit.streams
    on.shorten(on.client)
    app.say(b"hello")
    on.link.carrier.settle()
    assert on.link.served[61].received == b"hello"


# --- who carries ---


def test_a_session_has_one_lane() -> None:
    on = LanePair()
    with pytest.raises(LocalError):
        on.client.attach_lane(on.now)


@pytest.mark.parametrize("late", [False, True])
def test_a_client_that_is_set_to_tcp_sends_and_gets_nothing_by_the_lane(late: bool) -> None:
    """Its exit learns it before its lane is up, or afterwards."""
    on = LanePair(up=late)
    for session in (on.client, on.exit):
        session.set_lane_use(LaneUse.TCP)
    on.set_up()
    assert on.client.carrying is on.client.current and on.exit.carrying is on.exit.current
    on.cut()
    assert on.client.carrying is None and on.exit.carrying is None


def test_a_client_that_is_set_to_udp_sends_by_the_lane_whatever_its_round_trip_is() -> None:
    on = LanePair()
    on.client.set_lane_use(LaneUse.UDP)
    on.link.carrier.now += HOLD_SECONDS
    on.lane(on.client).paced(1e9, SHORT_ROUND_TRIP / 2)
    assert on.lane(on.client).carries


def test_a_lane_on_a_short_path_does_not_carry() -> None:
    on = LanePair()
    lane = on.lane(on.client)
    assert lane.carries
    on.shorten(on.client)
    assert not lane.carries and on.client.carrying is on.client.current
    on.link.carrier.now += HOLD_SECONDS
    lane.paced(1e9, LONG_ROUND_TRIP)
    lane.tick(on.now)
    assert lane.carries


def test_what_is_in_flight_when_another_path_is_chosen_finishes_on_the_lane() -> None:
    on = LanePair()
    app, other = on.slotted()
    app.say(TEXT[:50_000])
    lane = on.lane(on.client)
    first = lane.next(10 * PAYLOAD, PAYLOAD, on.now)
    assert isinstance(first, StreamLoad)
    on.shorten(on.client)
    app.say(b"by the other path")
    on.link.carrier.settle()
    lane.lost([whole(first)], on.now)
    rest = on.take(on.client)
    assert sum(load.finish - load.begin for load in stream_loads(rest)) == 50_000
    for load in rest:
        assert on.deliver(on.client, load)
    assert other.received == TEXT[:50_000] + b"by the other path"


def test_an_open_goes_again_when_another_path_takes_over() -> None:
    """Else what follows it there would come for a stream that the exit does not know."""
    on = LanePair()
    app = on.link.open()
    (opening,) = on.take(on.client)
    on.shorten(on.client)
    app.say(b"hello")
    on.link.carrier.settle()
    assert on.link.served[1].received == b"hello"
    assert on.deliver(on.client, opening), "a late copy"


def test_what_the_lane_has_carried_goes_by_another_path_when_it_falls() -> None:
    on = LanePair()
    app = on.link.open()
    app.say(TEXT[:60_000], finish=True)
    lane = on.lane(on.client)
    loads = on.take(on.client, room=30_000)[:3]
    lane.lost([whole(loads[0])], on.now)
    lane.set_up(False, 0.0, "a test says so", on.now)
    assert lane.next(1 << 20, PAYLOAD, on.now) is None and not lane.log.units
    on.link.carrier.settle()
    assert on.link.served[1].received == TEXT[:60_000] and on.link.served[1].events[-1] == ("eof",)
    lane.acked([whole(load) for load in loads], on.now)
    lane.lost([whole(load) for load in loads], on.now)
    assert not lane.waits, "loads of before count no more"
    on.link.quiesce()
    assert on.client.retention.kept == 0


def test_a_session_lives_with_the_lane_alone() -> None:
    on = LanePair()
    on.cut()
    assert on.client.attached and on.client.carrying is on.lane(on.client)
    app, other = on.pair()
    app.say(TEXT[:50_000], finish=True)
    other.say(b"answer", finish=True)
    on.settle()
    assert other.received == TEXT[:50_000] and app.received == b"answer"
    on.settle()
    assert on.client.retention.kept == on.exit.retention.kept == 0
    on.set_up(False)
    assert not on.client.attached and on.client.carrying is None


def test_what_a_cut_path_has_carried_goes_by_the_lane() -> None:
    on = LanePair(up=False)
    app, other = on.pair()
    on.link.carrier.to_right.piece = 0
    app.say(TEXT[:60_000])
    on.link.carrier.settle()
    on.set_up()
    on.cut()
    on.settle()
    assert other.received == TEXT[:60_000]


def test_a_rotation_goes_on_with_the_lane_alone() -> None:
    on = LanePair(limits=session_limits(rotation=rotation_limits(interval=300.0)))
    on.cut()
    for number in range(1, 4):
        assert on.lane(on.client).deadline() <= on.now + 300.0
        on.link.carrier.now += 301.0
        on.lane(on.client).tick(on.now)
        for session in (on.client, on.exit, on.client):
            for load in on.take(session, payload=1_400):
                assert on.deliver(session, load)
                on.lane(session).acked([whole(load)], on.now)
        assert on.client.rotation.current == on.exit.rotation.current == number


def test_a_lane_whose_keys_are_not_rotated_in_time_is_over() -> None:
    on = LanePair(limits=session_limits(rotation=rotation_limits(interval=300.0)))
    on.cut()
    on.link.carrier.now += 2_000.0
    with pytest.raises(CarrierError) as caught:
        on.lane(on.client).tick(on.now)
    assert caught.value.reason is CloseReason.REKEY


# --- silence ---


def silence(on: LanePair, app: App) -> None:
    """Something is on the lane that is not acknowledged, for two time-outs."""
    app.say(TEXT[:20_000])
    on.take(on.client)
    lane = on.lane(on.client)
    lane.silent(on.now, 1)


def test_a_silent_lane_hands_over_when_the_record_path_has_answered() -> None:
    on = LanePair()
    app, other = on.pair()
    silence(on, app)
    on.link.carrier.settle()
    assert on.lane(on.client).carries and not other.received
    on.lane(on.client).silent(on.now + 0.2, 2)
    assert not on.lane(on.client).carries and on.lane(on.client).in_doubt
    on.link.carrier.settle()
    assert other.received == TEXT[:20_000]


def test_a_lane_that_answers_before_the_second_time_out_goes_on() -> None:
    on = LanePair()
    app, _ = on.pair()
    silence(on, app)
    on.link.carrier.settle()
    on.lane(on.client).alive(on.now)
    on.lane(on.client).silent(on.now + 1.0, 1)
    assert on.lane(on.client).carries


def test_where_both_are_silent_the_first_that_answers_carries() -> None:
    on = LanePair()
    app, other = on.pair()
    carrier = on.link.carrier
    carrier.to_right.piece = carrier.to_left.piece = 0
    silence(on, app)
    for count in range(2, 6):
        on.lane(on.client).silent(on.now + count, count)
        carrier.settle()
        assert on.lane(on.client).carries
    carrier.to_right.piece = carrier.to_left.piece = 1 << 20
    carrier.settle()
    assert not on.lane(on.client).carries
    carrier.settle()
    assert other.received == TEXT[:20_000]


def test_the_lane_carries_again_when_it_has_answered() -> None:
    on = LanePair()
    app, other = on.pair()
    silence(on, app)
    on.link.carrier.settle()
    lane = on.lane(on.client)
    lane.silent(on.now, 2)
    lane.alive(on.now)
    assert not lane.carries and lane.deadline() == on.now + HOLD_SECONDS
    on.link.carrier.now += HOLD_SECONDS
    lane.tick(on.now)
    assert lane.carries
    on.settle()
    assert other.received == TEXT[:20_000]


def test_a_silent_record_path_hands_over_to_the_lane() -> None:
    """What it has carried goes by the lane when that was faster."""
    on = LanePair(up=False)
    app, other = on.pair()
    on.link.carrier.advance(1.0)
    lane = on.lane(on.client)
    lane.set_up(True, SHORT_ROUND_TRIP / 2, "a test says so", on.now)
    assert not lane.carries
    carrier = on.link.carrier
    carrier.to_right.piece = carrier.to_left.piece = 0
    app.say(TEXT[:60_000])
    carrier.settle()
    carrier.advance(1.0)
    assert on.client.current is not None and on.client.current.in_doubt
    assert lane.carries
    on.lanes[on.exit].set_up(True, ROUND_TRIP, "a test says so", on.now)
    loads = on.take(on.client)
    assert loads
    for load in loads:
        on.deliver(on.client, load)
        lane.acked([whole(load)], on.now)
    assert lane.deadline() <= on.now + LEAST_LATE + ACK_DELAY
    carrier.now += LEAST_LATE
    lane.tick(on.now)
    assert not on.client.current.log.units
    for load in on.take(on.client):
        on.deliver(on.client, load)
    assert other.received == TEXT[:60_000]


def test_a_path_that_was_only_slow_carries_again_as_soon_as_it_has_answered() -> None:
    on = LanePair(up=False)
    app, other = on.pair()
    on.link.carrier.advance(1.0)
    for lane in on.lanes.values():
        lane.set_up(True, SHORT_ROUND_TRIP / 2, "a test says so", on.now)
    lane, carrier = on.lane(on.client), on.link.carrier
    carrier.to_right.piece = carrier.to_left.piece = 0
    app.say(TEXT[:60_000])
    carrier.settle()
    carrier.advance(1.0)
    assert lane.carries
    carrier.to_right.piece = carrier.to_left.piece = 1 << 20
    carrier.settle()
    assert not lane.carries and on.client.carrying is on.client.current
    on.settle()
    assert other.received == TEXT[:60_000]


# --- the end ---


def test_the_end_is_said_once_on_the_lane_too() -> None:
    on = LanePair()
    app, other = on.pair()
    app.say(b"unheard")
    on.cut()
    on.client.close(CloseReason.NORMAL)
    (load,) = on.take(on.client)
    assert isinstance(load, FramesLoad) and load.data == wire.encode_close(CloseReason.NORMAL)
    assert on.take(on.client) == [] and on.deliver(on.client, load)
    assert on.exit.closed is CloseReason.NORMAL and other.events[-1][0] == "reset"
    assert on.deliver(on.client, load), "nobody minds a second one"
    for session, budget in zip((on.client, on.exit), on.link.budgets, strict=True):
        assert session.retention.kept == 0 and budget.used == 0
    on.lane(on.client).acked([whole(load)], on.now)


# --- after a signed join ---


@pytest.mark.parametrize("dialler", [False, True])
def test_behind_a_signed_join_no_part_of_a_rotation_is_taken_by_the_lane(dialler: bool) -> None:
    """Somebody may have learned the secrets of the epoch, and with them the keys of the lane."""
    on = LanePair()
    session = on.client if dialler else on.exit
    session.rotation.bind(0, on.now)
    kind = wire.REKEY_ANSWER if dialler else wire.REKEY
    assert not on.lane(session).frames(memoryview(wire.encode_part(kind, 1, 0, b"his")), on.now)
    assert session.closed is None and session.rotation.current == 0


def test_behind_a_signed_join_the_lane_carries_nothing_before_the_next_epoch() -> None:
    """What was on it goes by the path, the parts of a rotation among it."""
    on = LanePair()
    app, other = on.pair()
    on.client.rotation.start(on.now)
    app.say(b"hello")
    assert on.take(on.client), "and is lost"
    for session in (on.exit, on.client):
        session.rotation.bind(0, on.now)
        assert not on.lane(session).carries
    assert on.take(on.client) == on.take(on.exit) == []
    on.link.carrier.settle()
    on.settle()
    assert other.received == b"hello" and on.client.rotation.current == on.exit.rotation.current == 1
    assert on.lane(on.client).carries and on.lane(on.exit).carries
