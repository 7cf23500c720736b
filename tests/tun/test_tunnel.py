"""System-wide mode from its first change to its last: in which order, and what is left after a failure anywhere.

Whatever touches the system is a fake that writes down its step. The journal is a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.base import leftovers
from cryprq_proxy.errors import ConfigError, CryprqError
from cryprq_proxy.lane.slices import HEADROOM, Run, Shape
from cryprq_proxy.rules.engine import EVERYTHING, RuleSet
from cryprq_proxy.rules.lists import ListedNames
from cryprq_proxy.rules.syntax import Rule, RuleAction, Verdict
from cryprq_proxy.status import DeviceStatus, DnsStatus, KillSwitchStatus, RepairStatus, TunRules, TunStatus
from tests.support.fake_system import FILTER, ROUTES, FakeDevice, FakeSystem
from tests.support.settings import tunnel_settings
from tun import interface, tunnel
from tun.dns.names import from_text
from tun.journal import Journal
from tun.resolver.known_addresses import KnownAddresses
from tun.routing.exit_endpoints import MAX_ADDRESSES
from tun.routing.lan import Lan
from tun.settings import CLIENT_JOURNAL, MIN_MTU, MTU, SLICE_OVERHEAD
from tun.tunnel import Tunnel, TunnelPlan

EXIT = Destination("192.0.2.1", 4433)
OWN4, OWN6 = bytes([198, 18, 0, 7]), ip_address("fd63:7279:7071::7").packed


class Machine(FakeSystem):
    """The system, and fakes of what else the tunnel is made of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, state: Path) -> None:
        super().__init__(state)
        self.blocked_name: Callable[[bytes], bool]
        machine = self

        def build(settings: Any, *, also_blocks: Callable[[bytes], bool], **_: Any) -> FakeForwarder:
            machine.step(f"forwarder ipv6={settings.ipv6}")
            machine.blocked_name = also_blocks
            return FakeForwarder(machine)

        async def resolve_early(names: set[str], resolvers: Any, known: KnownAddresses, *, mark: int) -> None:
            machine.step(f"ask early for {' '.join(names)}")

        monkeypatch.setattr(tunnel, "resolve_early", resolve_early)
        for module in (interface, tunnel):
            monkeypatch.setattr(module, "Reconciler", FakeReconciler)
        monkeypatch.setattr(interface, "build", build)
        monkeypatch.setattr(interface, "DnsServer", lambda forwarder: FakeServer(machine))
        monkeypatch.setattr(leftovers, "claimed", lambda role: contextlib.nullcontext())


class FakeReconciler:
    def __init__(self, facts: list[Any]) -> None:
        self._facts = facts

    def status(self) -> tuple[RepairStatus, ...]:
        return tuple(RepairStatus(name=fact.name) for fact in self._facts)

    def wake(self) -> None: ...

    async def stop(self) -> None: ...


class FakeForwarder:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def status(self) -> DnsStatus:
        return DnsStatus(in_use="x")

    def block(self, names: ListedNames) -> None:
        self.machine.step(f"block {len(names)} names")

    def answer_own_name(self, address: IPv4Address | None) -> None:
        self.machine.step("own name" if address else "no own name")

    def link_lost(self) -> None:
        self.machine.step("link lost")

    def link_restored(self) -> None:
        self.machine.step("link restored")

    def offer_ipv6(self, offered: bool) -> None:
        self.machine.step(f"offer ipv6={offered}")

    def close(self) -> None:
        self.machine.step("close forwarder")


class FakeServer:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.hosts: list[str] = []
        self.port = 0

    async def listen(self, hosts: list[str], port: int) -> None:
        self.port = port
        for host in hosts:
            self.machine.step(f"listen {host}")
            self.hosts.append(host)

    def close(self) -> None:
        while self.hosts:
            self.machine.step(f"leave {self.hosts.pop(0)}")


class FakeClient:
    lane_size: int | None = None
    redials = 0

    def send_packet(self, *packet: Any) -> None: ...
    def open(self, destination: Any) -> None: ...
    def open_resolver(self) -> None: ...

    def redial(self) -> None:
        self.redials += 1


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path / "state")


class Wide:
    """The tunnel, up to whatever a test asks for."""

    def __init__(
        self, machine: Machine, *exits: Destination, rules: RuleSet = EVERYTHING, **settings: Any
    ) -> None:
        self.machine = machine
        self.client: Any = FakeClient()
        self.plan = TunnelPlan.of(
            machine, tunnel_settings(state=machine.state, **settings), exits or (EXIT,), rules
        )
        self.tunnel: Tunnel

    async def start(self) -> None:
        self.tunnel = await self.plan.start()

    async def up(self, ipv6: bytes = OWN6) -> FakeDevice:
        await self.start()
        return await self.run(ipv6)

    async def run(self, ipv6: bytes = OWN6) -> FakeDevice:
        self.tunnel.addressed(OWN4, ipv6)
        await self.tunnel.run(self.client)
        await self.settle()
        return self.machine.devices[-1]

    async def settle(self) -> None:
        """Let the tunnel's own tasks come to where they wait."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def close(self, error: BaseException | None = None) -> None:
        await self.tunnel.close(type(error) if error else None, error, None)


# --- the order ---


async def test_the_filter_is_first_in_and_last_out(machine: Machine) -> None:
    wide = Wide(machine)
    await wide.start()
    assert machine.take() == [
        "open device",
        "look",
        "filter up",
        "configure device",
        "routes",
        "choose resolver",
        "filter update",
    ]
    first = machine.filter.settings
    assert {(str(exit.address), exit.port) for exit in first.exits} == {("192.0.2.1", 4433)}
    assert (first.tunnel4, first.tunnel6, first.dns_port) == (None, None, None)

    wide.tunnel.addressed(OWN4, OWN6)
    await wide.tunnel.run(wide.client)
    assert machine.take() == [
        "configure device",
        "forwarder ipv6=True",
        "listen 198.18.0.7",
        "listen fd63:7279:7071::7",
        "filter update",
        "carry 46",
        "start device",
        "resolver 198.18.255.53 fd63:7279:7071::53",
    ]
    then = machine.filter.settings
    assert (str(then.tunnel4), str(then.tunnel6), then.dns_port) == ("198.18.0.7", "fd63:7279:7071::7", 1022)
    with pytest.raises(ConfigError):
        machine.journal()  # locked

    await wide.close()
    assert machine.take() == [
        "leave 198.18.0.7",
        "leave fd63:7279:7071::7",
        "close forwarder",
        "close device",
        "undo resolver",
        f"undo {ROUTES}",
        f"undo {FILTER}",
    ]
    assert machine.journal() == []


async def test_an_exit_without_ipv6(machine: Machine) -> None:
    wide = Wide(machine)
    await wide.up(bytes(16))
    assert {"forwarder ipv6=False", "listen 198.18.0.7", "resolver 198.18.255.53"} <= set(machine.steps)
    assert machine.routes.versions == {4}
    assert machine.filter.settings.tunnel6 is None
    await wide.close()


async def test_a_kernel_without_ipv6(machine: Machine) -> None:
    """What the exit offers of it is not used, also not later."""
    machine.ipv6 = False
    wide = Wide(machine)
    await wide.up()
    assert {"forwarder ipv6=False", "resolver 198.18.255.53"} <= set(machine.steps)
    assert machine.routes.versions == {4}
    machine.take()
    wide.tunnel.addressed(OWN4, OWN6)
    await wide.settle()
    assert machine.take() == []
    await wide.close()


@pytest.mark.parametrize(
    "step",
    ["open device", "look", "filter up", "configure device", "routes", "choose resolver", "filter update"],
)
async def test_a_failure_while_preparing_leaves_nothing(machine: Machine, step: str) -> None:
    machine.fails = step
    wide = Wide(machine)
    with pytest.raises(CryprqError, match=f"the kernel refused to {step}"):
        await wide.start()
    up = "filter up" in machine.steps or step == "filter up"
    assert (f"undo {FILTER}" in machine.steps) == up
    assert machine.journal() == []


@pytest.mark.parametrize(
    "step",
    [
        "configure device",
        "forwarder ipv6=True",
        "listen 198.18.0.7",
        "listen fd63:7279:7071::7",
        "filter update",
        "carry 46",
        "start device",
        "resolver 198.18.255.53 fd63:7279:7071::53",
    ],
)
async def test_a_failure_in_the_middle_undoes_everything(machine: Machine, step: str) -> None:
    wide = Wide(machine)
    await wide.start()
    wide.tunnel.addressed(OWN4, OWN6)
    machine.fails = step
    with pytest.raises(CryprqError, match=f"the kernel refused to {step}") as caught:
        await wide.tunnel.run(wide.client)
    await wide.close(caught.value)
    assert machine.steps[-1] == f"undo {FILTER}"
    for made, undone in (
        ("open device", "close device"),
        ("forwarder ipv6=True", "close forwarder"),
        ("listen 198.18.0.7", "leave 198.18.0.7"),
    ):
        assert machine.steps.count(made) == machine.steps.count(undone)
    assert machine.journal() == []


async def test_an_exit_that_hands_out_nothing_is_one_sentence(machine: Machine) -> None:
    wide = Wide(machine)
    await wide.start()
    machine.take()
    running = asyncio.ensure_future(wide.tunnel.run(wide.client))
    await asyncio.sleep(0)
    assert not running.done()
    wide.tunnel.addressed(bytes(4), bytes(16))
    with pytest.raises(CryprqError, match=r"^the exit carries no packets at the moment; its log says why$"):
        await running
    assert machine.take() == []
    await wide.close()


# --- what a killed process left ---


async def test_the_filter_of_a_killed_process_is_replaced_and_the_rest_undone(machine: Machine) -> None:
    with Journal(machine.state / CLIENT_JOURNAL) as journal:
        for kind in (FILTER, ROUTES, "resolver"):
            journal.record({"kind": kind})
    wide = Wide(machine)
    await wide.start()
    assert machine.filter.ours
    steps = machine.take()
    # Routes of before hold until there are new ones.
    assert steps[steps.index("filter up") + 1 :][:3] == ["undo resolver", "configure device", "routes"]
    assert f"undo {ROUTES}" not in steps
    assert f"undo {FILTER}" not in steps
    await wide.close()
    assert machine.journal() == []


async def test_a_start_that_fails_leaves_the_filter_of_a_killed_process(machine: Machine) -> None:
    with Journal(machine.state / CLIENT_JOURNAL) as journal:
        journal.record({"kind": FILTER})
    machine.fails = "choose resolver"
    with pytest.raises(CryprqError):
        await Wide(machine).start()
    assert f"undo {FILTER}" not in machine.steps
    assert set(machine.journal()) == {FILTER}


async def test_a_start_that_fails_leaves_the_filter_of_a_killed_process_without_a_journal(
    machine: Machine,
) -> None:
    machine.left_over = True
    machine.fails = "choose resolver"
    with pytest.raises(CryprqError):
        await Wide(machine).start()
    assert f"undo {FILTER}" not in machine.steps
    assert set(machine.journal()) == {FILTER}


async def test_lockdown_says_after_every_end_that_it_stands(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    """And then no part of the filter is left to the journal: the block has taken its place."""
    machine.locked_down = True
    for error in (None, CryprqError("the exit carries no packets")):
        wide = Wide(machine)
        await wide.start()
        wide.tunnel.fail_closed = error is not None
        await wide.close(error)
        assert caplog.messages[-1] == leftovers.LOCKDOWN_STANDS
        assert machine.take()[-1] == f"undo {FILTER}" and machine.journal() == []
        caplog.clear()


async def test_lockdown_and_a_kill_switch_that_is_off_exclude_each_other(machine: Machine) -> None:
    machine.locked_down = True
    with pytest.raises(ConfigError, match="lockdown off"):
        await Wide(machine, kill_switch=False).start()
    assert machine.steps == []


async def test_what_cannot_be_undone_is_kept_for_cleanup(machine: Machine) -> None:
    with Journal(machine.state / CLIENT_JOURNAL) as journal:
        journal.record({"kind": "of_the_future"})
        journal.record({"kind": ROUTES})
    machine.fails = f"undo {ROUTES}"
    wide = Wide(machine)
    await wide.start()
    with pytest.raises(CryprqError, match="not everything could be undone"):
        await wide.close()
    assert machine.journal() == ["of_the_future", ROUTES]


# --- an end that nobody asked for ---


@pytest.mark.parametrize(("kill_switch", "stays"), [(True, True), (False, False)])
async def test_the_kill_switch_outlives_a_failure(machine: Machine, kill_switch: bool, stays: bool) -> None:
    wide = Wide(machine, kill_switch=kill_switch)
    device = await wide.up()
    wide.tunnel.fail_closed = True
    waiting = asyncio.ensure_future(wide.tunnel.lost())
    await wide.settle()
    waiting.cancel()
    await wide.settle()
    device.on_lost(OSError(77, "File descriptor in bad state"))
    with pytest.raises(CryprqError, match="another program removed the device cryprq0") as caught:
        await wide.tunnel.lost()
    await wide.close(caught.value)
    assert (f"undo {FILTER}" not in machine.steps) == stays
    assert {"undo resolver", f"undo {ROUTES}"} <= set(machine.steps)
    assert machine.journal() == ([FILTER] if stays else [])


# --- while it runs ---


async def test_packets_go_to_the_device_once_there_is_one(machine: Machine) -> None:
    wide = Wide(machine)
    room, run = memoryview(bytearray(HEADROOM) + b"packet"), Run(Shape(0, 0, 0), 0, 1, 1)
    await wide.start()
    wide.tunnel.received(room, HEADROOM, len(room), run)
    device = await wide.run()
    wide.tunnel.received(room, HEADROOM, len(room), run)
    assert device.written == [b"packet"]
    await wide.close()


async def test_the_mtu_follows_the_lane(machine: Machine) -> None:
    wide = Wide(machine)
    device = await wide.up()
    for size, mtu in ((1400, 1400 - SLICE_OVERHEAD), (600, MIN_MTU), (9000, MTU), (None, MTU)):
        wide.client.lane_size = size
        wide.tunnel.lane_changed()
        await wide.settle()
        assert device.mtu == mtu
    await wide.close()


async def test_a_lane_that_changes_its_mind_at_once_gets_the_last_word(machine: Machine) -> None:
    wide = Wide(machine)
    device = await wide.up()
    device.gate = asyncio.Event()
    for size in (1300, 1500):
        wide.client.lane_size = size
        wide.tunnel.lane_changed()
        await wide.settle()
    device.gate.set()
    await wide.settle()
    assert device.mtu == MTU
    await wide.close()


async def test_other_addresses_move_everything(machine: Machine) -> None:
    wide = Wide(machine)
    device = await wide.up()
    machine.take()
    other = bytes([10, 9, 0, 5])
    wide.tunnel.addressed(OWN4, OWN6)
    await wide.settle()
    assert machine.take() == []
    wide.tunnel.addressed(other, bytes(16))
    await machine.reached("resolver 198.18.255.53")
    assert machine.take() == [
        "leave 198.18.0.7",
        "leave fd63:7279:7071::7",
        "offer ipv6=False",
        "configure device",
        "carry 4",
        "listen 10.9.0.5",
        "filter update",
        "resolver 198.18.255.53",
    ]
    assert device.addresses == ["10.9.0.5"]
    assert (str(machine.filter.settings.tunnel4), machine.filter.settings.tunnel6) == ("10.9.0.5", None)
    assert machine.routes.versions == {4}
    wide.tunnel.addressed(OWN4, OWN6)
    await machine.reached("resolver 198.18.255.53 fd63:7279:7071::53")
    assert "offer ipv6=True" in machine.take()
    assert machine.routes.versions == {4, 6}
    assert str(machine.filter.settings.tunnel6) == "fd63:7279:7071::7"
    await wide.close()


async def test_addresses_that_change_at_once_are_taken_one_after_the_other(machine: Machine) -> None:
    """An exit that is lost as soon as it has taken over: the last word counts, and no step comes between others."""
    wide = Wide(machine)
    device = await wide.up()
    machine.take()
    wide.tunnel.addressed(bytes([10, 9, 0, 5]), bytes(16))
    device.gate = asyncio.Event()
    await wide.settle()
    wide.tunnel.addressed(bytes([10, 9, 0, 6]), OWN6)
    await wide.settle()
    device.gate.set()
    while str(machine.filter.settings.tunnel4) != "10.9.0.6":
        await asyncio.sleep(0.001)
    await wide.close()
    listening = [step for step in machine.take() if step.startswith(("listen", "leave"))]
    assert listening == [
        *("leave 198.18.0.7", "leave fd63:7279:7071::7"),
        *("listen 10.9.0.5", "leave 10.9.0.5"),
        *("listen 10.9.0.6", "listen fd63:7279:7071::7"),
        *("leave 10.9.0.6", "leave fd63:7279:7071::7"),
    ]


@pytest.mark.parametrize(
    "step",
    ["configure device", "carry 4", "listen 10.9.0.5", "filter update", "resolver 198.18.255.53", "index"],
)
async def test_other_addresses_that_are_refused_at_first_are_tried_again(
    machine: Machine, step: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Else nobody would answer questions for names, or the filter would refuse all packets, until the next change."""
    monkeypatch.setattr(interface, "RETRY_SECONDS", 0.0)
    wide = Wide(machine)
    await wide.up()
    machine.fails = step
    machine.renamed = step == "index"
    wide.tunnel.addressed(bytes([10, 9, 0, 5]), bytes(16))
    while "could not follow the exit" not in caplog.text:
        await asyncio.sleep(0.001)
    await wide.settle()
    machine.fails = ""
    machine.take()
    machine.renamed = False
    await machine.reached("resolver 198.18.255.53")
    assert machine.devices[-1].addresses == ["10.9.0.5"]
    assert (str(machine.filter.settings.tunnel4), machine.filter.settings.tunnel6) == ("10.9.0.5", None)
    await wide.settle()
    assert (await wide.tunnel.status()).addresses == ("10.9.0.5",)
    assert caplog.text.count("could not follow the exit") == 1
    await wide.close()


async def test_addresses_that_change_during_the_start_are_not_forgotten(machine: Machine) -> None:
    wide = Wide(machine)
    await wide.start()
    wide.tunnel.addressed(OWN4, OWN6)
    machine.during["carry 46"] = lambda: wide.tunnel.addressed(bytes([10, 9, 0, 5]), OWN6)
    await wide.tunnel.run(wide.client)
    while machine.devices[-1].addresses != ["10.9.0.5", "fd63:7279:7071::7"]:
        await asyncio.sleep(0.001)
    assert "listen 198.18.0.7" in machine.steps
    await wide.close()


async def test_an_exit_that_stops_carrying_packets_changes_nothing_here(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    wide = Wide(machine)
    device = await wide.up()
    machine.take()
    wide.tunnel.addressed(bytes(4), bytes(16))
    await wide.settle()
    assert machine.take() == []
    assert device.addresses == ["198.18.0.7", "fd63:7279:7071::7"]
    assert "the exit carries no packets any more" in caplog.text
    await wide.close()


async def test_the_forwarder_hears_of_the_link(machine: Machine) -> None:
    wide = Wide(machine)
    await wide.start()
    wide.tunnel.link_changed(True)
    await wide.run()
    machine.take()
    wide.tunnel.link_changed(False)
    wide.tunnel.link_changed(True)
    assert machine.take() == ["link lost", "link restored"]
    await wide.close()


async def test_a_link_that_is_lost_during_the_start_is_told(machine: Machine) -> None:
    wide = Wide(machine)
    await wide.start()
    machine.during["carry 46"] = lambda: wide.tunnel.link_changed(False)
    await wide.run()
    assert machine.steps[-1] == "link lost"
    await wide.close()


async def test_filter_and_link_follow_the_networks_around(machine: Machine) -> None:
    wide = Wide(machine)
    await wide.up()
    await machine.routes.lan_changed(Lan((ip_network("10.1.0.0/16"),), (), frozenset({"wlan0"})))
    assert machine.filter.settings.lan == {ip_network("10.1.0.0/16")}
    assert machine.filter.settings.uplinks == {"wlan0"}
    machine.routes.uplink_changed()
    assert wide.client.redials == 1
    await wide.close()


async def test_a_network_that_comes_with_an_address_of_the_tunnel_brings_another_one(
    machine: Machine,
) -> None:
    """The exit hands out addresses with each carrier, and the present ones are refused then."""
    wide = Wide(machine)
    await wide.up()
    (own, *_) = (ip_network(address) for address in machine.devices[-1].addresses)
    before = wide.client.redials
    for attached, redials in (((), 0), ((own,), 1), ((own,), 1), ((), 1), ((own,), 2)):
        await machine.routes.lan_changed(Lan(attached=attached))
        assert wide.client.redials == before + redials
    taken = wide.tunnel.collisions(own.network_address.packed, bytes(16))
    assert list(taken) == [own]
    await wide.close()


# --- the exit's name ---


@pytest.mark.parametrize("left", ["", "journal", "table"])
async def test_a_name_is_asked_for_before_the_filter_closes_unless_one_stands(
    machine: Machine, left: str
) -> None:
    """With a table and no journal, as that of lockdown at a boot."""
    machine.left_over = left == "table"
    if left == "journal":
        with Journal(machine.state / CLIENT_JOURNAL) as journal:
            journal.record({"kind": FILTER})
    wide = Wide(machine, Destination("exit.example", 4433), EXIT)
    await wide.start()
    steps = machine.take()
    early = ["choose resolver", "ask early for exit.example"]
    assert steps[: steps.index("filter up")] == [
        "open device",
        "look",
        *([] if left else early),
    ]
    await wide.close()


async def test_the_filter_is_open_for_the_question_only(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = Wide(machine, Destination("exit.example", 4433))
    await wide.start()
    assert machine.filter.settings.exits == frozenset()
    machine.take()

    async def ask(name: str) -> tuple[str, ...]:
        async with wide.tunnel._kill_switch.open_for(["192.168.1.1", "fe80::1%eth0"]):
            machine.step(f"ask {name}")
        return ("192.0.2.7", "2001:db8::7")

    monkeypatch.setattr(wide.tunnel._bootstrap, "resolve", ask)
    assert await wide.tunnel.resolve("exit.example") == ("192.0.2.7", "2001:db8::7")
    assert machine.take() == ["open for 192.168.1.1, fe80::1", "ask exit.example", "closed", "filter update"]
    exits = {(str(exit.address), exit.port) for exit in machine.filter.settings.exits}
    assert exits == {("192.0.2.7", 4433), ("2001:db8::7", 4433)}
    await wide.close()


async def test_each_exit_keeps_its_own_addresses(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where two endpoints have one name, and where a name has moved while a link to its old address is up."""
    wide = Wide(
        machine,
        Destination("one.example", 4433),
        Destination("one.example", 443),
        Destination("two.example", 443),
        Destination("2001:db8::9", 80),
    )
    await wide.start()
    answers = {"one.example": ("192.0.2.1",), "two.example": ("192.0.2.2", "2001:db8::2")}

    async def resolve(name: str) -> tuple[str, ...]:
        return answers[name]

    def exits() -> set[str]:
        return {f"{exit.address} {exit.port}" for exit in machine.filter.settings.exits}

    monkeypatch.setattr(wide.tunnel._bootstrap, "resolve", resolve)
    assert exits() == {"2001:db8::9 80"}
    await wide.tunnel.resolve("one.example")
    await wide.tunnel.resolve("two.example")
    every = {
        *("192.0.2.1 4433", "192.0.2.1 443", "192.0.2.2 443"),
        *("2001:db8::2 443", "2001:db8::9 80"),
    }
    assert exits() == every
    answers["one.example"] = ("192.0.2.7",)
    assert await wide.tunnel.resolve("one.example") == ("192.0.2.7",)
    assert exits() == {*every, "192.0.2.7 4433", "192.0.2.7 443"}
    for number in range(2 * MAX_ADDRESSES):
        answers["one.example"] = (f"198.51.100.{number}",)
        await wide.tunnel.resolve("one.example")
    assert len(exits()) == 2 * MAX_ADDRESSES + 3
    assert "198.51.100.63 443" in exits()
    await wide.close()


async def test_what_an_exit_advertises_gets_out_only_where_it_did_before(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Addresses that the configuration names, and those of the names in it, with the ports there."""
    wide = Wide(machine, Destination("one.example", 4433), Destination("2001:db8::9", 80))
    await wide.start()

    async def resolve(name: str) -> tuple[str, ...]:
        return "192.0.2.1", "192.0.2.2"

    monkeypatch.setattr(wide.tunnel._bootstrap, "resolve", resolve)
    lets_out = wide.tunnel.lets_out
    named = Destination("2001:db8::9", 80)
    assert lets_out(named) and not lets_out(Destination("192.0.2.2", 4433))
    await wide.tunnel.resolve("one.example")
    before = machine.filter.settings
    assert lets_out(named) and lets_out(Destination("192.0.2.2", 4433))
    for other in [("192.0.2.3", 4433), ("192.0.2.2", 80), ("2001:db8::9", 4433), ("127.0.0.1", 4433)]:
        assert not lets_out(Destination(*other))
    assert machine.filter.settings == before, "nothing is opened"
    await wide.close()


# --- rules ---


def rules(*found: Rule, default: Verdict = Verdict.TUNNEL) -> RuleSet:
    return RuleSet(found, RuleAction(default))


BLOCK_ADS = Rule(
    action=RuleAction(Verdict.BLOCK), domains=(".ads.example",), cidrs=(ip_network("192.0.2.0/24"),)
)
ADS, OTHER = from_text("www.ads.example"), from_text("www.example")


async def test_rules_stand_from_the_first_moment(machine: Machine) -> None:
    wide = Wide(machine, rules=rules(BLOCK_ADS))
    await wide.up()
    (blocked,) = machine.filter.settings.rules.rules
    assert (blocked.verdict, blocked.networks) == (Verdict.BLOCK, (ip_network("192.0.2.0/24"),))
    assert (machine.blocked_name(ADS), machine.blocked_name(OTHER)) == (True, False)
    told = await wide.tunnel.status()
    assert told is not None
    assert told.rules == TunRules(rules=1, dns=1, filter=1, default="tunnel")
    await wide.close()


async def test_rules_are_replaced_while_it_runs(machine: Machine) -> None:
    wide = Wide(machine)
    await wide.up()
    assert not machine.blocked_name(ADS)
    machine.take()
    await wide.tunnel.apply_rules(rules(BLOCK_ADS))
    assert machine.take() == ["filter update"]
    assert machine.blocked_name(ADS)
    assert len(machine.filter.settings.rules.rules) == 1
    await wide.tunnel.apply_rules(EVERYTHING)
    assert not machine.blocked_name(ADS)
    assert not machine.filter.settings.rules
    await wide.close()


async def test_the_filter_follows_the_exits_of_another_configuration(machine: Machine) -> None:
    wide = Wide(machine)
    await wide.up()
    before = {(str(exit.address), exit.port) for exit in machine.filter.settings.exits}
    machine.take()
    places = [Destination("192.0.2.99", 4433), Destination("new.example", 443)]
    await wide.tunnel.follow_exits([*wide.tunnel._kill_switch.exits.configured, *places])
    assert machine.take() == ["filter update"]
    now = {(str(exit.address), exit.port) for exit in machine.filter.settings.exits}
    assert now == before | {("192.0.2.99", 4433)}
    await wide.tunnel.follow_exits(places[:1])
    assert {str(exit.address) for exit in machine.filter.settings.exits} == {"192.0.2.99"}
    assert wide.tunnel.lets_out(places[0])
    machine.take()
    await wide.tunnel.follow_exits(places[:1])
    assert machine.take() == [], "nothing has changed"
    await wide.close()


async def test_blocklists_are_read_and_then_put_in_force(machine: Machine, tmp_path: Path) -> None:
    wide = Wide(machine)
    await wide.start()
    early = await wide.tunnel.read_names([], ["early.example"], [])
    early()
    assert wide.tunnel._foundation.settings.dns.block == ("early.example",), "for the forwarder to come"
    await wide.run()
    machine.take()
    names = tmp_path / "names"
    names.write_text("ads.example\ntracker.example\n")
    block = await wide.tunnel.read_names([names], ["a.example"], [])
    assert machine.take() == []
    block()
    assert machine.take() == ["block 3 names"]
    with pytest.raises(ConfigError, match="cannot be read"):
        await wide.tunnel.read_names([tmp_path / "missing"], [], [])
    await wide.close()


async def test_rules_that_cannot_be_kept_or_set_change_nothing(machine: Machine) -> None:
    wide = Wide(machine, rules=rules(BLOCK_ADS), lan=False)
    await wide.up()
    machine.take()
    home = Rule(action=RuleAction(Verdict.EXIT, "home"), cidrs=(ip_network("10.0.0.0/8"),), name="the office")
    with pytest.raises(ConfigError, match='do not work with --tun: the office says "exit:home"'):
        await wide.tunnel.apply_rules(rules(home))
    with pytest.raises(ConfigError, match='the default "direct" lets out what --lan block is to keep in'):
        await wide.tunnel.apply_rules(rules(default=Verdict.DIRECT))
    machine.fails = "filter update"
    with pytest.raises(CryprqError, match="refused to filter update"):
        await wide.tunnel.apply_rules(EVERYTHING)
    machine.fails = ""
    assert machine.take() == []
    assert machine.blocked_name(ADS)
    assert len(machine.filter.settings.rules.rules) == 1
    await wide.close()


async def test_a_start_with_rules_that_cannot_be_kept(machine: Machine) -> None:
    with pytest.raises(ConfigError, match=r"rule 1 says \"direct\" for names"):
        Wide(machine, rules=rules(Rule(action=RuleAction(Verdict.DIRECT), domains=("corp.example",))))
    with pytest.raises(ConfigError, match='--include and the default "block" both say'):
        Wide(machine, rules=rules(default=Verdict.BLOCK), include=(ip_network("10.0.0.0/8"),))
    assert machine.steps == []


# --- commands ---


async def test_status(machine: Machine) -> None:
    wide = Wide(machine, exclude=(ip_network("10.0.0.0/8"),), exclude_uids=((5, 7),))
    await wide.start()
    early = await wide.tunnel.status()
    assert early is not None
    assert (early.device, early.addresses, early.dns) == (None, (), None)
    wide.tunnel.addressed(OWN4, OWN6)
    await wide.tunnel.run(wide.client)
    assert await wide.tunnel.status() == TunStatus(
        device=DeviceStatus(name="cryprq0"),
        addresses=("198.18.0.7", "fd63:7279:7071::7"),
        ipv6=True,
        kill_switch=KillSwitchStatus(on=True, standing=True, paused=3, kept_in={"dns": 4}),
        dns=DnsStatus(resolver="resolv.conf", in_use="x"),
        repairs=tuple(RepairStatus(name=name) for name in ("kill switch", "routes", "device", "resolver")),
        exits=(("192.0.2.1", 4433),),
        uplinks=("eth0",),
        lan=("192.168.1.0/24",),
        exclude=("10.0.0.0/8",),
        exclude_uids=((5, 7),),
        rules=TunRules(default="tunnel"),
    )
    await wide.close()


async def test_the_status_of_a_lan_that_is_blocked(machine: Machine) -> None:
    wide = Wide(machine, lan=False)
    await wide.up()
    told = await wide.tunnel.status()
    await wide.close()
    assert told is not None and told.lan == ()


async def test_a_pause_is_for_what_stands(machine: Machine) -> None:
    wide = Wide(machine)
    await wide.up()
    await wide.tunnel.pause(5)
    assert machine.steps[-3:] == ["pause 5", "routes aside 5", "resolver aside 5"]
    await wide.close()
    with pytest.raises(CryprqError, match="is being undone"):
        await wide.tunnel.pause(5)
    assert machine.steps[-1] == f"undo {FILTER}"


async def test_no_change_of_the_filter_comes_after_its_end(machine: Machine) -> None:
    """One that is under way on its thread when the end comes is waited for, also if who asked for it is cancelled."""
    wide = Wide(machine)
    await wide.up()
    machine.blocked = threading.Event()
    under_way = asyncio.ensure_future(wide.tunnel.pause(5))
    late = asyncio.ensure_future(wide.tunnel.pause(6))
    assert await asyncio.to_thread(machine.waits.wait, 20)
    under_way.cancel()
    closing = asyncio.ensure_future(wide.close())
    await wide.settle()
    assert not closing.done()
    machine.blocked.set()
    await closing
    with pytest.raises(asyncio.CancelledError):
        await under_way
    changes = [step for step in machine.steps if step.startswith(("pause", f"undo {FILTER}"))]
    assert changes[0] == "pause 5"
    assert changes[-1] == f"undo {FILTER}"
    with contextlib.suppress(CryprqError):
        await late


async def test_our_own_page_is_there_once_the_tunnel_is_up_and_gone_before_the_forwarder(
    machine: Machine,
) -> None:
    wide = Wide(machine)
    await wide.start()
    with pytest.raises(CryprqError, match="not up yet"):
        await wide.tunnel.open_page(lambda sock, host: None)
    await wide.run()
    machine.take()
    assert await wide.tunnel.open_page(lambda sock, host: None) == 300
    assert machine.filter.settings.page is not None
    await wide.close()
    assert machine.take()[:5] == [
        "filter update",
        "own name",
        "no own name",
        "filter update",
        "leave 198.18.0.7",
    ]
    assert machine.filter.settings.page is None
