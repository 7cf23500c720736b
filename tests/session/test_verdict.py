"""What a path does before the exit has said whether it lets the client in, and what becomes of each verdict."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cryprq_proxy.crypto.handshake import record_keys
from cryprq_proxy.errors import CarrierError, CloseReason, NotAdmitted, PeerError, StreamReason
from cryprq_proxy.session import wire
from cryprq_proxy.session.frame_reader import decode_frames
from cryprq_proxy.session.path import FILL_MINIMUM, MAX_EARLY
from cryprq_proxy.session.records import OVERHEAD, RecordOpener, RecordSealer
from cryprq_proxy.session.rotation import NEVER
from cryprq_proxy.session.turns import FRAME_COSTS, RECORD_WORK
from cryprq_proxy.session.verdict import MAX_VERDICT, open_verdict
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.links import SESSION_ID, TARGET, App, Link, epoch
from tests.support.memory import MemoryCarrier

CLIENT_KEY, EXIT_KEY = record_keys(epoch(0).records, 0)
CIPHER = Link(connected=False).cipher


class Told:
    """Counts the calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1


class Introduced:
    """A client that has sent its third flight, and what else it has `sent`, which the exit has not read yet."""

    def __init__(self, admitted: Callable[[], None] = lambda: None, link: Link | None = None) -> None:
        self.link = link or Link(connected=False)
        self.client = self.link.client
        self.path = self.link.introduce(admitted)
        self.sent = bytearray()

    def send(self) -> int:
        """Returns how many bytes the client has sent so far."""
        out = memoryview(bytearray(FILL_MINIMUM + 262_144))
        while size := self.path.fill(out, 262_144, self.link.now):
            self.client.turn.renew()
            self.sent += out[:size]
        return len(self.sent)

    def kinds(self) -> list[int]:
        """Of the frames that the client has sent, read with the keys that the exit has."""
        self.send()
        number = self.path.number
        opener = RecordOpener(CIPHER, record_keys(epoch(number).records, number)[0])
        data, position = memoryview(bytes(self.sent)), 0
        kinds: list[int] = []
        while True:
            plaintext, position = opener.open(data, position)
            if plaintext is None:
                assert position == len(data)
                return kinds
            kinds += [frame[0] for frame in decode_frames(bytes(plaintext))]

    def admit(self, *verdict: bytes) -> MemoryCarrier:
        """The exit begins with this verdict, and finds what was sent in what it has not read before."""
        self.send()
        carrier = self.link.admit(self.path, *verdict)
        carrier.to_right.in_flight += self.sent
        return carrier


def test_requests_and_their_data_arrive_with_the_verdict() -> None:
    """They are the path's first records."""
    admitted = Told()
    on = Introduced(admitted)
    link = on.link
    app = link.open()
    app.say(b"hello", finish=True)
    assert on.send() > 0 and not admitted.calls
    on.admit().settle()
    assert admitted.calls == 1
    assert app.stream is not None and link.served[app.stream.id].received == b"hello"
    assert app.events == [("opened",)]
    link.served[app.stream.id].say(b"", finish=True)
    link.quiesce()
    link.assert_clean()


def test_only_reliable_frames_leave_before_the_verdict() -> None:
    """No sign of life is asked for, so the time that a verdict takes counts as no round trip; and no packets."""
    on = Introduced()
    on.client.announce(wire.encode_lane(0, 1))
    on.client.measure()
    on.client.send_packet(0, 0, 0, memoryview(bytes(1200)))
    app, gone = on.link.open(), on.link.open()
    app.say(b"hello", finish=True)
    gone.stream.reset(StreamReason.CANCELLED)  # type: ignore[union-attr]
    expected = [wire.OPEN, wire.OPEN, wire.DATA, wire.RESET, wire.LANE, wire.FIN]
    assert sorted(on.kinds()) == expected
    assert not on.client.packets


def test_no_more_than_its_bound_is_sent_before_the_verdict() -> None:
    on = Introduced()
    link = on.link
    apps = [link.open() for _ in range(8)]
    for app in apps:
        app.say(bytes(60_000))
    sent = on.send()
    assert MAX_EARLY <= sent < MAX_EARLY + 60_000 + OVERHEAD
    apps[0].say(b"more")
    link.open()
    assert on.send() == sent
    on.admit().settle()
    received = [link.served[app.stream.id].received for app in apps]  # type: ignore[union-attr]
    assert [len(data) for data in received] == [60_004] + [60_000] * 7
    assert len(link.served) == 9


def test_nothing_is_due_before_the_verdict() -> None:
    """Whoever began the handshake bounds the time; the keepalive begins with the link."""
    on = Introduced()
    link = on.link
    on.path.probe(2.0, link.now)
    assert on.path.deadline() == NEVER
    on.path.tick(link.now + 3_600.0)
    link.now += 3_600.0
    on.admit().settle()
    assert link.carrier.open
    assert link.client.liveness.least_round_trip == 0.0, "measured behind the verdict"


def test_a_verdict_is_work_as_other_records_are() -> None:
    on = Introduced()
    record = on.admit().to_left.in_flight
    on.client.turn.renew()
    before = on.client.turn.left
    on.path.receive(memoryview(bytes(record)), on.link.now)
    assert on.client.turn.left <= before - RECORD_WORK - FRAME_COSTS[wire.ACCEPT]


def test_what_follows_the_verdict_may_come_with_it_or_in_pieces() -> None:
    for piece in (1, 5, 1 << 20):
        told = Told()
        on = Introduced(told)
        app = on.link.open()
        carrier = on.admit()
        carrier.to_left.piece = piece
        carrier.settle()
        assert told.calls == 1 and app.events == [("opened",)]


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        *(
            (wire.encode_close(reason), reason)
            for reason in (CloseReason.NOT_AUTHORIZED, CloseReason.LIMIT, CloseReason.SHUTTING_DOWN)
        ),
        *(
            (verdict, CloseReason.PROTOCOL)
            for verdict in (
                wire.encode_bare(wire.NO_SESSION),
                wire.encode_bare(wire.GOAWAY),
                wire.encode_bare(wire.ACCEPT) * 2,
                wire.encode_opened(1),
                wire.encode_joined(bytes(32)),
                b"\xff",
                b"\x27\xff",
                b"\x02\x00",
            )
        ),
    ],
)
def test_a_verdict_that_is_not_accept_leaves_the_streams_to_the_caller(
    verdict: bytes, reason: CloseReason
) -> None:
    """It asks for some of them again, so no handler is told before; and the exit hears nothing more."""
    on = Introduced(lambda: pytest.fail("it was not admitted"))
    app = on.link.open()
    app.say(b"data")
    carrier = on.admit(verdict)
    carrier.to_right.in_flight.clear()
    carrier.settle()
    error = carrier.error
    assert isinstance(error, NotAdmitted)
    assert error.reason is reason
    assert on.client.closed is None and not carrier.open
    assert not app.events and carrier.to_right.sent == 0


def test_a_verdict_has_a_bound() -> None:
    """Nothing of a longer one is waited for."""
    on = Introduced()
    length = (MAX_VERDICT + 17).to_bytes(4)
    with pytest.raises(CarrierError) as caught:
        on.path.receive(memoryview(length), on.link.now)
    assert caught.value.reason is CloseReason.BAD_RECORD


def test_a_verdict_under_another_key_does_not_count() -> None:
    opener = RecordOpener(CIPHER, EXIT_KEY)
    forged = RecordSealer(CIPHER, CLIENT_KEY).seal(wire.encode_bare(wire.ACCEPT))
    with pytest.raises(CarrierError):
        open_verdict(opener, memoryview(forged), wire.ACCEPT)


def test_a_second_verdict_breaks_the_protocol() -> None:
    on = Introduced()
    on.admit().settle()
    with pytest.raises(PeerError) as caught:
        on.link.forge(on.client, wire.encode_bare(wire.ACCEPT))
    assert caught.value.reason is CloseReason.PROTOCOL


def test_a_session_that_is_closed_before_the_verdict_says_so() -> None:
    on = Introduced()
    app = on.link.open()
    on.client.close(CloseReason.NORMAL)
    assert on.kinds() == [wire.CLOSE]
    assert app.events == [("reset", StreamReason.SESSION_LOST)]


def test_datagrams_wait_for_opened_as_ever() -> None:
    on = Introduced()
    app = on.link.open(App(), StreamProtocol.UDP)
    assert app.stream is not None
    app.stream.send_datagram(TARGET, b"lost")
    assert on.kinds() == [wire.OPEN]


# --- a path that joins ---


def joining() -> tuple[Introduced, App]:
    """A session that has lost its path, with a stream whose OPEN the exit has not seen, and another one to come."""
    link = Link()
    link.quiesce()
    link.carrier.to_right.piece = 0
    app = link.open()
    app.say(b"early ")
    link.carrier.settle()
    link.carrier.cut()
    return Introduced(link=link), app


def test_early_records_of_a_joining_path_bring_what_the_lost_one_has_carried() -> None:
    on, app = joining()
    app.say(b"and new")
    assert on.send() > 0
    on.admit().settle()
    assert on.link.served[1].received == b"early and new" and app.events == [("opened",)]
    assert on.client.session_id == SESSION_ID


def test_the_first_record_behind_the_verdict_acknowledges_it_also_where_keys_are_to_change() -> None:
    """The exit takes what comes before for early records, and SWITCH may not be one."""
    link = Link()
    link.quiesce()
    first, on = link.carrier, Introduced(link=link)
    link.client.rotation.start(first.now)
    first.settle()
    assert (link.client.rotation.sending, on.path.keys.send_epoch) == (1, 0)
    on.admit().settle()
    assert link.carrier.open and link.exit.closed is None
    assert on.path.keys.send_epoch == on.path.keys.receive_epoch == 1


def test_the_first_record_behind_the_verdict_acknowledges_it_also_where_credit_is_due() -> None:
    """Credit takes an acknowledgement along if one is due, and takes none away."""
    link = Link()
    near, far = link.pair(eager=False)
    far.say(bytes(60_000))
    link.quiesce()
    link.carrier.cut()
    path = link.introduce()
    near.consume(near.unconsumed)
    assert link.client.table.windows_due
    keys = link._keys(link.exit)
    path.receive(memoryview(keys.sealer.seal(wire.encode_bare(wire.ACCEPT))), link.now)
    out = memoryview(bytearray(FILL_MINIMUM + 262_144))
    plaintext, _ = keys.opener.open(out[: path.fill(out, 262_144, link.now)], 0)
    kinds = [kind for kind, _, _ in decode_frames(bytes(plaintext or b""))]
    assert kinds[0] == wire.ACK and wire.WINDOW in kinds


def test_a_path_without_verdict_does_not_ask_to_be_filled_for_what_must_wait() -> None:
    """Its carrier would fill it again and again, and nothing would leave."""
    link = Link()
    near, far = link.pair(eager=False)
    far.say(bytes(60_000))
    link.quiesce()
    link.carrier.cut()
    on = Introduced(link=link)
    near.consume(near.unconsumed)
    on.client.send_packet(0, 0, 0, memoryview(bytes(1200)))
    assert link.client.table.windows_due
    on.send()
    on.path.ready = told = Told()
    on.path.fill(memoryview(bytearray(FILL_MINIMUM + 262_144)), 262_144, link.now)
    assert not told.calls


def test_a_joining_path_that_is_not_admitted_takes_nothing_with_it() -> None:
    """The exit may have read the early records, or not: nothing says so."""
    for read in (False, True):
        on, app = joining()
        carrier = on.admit(wire.encode_close(CloseReason.LIMIT))
        if not read:
            carrier.to_right.in_flight.clear()
        carrier.settle()
        assert isinstance(carrier.error, NotAdmitted) and on.client.closed is None
        on.link.connect()
        app.say(b"for all that", finish=True)
        on.link.quiesce()
        assert on.link.served[1].received == b"early for all that"
        assert app.events == [("opened",)]


def test_datagrams_of_a_session_wait_for_the_verdict_on_its_next_path() -> None:
    """Behind a refusal the exit drops what came early, and a datagram does not come again."""
    link = Link()
    app = link.open(App(), StreamProtocol.UDP)
    link.quiesce()
    link.carrier.cut()
    on = Introduced(link=link)
    assert app.stream is not None
    app.stream.send_datagram(TARGET, b"behind the verdict")
    assert wire.DATAGRAM not in on.kinds()
    on.admit().settle()
    assert link.served[1].datagrams == [(TARGET, b"behind the verdict")]


def test_a_path_that_waits_for_its_verdict_carries_nothing_while_another_is_there() -> None:
    link = Link()
    app, other = link.pair()
    on = Introduced(link=link)
    link.client.prefer(on.path.number)
    app.say(b"by the one that is there")
    assert on.send() == 0
    link.carrier.settle()
    assert other.received == b"by the one that is there"
    first, joined = link.carrier, on.admit()
    joined.settle()
    app.say(b", by the one that is preferred")
    assert not first.to_right.pull(link.now) and joined.to_right.pull(link.now)
