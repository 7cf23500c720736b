"""The sockets of one peer's targets: how many of them are served in one turn of the loop, and that each is."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from cryprq_proxy.outbound import socket_group
from cryprq_proxy.outbound.socket_group import BATCH, DIRECT, SocketGroup
from cryprq_proxy.session.turns import BYTES_PER_UNIT, EVENT_WORK, TURN_WORK, TurnBudget
from tests.support.settle import settle

A_TURN = TURN_WORK // EVENT_WORK
"""Sockets that are served in one turn at most."""
few_and_many = pytest.mark.parametrize("before", [0, DIRECT], ids=["the loop", "the group's epoll"])
"""Which of the two watches the sockets of a test."""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def readable(stack: ExitStack) -> socket.socket:
    """A socket that stays readable."""
    here, there = map(stack.enter_context, socket.socketpair())
    there.send(b"x")
    return here


class Stage:
    """A group in the running loop, and how often each of its sockets was served, turn by turn."""

    def __init__(self, stack: ExitStack, before: int = 0) -> None:
        """With so many sockets in the group, which are never ready."""
        self.loop = asyncio.get_running_loop()
        self.turn = TurnBudget(self.loop.call_soon)
        self.group = SocketGroup(self.loop, self.turn)
        self.served: Counter[int] = Counter()
        self._stack = stack
        stack.callback(self.group.retire)
        for _ in range(before):
            quiet = stack.enter_context(socket.socket())
            quiet.bind(("127.0.0.1", 0))
            quiet.listen()
            self.group.add_reader(quiet.fileno(), pytest.fail)
            stack.callback(self.group.remove_reader, quiet.fileno())

    def add(self, count: int) -> None:
        for _ in range(count):
            fd = readable(self._stack).fileno()
            self.group.add_reader(fd, partial(self._serve, fd))
            self._stack.callback(self.group.remove_reader, fd)

    def _serve(self, fd: int) -> None:
        self.served[fd] += 1

    async def one_turn(self) -> int:
        before = self.served.total()
        await asyncio.sleep(0)
        return self.served.total() - before

    def end(self) -> None:
        for fd in list(self.served):
            self.group.remove_reader(fd)


async def test_a_bounded_number_is_served_in_one_turn_and_each_has_its_own(stack: ExitStack) -> None:
    """A loop of asyncio would call all of them in each turn."""
    stage = Stage(stack)
    stage.add(450)
    turns = [await stage.one_turn() for _ in range(12)]
    assert max(turns) <= A_TURN
    assert len(stage.served) == 450, "none is starved"
    assert max(stage.served.values()) - min(stage.served.values()) <= 2, "and none goes far before the others"


async def test_another_ones_socket_does_not_wait_for_all(stack: ExitStack) -> None:
    stage = Stage(stack)
    stage.add(450)
    others = readable(stack)
    came = asyncio.Event()
    stage.loop.add_reader(others, came.set)
    try:
        await came.wait()
    finally:
        stage.loop.remove_reader(others)
    assert stage.served.total() <= 2 * A_TURN


@few_and_many
async def test_nothing_is_served_while_the_peer_has_spent_its_budget(stack: ExitStack, before: int) -> None:
    stage = Stage(stack, before)
    stage.add(3)
    stage.turn.left = 0
    stage.turn._soon = lambda _: None
    for _ in range(3):
        assert not await stage.one_turn()
    stage.turn.renew()
    await settle()
    assert len(stage.served) == 3


async def test_one_that_waits_is_not_served_for_its_former_owner(stack: ExitStack) -> None:
    stage = Stage(stack)
    here = readable(stack).fileno()
    stage.group.add_reader(here, pytest.fail)
    stage.turn.left = 0
    stage.turn._soon = lambda _: None
    await settle()
    stage.group.remove_reader(here)
    served: list[str] = []
    stage.group.add_writer(here, partial(served.append, "writes"))
    stage.turn.renew()
    assert not served
    await settle()
    assert set(served) == {"writes"}
    stage.group.remove_writer(here)


async def test_what_a_callback_spends_counts(stack: ExitStack) -> None:
    stage = Stage(stack)
    stage.add(3 * BATCH)
    costly = readable(stack).fileno()
    stage.group.add_reader(costly, lambda: stage.turn.spend(TURN_WORK))
    served = [await stage.one_turn() for _ in range(4)]
    assert max(served) <= 4 * BATCH
    assert stage.served.total() > 3 * BATCH


@few_and_many
async def test_bytes_that_a_socket_moves_count(stack: ExitStack, before: int) -> None:
    """Backlogs of a mebibyte, all of which could be written at once, made turns of 35 ms."""
    stage = Stage(stack, before)
    served: list[int] = []
    for _ in range(DIRECT):
        fd = readable(stack).fileno()

        def move(fd: int = fd) -> int:
            served.append(fd)
            return TURN_WORK * BYTES_PER_UNIT // 2

        stage.group.add_reader(fd, move)
        stack.callback(stage.group.remove_reader, fd)
    turns = []
    for _ in range(16):
        so_far = len(served)
        await asyncio.sleep(0)
        turns.append(len(served) - so_far)
    assert max(turns) == 2
    shares = Counter(served)
    assert len(shares) == DIRECT and max(shares.values()) - min(shares.values()) <= 1


@few_and_many
async def test_reading_and_writing_are_told_apart(stack: ExitStack, before: int) -> None:
    stage = Stage(stack, before)
    here, there = map(stack.enter_context, socket.socketpair())
    told: list[str] = []
    for add, what in ((stage.group.add_reader, "read"), (stage.group.add_writer, "write")):
        add(here.fileno(), partial(told.append, what))
    await settle()
    assert set(told) == {"write"}
    stage.group.remove_writer(here.fileno())
    there.send(b"x")
    told.clear()
    await settle()
    assert set(told) == {"read"}
    stage.group.remove_reader(here.fileno())
    stage.group.remove_reader(here.fileno())
    told.clear()
    await settle()
    assert not told


@few_and_many
async def test_an_end_is_told_to_both(stack: ExitStack, before: int) -> None:
    stage = Stage(stack, before)
    here, there = socket.socketpair()
    stack.callback(here.close)
    told: list[str] = []

    def tell(what: str, remove: Callable[[int], None]) -> None:
        told.append(what)
        remove(here.fileno())

    there.close()
    stage.group.add_writer(here.fileno(), partial(tell, "write", stage.group.remove_writer))
    stage.group.add_reader(here.fileno(), partial(tell, "read", stage.group.remove_reader))
    await settle()
    assert sorted(told) == ["read", "write"]


@few_and_many
async def test_a_descriptor_that_has_changed_hands_is_not_served_for_its_former_owner(
    stack: ExitStack, before: int
) -> None:
    """Both are in one batch: the first one that is served closes the other one, and a new socket gets its number."""
    stage = Stage(stack, before)
    sockets = {sock.fileno(): sock for sock in (readable(stack), readable(stack))}
    wrong: list[int] = []

    def serve(fd: int) -> None:
        (other,) = sockets.keys() - {fd}
        for each in sockets:
            stage.group.remove_reader(each)
        quiet, _ = map(stack.enter_context, socket.socketpair())
        os.dup2(quiet.fileno(), other)
        stage.group.add_reader(other, partial(wrong.append, other))

    for fd in sockets:
        stage.group.add_reader(fd, partial(serve, fd))
    await settle()
    assert not wrong


@few_and_many
async def test_another_callback_takes_over_a_socket_that_is_watched(stack: ExitStack, before: int) -> None:
    stage = Stage(stack, before)
    reader, writer = readable(stack).fileno(), readable(stack).fileno()
    stage.group.add_reader(reader, pytest.fail)
    stage.group.add_writer(writer, pytest.fail)
    served: list[str] = []
    stage.group.add_reader(reader, partial(served.append, "reads"))
    stage.group.add_writer(writer, partial(served.append, "writes"))
    await settle()
    assert set(served) == {"reads", "writes"}
    stage.group.remove_reader(reader)
    stage.group.remove_writer(writer)
    served.clear()
    await settle()
    assert not served


@few_and_many
async def test_a_fault_in_one_callback_is_not_another_ones(stack: ExitStack, before: int) -> None:
    stage = Stage(stack, before)
    errors: list[object] = []
    stage.loop.set_exception_handler(lambda _, context: errors.append(context.get("exception")))
    faulty = readable(stack).fileno()

    def fail() -> None:
        stage.group.remove_reader(faulty)
        raise ZeroDivisionError

    stage.group.add_reader(faulty, fail)
    stage.add(3)
    await stage.one_turn()
    await stage.one_turn()
    assert [type(error) for error in errors] == [ZeroDivisionError]
    assert len(stage.served) == 3


async def test_the_groups_own_descriptor_goes_with_the_last_socket(stack: ExitStack) -> None:
    stage = Stage(stack, DIRECT)
    assert not stage.group.is_open
    assert stage.group.open()
    stage.add(1)
    await settle()
    stage.group.retire()
    assert stage.group.is_open
    stage.end()
    assert not stage.group.is_open


async def test_as_many_as_before_are_with_the_loop_after_some_have_gone(stack: ExitStack) -> None:
    stage = Stage(stack, DIRECT)
    here = readable(stack).fileno()
    for _ in range(3 * DIRECT):
        stage.group.add_reader(here, pytest.fail)
        stage.group.remove_reader(here)
    assert stage.group.is_open
    few = Stage(stack)
    for _ in range(3 * DIRECT):
        few.group.add_reader(here, pytest.fail)
        few.group.add_writer(here, pytest.fail)
        few.group.remove_reader(here)
        few.group.remove_writer(here)
    assert not few.group.is_open


async def test_a_retired_group_without_sockets_has_none(stack: ExitStack) -> None:
    stage = Stage(stack)
    assert stage.group.open()
    stage.group.retire()
    assert not stage.group.is_open


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EINVAL])
async def test_without_a_descriptor_it_does_not_open(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail() -> None:
        raise OSError(code, os.strerror(code))

    stage = Stage(stack)
    monkeypatch.setattr(socket_group, "_Queue", fail)
    if code == errno.EMFILE:
        assert not stage.group.open()
    else:
        with pytest.raises(OSError, match=os.strerror(code)):
            stage.group.open()


async def test_timers_are_those_of_the_loop(stack: ExitStack) -> None:
    stage = Stage(stack)
    came = asyncio.Event()
    stage.group.call_later(0.0, came.set)
    stage.group.call_later(0.0, pytest.fail).cancel()
    await came.wait()
    assert stage.group.time() <= stage.loop.time()


def test_the_kernel_puts_what_it_has_reported_behind_the_others(stack: ExitStack) -> None:
    """What the group relies on."""
    epoll = select.epoll()
    stack.callback(epoll.close)
    fds = {readable(stack).fileno() for _ in range(10)}
    for fd in fds:
        epoll.register(fd, select.EPOLLIN)
    assert {fd for _ in range(5) for fd, _ in epoll.poll(0, 2)} == fds
