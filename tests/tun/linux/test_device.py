"""The TUN device as it is configured and put back; the kernel's links and addresses are a fake that keeps state."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import Any, Self

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from cryprq_proxy.base import rtnetlink
from cryprq_proxy.errors import ConfigError
from tun.linux import device as linux
from tun.linux.device import Tun

INDEX = 7
IPV4, IPV6, FOREIGN = (
    IPv4Interface("198.18.0.2/32"),
    IPv6Interface("fd00::2/128"),
    IPv4Interface("10.0.0.1/24"),
)
UP, MULTICAST = 1, 1 << 12


class Message(dict[str, Any]):
    def get_attr(self, name: str) -> Any:
        return self.get(name)


class Kernel:
    """One device. `refuses`: the error code of each change of its IPv6 addresses; `keeps_name`: while it is up;
    `silent`: answers no question about the device."""

    def __init__(self) -> None:
        self.name, self.mtu, self.flags = "cryprq0", 1500, MULTICAST
        self.addresses: set[str] = set()
        self.refuses = 0
        self.gone = False
        self.keeps_name = False
        self.silent = False

    def __call__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def link(self, command: str, *, index: int, **values: Any) -> None:
        assert (command, index) == ("set", INDEX)
        if "gso_max_size" in values:
            raise NetlinkError(errno.EOPNOTSUPP, "an old kernel")
        if "change" in values:
            self.flags &= ~values["change"]
        if "state" in values:
            self.flags = self.flags | UP if values["state"] == "up" else self.flags & ~UP
        if "ifname" in values:
            if self.keeps_name and self.flags & UP:
                raise NetlinkError(errno.EBUSY, "it is up")
            self.name = values["ifname"]
        self.mtu = values.get("mtu", self.mtu)

    async def addr(self, command: str, *, index: int, address: str, prefixlen: int, **_: Any) -> None:
        assert index == INDEX
        if ":" in address and self.refuses:
            raise NetlinkError(self.refuses, "no IPv6")
        change = self.addresses.add if command == "add" else self.addresses.discard
        change(f"{address}/{prefixlen}")

    async def get_addr(self, *, index: int) -> AsyncIterator[Message]:
        async def dump() -> AsyncIterator[Message]:
            for text in sorted(self.addresses):
                address, _, length = text.partition("/")
                yield Message(IFA_ADDRESS=address, prefixlen=int(length))

        return dump()

    async def get_links(self, index: int) -> AsyncIterator[Message]:
        if self.gone:
            raise NetlinkError(errno.ENODEV, "No such device")
        if self.silent:
            await asyncio.Event().wait()

        async def dump() -> AsyncIterator[Message]:
            yield Message(IFLA_IFNAME=self.name, IFLA_MTU=self.mtu, flags=self.flags)

        return dump()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(rtnetlink, "AsyncIPRoute", kernel)
    return kernel


@pytest.fixture
async def device() -> AsyncIterator[Tun]:
    device = Tun(os.open(os.devnull, os.O_RDWR), "cryprq0", 1412, None, INDEX)
    yield device
    device.close()


async def test_it_has_what_it_was_given_and_nothing_else(kernel: Kernel, device: Tun) -> None:
    kernel.addresses = {str(FOREIGN)}
    assert await device.configure([IPV4, IPV6]) == (IPV4, IPV6)
    assert kernel.addresses == {str(IPV4), str(IPV6)}
    assert (kernel.mtu, kernel.flags) == (1412, UP)
    assert await device.difference() == ""


async def test_without_ipv6_it_has_the_rest(kernel: Kernel, device: Tun) -> None:
    kernel.refuses = errno.EACCES
    assert await device.configure([IPV4, IPV6]) == (IPV4,)
    assert await device.difference() == ""


async def test_a_refused_address_is_one_sentence(kernel: Kernel, device: Tun) -> None:
    kernel.refuses = errno.EPERM
    with pytest.raises(ConfigError, match=r"^cryprq0 cannot be set up .*: run as root$"):
        await device.configure([IPV4, IPV6])


@pytest.mark.parametrize("keeps_name", [False, True])
async def test_what_others_change_is_named_and_comes_back(
    kernel: Kernel, device: Tun, keeps_name: bool
) -> None:
    await device.configure([IPV4])
    kernel.keeps_name = keeps_name
    kernel.name, kernel.mtu, kernel.addresses = "other0", 900, {str(FOREIGN)}
    kernel.flags = MULTICAST | (UP if keeps_name else 0)
    found = await device.difference()
    down = "" if keeps_name else "it was down, "
    assert found == (
        f"it was renamed to other0, {down}it took multicast, its MTU was 900, "
        "the address 198.18.0.2/32 was removed, the address 10.0.0.1/24 was added"
    )
    await device.restore()
    assert await device.difference() == ""


async def test_the_mtu_follows_and_has_bounds(kernel: Kernel, device: Tun) -> None:
    await device.configure([IPV4])
    await device.set_mtu(1300)
    assert (kernel.mtu, device.mtu, await device.difference()) == (1300, 1300, "")
    with pytest.raises(ConfigError, match="the tunnel's MTU cannot be 100"):
        await device.set_mtu(100)


async def test_a_lost_answer_of_the_kernel_is_told_and_the_next_look_sees(
    kernel: Kernel, device: Tun, monkeypatch: pytest.MonkeyPatch
) -> None:
    await device.configure([IPV4])
    kernel.mtu, kernel.silent = 1300, True
    monkeypatch.setattr(linux, "SECONDS", 0.01)
    with pytest.raises(
        ConfigError, match=r"^cryprq0 cannot be read \(the kernel did not answer within 0.01 s\)$"
    ):
        await device.difference()
    monkeypatch.undo()
    monkeypatch.setattr(rtnetlink, "AsyncIPRoute", kernel)
    kernel.silent = False
    assert await device.difference() == "its MTU was 1300"
    await device.restore()
    assert await device.difference() == ""


async def test_a_device_that_is_gone_from_this_namespace_is_lost_once(kernel: Kernel) -> None:
    """Its descriptor still works where another program has moved it to another namespace."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        near.setblocking(False)
        device = Tun(os.dup(near.fileno()), "cryprq0", 1412, None, INDEX)
        kernel.gone = True
        # Before it is read, whoever sets it up is told.
        with pytest.raises(ConfigError, match=r"^another program removed the device cryprq0$"):
            await device.difference()
        lost: list[OSError] = []
        device.start(asyncio.get_running_loop(), lambda *packet: None, lambda: None, lost.append)
        for _ in range(2):
            with pytest.raises(ConfigError, match=r"^another program removed the device cryprq0$"):
                await device.difference()
        device.close()
    assert [error.errno for error in lost] == [errno.ENODEV]


@pytest.mark.parametrize(("switch", "versions"), [("0\n", {4, 6}), ("1\n", {4}), (None, {4})])
async def test_it_has_routes_of_the_versions_that_are_switched_on(
    device: Tun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switch: str | None, versions: set[int]
) -> None:
    path = tmp_path / "disable_ipv6"
    if switch is not None:
        path.write_text(switch)
    monkeypatch.setattr(linux, "_switch", lambda name: path)
    assert device.versions() == versions
