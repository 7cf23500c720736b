"""The client's routes on the fake Mac: set, kept through changes of network, and gone at the end."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from cryprq_proxy.errors import ConfigError, CryprqError
from tests.support.macos import disturbances, fake_route
from tests.support.macos.configd import Lease
from tests.support.macos.default import ADDRESS, ETHERNET, GATEWAY, WIFI
from tests.support.macos.machine import HOME, Answer, FakeMac
from tests.support.macos.state import Route
from tests.support.macos.utun_pair import UtunPair
from tests.support.settings import tunnel_settings
from tun.macos.device import Utun
from tun.macos.programs import Command, ProgramAnswer
from tun.macos.routing import MacRoutes
from tun.macos.wanted_routes import undo_route
from tun.routing.lan import Lan

EXIT4, EXIT6, NEAR = "203.0.113.9", "2001:db8:9::9", "192.168.1.77"
BOTH = frozenset({4, 6})
HALVES4, HALVES6 = ("0.0.0.0/1", "128.0.0.0/1"), ("::/1", "8000::/1")


class Killed(Exception):
    """The process has ended here."""


class Stage:
    """A Mac with a utun of ours and its routes."""

    def __init__(self, mac: FakeMac) -> None:
        self.mac = mac
        self.pair = UtunPair(mac)
        self.journal: list[Mapping[str, object]] = []
        self.lans: list[Lan] = []
        self.moves = 0
        self.device: Utun | None = None
        self.lives: float = float("inf")
        """Changing commands until the process is killed."""

    def run(self, command: Command) -> ProgramAnswer:
        if command.changes:
            if not self.lives:
                raise Killed
            self.lives -= 1
        return self.mac.run(command)

    def record(self, entry: Mapping[str, object]) -> None:
        self.journal.append(dict(entry))

    async def told(self, lan: Lan) -> None:
        self.lans.append(lan)

    def moved(self) -> None:
        self.moves += 1

    async def open(self, **settings: Any) -> MacRoutes:
        """The device without addresses, and the routes, not set yet."""
        self.device = Utun.open("utun", mtu=1412, run=self.run, control=self.pair)
        await self.device.configure(())
        chosen = tunnel_settings(device=self.device.name, **settings)
        routes = MacRoutes(chosen, BOTH, self.record, self.told, self.run)
        routes.uplink_changed = self.moved
        return routes

    async def up(self, versions: frozenset[int] = BOTH, **settings: Any) -> MacRoutes:
        routes = await self.open(**settings)
        await self.raised(routes, versions)
        return routes

    async def raised(self, routes: MacRoutes, versions: frozenset[int] = BOTH) -> None:
        """In the order of a start."""
        assert self.device is not None
        await routes.apply()
        await routes.follow_exits({ip_address(EXIT4), ip_address(EXIT6), ip_address(NEAR)})
        addresses = [ip_interface("198.18.0.2/32"), ip_interface("fd63::2/128")]
        await self.device.configure([one for one in addresses if one.version in versions])
        await routes.carry(versions)

    def end(self, undone: Callable[[int], bool] = lambda _: False) -> None:
        """The device goes, and the journal is undone, last entry first. `undone`: which entries are left out."""
        if self.device is not None:
            self.device.close()
            self.device = None
        if self.pair.name:
            self.pair.end()
        for number, entry in reversed(list(enumerate(self.journal))):
            if not undone(number):
                undo_route(entry, self.mac.run)

    def to(self, destination: str) -> Route:
        found = [
            each
            for each in self.mac.read().routes
            if each.destination == destination and "I" not in each.flags
        ]
        assert len(found) == 1, f"{destination}: {found}"
        return found[0]

    def leads(self, address: str) -> str:
        """The interface of a packet there; `refused` where there is none."""
        route = fake_route.best(self.mac.read(), ip_address(address))
        return "refused" if route is None or "R" in route.flags else route.interface


@pytest.fixture
def mac(tmp_path: Path) -> FakeMac:
    return FakeMac(tmp_path / "mac")


@pytest.fixture
def stage(mac: FakeMac) -> Iterator[Stage]:
    stage = Stage(mac)
    yield stage
    if stage.device is not None:
        stage.device.close()
    stage.pair.kernel.close()


async def test_all_goes_into_the_device_but_for_the_link_and_the_lan(stage: Stage) -> None:
    before = stage.mac.snapshot()
    routes = await stage.up()
    tun = stage.pair.name
    assert [stage.leads(one) for one in ("8.8.8.8", "198.51.100.1", "2001:db8:77::1")] == [tun] * 3
    assert [stage.leads(one) for one in (EXIT4, EXIT6, NEAR)] == ["en0"] * 3
    assert NEAR not in str(stage.journal)
    assert stage.to(f"{EXIT6}/128").gateway == "fe80::1%en0"
    assert await routes.look() == ""
    stage.end()
    assert stage.mac.snapshot() == before


async def test_packets_have_the_addresses_that_the_device_has_now(stage: Stage) -> None:
    """A route keeps the source that its device had when it was added: none at the start."""
    routes = await stage.up()
    assert [stage.to(half).source for half in HALVES4] == ["198.18.0.2"] * 2
    assert [stage.to(half).source for half in HALVES6] == ["fd63::2"] * 2
    assert stage.device is not None
    await stage.device.configure([ip_interface("198.18.0.9/32"), ip_interface("fd63::9/128")])
    # The routes went with the address; that was no other program.
    assert await routes.look() == ""
    assert [stage.to(half).source for half in HALVES4] == ["198.18.0.9"] * 2
    commands = len(stage.mac.commands())
    await routes.put_back()
    assert [line[2:4] for line in stage.mac.commands()[commands:] if "route" in line[0]] == []


async def test_a_family_that_the_exit_does_not_carry_is_refused(stage: Stage) -> None:
    before = stage.mac.snapshot()
    routes = await stage.up(frozenset({4}))
    assert stage.leads("2001:db8:77::1") == "refused"
    assert stage.leads(EXIT6) == "en0"
    await routes.carry(BOTH)
    assert stage.leads("2001:db8:77::1") == stage.pair.name
    await routes.carry(frozenset({4}))
    stage.end()
    assert stage.mac.snapshot() == before


async def test_without_a_network_the_link_does_not_enter_its_own_tunnel(stage: Stage) -> None:
    routes = await stage.up(exclude=(ip_network("198.51.100.0/24"),))
    disturbances.lose_network(stage.mac)
    await routes.look()
    assert [stage.leads(one) for one in (EXIT4, EXIT6, "198.51.100.1")] == ["refused"] * 3
    assert stage.moves == 0
    disturbances.come_home(stage.mac)
    assert await routes.look() == ""
    assert [stage.leads(one) for one in (EXIT4, EXIT6, "198.51.100.1")] == ["en0"] * 3


async def test_a_start_without_a_network_is_closed_and_follows_the_first_one(stage: Stage) -> None:
    disturbances.lose_network(stage.mac)
    before = stage.mac.snapshot()
    routes = await stage.up()
    assert [stage.leads(one) for one in (EXIT4, EXIT6)] == ["refused"] * 2
    disturbances.come_home(stage.mac)
    await routes.look()
    assert (stage.to(f"{EXIT4}/32").gateway, stage.moves) == (GATEWAY, 1)
    disturbances.lose_network(stage.mac)
    await routes.look()
    stage.end()
    assert stage.mac.snapshot() == before


async def test_the_same_gateway_behind_a_cable_is_another_one(stage: Stage) -> None:
    before = stage.mac.snapshot()
    routes = await stage.up()
    disturbances.plug_in(stage.mac, Lease("192.168.1.24/24", GATEWAY, [GATEWAY]))
    with stage.mac.change() as state:
        # The network of the primary interface is the one that all programs use.
        for route in state.routes:
            if route.interface == WIFI and route.destination in ("192.168.1.0/24", f"{GATEWAY}/32"):
                route.flags += "I"
    assert await routes.look() == ""
    assert (stage.to(f"{EXIT4}/32").interface, stage.moves) == (ETHERNET, 1)
    disturbances.pull_out(stage.mac)
    with stage.mac.change() as state:
        for route in state.routes:
            if route.interface == WIFI and route.destination in ("192.168.1.0/24", f"{GATEWAY}/32"):
                route.flags = route.flags.removesuffix("I")
    await routes.look()
    assert (stage.to(f"{EXIT4}/32").interface, stage.moves) == (WIFI, 2)
    stage.end()
    assert stage.mac.snapshot() == before


async def test_an_uplink_without_a_gateway_leads_out_by_its_interface(stage: Stage) -> None:
    routes = await stage.up()
    with stage.mac.change() as state:
        (default,) = (each for each in state.routes if each.destination == "0.0.0.0/0")
        default.gateway, default.flags = "link#6", "UCS"
    await routes.look()
    route = stage.to(f"{EXIT4}/32")
    assert (route.gateway, route.interface) == (WIFI, WIFI)
    await routes.put_back()
    stage.end()
    assert EXIT4 not in stage.mac.snapshot()


async def test_other_networks_are_told_and_followed(stage: Stage) -> None:
    routes = await stage.up(exclude=(ip_network("198.51.100.0/24"),))
    disturbances.roam(stage.mac)
    assert await routes.look() == ""
    assert [str(one) for one in stage.lans[-1].prefixes] == ["10.20.28.0/22", "fe80::/64"]
    assert stage.moves == 1
    assert {stage.to(one).gateway for one in (f"{EXIT4}/32", "198.51.100.0/24")} == {"10.20.28.1"}
    for _ in range(3):
        disturbances.come_home(stage.mac)
        await routes.look()
        disturbances.roam(stage.mac)
        await routes.look()
    # Networks that come and go are written down once: the prefix and the exits, of which one is near at home.
    assert len(stage.journal) == 6


async def test_what_others_remove_or_replace_is_put_back(stage: Stage) -> None:
    routes = await stage.up()
    disturbances.delete_routes(stage.mac, ["0.0.0.0/1", f"{EXIT4}/32"])
    assert await routes.look() == "the route to 0.0.0.0/1, the route to 203.0.113.9/32 removed"
    await routes.put_back()
    disturbances.replace_route(stage.mac, "128.0.0.0/1", GATEWAY, WIFI)
    assert await routes.look() == "the route to 128.0.0.0/1 removed"
    await routes.put_back()
    assert [stage.leads(one) for one in ("8.8.8.8", "198.51.100.1", EXIT4)] == [stage.pair.name] * 2 + ["en0"]
    assert await routes.look() == ""


async def test_only_included_prefixes_enter_and_excluded_ones_do_not(stage: Stage) -> None:
    include = tuple(map(ip_network, ("198.51.100.0/24", "10.1.0.0/16", "2001:db8:5::/48")))
    await stage.up(frozenset({4}), include=include, exclude=(ip_network("10.0.0.0/8"),))
    found = [stage.leads(one) for one in ("198.51.100.1", "10.1.0.1", "8.8.8.8", "2001:db8:5::1")]
    assert found == [stage.pair.name, "en0", "en0", "refused"]


async def test_another_vpn_that_comes_later_does_not_take_the_link(stage: Stage) -> None:
    routes = await stage.up()
    disturbances.other_vpn(stage.mac, default=True)
    await routes.look()
    assert [stage.leads(one) for one in (EXIT4, "8.8.8.8")] == ["en0", stage.pair.name]


async def test_a_pushed_route_is_named(stage: Stage) -> None:
    routes = await stage.up()
    (diverting,) = routes.facts(lambda: ())
    assert await diverting.look() == ""
    with stage.mac.change() as state:
        state.routes.append(Route("8.8.0.0/16", "192.168.1.254", WIFI, "UGSc"))
    assert "the route to 8.8.0.0/16 by en0 of another program lead past the tunnel" in await diverting.look()
    with pytest.raises(CryprqError, match="--exclude"):
        await diverting.put_back()


@pytest.mark.parametrize(
    "prefix", ["8.8.8.0/24", "10.8.0.0/16", "192.168.0.0/16", "169.0.0.0/8", "fd99::/64"]
)
async def test_a_pushed_route_on_the_link_is_named(prefix: str, stage: Stage) -> None:
    """Nothing of it is the LAN, which is the networks of this machine's addresses, so the filter holds it in."""
    routes = await stage.up()
    (diverting,) = routes.facts(lambda: ())
    with stage.mac.change() as state:
        state.routes.append(Route(prefix, "link#6", WIFI, "UCS"))
    assert f"the route to {prefix} by en0 of another program" in await diverting.look()


@pytest.mark.parametrize(
    "prefix", ["192.168.1.0/24", "192.168.1.40/32", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32"]
)
async def test_what_each_mac_has_on_the_link_is_not_named(prefix: str, stage: Stage) -> None:
    routes = await stage.up()
    (diverting,) = routes.facts(lambda: ())
    with stage.mac.change() as state:
        state.routes.append(Route(prefix, "link#6", WIFI, "UmCS"))
    assert await diverting.look() == ""


# --- bad input ---


@contextlib.contextmanager
def nothing_changes(mac: FakeMac) -> Iterator[None]:
    before = mac.snapshot()
    yield
    assert mac.snapshot() == before


async def test_a_start_beside_another_vpn_is_refused(stage: Stage) -> None:
    disturbances.other_vpn(stage.mac, default=True)
    routes = await stage.open()
    with nothing_changes(stage.mac), pytest.raises(ConfigError, match="another VPN has the default route"):
        await routes.apply()
    assert stage.journal == []


async def test_a_start_beside_another_programs_halves_is_refused(stage: Stage) -> None:
    name = disturbances.other_vpn(stage.mac)
    with stage.mac.change() as state:
        state.routes.append(Route("128.0.0.0/1", name, name, "USc"))
    routes = await stage.open()
    with nothing_changes(stage.mac), pytest.raises(ConfigError, match="end that VPN first"):
        await routes.apply()


@pytest.mark.parametrize(
    ("program", "answer"),
    [
        ("netstat", Answer(0, "")),
        ("netstat", Answer(0, "Routentabelle\n")),
        ("netstat", Answer(1, "", "netstat: sysctl: net.route.0.0.dump estimate")),
        ("ifconfig", Answer(0, "garbage\n")),
        ("ifconfig", Answer(0, "en0: flags=8863<UP> mtu 1500\n")),
    ],
)
async def test_an_unknown_answer_begins_nothing(stage: Stage, program: str, answer: Answer) -> None:
    routes = await stage.open()
    stage.mac.stand_ins[program] = lambda argv, stdin: answer
    with nothing_changes(stage.mac), pytest.raises(CryprqError):
        await routes.apply()
    assert stage.journal == []


async def test_a_route_that_the_kernel_refuses_is_said(stage: Stage) -> None:
    routes = await stage.open()
    refused = Answer(0, "", "route: writing to routing socket: No buffer space available\n")
    stage.mac.stand_ins["route"] = lambda argv, stdin: refused if "128.0.0.0/1" in argv else None
    with pytest.raises(CryprqError, match="No buffer space available"):
        await stage.raised(routes)
    # What does not depend on it stands.
    assert stage.leads("8.8.8.8") == stage.pair.name


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"prefix": "0.0.0.0/0", "gateway": "192.168.1.1"},
        {"prefix": "10.0.0.0/8", "gateway": "::1"},
        {"prefix": "10.0.0.0/8", "gateway": "-host"},
        {"prefix": "10.0.0.0/8", "gateway": "192.168.1.1", "uplink": "en0"},
        {"prefix": "10.0.0.0/8", "gateway": "", "uplink": "-x0"},
        {"prefix": "10.0.0.0/8", "gateway": "", "uplink": 7},
        {"prefix": 7, "gateway": ""},
    ],
)
def test_a_damaged_entry_runs_nothing(mac: FakeMac, entry: Mapping[str, object]) -> None:
    with pytest.raises(CryprqError, match="damaged"):
        undo_route({"kind": "mac_route", **entry}, mac.run)
    assert mac.commands() == []


async def test_undo_leaves_what_others_have_put_in_its_place(stage: Stage) -> None:
    await stage.up(frozenset({4}))
    disturbances.replace_route(stage.mac, f"{EXIT4}/32", "192.168.1.254", WIFI)
    disturbances.delete_routes(stage.mac, ["::/1"])
    stage.end()
    assert stage.to(f"{EXIT4}/32").gateway == "192.168.1.254"
    assert "8000::/1" not in stage.mac.snapshot()


# --- a kill anywhere ---


async def test_a_kill_before_any_change_leaves_what_the_journal_undoes(mac: FakeMac) -> None:
    before, lives = mac.snapshot(), 0
    while True:
        stage = Stage(mac)
        routes = await stage.open(exclude=(ip_network("198.51.100.0/24"), ip_network("2001:db8:5::/48")))
        stage.lives = lives
        try:
            await stage.raised(routes, frozenset({4}))
            done = True
        except Killed:
            done = False
        stage.end()
        assert mac.snapshot() == before, f"killed after {lives} changes"
        if done:
            break
        lives += 1
    assert lives > 10


async def test_an_undo_that_is_interrupted_is_done_by_the_next(stage: Stage) -> None:
    before = stage.mac.snapshot()
    await stage.up(frozenset({4}))
    stage.end(undone=lambda number: number % 2 == 0)
    assert stage.mac.snapshot() != before
    stage.end()
    stage.end()
    assert stage.mac.snapshot() == before


# --- whatever happens to the network ---

_EVENTS: Mapping[str, Callable[[FakeMac], None]] = {
    "roam": disturbances.roam,
    "come home": disturbances.come_home,
    "plug in": disturbances.plug_in,
    "pull out": disturbances.pull_out,
    "lose": disturbances.lose_network,
    "sleep": disturbances.sleep_and_wake,
    "renew": lambda mac: disturbances.renew(mac, HOME),
    "push": lambda mac: disturbances.renew(
        mac, Lease(f"{ADDRESS}/24", GATEWAY, [GATEWAY], pushed={"8.8.0.0/16": "192.168.1.254"})
    ),
    "flush": lambda mac: disturbances.delete_routes(
        mac, [*HALVES4, *HALVES6, f"{EXIT4}/32", f"{EXIT6}/128", "198.51.100.0/24"]
    ),
}


@pytest.mark.parametrize("seed", range(12))
async def test_after_any_changes_of_network_all_is_as_without_us(tmp_path: Path, seed: int) -> None:
    """The same happens to two machines; one of them has had our routes."""
    chance = random.Random(seed)
    mac = FakeMac(tmp_path / "mac")
    shutil.copytree(tmp_path / "mac", tmp_path / "other")
    other = FakeMac(tmp_path / "other")
    stage, log = Stage(mac), list[str]()
    versions = chance.choice((BOTH, frozenset({4})))
    routes = await stage.up(versions, exclude=(ip_network("198.51.100.0/24"),))
    for _ in range(8):
        name = chance.choice(list(_EVENTS))
        log.append(name)
        for machine in (mac, other):
            _EVENTS[name](machine)
        if chance.random() < 0.7 and await routes.look():
            await routes.put_back()
        if chance.random() < 0.3:
            # What is killed here leaves the journal as it stands.
            continue
        await routes.look()
        await routes.put_back()
        assert await routes.look() == "", log
        assert stage.leads("198.51.200.1") == stage.pair.name, log
        for address in (EXIT4, EXIT6, "198.51.100.1"):
            assert stage.leads(address) in ("en0", "en1", "refused"), log
    stage.end()
    assert mac.snapshot() == other.snapshot(), log
