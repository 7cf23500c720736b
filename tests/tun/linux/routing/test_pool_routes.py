"""The routes of an exit to its clients, on a kernel of lists."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address, ip_network
from socket import AF_INET, AF_INET6
from typing import Any

import pytest
from pyroute2 import NetlinkError

from cryprq_proxy.base.linux_marks import EXIT_PROTOCOL
from cryprq_proxy.errors import CryprqError
from tests.support.settings import exit_network_settings
from tun.linux.firewall import conntrack
from tun.linux.firewall.conntrack import Choose, CtEntry, Flow
from tun.linux.routing import kernel_state, pool_routes
from tun.linux.routing.pool_routes import KIND, UNDO, PoolRoutes, delete_pool_routes
from tun.linux.routing.table_routes import LAST_RESORT

ETH, TUN = 2, 9
SETTINGS = exit_network_settings()
POOLS = {str(SETTINGS.pool4): AF_INET, str(SETTINGS.pool6): AF_INET6}
UNREACHABLE = [f"unreachable {pool}" for pool in POOLS]
DEVICE = [f"{TUN} {pool}" for pool in POOLS]


class FakeKernel:
    """The tables of rtnetlink: routes as the arguments that set them, in their order."""

    def __init__(self) -> None:
        self.routes: list[dict[str, Any]] = []
        self.addresses: dict[int, tuple[str, int]] = {}
        self.up = True
        self.refuses = 0
        self.when_looked_at = 0
        """Looks after which the address's route comes."""
        self.record: list[Mapping[str, object]] = []

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[FakeKernel]:
        try:
            yield self
        except NetlinkError as error:
            raise AssertionError("no error may get here") from error

    def configure(self, *versions: int, routes: bool = True) -> None:
        """The device gets its addresses, and with them the kernel's routes."""
        own = {4: (str(SETTINGS.own4), 16), 6: (str(SETTINGS.own6), 64)}
        self.addresses = {version: own[version] for version in versions}
        if routes:
            for pool, family in POOLS.items():
                if (4 if family == AF_INET else 6) in versions:
                    self.add(pool, oif=TUN, priority=256 if family == AF_INET6 else 0)

    def add(self, prefix: str, **more: Any) -> None:
        family = AF_INET6 if ":" in prefix else AF_INET
        self.routes.append({"family": family, "dst": prefix, "table": 254, "proto": 2, **more})

    def drop(self, *shown: str) -> None:
        self.routes = [route for route in self.routes if self._show(route) not in shown]

    def shown(self) -> list[str]:
        return sorted(map(self._show, self.routes))

    @staticmethod
    def _show(route: dict[str, Any]) -> str:
        return f"{route.get('type', route.get('oif'))} {route['dst']}"

    async def rule(self, command: str, **_: Any) -> AsyncIterator[dict[str, Any]]:
        return self._dump([])

    async def link(self, command: str, **_: Any) -> AsyncIterator[dict[str, Any]]:
        named = ((ETH, "eth0", 1), (TUN, SETTINGS.device, int(self.up)))
        return self._dump(
            [{"index": i, "flags": flags, "attrs": [("IFLA_IFNAME", name)]} for i, name, flags in named]
        )

    async def addr(self, command: str, **_: Any) -> AsyncIterator[dict[str, Any]]:
        return self._dump(
            [
                {"index": TUN, "prefixlen": length, "scope": 0, "flags": 0, "attrs": [("IFA_ADDRESS", text)]}
                for text, length in self.addresses.values()
            ]
        )

    async def route(self, command: str, **arguments: Any) -> AsyncIterator[dict[str, Any]] | None:
        if command == "dump":
            if self.when_looked_at:
                self.when_looked_at -= 1
                if not self.when_looked_at:
                    self.configure(4)
            found = [route for route in self.routes if route["family"] == arguments["family"]]
            return self._dump([self._message(route) for route in found])
        if self.refuses:
            raise NetlinkError(self.refuses)
        same = [route for route in self.routes if self._key(route) == self._key(arguments)]
        for route in same:
            self.routes.remove(route)
        if command == "replace":
            self.routes.append(arguments)
        else:
            assert command == "del" and same
        return None

    @staticmethod
    def _key(route: dict[str, Any]) -> tuple[object, ...]:
        return route["dst"], route["table"], route.get("priority", 0)

    @staticmethod
    def _message(route: dict[str, Any]) -> dict[str, Any]:
        network = ip_network(route["dst"])
        attributes = [("RTA_DST", str(network.network_address)), ("RTA_PRIORITY", route.get("priority", 0))]
        attributes += [("RTA_OIF", route["oif"])] if "oif" in route else []
        attributes += [("RTA_GATEWAY", route["gateway"])] if "gateway" in route else []
        return {
            "family": route["family"],
            "flags": 0,
            "dst_len": network.prefixlen,
            "table": route["table"],
            "type": 7 if "type" in route else 1,
            "proto": route["proto"],
            "attrs": attributes,
        }

    @staticmethod
    async def _dump(messages: list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
        for message in messages:
            yield message


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    monkeypatch.setattr(kernel_state, "_versions", lambda: (4, 6))
    return FakeKernel()


async def applied(kernel: FakeKernel, *versions: int) -> PoolRoutes:
    routes = PoolRoutes(SETTINGS, kernel.opened)
    await routes.apply(kernel.record.append, ours=False)
    kernel.configure(*versions)
    routes.carry(ipv6=6 in versions)
    return routes


async def test_both_pools_are_unreachable_before_the_device_is_up(kernel: FakeKernel) -> None:
    kernel.up = False
    routes = await applied(kernel)
    assert kernel.record == [{"kind": KIND}]
    assert kernel.shown() == sorted(UNREACHABLE)
    assert {(route["priority"], route["proto"]) for route in kernel.routes} == {(LAST_RESORT, EXIT_PROTOCOL)}
    assert await routes.look() == ""
    await routes.apply(kernel.record.append, ours=True)
    assert kernel.record == [{"kind": KIND}]


async def test_each_route_comes_back(kernel: FakeKernel) -> None:
    routes = await applied(kernel, 4, 6)
    assert await routes.look() == ""
    for shown, words in zip(
        [*UNREACHABLE, *DEVICE],
        [f"the {kind} {pool} was removed" for kind in ("unreachable route of", "route to") for pool in POOLS],
        strict=True,
    ):
        before = kernel.shown()
        kernel.drop(shown)
        assert await routes.look() == words
        await routes.put_back()
        assert kernel.shown() == before
        assert await routes.look() == ""


async def test_one_that_was_replaced_is_replaced(kernel: FakeKernel) -> None:
    routes = await applied(kernel, 4, 6)
    for pool, (shown, metric) in zip(POOLS, zip(DEVICE, (0, 256), strict=True), strict=True):
        kernel.drop(shown)
        kernel.add(pool, oif=ETH, gateway="192.0.2.1" if metric == 0 else "2001:db8::1", priority=metric)
        assert f"the route to {pool} was removed" in await routes.look()
        await routes.put_back()
        assert await routes.look() == ""
    assert kernel.shown() == sorted([*UNREACHABLE, *DEVICE])


async def test_what_is_not_carried_needs_no_route_into_the_device(kernel: FakeKernel) -> None:
    routes = await applied(kernel, 4)
    assert await routes.look() == ""
    routes.carry(ipv6=True)
    assert await routes.look() == "", "there is no address for it"
    kernel.up = False
    kernel.drop(*DEVICE)
    assert await routes.look() == "", "the device comes first"


async def test_an_address_that_has_just_come(kernel: FakeKernel) -> None:
    """Its route comes after the routes were read."""
    routes = await applied(kernel)
    kernel.configure(4, routes=False)
    kernel.when_looked_at = 3
    assert await routes.look() == ""


@pytest.mark.parametrize(
    "more",
    [
        {"dst": "198.18.7.0/24", "oif": ETH},
        {"dst": "198.18.7.0/24", "oif": TUN, "gateway": "198.18.0.9"},
        {"dst": "198.18.0.0/17", "type": "blackhole"},
        {"dst": "fd63:7279:7071::/80", "oif": ETH, "gateway": "2001:db8::1"},
        {"dst": str(SETTINGS.pool6), "oif": ETH, "gateway": "2001:db8::1", "priority": 100},
    ],
)
async def test_a_route_of_another_program_is_named_and_stays(
    kernel: FakeKernel, more: dict[str, Any]
) -> None:
    routes = await applied(kernel, 4, 6)
    prefix = more.pop("dst")
    kernel.add(prefix, **more)
    kernel.drop(UNREACHABLE[0])
    assert f"there was a route to {prefix} past the device" in await routes.look()
    with pytest.raises(
        CryprqError, match=f"another program has a route to {prefix} past the device: .* no answers"
    ):
        await routes.put_back()
    assert UNREACHABLE[0] in kernel.shown(), "all else is put back"
    assert len(kernel.routes) == 5


@pytest.mark.parametrize(
    "more",
    [
        {"dst": "198.18.7.0/24", "oif": TUN},
        {"dst": "198.18.0.0/15", "oif": ETH},
        {"dst": "198.18.0.0/16", "oif": ETH, "priority": 50},
        {"dst": "198.18.7.0/24", "oif": ETH, "table": 100},
        {"dst": "0.0.0.0/0", "oif": ETH},
    ],
)
async def test_a_route_that_takes_no_answers_away(kernel: FakeKernel, more: dict[str, Any]) -> None:
    routes = await applied(kernel, 4, 6)
    kernel.add(more.pop("dst"), **more)
    assert await routes.look() == ""


async def test_a_list_of_foreign_routes_is_short(kernel: FakeKernel) -> None:
    routes = await applied(kernel, 4, 6)
    for number in range(20):
        kernel.add(f"198.18.{number}.0/24", oif=ETH)
    assert (await routes.look()).endswith("198.18.2.0/24 and 17 more past the device")


async def test_another_pool_than_the_earlier_ones(kernel: FakeKernel) -> None:
    kernel.add("198.19.0.0/16", type="unreachable", priority=LAST_RESORT, proto=EXIT_PROTOCOL)
    kernel.add("10.0.0.0/8", type="unreachable", priority=LAST_RESORT)
    await applied(kernel)
    assert kernel.shown() == sorted([*UNREACHABLE, "unreachable 10.0.0.0/8"])


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENETDOWN])
async def test_a_kernel_that_refuses(kernel: FakeKernel, code: int) -> None:
    kernel.refuses = code
    with pytest.raises(CryprqError, match="routes to clients"):
        await applied(kernel)


# --- the undo ---


def from_client(source: str) -> CtEntry:
    there, here = IPv4Address("93.184.20.10"), IPv4Address("5.75.10.2")
    return CtEntry(2, Flow(IPv4Address(source), there, 17, 5, 7), Flow(there, here, 17, 7, 5), 0, 0, b"")


def test_the_undo_forgets_connections_and_deletes_what_is_ours(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[Choose] = []
    monkeypatch.setattr(pool_routes, "open_kernel", kernel.opened)
    monkeypatch.setattr(conntrack, "delete", chosen.append)
    kernel.add("198.18.0.0/16", type="unreachable", priority=LAST_RESORT)
    assert not delete_pool_routes() and not chosen
    kernel.add("198.18.0.0/16", type="unreachable", priority=LAST_RESORT, proto=EXIT_PROTOCOL)
    kernel.routes[0]["priority"] = 5
    UNDO[KIND]({"kind": KIND})
    assert [route["priority"] for route in kernel.routes] == [5]
    (choose,) = chosen
    assert choose(from_client("198.18.9.9")) and not choose(from_client("198.19.0.1"))
    own = Flow(IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2"), 6, 1, 1)
    assert not choose(CtEntry(10, own, own, 0, 0, b""))
