"""Streams: their halves, their ends in every order, and their credit."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cryprq_proxy.errors import CloseReason, LocalError, PeerError, StreamReason, StreamRefused
from cryprq_proxy.session import wire
from cryprq_proxy.session.session import Session
from cryprq_proxy.session.streams import Half, Stream
from cryprq_proxy.session.windows import INITIAL_WINDOW
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.links import TARGET, App, Link, ToyProvider
from tests.support.memory import MemoryCarrier, advance, settle
from tests.support.settings import session_limits

GENERAL, CANCELLED = StreamReason.GENERAL, StreamReason.CANCELLED


def hold(stream: Stream) -> App:
    """An exit that has not decided yet."""
    return App()


def refuse(stream: Stream) -> App:
    app = App()
    stream.handler = app
    stream.refuse(StreamReason.CONNECTION_REFUSED)
    return app


def data(id: int, size: int = 1, offset: int = 0) -> bytes:
    """`size` bytes of stream `id` from `offset` on."""
    return wire.encode_data_header(wire.DATA, id, offset) + bytes(size)


def fin(id: int, final: int = 0) -> bytes:
    return wire.encode_fin(id, final)


def broken(link: Link, victim: Any, *frames: bytes) -> CloseReason:
    """What the last of these frames, each in a record of its own, closes the session for."""
    for frame in frames[:-1]:
        link.forge(victim, frame)
    with pytest.raises(PeerError) as caught:
        link.forge(victim, frames[-1])
    assert type(caught.value) is PeerError
    return caught.value.reason


# --- opening ---


def test_data_may_come_before_the_answer() -> None:
    link = Link(serve=hold)
    app = link.open()
    app.say(b"GET /")
    link.carrier.settle()
    served = link.served[1]
    assert served.received == b"GET /" and served.stream is not None and app.events == []
    assert (served.stream.protocol, served.stream.destination) == (StreamProtocol.TCP, TARGET)
    served.stream.accept()
    served.stream.accept()
    served.say(b"200", finish=True)
    link.carrier.settle()
    assert app.events == [("opened",), ("data",), ("eof",)] and app.received == b"200"


def test_a_refusal_says_why() -> None:
    link = Link(serve=refuse)
    app = link.open()
    app.say(b"too late", finish=False)
    link.quiesce()
    assert app.events == [("refused", StreamReason.CONNECTION_REFUSED)]
    link.assert_clean()


def test_a_refusal_after_the_other_half_has_ended() -> None:
    link = Link(serve=hold)
    app = link.open()
    app.say(b"all", finish=True)
    link.carrier.settle()
    served = link.served[1]
    assert served.events == [("data",), ("eof",)] and served.stream is not None
    served.stream.refuse(StreamReason.TIMED_OUT)
    link.quiesce()
    assert app.events == [("refused", StreamReason.TIMED_OUT)]
    link.assert_clean()


def test_too_many_streams() -> None:
    link = Link(session_limits(streams=3))
    apps = [link.open() for _ in range(3)]
    with pytest.raises(StreamRefused) as caught:
        link.open()
    assert caught.value.reason is StreamReason.LIMIT
    link.quiesce()
    assert apps[0].stream is not None
    apps[0].stream.reset(CANCELLED)
    with pytest.raises(StreamRefused):
        link.open()  # until the exit has heard of it
    link.quiesce()
    link.open()
    link.quiesce()
    assert len(link.client.streams) == len(link.exit.streams) == 3


def test_more_streams_than_the_exit_allows() -> None:
    link = Link(exit_limits=session_limits(streams=2))
    apps = [link.open() for _ in range(4)]
    link.quiesce()
    assert [app.events for app in apps] == [
        [("opened",)],
        [("opened",)],
        [("refused", StreamReason.LIMIT)],
        [("refused", StreamReason.LIMIT)],
    ]
    assert len(link.served) == 2 and not link.exit.table.numbers.awaited
    for app in apps[:2]:
        app.say(b"", finish=True)
    for served in link.served.values():
        served.say(b"", finish=True)
    link.quiesce()
    link.assert_clean()
    assert link.open().stream is not None


def test_numbers_of_streams_are_used_once() -> None:
    link = Link()
    link.client.table.numbers.last = wire.MAX_STREAM - 1
    last = link.open()
    link.quiesce()
    assert last.events == [("opened",)]
    with pytest.raises(StreamRefused):
        link.open()


def test_only_the_dialler_opens() -> None:
    link = Link()
    with pytest.raises(LocalError):
        link.exit.open(StreamProtocol.TCP, TARGET, App())
    link.client.close(CloseReason.NORMAL)
    with pytest.raises(LocalError):
        link.open()


# --- half-close ---


@pytest.mark.parametrize("first", ["client", "exit"])
def test_one_half_ends_and_the_other_goes_on(first: str) -> None:
    link = Link()
    one, other = link.pair()[:: 1 if first == "client" else -1]
    one.say(b"question", finish=True)
    link.carrier.settle()
    assert other.received == b"question" and other.events[-1] == ("eof",)
    other.say(b"answer 1 ")
    link.carrier.settle()
    assert one.received == b"answer 1 "
    other.say(b"answer 2", finish=True)
    link.quiesce()
    assert one.received == b"answer 1 answer 2" and one.events[-1] == ("eof",)
    link.assert_clean()


def test_the_end_stays_behind_the_data() -> None:
    link = Link()
    one, other = link.pair()
    one.say(bytes(3 << 20), finish=True)
    one_stream = one.stream
    assert one_stream is not None and one_stream.send_half is Half.OPEN, "there is no room for all of it"
    link.carrier.settle()
    assert len(other.received) == 3 << 20 and other.events == [("data",), ("eof",)]
    assert one_stream.send_half is Half.CLOSED


def test_finishing_twice_is_a_bug_of_the_caller() -> None:
    link = Link()
    one, _ = link.pair()
    assert one.stream is not None
    one.stream.finish()
    with pytest.raises(LocalError):
        one.stream.finish()
    assert one.stream.request_room() == 0
    with pytest.raises(LocalError):
        one.stream.send(b"more")


# --- frames ---


def sent_sizes(link: Link) -> list[int]:
    """Sizes of the DATA frames that wait at the client."""
    return [unit.size for stream in link.client.streams.values() for unit in stream.queue]


@pytest.mark.parametrize("rate", [0.0, 1e7, 1e12])
@pytest.mark.parametrize("kind", [bytes, memoryview])
def test_what_is_sent_is_cut_into_frames(rate: float, kind: Callable[[bytes], bytes]) -> None:
    link = Link()
    one, other = link.pair()
    stream, scheduler = one.stream, link.client.scheduler
    assert stream is not None
    scheduler.pace(rate)
    limit = stream.frame_limit
    for extra_bytes in (-1, 0, 1):
        size = min(3 * limit + extra_bytes, stream.request_room())
        text = bytes(index % 251 for index in range(size))
        before = len(other.received)
        stream.send(kind(text))
        sizes = sent_sizes(link)
        assert sum(sizes) == size and max(sizes) <= limit and len(sizes) == -(-size // limit)
        assert sizes[:-1] == [limit] * (len(sizes) - 1), "none is smaller than it must be"
        assert all(len(unit.frame) == wire.DATA_HEADER + unit.size for unit in stream.queue)
        link.quiesce()
        assert other.received[before:] == text


def test_all_the_room_may_be_sent_at_once() -> None:
    link = Link()
    one, _ = link.pair()
    link.forge(link.client, wire.encode_window(1, 1 << 30))
    stream = one.stream
    assert stream is not None
    room = stream.request_room()
    assert room == link.client.scheduler.queue_target > stream.frame_limit
    stream.send(bytes(room))
    assert sent_sizes(link) == [stream.frame_limit] * (room // stream.frame_limit)
    assert link.client.scheduler.queued == room


# --- every order of ends ---

ENDS: dict[str, Callable[[App], None]] = {
    "nothing": lambda app: None,
    "data": lambda app: app.say(b"data"),
    "fin": lambda app: app.say(b"last", finish=True),
    "reset": lambda app: app.stream.reset(GENERAL),  # type: ignore[union-attr]
    "fin, reset": lambda app: (app.say(b"last", finish=True), app.stream.reset(GENERAL))[1],  # type: ignore[func-returns-value,union-attr]
    "much, fin": lambda app: app.say(bytes(200_000), finish=True),
    "much, reset": lambda app: (app.say(bytes(200_000)), app.stream.reset(GENERAL))[1],  # type: ignore[func-returns-value,union-attr]
}


def end_all(link: Link, *apps: App) -> None:
    """Whatever has not ended yet is reset."""
    link.quiesce()
    for app in apps:
        assert app.stream is not None
        app.stream.reset(CANCELLED)
    link.quiesce()


@pytest.mark.parametrize(("client", "exit"), list(itertools.product(ENDS, ENDS)))
def test_ends_that_cross(client: str, exit: str) -> None:
    """Both act before either has heard of the other."""
    link = Link()
    one, other = link.pair()
    ENDS[client](one)
    ENDS[exit](other)
    end_all(link, one, other)
    link.assert_clean()
    assert link.carrier.open and link.client.closed is None and link.exit.closed is None
    for mine, theirs, peer in ((client, exit, one), (exit, client, other)):
        if "reset" not in mine and "reset" not in theirs and "fin" in theirs:
            assert peer.events[-1] == ("eof",)
        if "reset" in mine:
            assert ("reset", GENERAL) not in peer.events, "nothing more is called on who reset"


@pytest.mark.parametrize(("first", "second"), list(itertools.product(ENDS, ENDS)))
@pytest.mark.parametrize("client_first", [True, False])
def test_ends_one_after_the_other(first: str, second: str, client_first: bool) -> None:
    link = Link()
    one, other = link.pair()[:: 1 if client_first else -1]
    ENDS[first](one)
    link.quiesce()
    if second not in ("nothing",) and not other.ended:
        ENDS[second](other)
    end_all(link, one, other)
    link.assert_clean()
    if "reset" in first and "fin" not in first:
        assert other.events[-1] == ("reset", GENERAL)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("decision", ["accept", "refuse", "reset"])
@pytest.mark.parametrize("heard", [True, False])
def test_ends_around_the_opening(end: str, decision: str, heard: bool) -> None:
    """The client acts before it knows what the exit decides; the exit decides having heard of it, or not."""
    link = Link(serve=hold)
    app = link.open()
    link.carrier.settle()
    served = link.served[1]
    ENDS[end](app)
    if heard:
        link.carrier.settle()
    stream = served.stream
    assert stream is not None
    if not served.ended:
        if decision == "accept":
            stream.accept()
            served.say(b"hello")
        elif decision == "refuse":
            stream.refuse(StreamReason.TIMED_OUT)
        else:
            stream.reset(GENERAL)
    link.quiesce()
    if "reset" in end:
        assert app.events == []
    elif decision == "refuse":
        assert app.events == [("refused", StreamReason.TIMED_OUT)]
    elif decision == "reset":
        assert app.events == [("reset", GENERAL)]
    else:
        assert app.events[0] == ("opened",) and app.received == b"hello"
    end_all(link, app, served)
    link.assert_clean()


def sent_by(session: Session) -> list[int]:
    """The kinds of the frames of streams that `session` sends from now on, beside data."""
    kinds: list[int] = []
    send = session.send

    def spy(frame: bytes) -> None:
        kinds.append(frame[0])
        send(frame)

    session.send = spy  # type: ignore[method-assign]
    return kinds


def test_resetting_what_has_ended_is_harmless() -> None:
    link = Link()
    one, other = link.pair()
    assert one.stream is not None and other.stream is not None
    one.say(b"", finish=True)
    other.say(b"", finish=True)
    link.quiesce()
    sent = sent_by(link.client)
    one.stream.reset(GENERAL)
    one.stream.consumed(0)
    one.stream.accept()
    one.stream.refuse(GENERAL)
    assert not sent and not link.client.retention.waits
    link.assert_clean()


def test_a_reset_is_answered_only_where_an_end_is_missing() -> None:
    for finish in (True, False):
        link = Link()
        one, other = link.pair()
        assert other.stream is not None
        one.say(b"last", finish=finish)
        link.quiesce()
        sent = sent_by(link.client)
        other.stream.reset(GENERAL)
        link.quiesce()
        assert sent == ([] if finish else [wire.RESET])
        link.assert_clean()


def test_a_handler_may_reset_in_the_middle_of_anything() -> None:
    link = Link()
    one, other = link.pair()
    other.on_data = lambda: other.stream.reset(GENERAL)  # type: ignore[union-attr]
    one.say(bytes(1 << 20), finish=True)
    link.quiesce()
    assert one.events[-1] == ("reset", GENERAL) and other.events == [("data",)]
    link.assert_clean()


# --- frames that have no place ---


LATE: dict[str, Callable[[int], bytes]] = {
    "DATA": data,
    "FIN": fin,
    "OPENED": wire.encode_opened,
    "RESET": lambda id: wire.encode_reset(id, GENERAL, 0),
    "REFUSED": lambda id: wire.encode_refused(id, GENERAL),
    "WINDOW": lambda id: wire.encode_window(id, 1 << 20),
    "DATAGRAM": lambda id: wire.encode_datagram(id, TARGET, b"?"),
}
ONLY_FROM_THE_EXIT = ("OPENED", "REFUSED")


@pytest.mark.parametrize("name", LATE)
@pytest.mark.parametrize("id", [2, 2**31, 2**32 - 1])
@pytest.mark.parametrize("side", ["client", "exit"])
def test_a_number_that_never_was_breaks_the_protocol(side: str, id: int, name: str) -> None:
    link = Link()
    link.pair()
    assert broken(link, getattr(link, side), LATE[name](id)) is CloseReason.PROTOCOL


@pytest.mark.parametrize("side", ["client", "exit"])
def test_no_stream_has_the_number_0(side: str) -> None:
    for name, frame in LATE.items():
        if name != "WINDOW":  # that of all streams
            link = Link()
            link.pair()
            assert broken(link, getattr(link, side), frame(0)) is CloseReason.PROTOCOL


def test_a_number_that_was_left_out_never_was() -> None:
    link = Link()
    link.client.table.numbers.last = 4
    link.pair()
    for id in (1, 4):
        assert broken(link, link.exit, data(id)) is CloseReason.PROTOCOL
    link.forge(link.exit, wire.encode_open(4, StreamProtocol.TCP, TARGET), data(4))
    assert link.served[4].received == b"\0" and link.client.last_stream == 5


def test_a_client_whose_numbers_begin_later_knows_none_before() -> None:
    link = Link(last_stream=100)
    link.pair()
    assert list(link.client.streams) == [101]
    assert broken(link, link.client, data(100)) is CloseReason.PROTOCOL


@pytest.mark.parametrize("name", LATE)
@pytest.mark.parametrize("side", ["client", "exit"])
@pytest.mark.parametrize("end", ["fin", "reset", "crossed"])
def test_frames_for_a_stream_that_has_ended_are_late_and_ignored(side: str, end: str, name: str) -> None:
    """A path that was lost may have brought what comes again on the next one."""
    link = Link()
    one, other = link.pair()
    for app in (one, other):
        assert app.stream is not None
        if end == "fin":
            app.say(b"x", finish=True)
        elif end == "crossed" or app is one:
            app.stream.reset(GENERAL)
    link.quiesce()
    link.assert_clean()
    victim: Session = getattr(link, side)
    if side == "exit" and name in ONLY_FROM_THE_EXIT:
        assert broken(link, victim, LATE[name](1)) is CloseReason.PROTOCOL
        return
    events = [list(app.events) for app in (one, other)]
    left = victim.table.numbers._rates._late
    link.forge(victim, LATE[name](1))
    assert victim.table.numbers._rates._late == left - 1, "it is counted"
    assert [app.events for app in (one, other)] == events
    assert not victim.streams and not victim.table.numbers.awaited
    assert not victim.retention.waits, "nobody is answered"


def test_a_second_open_opens_nothing() -> None:
    """Neither while the stream lives nor when it has ended: a request must not run twice."""
    link = Link()
    one, other = link.pair()
    open = wire.encode_open(1, StreamProtocol.TCP, TARGET)
    link.forge(link.exit, open)
    assert list(link.exit.streams) == [1] and link.served[1] is other
    one.say(b"", finish=True)
    other.say(b"", finish=True)
    link.quiesce()
    link.forge(link.exit, open, open)
    assert not link.exit.streams and link.served == {1: other}
    assert link.exit.table.numbers.opens == 1
    link.assert_clean()


@pytest.mark.parametrize(
    "answer", [wire.encode_opened(1), data(1), fin(1)], ids=["OPENED", "data", "the end"]
)
def test_a_second_answer_says_nothing_new(answer: bytes) -> None:
    link = Link(serve=hold)
    app = link.open()
    link.carrier.settle()
    link.forge(link.client, answer)
    events = list(app.events)
    assert events[0] == ("opened",)
    link.forge(link.client, wire.encode_opened(1))
    assert app.events == events


def test_the_first_bytes_say_that_the_destination_is_connected() -> None:
    """OPENED may come later, by another path."""
    opened: list[int] = []
    for frame, events in ((data(1), [("opened",), ("data",)]), (fin(1), [("opened",), ("eof",)])):
        link = Link(serve=hold)
        link.client.events.opened = lambda stream: opened.append(stream.id)
        app = link.open()
        link.carrier.settle()
        link.forge(link.client, frame)
        assert app.events == events
    assert opened == [1, 1]


def test_a_stream_that_was_connected_cannot_be_refused() -> None:
    for frame in (wire.encode_opened(1), data(1), fin(1)):
        link = Link(serve=hold)
        link.open()
        link.carrier.settle()
        assert broken(link, link.client, frame, wire.encode_refused(1, GENERAL)) is CloseReason.PROTOCOL


def test_a_stream_that_was_refused_has_no_bytes() -> None:
    link = Link(serve=refuse)
    link.open()
    link.quiesce()
    for frame in (wire.encode_refused(1, GENERAL), wire.encode_opened(1), data(1)):
        link.forge(link.client, frame)
    assert link.client.table.refused[StreamReason.CONNECTION_REFUSED] == 1


@pytest.mark.parametrize("answer", [wire.encode_opened(1), wire.encode_refused(1, GENERAL)])
def test_the_exit_is_not_answered(answer: bytes) -> None:
    link = Link(serve=hold)
    link.open()
    link.carrier.settle()
    assert broken(link, link.exit, answer) is CloseReason.PROTOCOL


def test_opening_out_of_turn() -> None:
    link = Link()
    assert broken(link, link.exit, wire.encode_open(0, StreamProtocol.TCP, TARGET)) is CloseReason.PROTOCOL
    assert broken(link, link.client, wire.encode_open(9, StreamProtocol.TCP, TARGET)) is CloseReason.PROTOCOL


# --- where a stream ends ---


@pytest.mark.parametrize("side", ["client", "exit"])
def test_the_ends_of_many_streams_share_a_record(side: str) -> None:
    link = Link()
    ends = [link.pair()[side == "exit"] for _ in range(100)]
    link.quiesce()
    path = link.carrier.paths[side == "exit"]
    before = path.keys.records_sent
    for app in ends:
        app.say(b"", finish=True)
    link.carrier.settle()
    assert path.keys.records_sent == before + 1


SIDES = pytest.mark.parametrize("side", ["client", "exit"])
ENDINGS: dict[str, Callable[[int], bytes]] = {
    "FIN": lambda final: fin(1, final),
    "RESET": lambda final: wire.encode_reset(1, GENERAL, final),
}


def half_sent(side: str, *, awaited: bool = False) -> tuple[Link, Session]:
    """The peer of `side` has sent 10 bytes of stream 1; or its end is all that this side still waits for."""
    link = Link()
    apps = link.pair()
    victim: Session = getattr(link, side)
    link.forge(victim, data(1, 10))
    if awaited:
        stream = apps[side == "exit"].stream
        assert stream is not None
        stream.reset(GENERAL)
        assert victim.table.numbers.awaited == {1: 10}
    return link, victim


@SIDES
@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_stream_does_not_end_before_what_has_come(side: str, awaited: bool, ending: str) -> None:
    link, victim = half_sent(side, awaited=awaited)
    assert broken(link, victim, ENDINGS[ending](9)) is CloseReason.PROTOCOL


@SIDES
@pytest.mark.parametrize("final", [10, 11, 500])
@pytest.mark.parametrize("ending", ENDINGS)
def test_an_awaited_end_ends_the_wait(side: str, ending: str, final: int) -> None:
    """Both sides then agree on how many bytes the session's credit has been used for."""
    link, victim = half_sent(side, awaited=True)
    link.forge(victim, ENDINGS[ending](final))
    assert not victim.table.numbers.awaited
    credit = victim.table.received_credit
    assert credit.received == credit.consumed == final
    link.forge(victim, ENDINGS[ending](final))
    assert credit.received == final, "the second one is late"


def test_a_refusal_ends_at_the_first_byte() -> None:
    link = Link(serve=hold)
    app = link.open()
    link.carrier.settle()
    assert app.stream is not None
    app.stream.reset(GENERAL)
    link.forge(link.client, wire.encode_refused(1, GENERAL))
    assert not link.client.table.numbers.awaited
    link, _ = half_sent("client", awaited=True)
    assert broken(link, link.client, wire.encode_refused(1, GENERAL)) is CloseReason.PROTOCOL


@SIDES
@pytest.mark.parametrize(
    "other",
    [data(1, 1, 20), data(1, 11, 10), fin(1, 19), fin(1, 21), fin(1, 15)],
    ids=["a byte behind it", "bytes across it", "one less", "one more", "a middle"],
)
def test_where_a_stream_ends_never_changes(side: str, other: bytes) -> None:
    link, victim = half_sent(side)
    assert broken(link, victim, fin(1, 20), other) is CloseReason.PROTOCOL


@SIDES
@pytest.mark.parametrize("final", [19, 21])
def test_a_reset_does_not_change_where_a_stream_ends(side: str, final: int) -> None:
    link, victim = half_sent(side)
    assert broken(link, victim, fin(1, 20), wire.encode_reset(1, GENERAL, final)) is CloseReason.PROTOCOL


@SIDES
def test_an_end_is_told_once_and_after_all_that_comes_before(side: str) -> None:
    link, victim = half_sent(side)
    app = link.served[1] if side == "exit" else victim.streams[1].handler
    assert isinstance(app, App)
    for frame in (fin(1, 20), data(1, 5, 15), fin(1, 20), data(1, 5, 12)):
        link.forge(victim, frame)
        assert app.events[-1] == ("data",) and len(app.received) == 10
    link.forge(victim, data(1, 4, 10))
    assert len(app.received) == 20 and app.events[-1] == ("eof",)
    for frame in (data(1, 20), fin(1, 20), data(1, 1, 19)):
        link.forge(victim, frame)
    assert app.events.count(("eof",)) == 1 and len(app.received) == 20


@SIDES
def test_an_end_may_come_before_its_bytes_by_another_path(side: str) -> None:
    link = Link()
    apps = link.pair()
    other = apps[side == "exit"]
    one = apps[side != "exit"]
    late = link.carrier.to_right if side == "exit" else link.carrier.to_left
    late.piece = 0
    one.say(b"before the end")
    link.carrier.settle()
    newer = link.join()
    link.client.prefer(newer.paths[0].number)
    one.say(b"", finish=True)
    newer.settle()
    begun = list(other.events)
    assert ("eof",) not in begun and not other.received, "its bytes are still under way"
    late.piece = 1 << 20
    settle([link.carrier, newer])
    assert other.received == b"before the end" and other.events == [*begun, ("data",), ("eof",)]


@SIDES
def test_of_an_end_before_its_bytes_this_side_gives_all_back_when_it_ends(side: str) -> None:
    """What it has not seen comes late, and is not counted again."""
    link, victim = half_sent(side)
    link.forge(victim, fin(1, 20))
    victim.streams[1].reset(GENERAL)
    credit = victim.table.received_credit
    assert credit.received == credit.consumed == 20 and not victim.table.numbers.awaited
    link.forge(victim, data(1, 10, 10))
    assert credit.received == credit.consumed == 20


@pytest.mark.parametrize("frame", [data(1), fin(1)], ids=["data", "the end"])
def test_a_handler_may_reset_when_the_first_bytes_open_its_stream(frame: bytes) -> None:
    link = Link(serve=hold)
    app = link.open()
    link.carrier.settle()
    stream = app.stream
    assert stream is not None
    app.opened = lambda: stream.reset(GENERAL)  # type: ignore[method-assign]
    link.forge(link.client, frame)
    assert app.events == [] and not link.client.streams
    assert link.client.table.numbers.awaited == ({1: 1} if frame == data(1) else {})


@SIDES
def test_a_reset_behind_an_end_ends_what_is_missing(side: str) -> None:
    link, victim = half_sent(side)
    app = victim.streams[1].handler
    assert isinstance(app, App)
    for frame in (fin(1, 20), wire.encode_reset(1, GENERAL, 20)):
        link.forge(victim, frame)
    assert app.events[-1] == ("reset", GENERAL) and ("eof",) not in app.events
    link.forge(victim, data(1, 10, 10))
    assert len(app.received) == 10


# --- out of order ---


@SIDES
def test_bytes_that_come_early_wait_for_those_before_them(side: str) -> None:
    link = Link()
    app = link.pair()[side == "exit"]
    victim: Session = getattr(link, side)
    text = bytes(range(200))

    def piece(start: int, end: int) -> bytes:
        return wire.encode_data_header(wire.DATA, 1, start) + text[start:end]

    for start, end, delivered in (
        (50, 60, 0),
        (100, 150, 0),
        (40, 110, 0),
        (0, 10, 10),
        (0, 10, 10),
        (5, 45, 150),
        (120, 160, 160),
        (0, 200, 200),
    ):
        link.forge(victim, piece(start, end))
        assert app.received == text[:delivered]
    assert victim.receiver.pieces.used == 0
    assert victim.bytes_received == victim.table.received_credit.received == 200


@SIDES
def test_of_what_comes_twice_the_first_copy_counts(side: str) -> None:
    """Whatever the second one holds: an honest peer sends the same, and another one could have sent it first."""
    link = Link()
    app = link.pair()[side == "exit"]
    victim: Session = getattr(link, side)
    header = partial(wire.encode_data_header, wire.DATA, 1)
    link.forge(victim, header(0) + b"first")
    link.forge(victim, header(0) + b"OTHER, and more")
    assert app.received == b"first, and more"
    link.forge(victim, header(20) + b"later")
    link.forge(victim, header(15) + b"12345LATER")
    assert app.received == b"first, and more12345later"


@SIDES
def test_a_stream_that_ends_forgets_what_waits(side: str) -> None:
    link = Link()
    apps = link.pair(), link.pair()
    victim: Session = getattr(link, side)
    for id in (1, 2):
        for offset in (10, 20, 30):
            link.forge(victim, data(id, 1, offset))
    assert victim.receiver.pieces.used == 6
    stream = apps[0][side == "exit"].stream
    assert stream is not None
    stream.reset(GENERAL)
    assert victim.receiver.pieces.used == 3
    victim.close(CloseReason.NORMAL)
    assert victim.receiver.pieces.used == 0


@SIDES
def test_a_handler_may_reset_between_two_pieces(side: str) -> None:
    link = Link()
    app = link.pair()[side == "exit"]
    victim: Session = getattr(link, side)

    def taken() -> None:
        if len(app.received) > 1 and app.stream is not None:
            app.stream.reset(GENERAL)

    app.on_data = taken
    victim.streams[1].announced = 1 << 20
    for offset, size in ((1, 100_000), (100_001, 100_000), (0, 1)):
        link.forge(victim, data(1, size, offset))
    assert len(app.received) == 100_001 and victim.receiver.pieces.used == 0


# --- credit ---


def test_the_window_is_kept_to() -> None:
    link = Link()
    one, other = link.pair(eager=True)
    other.eager = False
    one.say(bytes(1 << 20))
    link.quiesce()
    assert len(other.received) == INITIAL_WINDOW and one.stream is not None and one.stream.starved
    link.carrier.advance(60.0)
    assert len(other.received) == INITIAL_WINDOW
    other.eager = True
    other.consume()
    link.quiesce()
    assert len(other.received) == 1 << 20


def test_more_than_the_window() -> None:
    for side in ("client", "exit"):
        link = Link()
        for app in link.pair():
            app.eager = False
        victim = getattr(link, side)
        link.forge(victim, data(1, INITIAL_WINDOW))
        assert broken(link, victim, data(1, 1, INITIAL_WINDOW)) is CloseReason.CREDIT


@SIDES
@pytest.mark.parametrize("first", [0, 1, INITIAL_WINDOW - 1])
def test_the_window_bounds_the_highest_byte_whatever_is_missing(side: str, first: int) -> None:
    link = Link()
    for app in link.pair():
        app.eager = False
    victim: Session = getattr(link, side)
    link.forge(victim, data(1, INITIAL_WINDOW - first, first))
    for frame in (data(1, 1, INITIAL_WINDOW), wire.encode_reset(1, GENERAL, INITIAL_WINDOW + 1)):
        assert broken(link, victim, frame) is CloseReason.CREDIT


@SIDES
def test_a_stream_does_not_end_behind_its_window(side: str) -> None:
    """Not even by a promise of bytes that have not come."""
    for final, reason in ((INITIAL_WINDOW, None), (INITIAL_WINDOW + 1, CloseReason.CREDIT)):
        link = Link()
        for app in link.pair():
            app.eager = False
        victim: Session = getattr(link, side)
        if reason is not None:
            assert broken(link, victim, fin(1, final)) is reason
        else:
            link.forge(victim, fin(1, final))
            assert victim.table.received_credit.received == final, "what is to come counts"


@SIDES
def test_a_second_copy_takes_no_credit(side: str) -> None:
    link = Link()
    for app in link.pair():
        app.eager = False
    victim: Session = getattr(link, side)
    for _ in range(5):
        link.forge(victim, data(1, INITIAL_WINDOW))
    assert victim.table.received_credit.received == INITIAL_WINDOW


def test_unread_streams_do_not_stop_others() -> None:
    link = Link()
    stuck = [link.pair() for _ in range(20)]
    for one, other in stuck:
        other.eager = False
        one.say(bytes(1 << 20))
    link.quiesce()
    one, other = link.pair()
    one.say(bytes(5 << 20), finish=True)
    link.quiesce()
    assert other.events[-1] == ("eof",) and len(other.received) == 5 << 20


def test_a_lower_window_is_ignored() -> None:
    link = Link()
    one, _ = link.pair()
    assert one.stream is not None
    link.forge(link.client, wire.encode_window(1, 200_000))
    for limit in (0, 1, INITIAL_WINDOW, 199_999):
        link.forge(link.client, wire.encode_window(1, limit))
        assert one.stream.send_limit == 200_000
    link.forge(link.client, wire.encode_window(1, 2**64 - 1))
    assert one.stream.send_limit == 2**64 - 1
    assert one.stream.request_room() == link.client.scheduler.queue_target


# --- a random walk ---


class Walk(RuleBasedStateMachine):
    """Two applications per stream do what they like, over up to three paths at a time whose carriers break, stand still
    and take over from each other when they like.

    Always: what arrived is a prefix of what was said, and nobody breaks the protocol. At the end everything has
    arrived, unless there was a reset, and both sessions have forgotten everything.
    """

    def __init__(self) -> None:
        super().__init__()
        self.link: Link
        self.opened: list[App] = []
        self.said: dict[int, bytearray] = {}
        self.counter = 0
        self.carriers: list[MemoryCarrier] = []
        """Those that are open."""

    @initialize(pool=st.sampled_from([0, 1 << 16, 32 << 20]), retained=st.sampled_from([1 << 16, 16 << 20]))
    def start(self, pool: int, retained: int) -> None:
        limits = session_limits(window_pool=pool, retained=retained, streams=6)
        self.link = Link(limits, serve=hold, provider=ToyProvider())
        self.carriers = [self.link.carrier]

    def apps(self) -> list[App]:
        return [*self.opened, *self.link.served.values()]

    def pick(self, data: st.DataObject) -> App | None:
        apps = [app for app in self.apps() if not app.ended]
        return data.draw(st.sampled_from(apps)) if apps else None

    @rule(slots=st.booleans(), eager=st.booleans())
    def open(self, slots: bool, eager: bool) -> None:
        app = App(eager=eager, slots=self.link.slots if slots else None)
        try:
            self.opened.append(self.link.open(app))
        except StreamRefused:
            assert len(self.link.client.streams) + len(self.link.client.table.numbers.awaited) >= 6

    @rule(data=st.data(), size=st.sampled_from([1, 100, 5000, 70_000, 300_000]), finish=st.booleans())
    def say(self, data: st.DataObject, size: int, finish: bool) -> None:
        app = self.pick(data)
        if app is None or app.finishing:
            return
        assert app.stream is not None
        if app.stream.send_half is not Half.OPEN or (
            app in self.link.served.values() and not app.stream.opened
        ):
            return
        self.counter += 1
        text = (b"%d " % self.counter * size)[:size]
        self.said.setdefault(id(app), bytearray()).extend(text)
        app.say(text, finish=finish)

    @rule(data=st.data())
    def reset(self, data: st.DataObject) -> None:
        app = self.pick(data)
        if app is not None and app.stream is not None:
            app.stream.reset(GENERAL)

    @rule(data=st.data(), accept=st.booleans())
    def decide(self, data: st.DataObject, accept: bool) -> None:
        waiting = [app for app in self.link.served.values() if app.stream and not app.stream.opened]
        if waiting:
            stream = data.draw(st.sampled_from(waiting)).stream
            assert stream is not None
            stream.accept() if accept else stream.refuse(StreamReason.TIMED_OUT)

    @rule(data=st.data(), size=st.sampled_from([1, 10_000, 1 << 20]))
    def consume(self, data: st.DataObject, size: int) -> None:
        app = self.pick(data)
        if app is not None:
            app.consume(size)

    def ended(self) -> None:
        """Some carriers may have."""
        self.carriers = [carrier for carrier in self.carriers if carrier.open]

    @precondition(lambda self: self.carriers)
    @rule(
        data=st.data(),
        capacity=st.sampled_from([0, 1, 3000, 1 << 20]),
        piece=st.sampled_from([0, 1, 700, 1 << 20]),
    )
    def narrow(self, data: st.DataObject, capacity: int, piece: int) -> None:
        carrier = data.draw(st.sampled_from(self.carriers))
        for flow in (carrier.to_left, carrier.to_right):
            if data.draw(st.booleans()):
                flow.capacity, flow.piece = capacity, piece

    @rule(data=st.data(), steps=st.integers(1, 10))
    def step(self, data: st.DataObject, steps: int) -> None:
        for _ in range(steps):
            if self.carriers:
                data.draw(st.sampled_from(self.carriers)).step()
                self.ended()

    @precondition(lambda self: self.carriers)
    @rule(seconds=st.sampled_from([0.001, 0.03, 0.5, 1.5]))
    def advance(self, seconds: float) -> None:
        for carrier in self.carriers:
            for flow in (carrier.to_left, carrier.to_right):
                flow.piece = max(flow.piece, 700) if flow.piece else 0
        advance(self.carriers, seconds)
        self.link.now = self.carriers[0].now
        self.ended()

    @rule()
    def rotate(self) -> None:
        if self.carriers:
            self.link.client.rotation.start(self.link.now)

    @precondition(lambda self: self.carriers)
    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.carriers)).cut()
        self.ended()

    @rule()
    def join(self) -> None:
        if len(self.carriers) < 3:
            self.carriers.append(self.link.join())

    @precondition(lambda self: self.carriers)
    @rule(data=st.data())
    def prefer(self, data: st.DataObject) -> None:
        self.link.client.prefer(data.draw(st.sampled_from(self.carriers)).paths[0].number)

    @invariant()
    def only_what_was_said(self) -> None:
        if not hasattr(self, "link"):
            return
        for app in self.opened:
            assert app.stream is not None
            served = self.link.served.get(app.stream.id)
            if served is not None:
                for one, other in ((app, served), (served, app)):
                    said = self.said.get(id(one), bytearray())
                    assert said.startswith(other.received)
                    assert other.events.count(("eof",)) <= 1
        assert self.link.client.windows.free >= 0 and self.link.exit.windows.free >= 0
        assert self.link.client.closed is None and self.link.exit.closed is None

    def teardown(self) -> None:
        if not hasattr(self, "link"):
            return
        link = self.link
        self.revive()
        self.quiesce()
        reset = {
            app.stream.id for app in self.apps() if app.stream and app.stream.receive_half is Half.CLOSED
        }
        for app in self.apps():
            app.eager = True
            app.consume()
            if app.stream is not None and app in link.served.values() and not app.ended:
                app.stream.accept()
        self.quiesce()
        for app in self.apps():
            if app.stream is not None and app.stream.id in link.client.streams and not app.finishing:
                app.say(b"", finish=True)
        self.quiesce()
        self.only_what_was_said()
        for app in self.opened:
            assert app.stream is not None
            served = link.served[app.stream.id]
            if app.stream.id not in reset:
                assert app.received == self.said.get(id(served), b"")
                assert served.received == self.said.get(id(app), b"")
        for app in self.apps():
            assert app.stream is not None
            app.stream.reset(CANCELLED)
        self.quiesce()
        link.assert_clean()

    def revive(self) -> None:
        """Paths that stand still are lost, and those that are left are fast again."""
        for carrier in self.carriers:
            if not all(flow.capacity and flow.piece for flow in (carrier.to_left, carrier.to_right)):
                carrier.cut()
        self.ended()
        if not self.carriers:
            self.join()
        for carrier in self.carriers:
            for flow in (carrier.to_left, carrier.to_right):
                flow.piece = flow.capacity = 1 << 20

    def quiesce(self) -> None:
        advance(self.carriers, 0.1)
        self.ended()
        assert self.carriers


Walk.TestCase.settings = settings(stateful_step_count=80)
TestWalk = Walk.TestCase
