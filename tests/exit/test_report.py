"""What an exit tells its clients about itself, and what one client may ask of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from socket import AF_INET, AF_INET6
from typing import Any, cast

import msgspec
import pytest

from cryprq_proxy import __version__
from cryprq_proxy.errors import StreamReason, StreamRefused
from cryprq_proxy.exit import report as report_module
from cryprq_proxy.exit.exit import Exit
from cryprq_proxy.exit.report import TRIAL_NAME, outward
from cryprq_proxy.outbound.resolving.resolver import SystemResolver
from cryprq_proxy.session import wire
from cryprq_proxy.session.wire import StreamProtocol
from cryprq_proxy.status import ExitReport, OutwardReport
from tests.support.settle import settle, until
from tests.support.visits import ALICE, BOB, Visit, open_exit, open_frame

REPORT = StreamProtocol.REPORT


class Resolver:
    """Stands for the exit's. What it answers is `answer`, once `free` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.answer: StreamReason | None = None
        self.free = asyncio.Event()
        self.free.set()
        monkeypatch.setattr(SystemResolver, "resolve_anew", self.resolve_anew)

    async def resolve_anew(self, name: str, asker: str) -> Sequence[str]:
        self.asked.append(name)
        await self.free.wait()
        if self.answer is not None:
            raise StreamRefused(self.answer)
        return ("198.41.0.4",)


@pytest.fixture
async def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    return Resolver(monkeypatch)


async def report_of(visit: Visit, stream: int = 1) -> ExitReport:
    """Read what the exit sends on a stream that is open, until it ends its half."""
    await visit.read(wire.OPENED)
    _, number, value = await visit.read(wire.DATA)
    offset, data = cast(tuple[int, memoryview], value)
    assert (number, offset) == (stream, 0)
    assert (await visit.read(wire.FIN))[1:] == (stream, len(data))
    return msgspec.json.decode(data, type=ExitReport)


def data_frame(data: bytes, stream: int = 1) -> bytes:
    return wire.encode_data_header(wire.DATA, stream, 0) + data


async def ask(exit: Exit) -> ExitReport:
    visit = await Visit(exit, ALICE).admit()
    await visit.send(open_frame(1, REPORT))
    told = await report_of(visit)
    visit.cut()
    return told


async def test_all_is_well(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = {AF_INET: "5.75.10.2", AF_INET6: "2a01:4f8::2"}
    monkeypatch.setattr(report_module, "source_address", addresses.get)
    monkeypatch.setattr(report_module, "clock_is_kept", lambda: True)
    async with open_exit() as exit:
        told = await ask(exit)
    assert told.version == __version__ and told.clock_kept
    assert abs(told.clock - time.time()) < 600
    assert told.ipv4 == OutwardReport(addressed=True, route=True, address="5.75.10.2")
    assert told.ipv6 == OutwardReport(addressed=True, route=True, address="2a01:4f8::2")
    assert told.resolver.problem == "" and resolver.asked == [TRIAL_NAME]


async def test_an_address_behind_nat_is_not_told(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is none of the peer's business, and nothing that targets see."""
    addresses = {AF_INET: "192.168.7.2"}
    monkeypatch.setattr(report_module, "source_address", addresses.get)
    async with open_exit() as exit:
        told = await ask(exit)
    assert told.ipv4 == OutwardReport(addressed=True, route=True)
    assert not told.ipv6.route


@pytest.mark.parametrize(
    ("own", "four", "six"),
    [
        (["127.0.0.0/8", "::1/128", "fe80::1/128", "169.254.0.7/32"], False, False),
        (["10.0.0.5/32", "fd00::5/128"], True, False),
        (["2a01:4f8::2/128"], False, True),
        (["5.75.10.2/32", "2a01:4f8::2/128"], True, True),
        (["192.168.0.0/16", "2a01:4f8::/64"], False, False),
    ],
)
def test_addresses_whose_default_route_is_gone(
    own: list[str], four: bool, six: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "source_address", lambda _: None)
    assert outward(AF_INET, own) == OutwardReport(addressed=four)
    assert outward(AF_INET6, own) == OutwardReport(addressed=six)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (StreamReason.NAME_FAILED, "name failed"),
        (StreamReason.NAME_NOT_FOUND, "name not found"),
        (StreamReason.EXHAUSTED, "exhausted"),
    ],
)
async def test_a_resolver_that_fails(resolver: Resolver, answer: StreamReason, problem: str) -> None:
    resolver.answer = answer
    async with open_exit() as exit:
        assert (await ask(exit)).resolver.problem == problem


async def test_a_resolver_that_is_silent_is_waited_for_within_bounds(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "LOOK_UP_SECONDS", 0.01)
    resolver.free.clear()
    async with open_exit() as exit:
        assert (await ask(exit)).resolver.problem == "name timed out"


async def test_the_resolver_is_asked_once_for_all_who_wait(resolver: Resolver) -> None:
    resolver.free.clear()
    async with open_exit() as exit:
        alice, bob = [await Visit(exit, who).admit() for who in (ALICE, BOB)]
        await alice.send(open_frame(1, REPORT))
        await bob.send(open_frame(1, REPORT))
        await until(lambda: exit.sessions.streams_total == 2)
        await settle()
        resolver.free.set()
        assert (await report_of(alice)).resolver == (await report_of(bob)).resolver
        assert resolver.asked == [TRIAL_NAME]
        await alice.send(open_frame(2, REPORT))
        await report_of(alice, 2)
        assert resolver.asked == [TRIAL_NAME] * 2, "who asks later gets a fresh answer"
        for visit in (alice, bob):
            visit.cut()


async def test_the_client_tells_its_time(resolver: Resolver) -> None:
    async with open_exit() as exit:
        visit = await Visit(exit, ALICE).admit()
        (entry,) = exit.sessions
        await visit.send(open_frame(1, REPORT))
        await report_of(visit)
        assert entry.clock_off is None, "it has told nothing"
        ahead = int((time.time() + 259_200) * 1e3).to_bytes(8)
        await visit.send(open_frame(2, REPORT))
        await visit.send(data_frame(ahead[:3], 2))
        await visit.send(wire.encode_data_header(wire.DATA, 2, 3) + ahead[3:])
        await visit.send(wire.encode_fin(2, 8))
        await report_of(visit, 2)
        await until(lambda: entry.clock_off is not None)
        [told] = (await exit.status()).sessions
        assert told.clock_off is not None and abs(told.clock_off - 259_200) < 600
        visit.cut()


async def test_who_sends_more_than_the_time_gets_no_report(resolver: Resolver) -> None:
    resolver.free.clear()
    async with open_exit() as exit:
        free = exit.sessions._descriptors.free
        visit = await Visit(exit, ALICE).admit()
        await visit.send(open_frame(1, REPORT))
        await visit.send(data_frame(bytes(9)))
        reset: Any = (await visit.read(wire.RESET))[2]
        assert reset[0] is StreamReason.GENERAL
        assert exit.sessions._descriptors.free == free
        resolver.free.set()
        await settle()
        visit.cut()


@pytest.mark.parametrize("answered", [True, False])
async def test_a_report_takes_a_share_of_the_peer_only_while_it_is_made(
    resolver: Resolver, answered: bool
) -> None:
    resolver.free.clear()
    async with open_exit() as exit:
        free = exit.sessions._descriptors.free
        visit = await Visit(exit, ALICE).admit()
        await visit.send(open_frame(1, REPORT))
        await visit.read(wire.OPENED)
        assert exit.sessions._descriptors.free == free - 1
        if answered:
            resolver.free.set()
        else:
            await visit.send(wire.encode_reset(1, StreamReason.CANCELLED, 0))
        await until(lambda: exit.sessions._descriptors.free == free)
        resolver.free.set()
        visit.cut()
