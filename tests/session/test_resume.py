"""Resume: whatever byte a path's carrier breaks at, every stream's bytes arrive once and in order by the next path.

`Play` is a small session with everything in it. It is run once without a loss, to learn what must come out and how
many bytes it takes; then with the carrier cut in each record of either direction: before it, at every byte of its
header, in the middle of its body, and just before its last byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.address import Destination
from cryprq_proxy.crypto.handshake import record_keys
from cryprq_proxy.crypto.payloads import JOIN_EXIT, JoinClaim, join_proof, join_ticket
from cryprq_proxy.errors import CloseReason, LocalError, PeerError, StreamReason
from cryprq_proxy.session import wire
from cryprq_proxy.session.acknowledgements import acknowledge
from cryprq_proxy.session.path import SessionPath
from cryprq_proxy.session.path_keys import CarrierKeys
from cryprq_proxy.session.records import HEADER, RecordOpener, RecordSealer
from cryprq_proxy.session.retention import DROPS
from cryprq_proxy.session.session import Session
from cryprq_proxy.session.streams import Half, Stream
from cryprq_proxy.session.verdict import open_verdict
from tests.support.handshakes import EXIT, new_client, new_exit, new_short_client
from tests.support.links import FAST, SESSION_ID, App, Link, ToyProvider
from tests.support.settings import session_limits

GENERAL = StreamReason.GENERAL
RIGHT, LEFT = "to the exit", "to the client"

type Cut = tuple[str, int]
"""Direction, and bytes that still arrive."""

# What the exit does with a stream is told by its port.
ECHO, DOWNLOAD, REFUSE, CUT_OFF, CHATTY, SILENT = range(1, 7)


def serve(stream: Stream) -> App:
    app = App()
    app.stream = stream
    stream.handler = app
    kind = stream.destination.port
    if kind == REFUSE:
        stream.refuse(StreamReason.CONNECTION_REFUSED)
        return app
    stream.accept()
    if kind == ECHO:
        echoed = 0

        def echo() -> None:
            nonlocal echoed
            app.say(bytes(app.received[echoed:]).upper())
            echoed = len(app.received)

        app.on_data = echo
        app.on_eof = lambda: app.say(b".", finish=True)
    elif kind == DOWNLOAD:
        app.on_eof = lambda: app.say(bytes(range(256)) * 4, finish=True)
    elif kind == CUT_OFF:
        app.on_data = lambda: stream.reset(StreamReason.CONNECTION_RESET)
    elif kind == CHATTY:
        app.on_data = lambda: app.say(b"answer", finish=False)
    else:
        app.on_eof = lambda: app.say(b"", finish=True)
    return app


class Play:
    """The session, and its two casts: `apps` by name at the client, the link's `served` at the exit."""

    def __init__(self, link: Link, cuts: list[Cut]) -> None:
        self.link = link
        self.cuts = cuts
        self.apps: dict[str, App] = {}
        self.arm()

    def arm(self) -> None:
        if self.cuts:
            direction, after = self.cuts.pop(0)
            carrier = self.link.carrier
            (carrier.to_right if direction == RIGHT else carrier.to_left).cut_after = after

    def open(self, name: str, kind: int) -> App:
        app = self.apps[name] = self.link.open(destination=Destination("192.0.2.1", kind))
        return app

    def acts(self) -> Iterator[None]:
        """What the applications at the client do, and when the keys rotate."""
        echo = self.open("echo", ECHO)
        echo.say(b"early data " * 9)
        self.open("refused", REFUSE).say(b"in vain")
        yield
        download = self.open("download", DOWNLOAD)
        download.say(b"GET", finish=True)
        chatty = self.open("chatty", CHATTY)
        chatty.on_data = lambda: chatty.stream and chatty.stream.reset(GENERAL)  # type: ignore[assignment, func-returns-value]
        chatty.say(b"hello")
        yield
        echo.say(b"more " * 30)
        self.open("cut off", CUT_OFF).say(b"x" * 50)
        self.link.client.rotation.start(self.link.carrier.now)
        yield
        echo.say(b"in the middle of it ")
        self.open("silent", SILENT).say(b"", finish=True)
        yield
        echo.say(b"the end", finish=True)
        self.open("second download", DOWNLOAD).say(b"GET", finish=True)
        yield
        self.open("unheard", SILENT).stream.reset(GENERAL)  # type: ignore[union-attr]
        yield

    def run(self) -> None:
        for _ in self.acts():
            self.pass_time(0.02)
        for _ in range(4):
            self.pass_time(0.1)

    def pass_time(self, seconds: float) -> None:
        self.link.carrier.advance(seconds)
        while not self.link.carrier.open:
            assert self.link.carrier.error is None
            self.link.resume()
            self.arm()
            self.link.carrier.settle()

    def outcome(self) -> dict[str, Any]:
        """All that the applications on both sides have seen."""
        seen = {}
        for name, app in self.apps.items():
            assert app.stream is not None
            served = self.link.served.get(app.stream.id)
            seen[name] = (app.events, bytes(app.received), served and (served.events, bytes(served.received)))
        return seen


def played(*cuts: Cut, make: Callable[..., Link] = Link) -> Play:
    play = Play(make(serve=serve, provider=ToyProvider()), list(cuts))
    play.run()
    play.link.assert_clean()
    return play


UNCUT = played()
EXPECTED = UNCUT.outcome()
SENT = {RIGHT: UNCUT.link.carrier.to_right.sent, LEFT: UNCUT.link.carrier.to_left.sent}
CUTS = st.tuples(st.sampled_from([RIGHT, LEFT]), st.integers(0, max(SENT.values())))


def test_the_play_has_everything_in_it() -> None:
    assert EXPECTED["echo"] == (
        [("opened",), ("data",), ("eof",)],
        (b"early data " * 9 + b"more " * 30 + b"in the middle of it the end").upper() + b".",
        ([("data",), ("eof",)], b"early data " * 9 + b"more " * 30 + b"in the middle of it the end"),
    )
    assert EXPECTED["refused"][0] == [("refused", StreamReason.CONNECTION_REFUSED)]
    assert EXPECTED["chatty"][2] == ([("data",), ("reset", GENERAL)], b"hello")
    assert EXPECTED["cut off"][0] == [("opened",), ("reset", StreamReason.CONNECTION_RESET)]
    assert EXPECTED["silent"] == ([("opened",), ("eof",)], b"", ([("eof",)], b""))
    assert EXPECTED["second download"][1] == bytes(range(256)) * 4
    assert EXPECTED["unheard"] == ([], b"", ([("reset", GENERAL)], b""))
    assert UNCUT.link.client.ledger.rotations == UNCUT.link.exit.ledger.rotations == 1
    assert UNCUT.link.carriers == 1
    assert 5_000 < sum(SENT.values()) < 10_000


def places(direction: str) -> Iterator[int]:
    """Where a carrier breaks in `direction` makes a difference, in bytes that still arrive: both ends and the middle of
    each run of bytes that a session cannot tell apart. It sees nothing, a part of a header, or a header and a part of a
    body, and acts on none of them (test_records.py: test_a_part_of_a_record_changes_nothing)."""
    play = Play(Link(serve=serve, provider=ToyProvider()), [])
    source = play.link.carrier.paths[direction != RIGHT]
    sent, fill = bytearray(), source.fill

    def noted(out: memoryview, budget: int, now: float) -> int:
        size = fill(out, budget, now)
        sent.extend(out[:size])
        return size

    source.fill = noted  # type: ignore[method-assign]
    play.run()
    assert len(sent) == SENT[direction]
    start = 0
    while start < len(sent):
        body = start + HEADER
        end = body + int.from_bytes(sent[start:body])
        assert end - body > 2, "the places in a body differ"
        yield from (*range(start, body + 1), (body + end) // 2, end - 1)
        start = end
    assert start == len(sent), "the last record is whole"


@pytest.mark.parametrize("direction", [RIGHT, LEFT])
def test_a_loss_in_every_part_of_every_record(direction: str) -> None:
    cuts = list(places(direction))
    assert len(cuts) > 50
    for after in cuts:
        play = played((direction, after))
        assert play.link.carriers == 2, after
        assert play.outcome() == EXPECTED, after


@given(st.lists(CUTS, min_size=2, max_size=5))
def test_several_losses(cuts: list[Cut]) -> None:
    assert played(*cuts).outcome() == EXPECTED


@given(CUTS, st.integers(1, 50))
def test_a_loss_while_bytes_trickle(cut: Cut, piece: int) -> None:
    play = Play(Link(serve=serve, provider=ToyProvider()), [cut])
    for path in (play.link.carrier.to_left, play.link.carrier.to_right):
        path.piece = piece
    play.run()
    play.link.assert_clean()
    assert play.outcome() == EXPECTED


@given(
    st.lists(st.tuples(st.sampled_from([RIGHT, LEFT]), st.integers(0, 600_000)), max_size=4), st.booleans()
)
def test_losses_in_bulk_transfers(cuts: list[Cut], slots: bool) -> None:
    """Full frames in slots, both ways, with windows that grow: none may be lost with a WINDOW frame."""
    link = Link(session_limits(retained=1 << 18), provider=ToyProvider())
    data = bytes(index * 7 % 251 for index in range(251)) * 1200
    pairs = [link.pair(slots=link.slots if slots else None) for _ in range(2)]
    play = Play(link, cuts)
    for one, other in pairs:
        one.say(data, finish=True)
        other.say(data, finish=True)
    for _ in range(6):
        play.pass_time(0.1)
    for app in (app for pair in pairs for app in pair):
        assert app.received == data and app.events[-1] == ("eof",)
    link.assert_clean()


# --- with real handshakes ---


class Known(NamedTuple):
    """What an exit knows of a ticket."""

    path: int
    secret: bytes


class HandshakingLink(Link):
    """Paths whose keys and proofs come from handshakes, signed and short ones in turn, as the two roles make them."""

    def paths(self) -> tuple[SessionPath, SessionPath]:
        if self.carriers:
            shake = self._join_signed if self.carriers % 2 else self._join_short
            self._made = shake(self.carriers, self.client.rotation.known.resume_secrets[0])
        return super().paths()

    def _keys(self, session: Session) -> CarrierKeys:
        if self.carriers == 1:
            return super()._keys(session)
        return self._made[session is self.exit]

    def _join_signed(self, number: int, secret: bytes) -> tuple[CarrierKeys, CarrierKeys]:
        client, exit_ = new_client(), new_exit()
        exit_.read_first(client.write_first())
        client.read_second(exit_.write_second())
        claim = JoinClaim.make(SESSION_ID, secret, client.join_hash, number)
        exit_.read_third(client.write_third(claim))
        assert exit_.joins == claim
        [known] = [
            each for each in self.exit.rotation.known.resume_secrets if claim.proves(each, exit_.join_hash)
        ]
        mine, theirs = client.result, exit_.result
        verdict = wire.encode_joined(join_proof(known, JOIN_EXIT, exit_.join_hash, number))
        made = self._begin(number, mine.epoch.records, theirs.epoch.records, verdict)
        assert self._verdict == (wire.JOINED, 0, join_proof(secret, JOIN_EXIT, client.join_hash, number))
        return made

    def _join_short(self, number: int, secret: bytes) -> tuple[CarrierKeys, CarrierKeys]:
        client = new_short_client(exit_id=EXIT.peer_id, provider=FAST, resume=secret, path=number)
        exit_ = new_exit()
        tickets = {
            join_ticket(each, number): Known(number, each) for each in self.exit.rotation.known.resume_secrets
        }
        exit_.read_first(client.write_first())
        client.read_second(exit_.write_second())
        assert exit_.read_short_third(client.write_third(), tickets.get).secret == secret
        made = self._begin(number, client.result.records, exit_.path.records, wire.encode_bare(wire.ACCEPT))
        assert self._verdict == (wire.ACCEPT, 0, None)
        return made

    def _begin(
        self, number: int, mine: bytes, theirs: bytes, verdict: bytes
    ) -> tuple[CarrierKeys, CarrierKeys]:
        """The keys of both ends, behind the exit's verdict."""
        cipher = self.cipher
        (to_exit, to_client), (from_client, from_exit) = (
            record_keys(mine, number),
            record_keys(theirs, number),
        )
        opener, sealer = RecordOpener(cipher, to_client), RecordSealer(cipher, from_exit)
        self._verdict, _ = open_verdict(opener, memoryview(sealer.seal(verdict)), verdict[0])
        return (
            CarrierKeys(cipher, RecordSealer(cipher, to_exit), opener),
            CarrierKeys(cipher, sealer, RecordOpener(cipher, from_client)),
        )


@pytest.mark.parametrize("direction", [RIGHT, LEFT])
@pytest.mark.parametrize("share", [0.1, 0.35, 0.5, 0.65, 0.9])
def test_losses_with_real_handshakes(direction: str, share: float) -> None:
    play = played((direction, int(SENT[direction] * share)), (direction, 60), make=HandshakingLink)
    assert play.link.carriers == 3 and play.outcome() == EXPECTED


# --- what the peer has received ---


def interrupted() -> tuple[Link, SessionPath, SessionPath]:
    """Frames in all states on both sides: acknowledged, sent, and not yet sent. The carrier has ended; both paths do
    not know it yet."""
    link = Link()
    one, other = link.pair()
    link.quiesce()
    one.say(b"arrives")
    other.say(b"arrives")
    link.quiesce()
    for flow in (link.carrier.to_left, link.carrier.to_right):
        flow.piece = 0
    for piece in (b", ", b"lost"):
        one.say(piece)
        other.say(piece)
    link.carrier.settle()
    link.carrier.open = False
    assert one.stream is not None
    one.stream.finish()
    client, exit = link.carrier.paths
    assert client.log.units and exit.log.units
    return link, client, exit


def lose_both(link: Link, *paths: SessionPath) -> None:
    for path in paths:
        path.lost(link.carrier.now)
    link.now = link.carrier.now


def sent_kinds(path: SessionPath) -> list[int]:
    return [unit.frame[0] for unit in path.log.units]


def test_the_next_path_carries_what_the_lost_one_had_not_brought() -> None:
    link, *paths = interrupted()
    lose_both(link, *paths)
    link.connect()
    link.quiesce()
    one, other = link.client.streams[1].handler, link.served[1]
    assert isinstance(one, App)
    assert one.received == other.received == b"arrives, lost" and other.events[-1] == ("eof",)
    assert not link.client.retention.kept and not link.exit.retention.kept


@pytest.mark.parametrize("side", ["client", "exit"])
def test_what_the_peer_has_received_is_spared(side: str) -> None:
    """The first frame that a side sends by the next path is ABANDON, and it may come before the other has sent all."""
    link, *paths = interrupted()
    lose_both(link, *paths)
    link.connect()
    session: Session = getattr(link, side)
    lost = paths[side == "exit"]
    [log] = session.retention.lost_logs(0)
    assert len(log.units) == 2
    link.forge(session, wire.encode_records(wire.ABANDON, 0, log.units[1].record))
    assert len(log.units) == 1 and session.retention.lost_logs(0)
    link.forge(session, wire.encode_records(wire.ACK, 0, lost.keys.records_sent))
    assert not log.units
    flow = link.carrier.to_left if side == "exit" else link.carrier.to_right
    assert flow.pull(link.now)
    kinds = sent_kinds(flow.source)
    assert kinds == ([wire.ABANDON, wire.FIN] if side == "client" else [wire.ABANDON]), "only what is new"


def test_the_peer_says_that_it_has_closed_a_path_that_still_seems_to_be_there() -> None:
    link, client, exit = interrupted()
    told: list[bool] = []
    client.abandoned = lambda: told.append(client.ended)
    exit.lost(link.carrier.now)
    link.now = link.carrier.now
    link.connect()
    link.quiesce()
    assert told == [True], "its carrier is closed, and the path has ended by then"
    assert list(link.client.paths) == list(link.exit.paths) == [1]
    assert link.served[1].received == b"arrives, lost"


@pytest.mark.parametrize("side", ["client", "exit"])
@pytest.mark.parametrize("kind", [wire.ACK, wire.ABANDON])
@pytest.mark.parametrize("excess", [1, 2**32, 2**64])
def test_more_than_was_sent_is_rejected(side: str, kind: int, excess: int) -> None:
    link, client, exit = interrupted()
    session: Session = getattr(link, side)
    sent = (client, exit)[side == "exit"].keys.records_sent
    link.now = link.carrier.now
    link.connect()
    records = min(sent + excess, 2**64 - 1)
    with pytest.raises(PeerError) as caught:
        link.forge(session, wire.encode_records(kind, 0, records))
    assert type(caught.value) is PeerError and caught.value.reason is CloseReason.RESUME
    session.close(caught.value.reason)
    assert session.retention.kept == 0


def test_a_peer_that_claims_more_than_it_got_loses_it() -> None:
    """Nobody else suffers: what it says that it has is gone, and the stream's end is missing."""
    link, client, exit = interrupted()
    records = client.keys.records_sent
    lose_both(link, client, exit)
    link.connect()
    link.forge(link.client, wire.encode_records(wire.ABANDON, 0, records))
    link.quiesce()
    assert link.served[1].received == b"arrives"


def test_a_lost_path_of_which_nothing_is_left_cannot_be_acknowledged() -> None:
    """Nor one that never was; what is said of them is counted, and no more."""
    link = Link()
    link.pair()
    link.quiesce()
    link.resume()
    link.quiesce()
    for number in (0, 1):
        link.forge(link.client, wire.encode_records(wire.ACK, number, 0))
    with pytest.raises(PeerError, match="never sent"):
        link.forge(link.client, wire.encode_records(wire.ACK, 2, 0))
    link.forge(link.exit, wire.encode_records(wire.ABANDON, 2, 0))
    link.carrier.settle()
    assert link.carrier.open, "an exit may not have let the client in on that path"


# --- while there is no path ---


def test_streams_that_are_opened_while_there_is_no_path() -> None:
    link = Link(serve=serve)
    link.carrier.cut()
    app = link.open(destination=Destination("192.0.2.1", ECHO))
    app.say(b"patience", finish=True)
    link.resume()
    link.quiesce()
    assert app.received == b"PATIENCE." and app.events[-1] == ("eof",)
    link.assert_clean()


def test_streams_that_end_while_there_is_no_path() -> None:
    link = Link()
    pairs = [link.pair() for _ in range(3)]
    for one, other in pairs:
        one.say(bytes(100_000))
        other.say(bytes(100_000))
    link.carrier.step()
    link.carrier.cut()
    (a, b), (c, d), (e, f) = pairs
    for app in (a, d, e, f):
        assert app.stream is not None
        app.stream.reset(GENERAL)
    link.resume()
    link.quiesce()
    assert b.events[-1] == c.events[-1] == ("reset", GENERAL)
    assert ("reset", GENERAL) not in [*e.events, *f.events]
    link.assert_clean()


def test_what_waits_without_a_path_is_bounded() -> None:
    link = Link(session_limits(retained=1 << 18))
    one, other = link.pair()
    link.carrier.cut()
    one.say(bytes(4 << 20), finish=True)
    assert link.client.scheduler.queued == 0 and len(one.outgoing) == 4 << 20
    link.resume()
    link.quiesce()
    assert len(other.received) == 4 << 20 and other.events[-1] == ("eof",)


def test_windows_are_announced_again() -> None:
    """The WINDOW that would have let a stream go on is lost with the path."""
    link = Link()
    one, other = link.pair()
    other.eager = False
    one.say(bytes(200_000))
    link.quiesce()
    assert one.stream is not None and one.stream.starved
    link.carrier.to_left.piece = 0
    other.consume()
    link.carrier.settle()
    link.resume()
    other.eager = True
    link.quiesce()
    assert len(other.received) == 200_000


def test_nothing_of_the_old_path_opens_on_the_new_one() -> None:
    link = Link()
    one, _ = link.pair()
    one.say(b"old")
    link.carrier.to_right.pull(link.carrier.now)
    old = bytes(link.carrier.to_right.in_flight)
    link.resume()
    link.carrier.to_right.in_flight += old
    link.carrier.settle()
    assert link.carrier.error is not None and link.carrier.error.reason is CloseReason.BAD_RECORD


def test_streams_go_on_over_many_paths() -> None:
    link = Link()
    one, other = link.pair()
    for number in range(20):
        one.say(b"%d," % number)
        link.quiesce()
        link.resume()
    link.quiesce()
    assert other.received == b"".join(b"%d," % number for number in range(20))
    assert link.client.last_path == link.exit.last_path == 20
    assert link.client.table.sent_bytes == link.exit.table.received_credit.received == len(other.received)
    assert one.stream is not None and one.stream.send_half is Half.OPEN


def test_a_number_of_a_path_is_used_once() -> None:
    link = Link()
    link.resume()
    path, _ = link.carrier.paths
    for number in (0, 1):
        with pytest.raises(LocalError):
            link.client.attach(
                number, CarrierKeys(path.keys.cipher, path.keys.sealer, path.keys.opener), link.now
            )


# --- several losses in a row ---


def test_an_open_goes_before_its_data_however_often_paths_are_lost() -> None:
    """The second path has carried OPEN and is lost, too; the data are still with what the first one had carried."""
    link = Link(serve=serve)
    link.carrier.to_right.piece = 0
    app = link.open(destination=Destination("192.0.2.1", ECHO))
    app.say(b"a")
    link.carrier.settle()
    app.say(b"b" * 5_000)
    link.carrier.settle()
    link.resume()
    link.carrier.to_right.budget = 1
    assert link.carrier.to_right.pull(link.now)
    path, _ = link.carrier.paths
    assert sent_kinds(path) == [wire.ABANDON, wire.OPEN, wire.DATA] and link.client.retention.lost_logs(0)
    link.resume()
    app.say(b"c", finish=True)
    link.quiesce()
    assert link.carrier.open and app.received == b"A" + b"B" * 5_000 + b"C."


def test_an_open_is_not_overtaken_while_acknowledged_frames_are_dropped() -> None:
    """Very many frames in front of it arrived, and are dropped a turn at a time. A path may take over meanwhile."""
    link = Link(serve=serve)
    link.quiesce()
    for _ in range(3 * DROPS):
        link.client.send(wire.encode_window(0, 1))
    app = link.open(destination=Destination("192.0.2.1", ECHO))
    app.say(b"hello")
    path, _ = link.carrier.paths
    flow = link.carrier.to_right
    while flow.pull(link.carrier.now):
        link.client.turn.renew()
    first_open = next(unit.record for unit in path.log.units if unit.frame[0] == wire.OPEN)
    link.now = link.carrier.now
    link.carrier.cut()
    link.connect()
    app.say(b" and more", finish=True)
    link.client.turn.renew()
    acknowledge(link.client, 0, first_open)
    assert link.client.retention.stalls
    link.carrier.settle()
    assert link.carrier.open
    link.quiesce()
    assert app.received == b"HELLO AND MORE."
