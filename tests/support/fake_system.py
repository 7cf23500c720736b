"""An operating system for system-wide mode that keeps its state in memory: device, filter, routes and resolver.

Each change is a step in `steps`, in its order. A test refuses one by `fails`, and lets something happen at one by
`during`. What is set stands until its kind of entry in the journal is undone.
"""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from ipaddress import IPv4Interface, IPv6Interface, ip_network
from pathlib import Path
from typing import Any

from cryprq_proxy.base.changes import NoChanges
from cryprq_proxy.base.paths import Role
from cryprq_proxy.errors import CryprqError
from cryprq_proxy.lane.slices import Run
from cryprq_proxy.status import DeviceStatus
from tun.firewall.filter_settings import FilterSettings
from tun.journal import Entry, Journal, Record
from tun.routing.lan import Lan
from tun.settings import CLIENT_JOURNAL, MTU, TunnelSettings
from tun.system import Count, LanChanged, System, Undo

FILTER, ROUTES, RESOLVER = "filter", "routes", "resolver"
"""The kinds of entries in the journal."""
LAN = Lan((ip_network("192.168.1.0/24"),), (), frozenset({"eth0"}))


class FakeSystem(System):
    """A machine around the tunnel, with its journal in `state`."""

    name = "a fake"
    mark = 7

    def __init__(self, state: Path) -> None:
        self.steps: list[str] = []
        self.fails = ""
        self.during: dict[str, Callable[[], None]] = {}
        """What else happens at a step, once."""
        self.state = state
        self.link_changes = self.filter_changes = NoChanges
        self.filter: FakeFilter
        self.devices: list[FakeDevice] = []
        self.routes: FakeRoutes
        self.standing = True
        self.left_over = False
        """Whether the filter that stands is one of ours, though no journal names it."""
        self.ipv6 = True
        self.blocked: threading.Event | None = None
        self.waits = threading.Event()
        self.locked_down = False
        self.renamed = False
        """Whether another program has given the device another name."""

    def step(self, what: str) -> None:
        if what == self.fails:
            raise CryprqError(f"the kernel refused to {what}")
        self.steps.append(what)
        self.during.pop(what, lambda: None)()

    async def reached(self, step: str) -> None:
        """Waits for a step that is made after a change of the filter, which is made on a thread."""
        while step not in self.steps:
            await asyncio.sleep(0.001)

    def take(self) -> list[str]:
        steps, self.steps = self.steps, []
        return steps

    def journal(self) -> list[str]:
        with Journal(self.state / CLIENT_JOURNAL) as journal:
            return [entry["kind"] for entry in journal.entries()]

    # --- the System ---

    def open_device(self, settings: Any) -> Any:
        return FakeDevice(self, settings.device)

    async def read_lan(self, own: str) -> Lan:
        self.step("look")
        return LAN

    def routing(
        self, settings: TunnelSettings, versions: frozenset[int], record: Record, lan_changed: LanChanged
    ) -> Any:
        return FakeRoutes(self, versions, record, lan_changed)

    async def resolver(self, record: Record, *, leave: bool, state: Path) -> Any:
        self.step("choose resolver")
        return FakeResolver(self, record)

    def packet_filter(
        self, settings: FilterSettings, record: Record, *, ours: bool, keep_inbound: bool
    ) -> Any:
        record({"kind": FILTER})
        self.filter = FakeFilter(self, settings, ours=ours)
        self.step("filter up")
        return self.filter

    def filter_left(self, *, recorded: bool) -> bool:
        return self.standing and (recorded or self.left_over)

    def lockdown(self, state: Path) -> FakeLockdown:
        return FakeLockdown(self.locked_down)

    def forwarder_places(
        self, addresses: Sequence[IPv4Interface | IPv6Interface]
    ) -> tuple[Sequence[str], int]:
        return [str(interface.ip) for interface in addresses], 1022

    def undo(self, role: Role, state: Path) -> Undo:
        kinds = (FILTER, ROUTES, RESOLVER)
        return Undo(
            dict.fromkeys(kinds, self._undo),
            FILTER,
            ROUTES,
            by_mark=(),
            stands=lambda: False,
            lost=lambda known: "",
            settings="setting",
        )

    def _undo(self, entry: Entry) -> None:
        self.step(f"undo {entry['kind']}")


class FakeLockdown:
    def __init__(self, on: bool) -> None:
        self.on = on

    def keep(self, at_rest: Any) -> None: ...


class FakeFilter:
    def __init__(self, system: FakeSystem, settings: FilterSettings, *, ours: bool) -> None:
        self.system, self.settings, self.ours = system, settings, ours

    def update(self, settings: FilterSettings) -> bool:
        if settings == self.settings:
            return False
        self.system.step("filter update")
        self.settings = settings
        return True

    def standing(self) -> bool:
        return self.system.standing

    def restore(self) -> None:
        self.system.step("filter restored")
        self.system.standing = True

    def ended(self) -> Callable[[], object]:
        """As if conntrack were empty."""
        return lambda: 0

    def at_rest(self) -> None:
        """There is no lockdown."""

    def paused(self) -> int:
        return 3

    def counters(self) -> dict[str, Count]:
        return {"dns": Count(4, 400)}

    def pause(self, seconds: int) -> None:
        if self.system.blocked is not None:
            self.system.waits.set()
            assert self.system.blocked.wait(20)
        self.system.step(f"pause {seconds}")

    @contextmanager
    def resolving(self, resolvers: Any) -> Iterator[None]:
        self.system.step(f"open for {', '.join(map(str, resolvers))}")
        try:
            yield
        finally:
            self.system.step("closed")


class FakeDevice:
    def __init__(self, system: FakeSystem, name: str) -> None:
        system.step("open device")
        system.devices.append(self)
        self.system, self.name, self.mtu = system, name, MTU
        self.written: list[bytes] = []
        self.addresses: list[str] = []
        self.gate: asyncio.Event | None = None
        self.closed = False

    def index(self) -> int:
        if self.system.renamed:
            raise OSError(errno.ENODEV, "No such device")
        return 7

    async def configure(self, interfaces: list[Any]) -> tuple[Any, ...]:
        if self.gate is not None:
            await self.gate.wait()
        self.system.step("configure device")
        configured = tuple(each for each in interfaces if each.version == 4 or self.system.ipv6)
        self.addresses = [str(each.ip) for each in configured]
        return configured

    def start(self, loop: Any, on_packet: Any, drained: Any, lost: Callable[[OSError], None]) -> None:
        self.system.step("start device")
        self.on_packet, self.on_lost = on_packet, lost

    def versions(self) -> frozenset[int]:
        return frozenset({4, 6})

    async def set_mtu(self, mtu: int) -> None:
        if self.gate is not None:
            await self.gate.wait()
        self.system.step(f"mtu {mtu}")
        self.mtu = mtu

    def write_run(self, buffer: memoryview, start: int, end: int, run: Run) -> bool:
        self.written.append(bytes(buffer[start:end]))
        return True

    def status(self) -> DeviceStatus:
        return DeviceStatus(name="cryprq0")

    def close(self) -> None:
        if not self.closed:
            self.system.step("close device")
        self.closed = True


class FakeRoutes:
    name = "routes"

    def __init__(
        self,
        system: FakeSystem,
        versions: frozenset[int],
        record: Any,
        lan_changed: LanChanged,
    ) -> None:
        system.routes = self
        self.system, self.versions, self.record = system, versions, record
        self.lan_changed = lan_changed
        self.uplink_changed: Callable[[], None] = lambda: None
        self.exits: set[str] = set()

    async def apply(self, *, ours: bool) -> None:
        if not ours:
            self.record({"kind": ROUTES})
        self.system.step("routes")

    def facts(self, exits: Any) -> tuple[()]:
        return ()

    async def follow_exits(self, addresses: Any) -> None:
        self.exits = set(map(str, addresses))

    @asynccontextmanager
    async def past(self, addresses: Any) -> AsyncIterator[None]:
        yield

    async def stand_aside(self, seconds: int) -> None:
        self.system.step(f"routes aside {seconds}")

    async def close(self) -> None: ...

    async def carry(self, versions: frozenset[int]) -> None:
        self.versions = versions
        self.system.step(f"carry {''.join(map(str, sorted(versions)))}")


class FakeResolver:
    name = "resolver"
    kind = "resolv.conf"

    def __init__(self, system: FakeSystem, record: Any) -> None:
        self.system, self.record = system, record

    async def set(self, addresses: list[str], index: int, name: str) -> None:
        self.record({"kind": RESOLVER})
        self.system.step(f"resolver {' '.join(addresses)}")

    async def stand_aside(self, seconds: int) -> None:
        self.system.step(f"resolver aside {seconds}")

    async def close(self) -> None: ...

    def upstreams(self) -> tuple[str, ...]:
        return ("192.168.1.1", "fe80::1%eth0")
