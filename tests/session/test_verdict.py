"""What a session does before the exit has said whether it lets the client in, and what becomes of each verdict."""

from __future__ import annotations

import pytest

from cryprq_proxy.errors import CarrierError, CloseReason, NotAdmitted, PeerError, StreamReason
from cryprq_proxy.session import wire
from cryprq_proxy.session.records import OVERHEAD, RecordOpener, RecordSealer
from cryprq_proxy.session.session import FILL_MINIMUM, MAX_EARLY, NEVER
from cryprq_proxy.session.turns import FRAME_COSTS, RECORD_WORK
from cryprq_proxy.session.verdict import MAX_VERDICT, open_verdict
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.links import FAST, App, Link, epoch

KEYS = epoch(1)


class Told:
    """Counts the calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1


def new_link() -> Link:
    return Link(connected=False)


def early_frames(link: Link) -> list[int]:
    """The kinds of frames that the client has sent, read with the keys that the exit has."""
    opener = RecordOpener(link.cipher, KEYS.client_record)
    data, position = memoryview(bytes(link.carrier.to_right._unused)), 0
    kinds: list[int] = []
    while True:
        plaintext, position = opener.open(data, position)
        if plaintext is None:
            assert position == len(data)
            return kinds
        kinds += [frame[0] for frame in wire.decode_frames(bytes(plaintext))]


def test_requests_and_their_data_arrive_with_the_verdict() -> None:
    """They are the session's first records, and the exit finds them in what it has not read before."""
    link, admitted = new_link(), Told()
    link.introduce(admitted)
    app = link.open()
    app.say(b"hello", finish=True)
    link.carrier.settle()
    assert link.carrier.to_right.sent > 0 and not link.served and not admitted.calls
    link.admit()
    link.carrier.settle()
    assert admitted.calls == 1
    assert app.stream is not None and link.served[app.stream.id].received == b"hello"
    assert app.events == [("opened",)]
    link.served[app.stream.id].say(b"", finish=True)
    link.quiesce()
    link.assert_clean()


def test_only_numbered_frames_leave_before_the_verdict() -> None:
    """No sign of life is asked for, so the time that a verdict takes counts as no round trip; and no packets."""
    link = new_link()
    link.introduce()
    link.client.announce(wire.encode_lane(0, 1))
    link.client.measure()
    link.client.send_packet(0, 0, 0, memoryview(bytes(1200)))
    app, gone = link.open(), link.open()
    app.say(b"hello", finish=True)
    gone.stream.reset(StreamReason.CANCELLED)  # type: ignore[union-attr]
    link.carrier.settle()
    assert sorted(early_frames(link)) == [wire.OPEN, wire.OPEN, wire.DATA, wire.FIN, wire.RESET]
    assert not link.client.packets


def test_no_more_than_its_bound_is_sent_before_the_verdict() -> None:
    link = new_link()
    link.introduce()
    apps = [link.open() for _ in range(8)]
    for app in apps:
        app.say(bytes(60_000))
    link.carrier.settle()
    sent = link.carrier.to_right.sent
    assert MAX_EARLY <= sent < MAX_EARLY + 60_000 + OVERHEAD
    apps[0].say(b"more")
    link.open()
    link.carrier.settle()
    assert link.carrier.to_right.sent == sent
    link.admit()
    link.carrier.settle()
    received = [link.served[app.stream.id].received for app in apps]  # type: ignore[union-attr]
    assert [len(data) for data in received] == [60_004] + [60_000] * 7
    assert len(link.served) == 9


def test_nothing_is_due_before_the_verdict() -> None:
    """Whoever began the handshake bounds the time; the keepalive begins with the link."""
    link = new_link()
    link.introduce()
    link.client.probe(2.0, link.now)
    assert link.client.deadline() == NEVER
    link.client.tick(link.now + 3_600.0)
    link.carrier.now += 3_600.0
    link.admit()
    link.carrier.settle()
    assert link.carrier.open
    assert link.client.liveness.least_round_trip == 0.0, "measured behind the verdict"


def test_a_verdict_is_work_as_other_records_are() -> None:
    link = new_link()
    link.introduce()
    link.admit()
    link.client.turn.renew()
    before = link.client.turn.left
    record = link.carrier.to_left.in_flight
    link.client.receive(memoryview(bytes(record)), link.now)
    assert link.client.turn.left <= before - RECORD_WORK - FRAME_COSTS[wire.ACCEPT]


def test_what_follows_the_verdict_may_come_with_it_or_in_pieces() -> None:
    for piece in (1, 5, 1 << 20):
        link, told = new_link(), Told()
        link.introduce(told)
        app = link.open()
        link.carrier.to_left.piece = piece
        link.admit()
        link.carrier.settle()
        assert told.calls == 1 and app.events == [("opened",)]


@pytest.mark.parametrize(
    "verdict",
    [
        wire.encode_close(CloseReason.NOT_AUTHORIZED),
        wire.encode_close(CloseReason.LIMIT),
        wire.encode_close(CloseReason.SHUTTING_DOWN),
        wire.encode_bare(wire.NO_SESSION),
        wire.encode_bare(wire.GOAWAY),
        wire.encode_bare(wire.ACCEPT) * 2,
        wire.encode_opened(1),
        wire.encode_resumed(0, bytes(32)),
        b"\xff",
        b"\x20\xff",
        b"\x02\x00",
    ],
)
def test_a_verdict_that_is_not_accept_leaves_the_streams_to_the_caller(verdict: bytes) -> None:
    """It asks for some of them again, so no handler is told before; and the exit hears nothing more."""
    link = new_link()
    link.introduce(lambda: pytest.fail("it was not admitted"))
    app = link.open()
    app.say(b"data")
    link.carrier.settle()
    sent = link.carrier.to_right.sent
    link.admit(verdict)
    link.carrier.settle()
    error = link.carrier.error
    assert isinstance(error, NotAdmitted)
    reason = CloseReason(verdict[1]) if verdict[0] == wire.CLOSE else CloseReason.PROTOCOL
    assert error.reason is reason
    assert link.client.closed is None and not link.carrier.open
    assert not app.events and link.carrier.to_right.sent == sent


def test_a_verdict_has_a_bound() -> None:
    """Nothing of a longer one is waited for."""
    link = new_link()
    link.introduce()
    length = (MAX_VERDICT + 17).to_bytes(4)
    with pytest.raises(CarrierError) as caught:
        link.client.receive(memoryview(length), link.now)
    assert caught.value.reason is CloseReason.BAD_RECORD


def test_a_verdict_under_another_key_does_not_count() -> None:
    opener = RecordOpener(Link(connected=False).cipher, KEYS.exit_record)
    forged = RecordSealer(Link(connected=False).cipher, KEYS.client_record).seal(
        wire.encode_bare(wire.ACCEPT)
    )
    with pytest.raises(CarrierError):
        open_verdict(opener, memoryview(forged), wire.ACCEPT)


def test_a_second_verdict_breaks_the_protocol() -> None:
    link = new_link()
    link.introduce()
    link.admit()
    link.carrier.settle()
    with pytest.raises(PeerError) as caught:
        link.forge(link.client, wire.encode_bare(wire.ACCEPT))
    assert caught.value.reason is CloseReason.PROTOCOL


def test_a_session_that_is_closed_before_the_verdict_says_so() -> None:
    link = new_link()
    link.introduce()
    app = link.open()
    link.client.close(CloseReason.NORMAL)
    out = memoryview(bytearray(FILL_MINIMUM))
    size = link.client.fill(out, 0, link.now)
    opener = RecordOpener(link.cipher, KEYS.client_record)
    plaintext, _ = opener.open(out[:size], 0)
    assert bytes(plaintext or b"") == wire.encode_close(CloseReason.NORMAL)
    assert app.events == [("reset", StreamReason.SESSION_LOST)]


def test_datagrams_wait_for_opened_as_ever() -> None:
    link = Link(connected=False, provider=FAST)
    link.introduce()
    app = link.open(App(), StreamProtocol.UDP)
    assert app.stream is not None
    app.stream.send_datagram(app.stream.destination, b"lost")
    link.carrier.settle()
    assert early_frames(link) == [wire.OPEN]
