"""How many streams there may be: STREAMS, and what a client may open beside those that live."""

from __future__ import annotations

import pytest

from cryprq_proxy.errors import CloseReason, PeerError, StreamReason, StreamRefused
from cryprq_proxy.session import stream_numbers, wire
from cryprq_proxy.session.number_set import MAX_GAPS
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.links import TARGET, App, Link
from tests.support.settings import session_limits

FEW = 8
"""In place of INITIAL_STREAMS."""


def few(monkeypatch: pytest.MonkeyPatch, most: int = FEW) -> Link:
    monkeypatch.setattr(stream_numbers, "INITIAL_STREAMS", FEW)
    return Link(session_limits(streams=most))


def opening(number: int) -> bytes:
    return wire.encode_open(number, StreamProtocol.TCP, TARGET)


def end(link: Link, *apps: App) -> None:
    """They end in both directions."""
    for app in apps:
        assert app.stream is not None
        app.say(b"", finish=True)
        link.served[app.stream.id].say(b"", finish=True)
    link.quiesce()


def test_a_client_opens_no_more_than_it_may_in_all() -> None:
    link = Link()
    table = link.client.table
    table.numbers.may_open = 3
    for _ in range(3):
        link.open()
    with pytest.raises(StreamRefused) as caught:
        link.open()
    assert caught.value.reason is StreamReason.LIMIT
    link.forge(link.client, wire.encode_number(wire.STREAMS, 5), wire.encode_number(wire.STREAMS, 4))
    for _ in range(2):
        link.open()
    with pytest.raises(StreamRefused):
        link.open()
    assert table.numbers.opens == table.numbers.may_open == 5


def test_more_opens_than_were_allowed_close_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the streams before live or not; a second copy of an OPEN is none."""
    link = few(monkeypatch)
    for number in range(1, FEW + 1):
        link.forge(link.exit, opening(number), opening(number))
    with pytest.raises(PeerError) as caught:
        link.forge(link.exit, opening(FEW + 1))
    assert type(caught.value) is PeerError and caught.value.reason is CloseReason.LIMIT


def test_streams_that_have_ended_make_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    link = few(monkeypatch)
    for number in range(1, 100):
        app = link.open()
        link.carrier.settle()
        assert app.stream is not None and app.stream.id == number
        end(link, app)
    link.assert_clean()
    for _ in range(5):
        apps = []
        while len(link.client.streams) < FEW - (FEW >> 2):
            apps.append(link.open())
        link.quiesce()
        assert all(app.events == [("opened",)] for app in apps)
        end(link, *apps)
    assert (
        link.client.table.numbers.may_open
        == link.exit.table.numbers.may_open
        <= link.exit.table.numbers.opens + FEW
    )


def test_an_exit_that_takes_few_streams_says_no_more_often_that_others_may_be_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its client would take that for a flood of control frames."""
    link = few(monkeypatch, most=1)
    said: list[int] = []
    send = link.exit.send_control

    def counted(frame: bytes) -> None:
        said.append(frame[0])
        send(frame)

    monkeypatch.setattr(link.exit, "send_control", counted)
    for _ in range(10 * FEW):
        app = link.open()
        link.carrier.settle()
        end(link, app)
    assert 0 < said.count(wire.STREAMS) <= 10 * FEW // (FEW >> 2)


def test_a_stream_whose_end_is_awaited_makes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that never answers a reset may open no more in its place."""
    link = few(monkeypatch)
    for number in range(1, FEW + 1):
        link.forge(link.exit, opening(number))
        stream = link.served[number].stream
        assert stream is not None
        stream.reset(StreamReason.GENERAL)
    assert link.exit.table.numbers.may_open == FEW and len(link.exit.table.numbers.awaited) == FEW
    for number in range(1, FEW + 1):
        link.forge(link.exit, wire.encode_reset(number, StreamReason.CANCELLED, 0))
    assert link.exit.table.numbers.may_open == 2 * FEW


def test_an_exit_that_takes_more_streams_than_all_do_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the first one, and not only when some have ended."""
    link = few(monkeypatch, most=50)
    apps = [link.open()]
    link.quiesce()
    apps += [link.open() for _ in range(49)]
    link.quiesce()
    assert all(app.events == [("opened",)] for app in apps)
    with pytest.raises(StreamRefused):
        link.open()


def test_room_for_streams_is_not_lost_with_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    link = few(monkeypatch)
    apps = [link.open() for _ in range(FEW)]
    link.carrier.settle()
    link.carrier.to_left.piece = 0
    end(link, *apps)
    assert link.exit.table.numbers.may_open > FEW == link.client.table.numbers.may_open
    link.resume()
    link.quiesce()
    assert link.client.table.numbers.may_open == link.exit.table.numbers.may_open
    link.pair()


def test_numbers_that_are_left_out_are_bounded() -> None:
    link = Link(session_limits(streams=2 * MAX_GAPS + 10))
    for first in range(0, MAX_GAPS, 256):
        link.forge(link.exit, *(opening(2 * number) for number in range(first + 1, first + 257)))
    with pytest.raises(PeerError) as caught:
        link.forge(link.exit, opening(2 * MAX_GAPS + 2))
    assert caught.value.reason is CloseReason.LIMIT


def test_streams_may_come_in_any_order() -> None:
    """By two paths, say."""
    link = Link()
    link.forge(link.exit, opening(5), opening(2), opening(9), opening(1))
    assert list(link.served) == [5, 2, 9, 1] and link.exit.last_stream == 9


def test_another_number_of_streams_is_for_those_that_come(monkeypatch: pytest.MonkeyPatch) -> None:
    link = few(monkeypatch)
    apps = [link.open() for _ in range(4)]
    link.quiesce()
    link.exit.table.take_most(3)
    late = link.open()
    link.quiesce()
    assert late.events[-1] == ("refused", StreamReason.LIMIT)
    assert all(app.events == [("opened",)] for app in apps), "they stay"
    end(link, *apps[:2])
    more = link.open()
    link.quiesce()
    assert more.events == [("opened",)]


def test_a_larger_number_of_streams_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    link = few(monkeypatch)
    link.client.table.numbers.take_most(50)
    apps = [link.open() for _ in range(FEW)]
    link.quiesce()
    with pytest.raises(StreamRefused):
        link.open()
    link.exit.table.take_most(50)
    link.quiesce()
    apps += [link.open() for _ in range(50 - FEW)]
    link.quiesce()
    assert all(app.events == [("opened",)] for app in apps)
