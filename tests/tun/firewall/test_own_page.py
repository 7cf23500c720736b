"""Our own page in system-wide mode: when it is there, and where. Time flies, filter and forwarder are fakes."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv4Address
from typing import cast

import pytest

from cryprq_proxy.errors import CryprqError
from tests.support.dns_fakes import run
from tests.support.settle import until
from tun.dns.forwarder import Forwarder
from tun.firewall.filter_settings import PagePlace
from tun.firewall.kill_switch import KillSwitch
from tun.firewall.own_page import OPEN_SECONDS, OwnPage


class Around:
    """What the page changes: `place` in the filter, `answer` of the forwarder. `steps` has both in their order."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.place: PagePlace | None = None
        self.answer: IPv4Address | None = None
        self.trouble = ""
        self.visitors: list[socket.socket] = []
        self.page = OwnPage(cast(Forwarder, self), cast(KillSwitch, self))

    async def follow_page(self, page: PagePlace | None) -> None:
        await asyncio.sleep(0)
        if self.trouble:
            raise CryprqError(self.trouble)
        self.steps.append("filter" if page else "no filter")
        self.place = page

    def answer_own_name(self, address: IPv4Address | None) -> None:
        self.steps.append("name" if address else "no name")
        self.answer = address

    async def open(self) -> PagePlace:
        assert await self.page.open(lambda sock, host: self.visitors.append(sock)) == OPEN_SECONDS
        assert self.place is not None
        return self.place

    def connect(self) -> None:
        assert self.place is not None
        self.visitors.append(socket.create_connection((str(self.place.address), self.place.port)))

    def close(self) -> None:
        for sock in self.visitors:
            sock.close()


def test_it_is_there_for_some_minutes() -> None:
    async def main() -> None:
        around = Around()
        place = await around.open()
        assert around.answer == place.address and place.address.is_loopback
        assert place.address not in {IPv4Address("127.0.0.1"), IPv4Address("127.0.0.53")}
        around.connect()
        await until(lambda: len(around.visitors) == 2)
        await asyncio.sleep(OPEN_SECONDS - 1)
        assert around.answer is not None
        await asyncio.sleep(2)
        assert around.steps == ["filter", "name", "no name", "no filter"]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((str(place.address), place.port))
        around.close()

    run(main())


def test_who_asks_again_has_the_whole_time_and_the_same_place() -> None:
    async def main() -> None:
        around = Around()
        place = await around.open()
        await asyncio.sleep(OPEN_SECONDS - 1)
        assert await around.open() == place
        await asyncio.sleep(OPEN_SECONDS - 1)
        assert around.answer == place.address and around.steps == ["filter", "name"]
        await around.page.close()
        assert around.answer is None and around.place is None
        await around.page.close()
        await asyncio.sleep(2 * OPEN_SECONDS)
        assert around.steps == ["filter", "name", "no name", "no filter"]
        assert (await around.open()).address != place.address
        await around.page.close()

    run(main())


def test_two_who_ask_at_once_get_one_page() -> None:
    async def main() -> None:
        around = Around()
        first, second = await asyncio.gather(around.open(), around.open())
        assert first == second and around.steps == ["filter", "name"]
        await around.page.close()

    run(main())


def test_where_the_filter_cannot_be_changed() -> None:
    async def main() -> None:
        around = Around()
        around.trouble = "the kernel refused"
        with pytest.raises(CryprqError, match="the kernel refused"):
            await around.page.open(lambda sock, host: None)
        assert around.answer is None and around.steps == []
        around.trouble = ""
        await around.open()
        around.trouble = "the kernel refused"
        await around.page.close()
        assert around.answer is None, "without the name nobody finds it"

    run(main())
