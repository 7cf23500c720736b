"""Resume: whatever byte a carrier breaks at, every stream's bytes arrive once and in order.

`Play` is a small session with everything in it. It is run once without a loss, to learn what must come out and how
many bytes it takes; then with the carrier cut in each record of either direction: before it, at every byte of its
header, in the middle of its body, and just before its last byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.address import Destination
from cryprq_proxy.crypto.handshake import ClientHandshake, ExitHandshake
from cryprq_proxy.crypto.identity import Identity
from cryprq_proxy.crypto.payloads import ResumeRequest, resume_proof
from cryprq_proxy.errors import CloseReason, PeerError, StreamReason
from cryprq_proxy.session import wire
from cryprq_proxy.session.records import HEADER, RecordOpener, RecordSealer
from cryprq_proxy.session.rotation import CarrierKeys
from cryprq_proxy.session.streams import Half, Stream
from tests.support.links import FAST, RESUME_SECRET, SESSION_ID, App, Link, ToyProvider
from tests.support.memory import MemoryCarrier
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
    source = play.link.client if direction == RIGHT else play.link.exit
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

CLIENT, EXIT = Identity.generate(FAST), Identity.generate(FAST)


class HandshakingLink(Link):
    """Carriers whose keys, counts and proofs come from the handshake, as the two roles do it."""

    def connect(self, client_has: int = 0, exit_has: int = 0) -> MemoryCarrier:
        if not self.carriers:
            return super().connect()
        self.carriers += 1
        client = ClientHandshake(CLIENT, EXIT.peer_id, FAST)
        exit_ = ExitHandshake(EXIT, FAST)
        exit_.read_first(client.write_first())
        client.read_second(exit_.write_second())
        attempt = self.carriers
        request = ResumeRequest.make(SESSION_ID, RESUME_SECRET, client.resume_hash, attempt, client_has)
        exit_.read_third(client.write_third(request))
        assert exit_.resume == request and request.proves(self.exit.resume_secret, exit_.resume_hash)
        mine, theirs = client.result, exit_.result
        assert mine.epoch == theirs.epoch
        verdict = wire.encode_resumed(
            exit_has, resume_proof(RESUME_SECRET, b"resume S", exit_.resume_hash, attempt, exit_has)
        )
        exit_sealer = RecordSealer(theirs.cipher, theirs.epoch.exit_record)
        client_opener = RecordOpener(mine.cipher, mine.epoch.exit_record)
        plaintext, _ = client_opener.open(memoryview(exit_sealer.seal(verdict)), 0)
        assert plaintext is not None
        [(kind, _, value)] = wire.decode_frames(bytes(plaintext))
        expected = resume_proof(RESUME_SECRET, b"resume S", client.resume_hash, attempt, exit_has)
        assert (kind, value) == (wire.RESUMED, (exit_has, expected))
        exit_opener = RecordOpener(theirs.cipher, theirs.epoch.client_record)
        self.exit.attach(
            CarrierKeys(theirs.cipher, theirs.epoch, exit_sealer, exit_opener), request.rx, self.now
        )
        client_sealer = RecordSealer(mine.cipher, mine.epoch.client_record)
        self.client.attach(
            CarrierKeys(mine.cipher, mine.epoch, client_sealer, client_opener), exit_has, self.now
        )
        self.carrier = MemoryCarrier(self.client, self.exit, self.now)
        return self.carrier


@pytest.mark.parametrize("direction", [RIGHT, LEFT])
@pytest.mark.parametrize("share", [0.1, 0.35, 0.5, 0.65, 0.9])
def test_a_loss_with_a_real_handshake(direction: str, share: float) -> None:
    play = played((direction, int(SENT[direction] * share)), (direction, 60), make=HandshakingLink)
    assert play.link.carriers == 3 and play.outcome() == EXPECTED


# --- counts ---


def interrupted() -> Link:
    """Frames in all states on both sides: acknowledged, sent, and not yet sent."""
    link = Link()
    one, other = link.pair()
    link.quiesce()
    one.say(b"arrives")
    other.say(b"arrives")
    link.carrier.settle()
    for path in (link.carrier.to_left, link.carrier.to_right):
        path.piece = 0
    one.say(b", lost")
    other.say(b", lost")
    link.carrier.settle()
    link.carrier.cut()
    assert one.stream is not None
    one.stream.finish()
    return link


@pytest.mark.parametrize("side", ["client", "exit"])
def test_wrong_counts_are_rejected(side: str) -> None:
    link = interrupted()
    log = getattr(link, side).log
    assert 0 < log.acknowledged < log.sent
    for count in (0, log.acknowledged - 1, log.sent + 1, 2**64 - 1):
        link = interrupted()
        with pytest.raises(PeerError) as caught:
            link.connect(*((0, count) if side == "client" else (count, link.exit.received)))
        assert caught.value.reason is CloseReason.RESUME
        session = getattr(link, side)
        assert not session.attached
        session.close(caught.value.reason)
        assert session.log.kept == 0


def test_counts_at_both_ends_of_the_range() -> None:
    link = interrupted()
    link.resume()
    link.quiesce()
    one, other = link.client.streams[1].handler, link.served[1]
    assert isinstance(one, App)
    assert one.received == other.received == b"arrives, lost" and other.events[-1] == ("eof",)


def test_a_peer_that_claims_more_than_it_got_loses_it() -> None:
    """Nobody else suffers: the count is within range, so the frames are gone, and the stream's end is missing."""
    link = interrupted()
    link.connect(link.client.received, link.client.log.sent)
    link.quiesce()
    assert link.served[1].received == b"arrives"


# --- while there is no carrier ---


def test_streams_that_are_opened_while_there_is_no_carrier() -> None:
    link = Link(serve=serve)
    link.carrier.cut()
    app = link.open(destination=Destination("192.0.2.1", ECHO))
    app.say(b"patience", finish=True)
    link.resume()
    link.quiesce()
    assert app.received == b"PATIENCE." and app.events[-1] == ("eof",)
    link.assert_clean()


def test_streams_that_end_while_there_is_no_carrier() -> None:
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


def test_what_waits_without_a_carrier_is_bounded() -> None:
    link = Link(session_limits(retained=1 << 18))
    one, other = link.pair()
    link.carrier.cut()
    one.say(bytes(4 << 20), finish=True)
    assert link.client.scheduler.queued == 0 and len(one.outgoing) == 4 << 20
    link.resume()
    link.quiesce()
    assert len(other.received) == 4 << 20 and other.events[-1] == ("eof",)


def test_windows_are_announced_again() -> None:
    """The WINDOW that would have let a stream go on is lost with the carrier."""
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


def test_nothing_of_the_old_carrier_opens_on_the_new_one() -> None:
    link = Link()
    one, _ = link.pair()
    one.say(b"old")
    link.carrier.to_right.pull(link.carrier.now)
    old = bytes(link.carrier.to_right.in_flight)
    link.resume()
    link.carrier.to_right.in_flight += old
    link.carrier.settle()
    assert link.carrier.error is not None and link.carrier.error.reason is CloseReason.BAD_RECORD


def test_the_counts_go_on() -> None:
    link = Link()
    one, other = link.pair()
    for number in range(20):
        one.say(b"%d," % number)
        link.quiesce()
        link.resume()
    link.quiesce()
    assert other.received == b"".join(b"%d," % number for number in range(20))
    assert link.client.log.sent == link.exit.received == 21
    assert one.stream is not None and one.stream.send_half is Half.OPEN
