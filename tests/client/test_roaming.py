"""A client that watches the addresses of its machine, and what it does when one is gone."""

from __future__ import annotations

import asyncio
import errno

import pytest

from cryprq_proxy.base.changes import NoChanges
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.carriers.lane.batch import UdpOffload
from cryprq_proxy.carriers.lane.client import ClientLane
from cryprq_proxy.client import link, roaming
from cryprq_proxy.client.roaming import follow_addresses
from tests.support.fake_exits import FakeExits
from tests.support.settle import until
from tests.support.web_links import Place, echoes, opened


class Looks:
    def __init__(self) -> None:
        self.count = 0

    def look_at_addresses(self) -> None:
        self.count += 1


async def test_each_change_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    told = asyncio.Semaphore(0)

    class Told(NoChanges):
        async def wait(self) -> None:
            await told.acquire()

    monkeypatch.setattr(roaming, "address_changes", Told)
    monkeypatch.setattr(roaming, "pause", lambda took: 0)
    looks = Looks()
    task = spawn(follow_addresses(looks), "addresses")
    for count in range(3):
        await asyncio.sleep(0)
        assert looks.count == count
        told.release()
        await until(lambda count=count: looks.count == count + 1)  # type: ignore[misc]
    task.cancel()


async def test_where_the_kernel_tells_nothing_there_is_nothing_to_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none() -> None:
        raise OSError(errno.EAFNOSUPPORT, "no netlink")

    monkeypatch.setattr(roaming, "address_changes", none)
    await follow_addresses(looks := Looks())
    assert not looks.count


async def test_the_links_of_all_exits_are_looked_at() -> None:
    world = FakeExits(2)
    world.exits.look_at_addresses()
    assert [client.looks for client in world.clients] == [1, 1]


async def test_without_a_path_the_lane_looks_for_its_address(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = here.client(here.endpoint("tcp"))
    await opened(client, here.echo)
    looks: list[ClientLane] = []
    monkeypatch.setattr(ClientLane, "look_at_address", lambda lane: looks.append(lane))
    packets = client._kept.packet_link
    assert packets is not None
    lane = packets.lane = ClientLane(asyncio.get_running_loop(), packets, UdpOffload(True, True, ""))
    client.look_at_addresses()
    assert not looks, "the path looks"
    monkeypatch.setattr(client._link, "paths", {})
    client.look_at_addresses()
    assert looks == [lane]


async def test_a_path_from_an_address_that_is_gone_is_left_for_a_new_one(
    here: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = here.client(here.endpoint("tcp"))
    app = await opened(client, here.echo)
    session, old = client._kept.session, client._link._used
    client.look_at_addresses()
    assert client._link._second.task is None
    asked = []

    def gone(address: str) -> bool:
        asked.append(address)
        return False

    monkeypatch.setattr(link, "is_this_machine", gone)
    with caplog.at_level("INFO"):
        client.look_at_addresses()
    assert asked == ["127.0.0.1"]
    assert f"the address is gone from which {here.endpoint('tcp')} was reached" in caplog.text
    await until(lambda: client._link._used is not old and len(client._link.paths) == 1)
    await echoes(app, b"hello")
    assert client._kept.session is session
