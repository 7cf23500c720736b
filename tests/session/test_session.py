"""The session as a whole: floods, bad input, datagrams, and its end."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.address import Destination
from cryprq_proxy.crypto.handshake import record_keys
from cryprq_proxy.errors import CarrierError, CloseReason, LocalError, PeerError, StreamReason
from cryprq_proxy.session import wire
from cryprq_proxy.session.datagrams import SECONDS, BasePacketLink
from cryprq_proxy.session.frame_reader import decode_frames
from cryprq_proxy.session.path import ACK_DELAY, FILL_MINIMUM, SessionPath
from cryprq_proxy.session.records import OVERHEAD, RecordOpener
from cryprq_proxy.session.rotation import NEVER
from cryprq_proxy.session.session import DATAGRAM_QUEUE, MAX_SMALL, Session
from cryprq_proxy.session.stream_numbers import INITIAL_STREAMS, MAX_AWAITED
from cryprq_proxy.session.streams import Stream
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.frames import SMALL_FRAMES
from tests.support.links import TARGET, App, Link, ToyProvider, epoch
from tests.support.memory import Direction
from tests.support.settings import session_limits

SIDES = pytest.mark.parametrize("side", ["client", "exit"])
NAME = Destination("example.com", 53)


def udp(link: Link) -> tuple[App, App]:
    app = link.open(protocol=StreamProtocol.UDP)
    link.carrier.settle()
    assert app.stream is not None
    return app, link.served[app.stream.id]


def path_of(link: Link, session: Session) -> SessionPath:
    """The end of `link.carrier` that belongs to `session`."""
    return link.carrier.paths[not session.dialler]


def sent_frames(link: Link, session: Session, budget: int = 65_536) -> list[wire.Frame]:
    """What one `fill` of the path of `session` would put on the carrier, which does not get it; in the first epoch."""
    path = path_of(link, session)
    opener = RecordOpener(
        link.cipher, record_keys(epoch(path.number).records, path.number)[not session.dialler]
    )
    opener.records = path.keys.sealer.records
    out = memoryview(bytearray(FILL_MINIMUM + budget))
    data = out[: path.fill(out, budget, link.carrier.now)]
    frames: list[wire.Frame] = []
    position = 0
    while True:
        plaintext, position = opener.open(data, position)
        if plaintext is None:
            assert position == len(data)
            return frames
        frames += decode_frames(bytes(plaintext))


def kinds(frames: list[wire.Frame]) -> list[int]:
    return [kind for kind, _, _ in frames]


# --- bad input ---


def ends_with(link: Link, reason: CloseReason, *, carrier_only: bool = False) -> None:
    """Moving what is in flight ends the link, with this reason on both sides."""
    link.carrier.settle()
    assert not link.carrier.open
    error = link.carrier.error
    assert error is not None and error.reason is reason and str(error)
    assert isinstance(error, CarrierError) is carrier_only
    for session in (link.client, link.exit):
        assert not session.attached
        assert session.closed == (None if carrier_only else reason)


def flow_to(link: Link, side: str) -> Direction:
    return link.carrier.to_left if side == "client" else link.carrier.to_right


def misbehave(link: Link, side: str, *frames: bytes) -> None:
    """The peer of `side` sends one record with these frames."""
    flow = flow_to(link, side)
    flow.in_flight += flow.source.keys.sealer.seal(b"".join(frames))


def data(id: int, size: int, offset: int = 0) -> bytes:
    return wire.encode_data_header(wire.DATA, id, offset) + bytes(size)


@SIDES
@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"\x77", CloseReason.PROTOCOL),
        (b"\x00" * 40, CloseReason.PROTOCOL),
        (wire.encode_window(1, 5)[:-1], CloseReason.PROTOCOL),
        (wire.encode_bare(wire.ACCEPT), CloseReason.PROTOCOL),
        (wire.encode_bare(wire.NO_SESSION), CloseReason.PROTOCOL),
        (wire.encode_joined(bytes(32)), CloseReason.PROTOCOL),
        (wire.encode_fin(99, 0), CloseReason.PROTOCOL),
        (data(1, 0), CloseReason.PROTOCOL),
        (wire.encode_records(wire.ACK, 0, 1 << 40), CloseReason.RESUME),
        (wire.encode_records(wire.ACK, 1, 0), CloseReason.RESUME),
        (wire.encode_records(wire.ABANDON, 0, 1 << 40), CloseReason.RESUME),
        (wire.encode_epoch(wire.SWITCH, 1) * 2, CloseReason.REKEY),
        (wire.encode_number(wire.PING, 1) + wire.encode_epoch(wire.SWITCH, 1), CloseReason.REKEY),
        (wire.encode_part(wire.REKEY_ANSWER, 1, 0, b""), CloseReason.REKEY),
        (data(1, wire.MAX_DATA + 1), CloseReason.PROTOCOL),
        (wire.encode_datagram(1, TARGET, b"on a stream of bytes"), CloseReason.PROTOCOL),
    ],
)
def test_bad_frames_close_the_link(side: str, frame: bytes, reason: CloseReason) -> None:
    link = Link()
    ends = link.pair()
    link.quiesce()
    misbehave(link, side, frame)
    ends_with(link, reason)
    assert [app.events[-1] for app in ends] == [("reset", StreamReason.SESSION_LOST)] * 2
    for session, budget in zip((link.client, link.exit), link.budgets, strict=True):
        assert session.retention.kept == budget.used == 0 and not session.streams


@SIDES
def test_credit_violations_close_the_link(side: str) -> None:
    link = Link()
    for app in link.pair():
        app.eager = False
    for part in range(3):
        misbehave(link, side, data(1, 30_000, 30_000 * part))
    ends_with(link, CloseReason.CREDIT)


@SIDES
def test_keys_that_nobody_has_end_the_path_only(side: str) -> None:
    link = Link()
    one, other = link.pair()[:: 1 if side == "exit" else -1]
    link.quiesce()
    misbehave(link, side, wire.encode_epoch(wire.SWITCH, 1))
    ends_with(link, CloseReason.REKEY, carrier_only=True)
    link.resume()
    one.say(b"goes on")
    link.quiesce()
    assert other.received == b"goes on"


@pytest.mark.parametrize(
    ("side", "frame"),
    [
        ("client", wire.encode_prefer(9, 0)),
        ("client", wire.encode_open(9, StreamProtocol.TCP, TARGET)),
        ("exit", wire.encode_number(wire.STREAMS, 1 << 20)),
        ("exit", wire.encode_opened(1)),
        ("exit", wire.encode_refused(1, StreamReason.GENERAL)),
        ("exit", wire.encode_bare(wire.GOAWAY)),
        ("exit", wire.encode_advertise(Destination("192.0.2.1", 1))),
    ],
)
def test_frames_that_are_only_the_other_side_s_to_send(side: str, frame: bytes) -> None:
    link = Link()
    told: list[Destination] = []
    link.exit.events.advertised = told.append
    link.pair()
    link.quiesce()
    misbehave(link, side, frame)
    ends_with(link, CloseReason.PROTOCOL)
    assert not told


def test_an_acknowledgement_that_goes_back_says_nothing() -> None:
    """It may have been overtaken by a newer one, on another path."""
    link = Link()
    one, other = link.pair()
    link.quiesce()
    log = path_of(link, link.client).log
    acknowledged = log.acknowledged
    misbehave(link, "client", wire.encode_records(wire.ACK, 0, 0))
    one.say(b"goes on")
    link.quiesce()
    assert other.received == b"goes on" and log.acknowledged > acknowledged
    assert not link.client.retention.kept


@SIDES
@pytest.mark.parametrize("position", [0, 1, 2, 3, 4, 10, -1])
def test_any_changed_byte_ends_the_carrier_only(side: str, position: int) -> None:
    link = Link(session_limits(keepalive=5.0))
    one, other = link.pair()[:: 1 if side == "exit" else -1]
    link.quiesce()
    flow = flow_to(link, side)
    one.say(b"damaged on its path")
    flow.pull(link.carrier.now)
    flow.in_flight[position] ^= 0x01 if position != 2 else 0x80
    link.carrier.advance(11.0)
    assert not link.carrier.open and isinstance(link.carrier.error, CarrierError)
    assert link.client.closed is None and link.exit.closed is None
    assert other.received == b""
    link.resume()
    link.quiesce()
    assert other.received == b"damaged on its path"


@SIDES
@pytest.mark.parametrize("damage", ["replay", "reorder", "drop", "garbage", "oversized", "empty"])
def test_damaged_carriers(side: str, damage: str) -> None:
    link = Link()
    one, other = link.pair()[:: 1 if side == "exit" else -1]
    link.quiesce()
    flow = flow_to(link, side)
    records = []
    for text in (b"first ", b"second ", b"third"):
        one.say(text)
        flow.pull(link.carrier.now)
        records.append(bytes(flow.in_flight))
        flow.in_flight.clear()
    flow.in_flight += b"".join(
        {
            "replay": [records[0], records[0]],
            "reorder": [records[0], records[2], records[1]],
            "drop": [records[0], records[2]],
            "garbage": [records[0], bytes(range(50, 200))],
            "oversized": [records[0], (1 << 20).to_bytes(4)],
            "empty": [records[0], bytes(4) + bytes(16)],
        }[damage]
    )
    ends_with(link, CloseReason.BAD_RECORD, carrier_only=True)
    assert other.received == b"first "
    link.resume()
    link.quiesce()
    assert other.received == b"first second third"


def test_nothing_is_read_after_a_bad_record() -> None:
    link = Link()
    link.pair()
    path, peer = link.carrier.paths
    good = peer.keys.sealer.seal(wire.encode_number(wire.PING, 1))
    with pytest.raises(CarrierError):
        path.receive(memoryview(good[:-1] + b"\xff" + good), link.now)
    assert path._pong is None


@given(
    st.lists(st.binary(min_size=1, max_size=60) | SMALL_FRAMES.map(lambda f: f[0]), max_size=6), st.booleans()
)
def test_only_peer_errors_come_out(records: list[bytes], dialler: bool) -> None:
    """Records with anything in them, sealed properly."""
    link = Link(provider=ToyProvider())
    link.pair()
    udp(link)
    victim = link.client if dialler else link.exit
    try:
        for record in records:
            if victim.attached and victim.closed is None:
                link.forge(victim, record)
        link.carrier.advance(1.0)
    except LocalError:
        raise
    except PeerError as error:
        victim.close(error.reason)
        assert not victim.streams


# --- floods ---


def held(session: Session) -> int:
    """Everything that a peer could make longer."""
    return (
        len(session.table.windows_due)
        + len(session.table.numbers.awaited)
        + len(session.streams)
        + session.receiver.pieces.used
        + len(session.scheduler._waiting)
        + session.retention.kept
        + session.datagrams.bytes
        + session.packets.bytes
        + sum(len(path._announcements) for path in session.paths.values())
    )


@SIDES
@pytest.mark.parametrize(
    "flood",
    [
        wire.encode_number(wire.PING, 77),
        wire.encode_number(wire.PONG, 77),
        wire.encode_window(1, 70_000),
        wire.encode_datagram(2, TARGET, bytes(1000)),
        wire.encode_reset(3, StreamReason.GENERAL, 0),
        wire.encode_window(0, 1),
        wire.encode_window(3, 70_000),
    ],
    ids=["PING", "PONG", "WINDOW", "DATAGRAM", "late RESET", "WINDOW of all", "late WINDOW"],
)
def test_floods_leave_nothing_behind(side: str, flood: bytes) -> None:
    link = Link()
    link.pair()
    udp(link)
    one, other = link.pair()
    link.quiesce()
    for app in (one, other):
        app.say(b"", finish=True)
    link.quiesce()
    victim: Session = getattr(link, side)
    link.forge(victim, flood)
    before = held(victim)
    for _ in range(200):
        link.carrier.now += 1.0  # these are no more than is allowed in this time
        link.forge(victim, flood * 20)
    assert held(victim) <= before + 1
    frames = sent_frames(link, victim)
    assert len(frames) <= 3
    assert kinds(frames).count(wire.PONG) <= 1


def test_a_flood_of_pings_is_answered_once_with_the_last() -> None:
    link = Link()
    link.quiesce()
    for token in range(200):
        link.forge(link.exit, wire.encode_number(wire.PING, token))
    assert sent_frames(link, link.exit) == [(wire.PONG, 0, 199)]


def test_windows_coalesce() -> None:
    link = Link()
    one, other = link.pair()
    other.eager = False
    one.say(bytes(60_000))
    link.quiesce()
    for _ in range(60):
        other.consume(1000)
    assert kinds(sent_frames(link, link.exit)) == [wire.WINDOW]


def test_acknowledgements_coalesce() -> None:
    link = Link()
    one, _ = link.pair()
    link.quiesce()
    for _ in range(50):
        one.say(b"a frame of its own")
        link.carrier.to_right.pull(link.carrier.now)
    link.carrier.to_right.deliver(link.carrier.now)
    path = path_of(link, link.exit)
    assert path.deadline() <= link.carrier.now + ACK_DELAY
    path.tick(link.carrier.now + ACK_DELAY)
    assert sent_frames(link, link.exit) == [(wire.ACK, 0, (0, path.received))]
    assert sent_frames(link, link.exit) == []


def test_data_is_acknowledged_with_the_credit_that_it_brings() -> None:
    link = Link()
    one, other = link.pair()
    other.eager = False
    link.quiesce()
    one.say(bytes(60_000))
    link.carrier.settle()
    assert sent_frames(link, link.exit) == []
    other.consume()
    acknowledgement, window = sent_frames(link, link.exit)
    assert acknowledgement == (wire.ACK, 0, (0, path_of(link, link.exit).received))
    assert window[0] == wire.WINDOW


def test_much_data_is_acknowledged_before_the_delay() -> None:
    link = Link(session_limits(retained=1 << 20))
    one, other = link.pair()
    one.say(bytes(8 << 20), finish=True)
    link.carrier.settle()
    assert len(other.received) == 8 << 20 and link.carrier.now == 1000.0


def test_an_acknowledgement_that_cannot_be_sent_is_no_busy_loop() -> None:
    link = Link()
    one, other = link.pair()
    link.quiesce()
    link.carrier.to_left.capacity = 0
    one.say(b"hello")
    link.carrier.advance(1.0)
    assert other.received == b"hello" and path_of(link, link.exit).deadline() > link.carrier.now


def churn(link: Link, *, ends: bool, acknowledges: bool) -> PeerError:
    """Open streams at the exit, in full records, until it takes no more."""
    with pytest.raises(PeerError) as caught:
        for first in range(1, 400_000, 500):
            frames = []
            for number in range(first, first + 500):
                frames.append(wire.encode_open(number, StreamProtocol.TCP, TARGET))
                if ends:
                    frames.append(wire.encode_reset(number, StreamReason.GENERAL, 0))
            link.forge(link.exit, *frames)
            while link.carrier.to_left.pull(link.carrier.now):
                link.carrier.to_left.in_flight.clear()
            if acknowledges:
                records = path_of(link, link.exit).keys.records_sent
                link.forge(link.exit, wire.encode_records(wire.ACK, 0, records))
    return caught.value


def test_opening_without_acknowledging_is_bounded() -> None:
    """The exit's answers must be kept; a peer that never acknowledges them goes too far at some point."""
    link = Link(session_limits(streams=10, retained=1 << 16))
    error = churn(link, ends=True, acknowledges=False)
    assert error.reason is CloseReason.LIMIT and "acknowledge" in str(error)
    assert link.exit.retention.kept <= MAX_SMALL + (1 << 18)


@pytest.mark.parametrize("acknowledges", [True, False])
def test_opening_without_ending_is_bounded(acknowledges: bool) -> None:
    """It never answers a refusal."""
    link = Link(session_limits(streams=10))
    assert churn(link, ends=False, acknowledges=acknowledges).reason is CloseReason.LIMIT
    assert len(link.exit.table.numbers.awaited) <= INITIAL_STREAMS


def test_ends_that_are_awaited_are_bounded_however_many_streams_there_may_be() -> None:
    def refuse(stream: Stream) -> App:
        stream.refuse(StreamReason.NOT_ALLOWED)
        return App()

    link = Link(session_limits(streams=200_000, retained=1 << 26), serve=refuse)
    assert churn(link, ends=False, acknowledges=True).reason is CloseReason.LIMIT
    assert len(link.exit.table.numbers.awaited) == MAX_AWAITED + 1


def test_what_a_peer_does_not_acknowledge_is_bounded() -> None:
    link = Link(session_limits(retained=1 << 20))
    apps = [link.pair() for _ in range(30)]
    link.quiesce()
    path = path_of(link, link.exit)
    path._write_own = lambda *given: None  # type: ignore[method-assign]
    for one, _ in apps:
        one.say(bytes(1 << 20))
    link.carrier.settle()
    assert (1 << 20) <= link.client.retention.kept <= (1 << 20) + 2 * wire.MAX_DATA
    del path._write_own
    path.wake()
    link.carrier.advance(1.0)
    assert all(len(other.received) == 1 << 20 for _, other in apps)


def test_an_acknowledgement_alone_lets_a_full_log_go_on() -> None:
    link = Link(session_limits(retained=1 << 18))
    one, _ = link.pair()
    link.quiesce()
    link.forge(link.client, wire.encode_window(1, 1 << 40))
    one.say(bytes(4 << 20))
    flow = link.carrier.to_right
    while flow.pull(link.carrier.now):
        pass
    assert one.outgoing and not link.client.retention.has_room()
    link.forge(link.client, wire.encode_records(wire.ACK, 0, flow.source.keys.records_sent))
    assert flow.pull(link.carrier.now)


# --- datagrams ---


def test_datagrams_both_ways() -> None:
    link = Link()
    one, other = udp(link)
    assert one.stream is not None and other.stream is not None
    one.stream.send_datagram(NAME, b"question")
    link.carrier.settle()
    other.stream.send_datagram(TARGET, b"")
    other.stream.send_datagram(TARGET, bytes(wire.MAX_DATAGRAM))
    link.carrier.settle()
    assert other.datagrams == [(NAME, b"question")]
    assert one.datagrams == [(TARGET, b""), (TARGET, bytes(wire.MAX_DATAGRAM))]


def test_a_datagram_after_a_long_silence() -> None:
    """Nobody tells the session the time while nothing happens."""
    link = Link()
    one, other = udp(link)
    link.quiesce()
    link.carrier.now += 5.0
    assert one.stream is not None
    one.stream.send_datagram(NAME, b"first")
    link.carrier.settle()
    assert other.datagrams == [(NAME, b"first")]


def test_old_datagrams_are_dropped() -> None:
    link = Link()
    one, other = udp(link)
    link.quiesce()
    assert one.stream is not None
    for number in range(50):
        one.stream.send_datagram(NAME, b"%d" % number * 500)
    path = link.carrier.to_right
    path.budget = 8192
    path.pull(link.carrier.now)
    link.carrier.now += 2 * SECONDS
    link.carrier.settle()
    assert 0 < len(other.datagrams) < 20
    one.stream.send_datagram(NAME, b"new")
    link.carrier.settle()
    assert other.datagrams[-1] == (NAME, b"new")
    assert link.client.datagrams.bytes == 0 and not link.client.datagrams


def test_the_queue_of_datagrams_is_bounded_and_drops_the_oldest() -> None:
    link = Link()
    one, other = udp(link)
    assert one.stream is not None
    for number in range(1000):
        one.stream.send_datagram(NAME, b"%04d" % number + bytes(1000))
        assert link.client.datagrams.bytes <= DATAGRAM_QUEUE
    link.carrier.settle()
    numbers = [int(payload[:4]) for _, payload in other.datagrams]
    assert numbers == list(range(1000 - len(numbers), 1000)) and 50 < len(numbers) < 70


def test_datagrams_do_not_starve_streams() -> None:
    link = Link()
    sender, _ = udp(link)
    bulk, receiver = link.pair()
    link.quiesce()
    bulk.say(bytes(1 << 20))
    path = link.carrier.to_right
    path.budget = 16_384
    assert sender.stream is not None
    for _ in range(200):
        for _ in range(70):
            sender.stream.send_datagram(NAME, bytes(1000))
        link.carrier.step()
    assert len(receiver.received) == 1 << 20


def test_datagrams_are_not_kept_for_the_next_path() -> None:
    link = Link()
    one, other = udp(link)
    assert one.stream is not None
    one.stream.send_datagram(NAME, b"lost")
    link.carrier.cut()
    one.stream.send_datagram(NAME, b"lost, too")
    link.resume()
    link.quiesce()
    assert other.datagrams == []
    one.stream.send_datagram(NAME, b"arrives")
    link.quiesce()
    assert other.datagrams == [(NAME, b"arrives")]


def test_a_datagram_never_overtakes_its_open() -> None:
    link = Link(serve=lambda stream: App())
    one = link.open(protocol=StreamProtocol.UDP)
    assert one.stream is not None
    one.stream.send_datagram(NAME, b"too early: dropped")
    link.quiesce()
    assert link.carrier.open and link.served[1].datagrams == []
    one.stream.send_datagram(NAME, b"still")
    served = link.served[1].stream
    assert served is not None
    served.accept()
    link.quiesce()
    one.stream.send_datagram(NAME, b"now")
    link.quiesce()
    assert link.served[1].datagrams == [(NAME, b"now")]


def test_datagrams_for_a_stream_that_ended_are_ignored() -> None:
    link = Link()
    one, other = udp(link)
    assert one.stream is not None and other.stream is not None
    one.stream.send_datagram(NAME, b"late")
    other.stream.reset(StreamReason.GENERAL)
    link.quiesce()
    assert link.carrier.open and other.datagrams == []
    one.stream.send_datagram(NAME, b"nobody")
    link.assert_clean()


# --- filling ---


def test_small_frames_share_a_record() -> None:
    link = Link()
    link.quiesce()
    keys = path_of(link, link.client).keys
    before = keys.sealer.records
    for _ in range(20):
        link.open()
    link.carrier.to_right.pull(link.carrier.now)
    assert keys.sealer.records == before + 1


@given(st.lists(st.integers(0, 70_000), max_size=12), st.integers(1, 100_000), st.booleans())
def test_fill_keeps_to_its_buffer(sizes: list[int], budget: int, slots: bool) -> None:
    """FILL_MINIMUM + budget bytes are enough whatever waits."""
    link = Link(provider=ToyProvider())
    sender, _ = udp(link)
    pairs = [link.pair(slots=link.slots if slots else None) for _ in sizes]
    link.quiesce()
    link.client.rotation.start(link.carrier.now)
    assert sender.stream is not None
    for (one, _), size in zip(pairs, sizes, strict=True):
        one.say(bytes(size), finish=True)
        sender.stream.send_datagram(NAME, bytes(min(size, wire.MAX_DATAGRAM)))
        link.open()
    out = memoryview(bytearray(FILL_MINIMUM + budget))
    for _ in range(200):
        link.client.turn.renew()
        if not link.carrier.paths[0].fill(out, budget, link.carrier.now):
            break
    else:
        raise AssertionError("there is always something more to send")


def test_the_overhead_of_bulk_data() -> None:
    link = Link()
    one, other = link.pair(slots=link.slots)
    link.quiesce()
    before = link.carrier.to_right.sent
    assert one.stream is not None and other.stream is not None
    other.stream.announced = 16 << 20
    one.stream.raise_send_limit(16 << 20)
    one.say(bytes(8 << 20))
    link.carrier.settle()
    records = (8 << 20) / wire.MAX_DATA
    overhead = link.carrier.to_right.sent - before - (8 << 20)
    assert overhead <= 1.5 * records * (OVERHEAD + wire.DATA_HEADER)


# --- the end ---


@SIDES
def test_closing_tells_the_peer(side: str) -> None:
    link = Link()
    one, other = link.pair()
    session: Session = getattr(link, side)
    session.close(CloseReason.SHUTTING_DOWN, StreamReason.SHUTTING_DOWN)
    session.close(CloseReason.PROTOCOL)
    link.carrier.settle()
    assert not link.carrier.open and link.client.closed is link.exit.closed is CloseReason.SHUTTING_DOWN
    mine, theirs = (one, other)[:: 1 if side == "client" else -1]
    assert mine.events[-1] == ("reset", StreamReason.SHUTTING_DOWN)
    assert theirs.events[-1] == ("reset", StreamReason.SESSION_LOST)
    assert [path.deadline() for path in link.carrier.paths] == [NEVER] * 2
    link.carrier.paths[0].tick(2000.0)


def test_a_path_that_is_lost_is_quiet_and_its_session_waits() -> None:
    link = Link()
    one, _ = link.pair()
    path, _ = link.carrier.paths
    link.carrier.cut()
    one.say(b"later")
    assert path.fill(memoryview(bytearray(FILL_MINIMUM)), 0, link.now) == 0
    assert path.deadline() == NEVER
    path.tick(link.now + 1e6)
    path.lost(link.now + 1e6)
    assert path.receive(memoryview(b"\xff" * 100), link.now) == 0
    assert link.client.closed is None and not link.client.attached and list(link.client.streams) == [1]


def test_closing_without_a_path() -> None:
    link = Link(connected=False)
    app = link.open()
    link.client.close(CloseReason.NORMAL)
    assert app.events == [("reset", StreamReason.SESSION_LOST)]
    assert link.budgets[0].used == 0


def test_handlers_may_open_and_reset_while_the_session_closes() -> None:
    link = Link()
    one, _ = link.pair()
    two, _ = link.pair()

    def reset(reason: StreamReason) -> None:
        assert two.stream is not None
        two.stream.reset(StreamReason.GENERAL)
        with pytest.raises(LocalError):
            link.open()

    one.reset = reset  # type: ignore[method-assign]
    link.client.close(CloseReason.NORMAL)
    assert link.budgets[0].used == 0 and not link.client.streams


@SIDES
def test_a_peer_may_close_in_the_middle_of_a_record(side: str) -> None:
    link = Link()
    link.pair()
    victim: Session = getattr(link, side)
    link.forge(victim, wire.encode_close(CloseReason.LIMIT), wire.encode_fin(99, 0))
    assert victim.closed is CloseReason.LIMIT
    assert sent_frames(link, victim) == [], "nobody answers a CLOSE"


def test_the_exit_may_refuse_a_stream_at_once() -> None:
    def serve(stream: Stream) -> Any:
        stream.refuse(StreamReason.NOT_ALLOWED)
        return App()

    link = Link(serve=serve)
    apps = [link.open() for _ in range(3)]
    link.quiesce()
    assert [app.events for app in apps] == [[("refused", StreamReason.NOT_ALLOWED)]] * 3
    link.assert_clean()


def test_much_data_is_acknowledged_before_its_time() -> None:
    """Once a sixteenth of what may be retained has come, and no byte earlier."""
    link = Link(session_limits(retained=1 << 20))
    # Not eager: a consumer would announce windows, and the acknowledgement goes along with anything that is sent.
    app = App(eager=False)

    def serve(stream: Stream) -> App:
        stream.accept()
        return app

    link.serve = serve
    one = link.open()
    link.carrier.settle()
    assert one.stream is not None
    assert app.stream is not None
    path, bound = link.carrier.to_right, (1 << 20) >> 4
    log = path.source.log
    one.stream.raise_send_limit(2 * bound)
    app.stream.announced = 2 * bound
    one.say(bytes(bound - 1))
    while path.pull(link.carrier.now) | path.deliver(link.carrier.now):
        pass
    assert len(app.received) == bound - 1
    before = log.acknowledged
    link.carrier.to_left.pull(link.carrier.now)
    link.carrier.to_left.deliver(link.carrier.now)
    assert log.acknowledged == before
    one.say(b"!")
    path.pull(link.carrier.now)
    path.deliver(link.carrier.now)
    link.carrier.to_left.pull(link.carrier.now)
    link.carrier.to_left.deliver(link.carrier.now)
    assert log.acknowledged == path.target.received


# --- an exit that is about to stop ---


class Told:
    """What the hooks of a client's session were called with."""

    def __init__(self, link: Link, *, handled: bool = False) -> None:
        self.goaways = 0
        self.idle: list[bool] = []
        self.refused: list[tuple[StreamReason, bool]] = []
        self.handled = handled
        self.session = link.client
        events = link.client.events
        events.goaway = self._goaway
        events.idle = lambda: self.idle.append(link.client.idle)
        events.refused = self._refused

    def _goaway(self) -> None:
        self.goaways += 1

    def _refused(self, stream: Stream, reason: StreamReason, untouched: bool) -> bool:
        self.refused.append((reason, untouched))
        return self.handled


def test_goaway_reaches_the_client_and_changes_nothing_by_itself() -> None:
    link = Link()
    told = Told(link)
    app, other = link.pair()
    link.exit.announce(wire.encode_bare(wire.GOAWAY))
    link.carrier.settle()
    assert told.goaways == 1
    app.say(b"still here")
    link.carrier.settle()
    assert other.received == b"still here"
    link.pair()


def test_goaway_outlives_its_path() -> None:
    link = Link()
    told = Told(link)
    link.carrier.to_left.piece = 0
    link.exit.announce(wire.encode_bare(wire.GOAWAY))
    link.carrier.settle()
    assert not told.goaways
    link.resume()
    link.carrier.settle()
    assert told.goaways == 1
    link.carrier.cut()
    link.exit.announce(wire.encode_bare(wire.GOAWAY))
    link.resume()
    link.carrier.settle()
    assert told.goaways == 2
    link.exit.close(CloseReason.SHUTTING_DOWN)
    link.exit.announce(wire.encode_bare(wire.GOAWAY))
    assert not link.exit.retention.waits, "a session that has ended announces nothing"


def test_a_flood_of_goaway_ends_the_session() -> None:
    link = Link()
    told = Told(link)
    with pytest.raises(PeerError) as caught:
        for _ in range(1_000):
            link.forge(link.client, wire.encode_bare(wire.GOAWAY))
    assert caught.value.reason is CloseReason.LIMIT
    assert told.goaways <= 256


def test_an_advertised_address_reaches_the_client_and_changes_nothing_by_itself() -> None:
    link = Link()
    told: list[Destination] = []
    link.client.events.advertised = told.append
    app, other = link.pair()
    addresses = [Destination("192.0.2.1", 1), Destination("2001:db8::1", 4433)]
    for address in addresses:
        path_of(link, link.exit).announce(wire.encode_advertise(address))
    link.carrier.settle()
    assert told == addresses
    app.say(b"still here")
    link.carrier.settle()
    assert other.received == b"still here"


def test_an_advertised_address_is_lost_with_the_path_that_it_is_about() -> None:
    link = Link()
    told: list[Destination] = []
    link.client.events.advertised = told.append
    path_of(link, link.exit).announce(wire.encode_advertise(Destination("192.0.2.1", 1)))
    link.resume()
    link.carrier.settle()
    assert not told


def test_an_advertised_address_for_which_nobody_waits_is_ignored() -> None:
    link = Link()
    link.forge(link.client, wire.encode_advertise(Destination("192.0.2.1", 1)))
    link.pair()


def test_a_flood_of_advertised_addresses_ends_the_session() -> None:
    link = Link()
    told: list[Destination] = []
    link.client.events.advertised = told.append
    with pytest.raises(PeerError) as caught:
        for port in range(1, 1_001):
            link.forge(link.client, wire.encode_advertise(Destination("192.0.2.1", port)))
    assert caught.value.reason is CloseReason.LIMIT
    assert len(told) <= 256


def test_idle_is_told_when_the_last_stream_has_ended_and_everything_has_arrived() -> None:
    link = Link()
    told = Told(link)
    app, other = link.pair()
    second = link.pair()[0]
    link.quiesce()
    told.idle.clear()
    second.stream.reset(StreamReason.CANCELLED)  # type: ignore[union-attr]
    link.quiesce()
    assert not told.idle and not link.client.idle
    other.say(b"", finish=True)
    link.quiesce()
    app.say(b"last words", finish=True)
    while not told.idle:
        assert link.carrier.to_right.pull(link.carrier.now)
    assert told.idle == [False], "the exit does not have them yet"
    link.quiesce()
    assert other.received == b"last words"
    assert told.idle[-1] and link.client.idle


def test_idle_is_told_when_the_exit_ends_the_last_stream() -> None:
    link = Link()
    told = Told(link)
    app, other = link.pair()
    app.say(b"", finish=True)
    link.quiesce()
    told.idle.clear()
    other.say(b"", finish=True)
    link.carrier.settle()
    assert told.idle == [True]


def test_idle_is_told_when_the_next_path_says_what_the_lost_one_had_brought() -> None:
    link = Link()
    told = Told(link)
    app, _ = link.pair()
    link.quiesce()
    app.stream.reset(StreamReason.CANCELLED)  # type: ignore[union-attr]
    link.carrier.to_right.pull(link.carrier.now)
    link.carrier.to_right.deliver(link.carrier.now)
    told.idle.clear()
    link.resume()
    link.quiesce()
    assert told.idle[-1] and link.client.idle


@pytest.mark.parametrize("handled", [True, False])
def test_who_is_told_of_a_refused_stream(handled: bool) -> None:
    link = Link(serve=lambda stream: App())
    told = Told(link, handled=handled)
    apps = [link.open() for _ in range(3)]
    apps[1].say(b"data")
    apps[2].say(b"", finish=True)
    link.carrier.settle()
    for stream in list(link.exit.streams.values()):
        stream.refuse(StreamReason.SHUTTING_DOWN)
    link.carrier.settle()
    assert [untouched for _, untouched in told.refused] == [True, False, False]
    assert [bool(app.events) for app in apps] == [not handled] * 3


def test_numbers_of_streams_may_begin_anywhere() -> None:
    link = Link(last_stream=5_000)
    app, _ = link.pair()
    assert app.stream is not None and app.stream.id == link.client.last_stream == 5_001
    app.stream.reset(StreamReason.CANCELLED)
    link.quiesce()
    link.assert_clean()


def test_of_addresses_that_wait_the_newest_are_sent() -> None:
    """Forty at once would be more control frames than the client takes."""
    link = Link()
    link.quiesce()
    came: list[int] = []

    class Addressed(BasePacketLink):
        def network_received(self, serial: int, ipv4: bytes, ipv6: bytes) -> None:
            came.append(serial)

    link.client.packet_link = Addressed()
    link.carrier.cut()
    for serial in range(1, 41):
        link.exit.announce(wire.encode_network(serial, bytes(4), bytes(16)))
    link.exit.announce(wire.encode_bare(wire.GOAWAY))
    link.resume()
    link.quiesce()
    assert came == [40] and link.client.closed is None
    link.assert_clean()
