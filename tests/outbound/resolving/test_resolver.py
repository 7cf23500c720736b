"""What askers share: the cache, look-ups that run, and their end. The look-ups are the test's."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest

from cryprq_proxy.errors import StreamReason, StreamRefused
from cryprq_proxy.outbound.resolving.c_library import LibraryNames
from cryprq_proxy.outbound.resolving.fair_slots import FairSlots
from cryprq_proxy.outbound.resolving.host_configuration import (
    LIBRARY_VARIABLES,
    ConfigurationReader,
    HostFiles,
)
from cryprq_proxy.outbound.resolving.outcome import FoundAddresses, LookupResult
from cryprq_proxy.outbound.resolving.resolver import WOKEN, SystemResolver
from cryprq_proxy.status import NamesStatus
from tests.support.settle import settle, until

FOUND = FoundAddresses(("1.1.1.1", "2::1"), 20.0)


class Names:
    """A NameSource. Names in `held` have no answer until the test says so; `cancelled` are those given up."""

    cancellable = True

    def __init__(self, slots: int = 64) -> None:
        self.slots = FairSlots(slots, waiting_each=1000, waiting=10_000)
        self.answer: LookupResult | Exception = FOUND
        self.held: dict[str, asyncio.Event] = {}
        self.asked: list[str] = []
        self.cancelled: list[str] = []

    def hold(self, *names: str) -> None:
        self.held |= {name: asyncio.Event() for name in names}

    async def look_up(self, name: str) -> LookupResult:
        self.asked.append(name)
        try:
            if name in self.held:
                await self.held[name].wait()
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def close(self) -> None:
        self.slots.close()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Stage:
    def __init__(self, slots: int = 64, cache_size: int = 100) -> None:
        self.names = Names(slots)
        self.clock = Clock()
        self.resolver = SystemResolver(
            dns=self.names, library=self.names, cache_size=cache_size, now=self.clock
        )

    def ask(self, name: str = "a.test", asker: str = "alice") -> asyncio.Task[LookupResult]:
        return asyncio.ensure_future(self._ask(name, asker))

    async def _ask(self, name: str, asker: str) -> LookupResult:
        try:
            return FoundAddresses(tuple(await self.resolver.of(asker).resolve(name)), 0.0)
        except StreamRefused as refusal:
            return refusal.reason


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage()
    yield stage
    stage.resolver.close()
    await settle()


# --- what is remembered ---


@pytest.mark.parametrize(("ttl", "kept"), [(20.0, 20.0), (0.0, 1.0), (86_400.0, 30.0)])
async def test_an_answer_is_kept_for_its_time_within_bounds(stage: Stage, ttl: float, kept: float) -> None:
    stage.names.answer = FOUND._replace(seconds=ttl)
    assert (await stage.ask()) == FOUND._replace(seconds=0.0)
    stage.clock.now += kept - 0.1
    assert (await stage.ask()) == FOUND._replace(seconds=0.0)
    assert stage.names.asked == ["a.test"]
    stage.clock.now += 0.1
    await stage.ask()
    assert stage.names.asked == ["a.test", "a.test"]


async def test_who_asks_anew_gets_nothing_from_memory(stage: Stage) -> None:
    await stage.ask()
    await stage.resolver.resolve_anew("a.test", "alice")
    await stage.ask()
    assert stage.names.asked == ["a.test", "a.test"], "the new answer is remembered"


@pytest.mark.parametrize(
    ("reason", "seconds"),
    [
        (StreamReason.NAME_NOT_FOUND, 5.0),
        (StreamReason.NAME_FAILED, 1.0),
        (StreamReason.NAME_TIMED_OUT, 1.0),
    ],
)
async def test_a_failure_is_kept_for_less(stage: Stage, reason: StreamReason, seconds: float) -> None:
    stage.names.answer = reason
    assert await stage.ask() is reason
    stage.clock.now += seconds - 0.1
    assert await stage.ask() is reason
    assert len(stage.names.asked) == 1
    stage.clock.now += 0.1
    assert await stage.ask() is reason
    assert len(stage.names.asked) == 2


async def test_a_failure_of_this_machine_says_nothing_about_the_name(stage: Stage) -> None:
    stage.names.answer = StreamReason.EXHAUSTED
    assert await stage.ask() is StreamReason.EXHAUSTED
    stage.names.answer = FOUND
    assert isinstance(await stage.ask(), FoundAddresses)


async def test_the_memory_is_bounded() -> None:
    stage = Stage(cache_size=2)
    for name in ("a", "b", "c", "b", "c", "a"):
        await stage.ask(name)
    assert stage.names.asked == ["a", "b", "c", "a"]
    stage.resolver.close()


# --- who waits for what ---


async def test_the_same_question_is_asked_once(stage: Stage) -> None:
    stage.names.hold("a.test")
    tasks = [stage.ask(asker=f"peer {number}") for number in range(10)]
    await settle()
    stage.names.held["a.test"].set()
    assert all(isinstance(answer, FoundAddresses) for answer in await asyncio.gather(*tasks))
    assert stage.names.asked == ["a.test"]


async def test_many_that_wait_for_one_name_go_on_by_turns(stage: Stage) -> None:
    """Each of them then connects: 16,384 streams to one name were one turn of the loop."""
    stage.names.hold("a.test")
    many = [stage.ask() for _ in range(10 * WOKEN)]
    await until(lambda: stage.names.asked == ["a.test"])
    await settle()
    other = stage.ask(asker="bob")
    await settle()
    stage.names.held["a.test"].set()
    steps = [0]
    while not all(task.done() for task in many):
        await asyncio.sleep(0)
        steps.append(sum(task.done() for task in many))
        if steps[-1]:
            assert other.done(), "askers have turns"
    assert max(after - before for before, after in pairwise(steps)) == WOKEN
    assert all(task.result() == FOUND._replace(seconds=0.0) for task in (*many, other))


async def test_who_gives_up_while_the_answer_is_told_is_left_out(stage: Stage) -> None:
    stage.names.hold("a.test")
    many = [stage.ask() for _ in range(3 * WOKEN)]
    await until(lambda: stage.names.asked == ["a.test"])
    await settle()
    stage.names.held["a.test"].set()
    while not many[0].done():
        await asyncio.sleep(0)
    assert not many[-1].done()
    many[-1].cancel()
    done = await asyncio.gather(*many, return_exceptions=True)
    assert isinstance(done[-1], asyncio.CancelledError)
    assert done[:-1] == [FOUND._replace(seconds=0.0)] * (3 * WOKEN - 1)
    assert stage.names.cancelled == []


async def test_one_peer_with_400_dead_names_does_not_delay_another(stage: Stage) -> None:
    dead = [f"dead{number}.test" for number in range(400)]
    stage.names.hold(*dead)
    for name in dead:
        stage.ask(name, "greedy")
    await settle()
    assert stage.names.slots.waiting == 368
    # Also a name that waits in the other peer's queue.
    for name in ("alive.test", *dead[-1:]):
        stage.names.held.pop(name, None)
        task = stage.ask(name, "honest")
        await settle()
        assert task.done()


async def test_a_name_that_another_asker_has_got_meanwhile_is_not_asked_again() -> None:
    stage = Stage(slots=2)
    stage.names.hold("first", "a.test")
    stage.ask("first", "alice")
    waiting = [stage.ask("a.test", "alice"), stage.ask("b.test", "alice")]
    await settle()
    other = stage.ask("a.test", "bob")
    await settle()
    assert stage.names.asked == ["first", "a.test"]
    stage.names.held["first"].set()
    await settle()
    stage.names.held["a.test"].set()
    assert all(isinstance(answer, FoundAddresses) for answer in await asyncio.gather(other, *waiting))
    assert stage.names.asked == ["first", "a.test", "b.test"]
    assert stage.names.slots.in_use == 0
    stage.resolver.close()


async def test_who_gives_up_does_not_disturb_the_others(stage: Stage) -> None:
    stage.names.hold("a.test")
    first, second = stage.ask(), stage.ask()
    await settle()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    stage.names.held["a.test"].set()
    assert isinstance(await second, FoundAddresses)
    assert stage.names.asked == ["a.test"]


async def test_a_look_up_that_nobody_waits_for_is_cancelled(stage: Stage) -> None:
    stage.names.hold("a.test")
    tasks = [stage.ask(), stage.ask(asker="bob")]
    await settle()
    for task in tasks:
        assert stage.names.cancelled == []
        task.cancel()
        await settle()
    assert stage.names.cancelled == ["a.test"]
    assert stage.names.slots.in_use == 0


async def test_who_comes_while_a_look_up_is_being_cancelled_gets_its_own(stage: Stage) -> None:
    stage.names.hold("a.test")
    first = stage.ask()
    await settle()
    first.cancel()
    await asyncio.sleep(0)  # the waiter has gone, the look-up does not know yet
    second = stage.ask()
    stage.names.held.pop("a.test").set()
    assert isinstance(await second, FoundAddresses)
    await settle()
    assert stage.names.slots.in_use == 0


async def test_an_unexpected_error_is_logged(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.names.answer = RuntimeError("a bug")
    with caplog.at_level(logging.ERROR):
        assert await stage.ask() is StreamReason.NAME_FAILED
    assert "a bug" in caplog.text
    assert stage.names.slots.in_use == 0


# --- the end ---


async def test_a_closed_resolver_refuses() -> None:
    stage = Stage(slots=2)
    stage.names.hold("running")
    tasks = [stage.ask("running"), stage.ask("waiting")]
    await settle()
    stage.resolver.close()
    assert [await task for task in tasks] == [StreamReason.SHUTTING_DOWN] * 2
    assert await stage.ask("late") is StreamReason.SHUTTING_DOWN
    assert await stage.ask("running") is StreamReason.SHUTTING_DOWN
    assert stage.names.cancelled == ["running"]


# --- on threads ---


class Library:
    """Stands for the C library; answers when `go` is set."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go = threading.Event()

    def __call__(self, name: str) -> LookupResult:
        self.asked.append(name)
        self.go.wait()
        return FOUND


async def test_a_thread_keeps_its_slot_until_it_ends() -> None:
    library = Library()
    names = LibraryNames(threads=4, call=library)
    resolver = SystemResolver(dns=names, library=names)
    tasks = [asyncio.ensure_future(resolver.resolve(f"name{number}", "alice")) for number in range(2)]
    await until(lambda: len(library.asked) == 2)
    for task in tasks:
        task.cancel()
    await settle()
    assert names.slots.in_use == 2
    waiting = asyncio.ensure_future(resolver.resolve("other", "alice"))
    await settle()
    assert names.slots.waiting == 1
    # What a cancelled question has found is remembered.
    library.go.set()
    assert await waiting == FOUND.addresses
    assert await resolver.resolve("name0", "alice") == FOUND.addresses
    assert sorted(library.asked) == ["name0", "name1", "other"]
    resolver.close()


async def test_threads_that_run_at_the_end_hold_nobody() -> None:
    library = Library()
    names = LibraryNames(threads=1, call=library)
    resolver = SystemResolver(dns=names, library=names)
    running = asyncio.ensure_future(resolver.resolve("running", "alice"))
    waiting = asyncio.ensure_future(resolver.resolve("waiting", "alice"))
    await until(lambda: library.asked)
    resolver.close()
    with pytest.raises(StreamRefused):
        await waiting
    library.go.set()
    assert await running == FOUND.addresses
    with pytest.raises(StreamRefused):
        await resolver.resolve("running", "alice")


# --- which of the two ---


async def test_the_hosts_files_decide_who_looks_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it runs, too; `status` says which one it is."""
    for variable in LIBRARY_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    files = HostFiles(tmp_path / "resolv.conf", tmp_path / "hosts", tmp_path / "nsswitch.conf")
    files.resolv_conf.write_text("nameserver 192.0.2.1\n")
    dns, library = Names(), Names()
    resolver = SystemResolver(dns=dns, library=library, reader=ConfigurationReader(files))
    await resolver.resolve("a.test", "alice")
    assert resolver.status() == NamesStatus(by="DNS, from 192.0.2.1", cached=1)
    files.nsswitch.write_text("hosts: files mdns4 dns\n")
    library.hold("b.test")
    task = asyncio.ensure_future(resolver.resolve("b.test", "alice"))
    await until(lambda: library.asked)
    told = resolver.status()
    assert told.by == "the C library, since nsswitch.conf says `hosts: files mdns4 dns`"
    assert (told.running, told.waiting) == (1, 0)
    assert (dns.asked, library.asked) == (["a.test"], ["b.test"])
    library.held["b.test"].set()
    await task
    resolver.close()
