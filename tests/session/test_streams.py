"""Streams: their halves, their ends in every order, and their credit."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cryprq_proxy.errors import CloseReason, LocalError, PeerError, StreamReason, StreamRefused
from cryprq_proxy.session import wire
from cryprq_proxy.session.streams import Half, Stream
from cryprq_proxy.session.windows import INITIAL_WINDOW
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.links import TARGET, App, Link, ToyProvider
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


def data(id: int, size: int = 1) -> bytes:
    return wire.encode_data_header(wire.DATA, id) + bytes(size)


def broken(link: Link, victim: Any, *frames: bytes) -> CloseReason:
    with pytest.raises(PeerError) as caught:
        link.forge(victim, *frames)
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
    assert len(link.served) == 2 and not link.exit._awaited
    for app in apps[:2]:
        app.say(b"", finish=True)
    for served in link.served.values():
        served.say(b"", finish=True)
    link.quiesce()
    link.assert_clean()
    assert link.open().stream is not None


def test_numbers_of_streams_are_used_once() -> None:
    link = Link()
    link.client._last_id = wire.MAX_STREAM - 1
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
    return [chunk.size for stream in link.client.streams.values() for chunk in stream.queue]


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
        assert all(len(chunk.frame) == wire.DATA_HEADER + chunk.size for chunk in stream.queue)
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


def test_resetting_what_has_ended_is_harmless() -> None:
    link = Link()
    one, other = link.pair()
    assert one.stream is not None and other.stream is not None
    one.say(b"", finish=True)
    other.say(b"", finish=True)
    link.quiesce()
    sent = link.client.log.sent
    one.stream.reset(GENERAL)
    one.stream.consumed(0)
    one.stream.accept()
    one.stream.refuse(GENERAL)
    assert link.client.log.sent == sent and link.client.log.next_unsent() is None
    link.assert_clean()


def test_a_reset_is_answered_only_where_an_end_is_missing() -> None:
    for finish in (True, False):
        link = Link()
        one, other = link.pair()
        assert other.stream is not None
        one.say(b"last", finish=finish)
        link.quiesce()
        sent = link.client.log.sent
        other.stream.reset(GENERAL)
        link.quiesce()
        assert link.client.log.sent == sent + (not finish)
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


def test_late_frames_are_told_from_wrong_ones() -> None:
    link = Link()
    _, other = link.pair()
    assert other.stream is not None
    other.stream.reset(GENERAL)
    for frame in (data(1, 70_000 - 5000), wire.encode_window(1, 5)):
        link.forge(link.exit, frame)
    link.forge(link.exit, wire.encode_fin(1))
    assert not link.exit._awaited
    link.forge(link.exit, wire.encode_reset(1, GENERAL))  # crossed with ours
    assert broken(link, link.exit, data(1)) is CloseReason.PROTOCOL


@pytest.mark.parametrize("id", [0, 2, 2**32 - 1])
@pytest.mark.parametrize(
    "frame",
    [
        data,
        wire.encode_fin,
        wire.encode_opened,
        lambda id: wire.encode_reset(id, GENERAL),
        lambda id: wire.encode_refused(id, GENERAL),
        lambda id: wire.encode_window(id, 1 << 20),
        lambda id: wire.encode_datagram(id, TARGET, b"?"),
    ],
)
def test_unknown_streams(id: int, frame: Callable[[int], bytes]) -> None:
    for side in ("client", "exit"):
        link = Link()
        link.pair()
        assert broken(link, getattr(link, side), frame(id)) is CloseReason.PROTOCOL


def test_frames_for_a_stream_that_ended_properly() -> None:
    for frame in (data(1), wire.encode_fin(1), wire.encode_opened(1), wire.encode_refused(1, GENERAL)):
        link = Link()
        one, other = link.pair()
        one.say(b"", finish=True)
        other.say(b"", finish=True)
        link.quiesce()
        assert broken(link, link.exit, frame) is CloseReason.PROTOCOL


def test_data_after_the_end() -> None:
    for side in ("client", "exit"):
        link = Link()
        link.pair()
        victim = getattr(link, side)
        link.forge(victim, wire.encode_fin(1))
        assert broken(link, victim, data(1)) is CloseReason.PROTOCOL
        link = Link()
        link.pair()
        victim = getattr(link, side)
        assert broken(link, victim, wire.encode_fin(1), wire.encode_fin(1)) is CloseReason.PROTOCOL


@pytest.mark.parametrize("frame", [data(1), wire.encode_fin(1)])
def test_nothing_may_come_before_opened(frame: bytes) -> None:
    link = Link(serve=hold)
    app = link.open()
    link.carrier.settle()
    assert broken(link, link.client, frame) is CloseReason.PROTOCOL
    assert app.received == b""


@pytest.mark.parametrize("answer", [wire.encode_opened(1), wire.encode_refused(1, GENERAL)])
def test_two_answers(answer: bytes) -> None:
    link = Link()
    link.pair()
    assert broken(link, link.client, answer) is CloseReason.PROTOCOL


@pytest.mark.parametrize("answer", [wire.encode_opened(1), wire.encode_refused(1, GENERAL)])
def test_the_exit_is_not_answered(answer: bytes) -> None:
    link = Link(serve=hold)
    link.open()
    link.carrier.settle()
    assert broken(link, link.exit, answer) is CloseReason.PROTOCOL


def test_opening_out_of_turn() -> None:
    link = Link()
    link.pair()
    frame = wire.encode_open(1, StreamProtocol.TCP, TARGET)
    assert broken(link, link.exit, frame) is CloseReason.PROTOCOL, "used before"
    link = Link()
    assert broken(link, link.exit, wire.encode_open(0, StreamProtocol.TCP, TARGET)) is CloseReason.PROTOCOL
    assert broken(link, link.client, wire.encode_open(9, StreamProtocol.TCP, TARGET)) is CloseReason.PROTOCOL


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
        assert broken(link, victim, data(1)) is CloseReason.CREDIT


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
    """Two applications per stream do what they like, over a carrier that breaks and rotates when it likes.

    Always: what arrived is a prefix of what was said. At the end everything has arrived, unless there was a reset,
    and both sessions have forgotten everything.
    """

    def __init__(self) -> None:
        super().__init__()
        self.link: Link
        self.opened: list[App] = []
        self.said: dict[int, bytearray] = {}
        self.counter = 0

    @initialize(pool=st.sampled_from([0, 1 << 16, 32 << 20]), retained=st.sampled_from([1 << 16, 16 << 20]))
    def start(self, pool: int, retained: int) -> None:
        limits = session_limits(window_pool=pool, retained=retained, streams=6)
        self.link = Link(limits, serve=hold, provider=ToyProvider())

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
            assert len(self.link.client.streams) + len(self.link.client._awaited) >= 6

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

    @precondition(lambda self: self.link.carrier.open)
    @rule(capacity=st.sampled_from([0, 1, 3000, 1 << 20]), piece=st.sampled_from([0, 1, 700, 1 << 20]))
    def narrow(self, capacity: int, piece: int) -> None:
        for path in (self.link.carrier.to_left, self.link.carrier.to_right):
            path.capacity, path.piece = capacity, piece

    @rule(steps=st.integers(1, 10))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.link.carrier.step()

    @rule(seconds=st.sampled_from([0.001, 0.03, 1.5]))
    def advance(self, seconds: float) -> None:
        for path in (self.link.carrier.to_left, self.link.carrier.to_right):
            path.piece = max(path.piece, 700)
        self.link.carrier.advance(seconds)

    @rule()
    def rotate(self) -> None:
        if self.link.carrier.open:
            self.link.client.rotation.start(self.link.carrier.now)

    @rule()
    def cut(self) -> None:
        self.link.carrier.cut()

    @rule()
    def resume(self) -> None:
        if not self.link.carrier.open:
            self.link.resume()

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
        if link.carrier.open and link.carrier.to_left.capacity:
            for path in (link.carrier.to_left, link.carrier.to_right):
                path.piece = path.capacity = 1 << 20
        else:
            link.resume()
        link.quiesce()
        reset = {
            app.stream.id for app in self.apps() if app.stream and app.stream.receive_half is Half.CLOSED
        }
        for app in self.apps():
            app.eager = True
            app.consume()
            if app.stream is not None and app in link.served.values() and not app.ended:
                app.stream.accept()
        link.quiesce()
        for app in self.apps():
            if app.stream is not None and app.stream.id in link.client.streams and not app.finishing:
                app.say(b"", finish=True)
        link.quiesce()
        self.only_what_was_said()
        for app in self.opened:
            assert app.stream is not None
            served = link.served[app.stream.id]
            if app.stream.id not in reset:
                assert app.received == self.said.get(id(served), b"")
                assert served.received == self.said.get(id(app), b"")
        end_all(link, *self.apps())
        link.assert_clean()


Walk.TestCase.settings = settings(stateful_step_count=80)
TestWalk = Walk.TestCase
