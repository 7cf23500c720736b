"""The forwards of a client that runs, and other ones by a reload."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.client.direct import Direct
from cryprq_proxy.config.client import ClientConfig
from cryprq_proxy.config.forwards import ForwardTable
from cryprq_proxy.errors import CryprqError, StreamReason
from cryprq_proxy.fronts.listener import MixedListener, listening_socket
from cryprq_proxy.service.client import run_client
from cryprq_proxy.service.forwards import Forwards
from cryprq_proxy.session.retention import SlotPool
from tests.support.fake_source import FakeSource
from tests.support.programs import free_port
from tests.support.raw_client import RawClient
from tests.support.roles import RoleFiles, running
from tests.support.settings import listener_settings
from tests.support.settle import until

DATABASE, WEB = Destination("db.internal", 5432), Destination("web.internal", 80)


def free(number: int) -> list[Destination]:
    """Addresses where nothing listens."""
    return [Destination("127.0.0.1", free_port()) for _ in range(number)]


def table(listen: Destination, to: Destination = DATABASE) -> ForwardTable:
    return ForwardTable(listen=listen, to=to)


class Running:
    """Forwards of a listener that runs, and what applications have asked for."""

    def __init__(self) -> None:
        self.source = FakeSource()
        self.listener = MixedListener(
            self.source, listener_settings(Destination("127.0.0.1", 0), max_connections=2)
        )
        self.proxy = self.listener.start()
        self.direct = Direct(SlotPool())
        self.forwards = Forwards(self.listener, self.direct)

    @property
    def told(self) -> list[tuple[str, str, int]]:
        return [(each.listen, each.to, each.connections) for each in self.forwards.status()]

    @property
    def targets(self) -> list[Destination]:
        return [asked.destination for asked in self.source.asked]

    def may_be_dialled(self, place: Destination) -> bool:
        return self.direct.policy.check_address(place.host, place.port)


@pytest.fixture
async def run() -> AsyncIterator[Running]:
    run = Running()
    yield run
    await run.listener.stop()
    for asked in run.source.asked:
        asked.refuse(StreamReason.SHUTTING_DOWN)
    run.direct.stop()


@pytest.fixture
def taken() -> Iterator[Destination]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield Destination(*server.getsockname())


async def test_new_ones_open_and_removed_ones_close(run: Running) -> None:
    one, two = free(2)
    assert str(await run.forwards.change([])) == ""
    assert str(await run.forwards.change([table(one)])) == f", 1 forward (new: {one})"
    application = RawClient(one)
    await until(lambda: run.targets == [DATABASE])
    assert not run.may_be_dialled(one)

    said = str(await run.forwards.change([table(two, WEB)]))
    assert said == f", 1 forward (new: {two}; removed: {one})"
    assert run.told == [(str(two), str(WEB), 0)]
    assert run.may_be_dialled(one) and not run.may_be_dialled(two)
    with pytest.raises(ConnectionRefusedError):
        RawClient(one)
    [asked] = run.source.asked
    asked.open()
    asked.stream.handler.data_received(memoryview(b"still"))
    assert await application.read(5) == b"still"

    assert str(await run.forwards.change([])) == f", 0 forwards (removed: {two})"
    application.sock.close()


async def test_one_that_stays_is_not_touched_and_another_target_needs_no_other_socket(run: Running) -> None:
    stays, turns = free(2)
    await run.forwards.start([table(stays), table(turns)])
    applications = [RawClient(stays)]
    await until(lambda: run.targets == [DATABASE])
    sockets = dict(run.listener.forwards)
    said = str(await run.forwards.change([table(turns, WEB), table(stays)]))
    assert said == f", 2 forwards (other target: {turns})"
    assert run.told == [(str(stays), str(DATABASE), 1), (str(turns), str(WEB), 0)]
    assert run.listener.forwards == sockets
    applications.append(RawClient(turns))
    await until(lambda: run.targets == [DATABASE, WEB])
    for application in applications:
        application.sock.close()


async def test_a_port_that_is_taken_is_said_and_the_others_go_on(run: Running, taken: Destination) -> None:
    old, new = free(2)
    await run.forwards.start([table(old)])
    said = str(await run.forwards.change([table(taken), table(old), table(new), table(run.proxy)]))
    assert said.startswith(
        f", 2 forwards (new: {new}); no forward to {DATABASE}: {taken} is in use by another program; stop that one"
    )
    assert "; no forward" in said
    assert [listen for listen, _, _ in run.told] == [str(old), str(new)]
    run.direct.never_to(run.proxy)
    said = str(await run.forwards.change([table(run.proxy), table(old), table(new)]))
    assert said == (
        f", 2 forwards; no forward to {DATABASE}: {run.proxy} is where the proxy, the dashboard or another forward "
        "listens until a restart; give it another port"
    )
    with pytest.raises(CryprqError, match=r"with -L or \[\[forward\]\]$"):
        await run.forwards.start([table(taken)])


async def test_one_that_was_taken_is_tried_again(run: Running) -> None:
    [place] = free(1)
    with socket.create_server(place):
        assert (await run.forwards.change([table(place)])).failed
    assert str(await run.forwards.change([table(place)])) == f", 1 forward (new: {place})"


async def test_a_new_one_takes_no_more_connections_than_there_may_be(run: Running) -> None:
    [place] = free(1)
    first, second = RawClient(run.proxy), RawClient(run.proxy)
    await until(lambda: run.listener._connections == 2)
    await run.forwards.change([table(place)])
    third = RawClient(place)
    assert await third.is_ignored()
    assert run.targets == []
    first.sock.close()
    await until(lambda: run.targets == [DATABASE])
    second.sock.close()
    third.sock.close()


async def test_a_stop_while_one_is_opened_leaves_no_socket(
    run: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    [place] = free(1)
    loop = asyncio.get_running_loop()

    def stopped(address: Destination) -> socket.socket:
        asyncio.run_coroutine_threadsafe(run.listener.stop(), loop).result()
        return listening_socket(address)

    monkeypatch.setattr("cryprq_proxy.service.forwards.listening_socket", stopped)
    assert (await run.forwards.change([table(place)])).failed == (
        f"no forward to {DATABASE}: the client stops",
    )
    socket.create_server(place).close()


async def test_a_reload_of_a_client(files: RoleFiles) -> None:
    one, two = free(2)

    def config(listen: Destination, more: str = "") -> ClientConfig:
        return files.client(more, f'[[forward]]\nlisten = "{listen}"\nto = "{DATABASE}"\n')

    now = config(one)
    async with running(lambda stop: run_client(now, lambda: now, stop)):

        async def said() -> str:
            return str((await files.command("client", "reload"))["reloaded"])

        assert await said() == "0 rules, 0 listed names, 1 exit, 1 forward"
        now = config(two, "via = true\n")
        assert await said() == (
            f"0 rules, 0 listed names, 1 exit, 1 forward (new: {two}; removed: {one})"
            "; what else has changed in the configuration needs a restart: via"
        )
        RawClient(two).sock.close()
        with pytest.raises(ConnectionRefusedError):
            RawClient(one)
