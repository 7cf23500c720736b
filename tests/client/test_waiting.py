"""Requests that wait for a link: how long, in which order, and what becomes of them."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.client.requests import StreamRequest
from cryprq_proxy.client.waiting import WaitingRoom
from cryprq_proxy.session.streams import StreamHandler
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.fake_exits import Timers

SECONDS = 10.0


class Room:
    def __init__(self, seconds: float = SECONDS) -> None:
        self.timers = Timers()
        self.refused: list[str] = []
        loop = cast(asyncio.AbstractEventLoop, self.timers)
        self.waiting = WaitingRoom(seconds, lambda request: self.refused.append(request.exit), loop)

    def add(self, *names: str) -> None:
        for name in names:
            self.waiting.add(request(name))

    def take(self, *names: str) -> list[str]:
        """Those of `names` that wait; all without names."""
        taken = self.waiting.take(lambda request: not names or request.exit in names)
        return [request.exit for request in taken]


def request(name: str) -> StreamRequest:
    target: Any = Destination("192.0.2.1", 443)
    return StreamRequest(StreamProtocol.TCP, target, StreamHandler(), lambda stream: None, name)


@pytest.fixture
def room() -> Room:
    return Room()


def test_each_waits_for_its_own_time(room: Room) -> None:
    room.add("a")
    room.timers.advance(4.0)
    room.add("b")
    room.timers.advance(5.9)
    assert (room.refused, len(room.waiting)) == ([], 2)
    room.timers.advance(0.2)
    assert (room.refused, len(room.waiting)) == (["a"], 1)
    room.timers.advance(3.7)
    assert room.refused == ["a"]
    room.timers.advance(0.2)
    assert (room.refused, len(room.waiting)) == (["a", "b"], 0)


def test_what_is_taken_is_neither_refused_nor_taken_again(room: Room) -> None:
    room.add("a", "b", "c")
    assert room.take("a", "c") == ["a", "c"]
    assert room.take("a", "c") == []
    room.timers.advance(SECONDS)
    assert room.refused == ["b"]


def test_all_are_taken_in_the_order_in_which_they_came(room: Room) -> None:
    room.add("b", "a", "c")
    assert room.take() == ["b", "a", "c"]
    room.timers.advance(SECONDS)
    assert not room.refused


def test_who_comes_after_an_empty_room_waits_as_long(room: Room) -> None:
    room.add("a")
    room.take()
    room.timers.advance(SECONDS - 1)
    room.add("b")
    room.timers.advance(2.0)  # the timer of the first one
    assert not room.refused
    room.timers.advance(SECONDS - 2)
    assert room.refused == ["b"]


def test_with_no_time_to_wait_the_answer_comes_at_once() -> None:
    room = Room(0.0)
    room.add("a")
    assert room.refused == ["a"]


def test_who_comes_again_has_no_more_time_than_at_first(room: Room) -> None:
    """It was sent before the exit's verdict, and the exit let nobody in."""
    again = request("a")
    room.waiting.add(again)
    room.timers.advance(6.0)
    room.take()
    room.add("b")
    room.waiting.add(again)
    room.timers.advance(4.1)
    assert room.refused == ["a"]
    room.timers.advance(6.0)
    assert room.refused == ["a", "b"]


def test_closing_refuses_all(room: Room) -> None:
    room.add("a", "b")
    room.waiting.close()
    assert room.refused == ["a", "b"]
    room.timers.advance(SECONDS)
    assert room.refused == ["a", "b"]


def test_a_fault_of_one_refusal_keeps_no_other_waiting(room: Room) -> None:
    def refuse(request: StreamRequest) -> None:
        if request.exit == "a":
            raise ZeroDivisionError
        room.refused.append(request.exit)

    room.waiting._refuse = refuse
    room.add("a", "b")
    with pytest.raises(ZeroDivisionError):
        room.timers.advance(SECONDS + 1)
    room.timers.advance(SECONDS + 1)
    assert (room.refused, len(room.waiting)) == (["b"], 0)
