"""The credit of a session: what bounds all of its streams together, and why it stops none that may go on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.errors import CloseReason, PeerError, StreamReason
from cryprq_proxy.session import session_credit, stream_table, wire
from cryprq_proxy.session.session import Session, SessionLimits
from cryprq_proxy.session.session_credit import INITIAL_CREDIT, LONGEST_STEP, SessionCredit
from cryprq_proxy.session.windows import INITIAL_WINDOW, QUIET_SECONDS
from tests.support.line import Line, Source
from tests.support.links import App, Link
from tests.support.settings import session_limits

MIB = 1 << 20
SMALL = MIB
"""In place of INITIAL_CREDIT, so that tests come to the bound with few bytes."""
SIDES = pytest.mark.parametrize("receiver", ["client", "exit"])


def small(monkeypatch: pytest.MonkeyPatch, limits: SessionLimits | None = None) -> Link:
    for module in (session_credit, stream_table):
        monkeypatch.setattr(module, "INITIAL_CREDIT", SMALL)
    return Link(limits or session_limits(window_pool=MIB // 2))


def stop_renewal(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on tests say what is announced."""
    monkeypatch.setattr(SessionCredit, "next_limit", lambda self, streams: None)


def ends(link: Link, receiver: str) -> tuple[App, App]:
    """Of a new stream: that which sends, and that which receives."""
    client, exit = link.pair()
    return (exit, client) if receiver == "client" else (client, exit)


def sides(link: Link, receiver: str) -> tuple[Session, Session]:
    return (link.exit, link.client) if receiver == "client" else (link.client, link.exit)


def data(id: int, size: int, offset: int = 0) -> bytes:
    return wire.encode_data_header(wire.DATA, id, offset) + bytes(size)


# --- the sums ---


def test_no_more_may_come_than_was_announced() -> None:
    credit = SessionCredit(MIB)
    credit.take(INITIAL_CREDIT)
    with pytest.raises(PeerError) as caught:
        credit.take(1)
    assert type(caught.value) is PeerError and caught.value.reason is CloseReason.CREDIT


def test_credit_is_announced_in_steps() -> None:
    """A quarter of the pool, and no more than LONGEST_STEP."""
    for pool, streams, steps in ((MIB, 4, MIB >> 2), (1 << 40, 1, LONGEST_STEP), (0, 4, 1)):
        credit = SessionCredit(pool)
        credit.announced = 2 * (pool + streams * INITIAL_WINDOW)
        credit.consumed = steps - 1
        assert credit.next_limit(streams) is None
        credit.consumed = steps
        assert credit.next_limit(streams) == credit.announced == 2 * (pool + streams * INITIAL_WINDOW) + steps
        assert credit.next_limit(streams) is None, "once"


@given(st.lists(st.tuples(st.integers(0, 8 * MIB), st.integers(0, 3_000))), st.integers(0, 64 * MIB))
def test_a_limit_never_falls_and_leaves_room_for_all_windows(steps: list[tuple[int, int]], pool: int) -> None:
    credit = SessionCredit(pool)
    before = credit.announced
    for size, streams in steps:
        credit.consumed += size
        limit = credit.next_limit(streams)
        assert credit.announced >= before and limit in (None, credit.announced)
        before = credit.announced
        held = 2 * (pool + INITIAL_WINDOW * streams)
        assert credit.announced - credit.consumed > held - max(pool >> 2, 1)


# --- at the bound ---


@SIDES
def test_a_sender_stops_at_the_bound_and_goes_on_when_credit_comes(
    monkeypatch: pytest.MonkeyPatch, receiver: str
) -> None:
    link = small(monkeypatch)
    sending, receiving = sides(link, receiver)
    limit = wire.encode_window
    stop_renewal(monkeypatch)
    pairs = [ends(link, receiver) for _ in range(3)]
    for number, (one, other) in enumerate(pairs, 1):
        link.forge(sending, limit(number, 1 << 30))
        stream = other.stream
        assert stream is not None
        stream.announced = 1 << 30
        one.say(bytes(SMALL // 2))
    link.quiesce()
    assert sum(len(other.received) for _, other in pairs) == SMALL and sending.table.credit == 0
    waiting = [one for one, _ in pairs if one.outgoing]
    assert waiting and all(one.stream is not None and one.stream.starved for one in waiting)
    link.forge(sending, limit(0, SMALL - 1), limit(0, SMALL))
    link.quiesce()
    assert sending.table.credit == 0, "no more than before"
    receiving.table.received_credit.announced = SMALL + 1
    link.forge(sending, limit(0, SMALL + 1))
    link.quiesce()
    assert receiving.table.received_credit.received == sending.table.sent_bytes == SMALL + 1
    receiving.table.received_credit.announced = 2 * SMALL
    link.forge(sending, limit(0, 2 * SMALL))
    link.quiesce()
    assert all(len(other.received) == SMALL // 2 for _, other in pairs)


@SIDES
def test_more_than_the_session_allows_closes_it(monkeypatch: pytest.MonkeyPatch, receiver: str) -> None:
    """Each stream keeps to its window; and holes count, since what fills them may come."""
    link = small(monkeypatch, session_limits(window_pool=0))
    _, receiving = sides(link, receiver)
    stop_renewal(monkeypatch)
    count = SMALL // INITIAL_WINDOW
    apps = [ends(link, receiver)[1] for _ in range(count + 1)]
    for app in apps:
        app.eager = False
    for number in range(1, count):
        link.forge(receiving, data(number, 1, INITIAL_WINDOW - 1))
    link.forge(receiving, wire.encode_reset(count, StreamReason.GENERAL, INITIAL_WINDOW))
    with pytest.raises(PeerError) as caught:
        link.forge(receiving, data(count + 1, 1))
    assert caught.value.reason is CloseReason.CREDIT


@SIDES
def test_a_stream_that_has_ended_here_still_takes_credit(
    monkeypatch: pytest.MonkeyPatch, receiver: str
) -> None:
    link = small(monkeypatch)
    _, receiving = sides(link, receiver)
    _, other = ends(link, receiver)
    assert other.stream is not None
    link.forge(receiving, data(1, 100))
    other.stream.reset(StreamReason.GENERAL)
    credit = receiving.table.received_credit
    link.forge(receiving, data(1, 100, 400))
    assert (credit.received, credit.consumed) == (500, 500), "nobody takes them"
    with pytest.raises(PeerError) as caught:
        link.forge(receiving, wire.encode_reset(1, StreamReason.GENERAL, credit.announced + 1))
    assert caught.value.reason is CloseReason.CREDIT


# --- what must never stand still ---


@SIDES
def test_readers_that_stand_still_block_nobody(monkeypatch: pytest.MonkeyPatch, receiver: str) -> None:
    """However many they are: each new stream brings the credit of its first window along."""
    link = small(monkeypatch)
    for _ in range(3 * SMALL // INITIAL_WINDOW):
        one, other = ends(link, receiver)
        other.eager = False
        one.say(bytes(2 * INITIAL_WINDOW))
        link.quiesce()
        assert len(other.received) == INITIAL_WINDOW
    one, other = ends(link, receiver)
    one.say(bytes(4 * MIB), finish=True)
    link.quiesce()
    assert len(other.received) == 4 * MIB and other.events[-1] == ("eof",)


def fast_once(on: Line, count: int) -> list[Source]:
    """Streams that were fast, one after the other, and are quiet now. Their windows have gone back to the pool."""
    for _ in range(count):
        on.download()
        on.advance(0.04)
        on.sources[-1].idle = True
        on.advance(1.1 * QUIET_SECONDS)
    on.link.client.windows.reclaim(on.now)
    on.link.client.windows.reclaim(on.now)
    assert all(stream._window == INITIAL_WINDOW for stream in on.link.client.streams.values())
    return list(on.sources)


@pytest.mark.parametrize("finish", [False, True])
def test_what_was_taken_is_given_back_though_its_stream_has_gone_quiet(
    monkeypatch: pytest.MonkeyPatch, finish: bool
) -> None:
    """Quiet streams have old credit, and use a part of it that is too small for another WINDOW, or end with that. What
    their readers have taken is lost to the session for long unless it is given back apart."""
    pool, count = MIB, 24
    on = Line(small(monkeypatch, session_limits(window_pool=pool)), 1e8, 0.002)
    table = on.link.client.table
    for source in fast_once(on, count):
        stream = source.stream
        assert stream is not None
        sink = on.link.client.streams[stream.id]
        assert sink.announced - sink.consumed_bytes > 2 * INITIAL_WINDOW
        for _ in range(20):
            rest = min(int(sink._due) - sink.consumed_bytes - 1, stream.request_room(), 16_384)
            if rest <= 0:
                break
            stream.send(bytes(rest))
            on.advance(0.01)
        if finish:
            source.finish()
            on.advance(0.01)
    held = table.received_credit.received - table.received_credit.consumed
    assert held == sum(stream.received - stream.credited for stream in table.live.values())
    assert held <= (count * INITIAL_WINDOW) // 2
    fast = on.download()
    on.advance(0.1)
    assert fast.taken > 4 * MIB


def test_a_half_that_has_ended_gives_back_what_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and not when the other half has ended, too."""
    on = Line(small(monkeypatch, session_limits(window_pool=MIB)), 1e8, 0.002)
    credit = on.link.client.table.received_credit
    for number in range(1, 13):
        on.download()
        on.advance(0.04)
        on.sources[-1].finish()
        on.advance(0.01)
        assert credit.consumed == credit.received > number * MIB
    assert len(on.link.client.streams) == 12


def test_old_credit_that_is_used_piece_by_piece_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the pool is empty no window is news to the sender, which may still use what it was given. What was taken
    goes back all the same."""
    on = Line(small(monkeypatch), 1e8, 0.002)
    [source] = fast_once(on, 1)
    on.link.client.windows.free = 0
    stream = source.stream
    assert stream is not None
    sink = on.link.client.streams[stream.id]
    limit = stream.send_limit
    while limit - stream.sent > 3 * INITIAL_WINDOW:
        assert stream.request_room()
        stream.send(bytes(16_384))
        on.advance(0.01)
        assert sink.received - sink.credited <= INITIAL_WINDOW
    assert stream.send_limit == sink.announced == limit


@SIDES
def test_streams_that_are_reset_give_back_all_of_their_credit(
    monkeypatch: pytest.MonkeyPatch, receiver: str
) -> None:
    link = small(monkeypatch)
    for number in range(60):
        one, other = ends(link, receiver)
        other.eager = False
        one.say(bytes(INITIAL_WINDOW))
        if number % 2:
            link.quiesce()
        for app in (one, other)[:: 1 if number % 3 else -1]:
            assert app.stream is not None
            app.stream.reset(StreamReason.GENERAL)
    link.quiesce()
    link.assert_clean()
    one, other = ends(link, receiver)
    one.say(bytes(4 * MIB), finish=True)
    link.quiesce()
    assert len(other.received) == 4 * MIB


@SIDES
def test_a_window_of_the_session_is_not_lost_with_its_path(
    monkeypatch: pytest.MonkeyPatch, receiver: str
) -> None:
    link = small(monkeypatch)
    one, other = ends(link, receiver)
    one.say(bytes(8 * MIB), finish=True)
    for _ in range(200):
        link.carrier.step()
        if len(other.received) > SMALL // 2:
            back = link.carrier.to_right if receiver == "client" else link.carrier.to_left
            back.piece = 0
            break
    link.carrier.settle()
    assert one.outgoing
    link.resume()
    link.quiesce()
    assert len(other.received) == 8 * MIB


def test_an_older_credit_takes_nothing_back() -> None:
    link = Link()
    sender, receiver = link.pair()
    link.forge(link.client, wire.encode_window(0, 1_000))
    sender.say(bytes(30_000), finish=True)
    link.quiesce()
    assert len(receiver.received) == 30_000


def test_what_is_queued_and_never_sent_is_there_for_others() -> None:
    link = Link()
    (one, _), (other, receiver) = link.pair(), link.pair()
    link.client.table.credit = 10_000
    one.say(bytes(10_000))
    other.say(b"waits", finish=True)
    assert other.stream is not None and other.stream.starved and one.stream is not None
    one.stream.reset(StreamReason.GENERAL)
    link.quiesce()
    assert receiver.received == b"waits"
