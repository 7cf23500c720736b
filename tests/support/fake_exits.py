"""Exits whose links a test holds in its hands, on a clock that the test moves."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

from cryprq_proxy.address import Destination
from cryprq_proxy.carriers.dial.endpoint import Endpoint
from cryprq_proxy.client.exit_entry import ExitEntry, PlannedExit
from cryprq_proxy.client.exits import Exits
from cryprq_proxy.client.packet_ports import ExitPort
from cryprq_proxy.client.requests import ClientObserver, StreamRequest
from cryprq_proxy.client.settings import ClientSettings
from cryprq_proxy.crypto.identity import PeerId
from cryprq_proxy.errors import CryprqError, StreamReason
from cryprq_proxy.lane.slices import Run, Shape
from cryprq_proxy.rules.ranges import IPNetwork
from cryprq_proxy.session.retention import SlotPool
from cryprq_proxy.session.session import SessionLimits
from cryprq_proxy.session.wire import StreamProtocol
from cryprq_proxy.status import ClientStatus, Traffic
from tests.support.links import TARGET, App
from tests.support.settings import client_settings

WAIT, FAILBACK = 10.0, 30.0
PEER = PeerId(bytes(32))
ENDPOINTS = (Endpoint("tcp", Destination("192.0.2.1", 4433)),)


class Timers:
    """A loop's clock and timers, moved by `advance`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._due: list[tuple[float, int, Callable[[], object], list[bool]]] = []
        self._count = count()

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[..., object], *arguments: Any) -> Any:
        live = [True]
        heapq.heappush(self._due, (when, next(self._count), partial(call, *arguments), live))  # type: ignore[misc]

        class Handle:
            def cancel(self) -> None:
                live[0] = False

        return Handle()

    def call_later(self, delay: float, call: Callable[[], None]) -> Any:
        return self.call_at(self.now + delay, call)

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self._due and self._due[0][0] <= end:
            when, _, call, live = heapq.heappop(self._due)
            self.now = max(self.now, when)
            if live[0]:
                call()
        self.now = end


class FakeStream:
    """A stream of a session, as far as it is looked at from outside."""

    def __init__(self, client: FakeClient, request: StreamRequest) -> None:
        self._client = client
        self.id = client.last = client.last + 1
        self.label = request
        self.handler = request.handler
        self.opened = False
        self.sent = 0
        self.received = 0
        self.ended: StreamReason | None = None
        self.datagrams: list[tuple[Destination, bytes]] = []

    def reset(self, reason: StreamReason) -> None:
        self.ended = reason
        self._client.open.remove(self)

    def accept(self) -> None:
        """As the exit."""
        self.opened = True
        self.handler.opened()

    def send_datagram(self, destination: Destination, payload: bytes) -> None:
        assert self.opened
        self.datagrams.append((destination, payload))


class FakeClient:
    """A Client whose link the test holds in its hands. It answers probes unless it is `mute`."""

    def __init__(self, timers: Timers, settings: ClientSettings | None = None) -> None:
        self._timers = timers
        self.settings = settings or client_settings(PEER, ENDPOINTS)
        self.waiting: list[StreamRequest] = []
        self.retiring = False
        self.ran_out = asyncio.Event()
        self.stopped = False
        self.up = False
        self.opens = False
        self.mute = False
        self.heard = 0.0
        self.round_trip: float | None = 0.05
        self.least_round_trip: float | None = 0.05
        self.observer = ClientObserver()
        self.open: list[FakeStream] = []
        self.last = 0
        self.probes = 0
        self.redials = 0
        self.looks = 0
        self.packets: list[bytes] = []
        self.early = 0
        self.early_refused: Counter[Any] = Counter()
        self.lane_size: int | None = None
        self.failing: CryprqError | None = None
        self.ended = asyncio.Event()

    @property
    def requests(self) -> list[StreamRequest]:
        return [stream.label for stream in self.open]

    def link(self, up: bool) -> None:
        self.up = up
        if up:
            self.heard = self._timers.now
        self.observer.changed()

    def start(self, request: StreamRequest) -> None:
        stream = FakeStream(self, request)
        self.open.append(stream)
        request.begin(stream)  # type: ignore[arg-type]

    def streams(self) -> list[FakeStream]:
        return self.open

    def stream(self, id: int) -> FakeStream | None:
        return next((stream for stream in self.open if stream.id == id), None)

    @property
    def open_streams(self) -> int:
        return len(self.open)

    def measure(self) -> None:
        self.probes += 1
        if self.up and not self.mute:
            self.heard = self._timers.now

    def withdraw(self) -> list[StreamRequest]:
        movable = [stream for stream in self.open if not stream.label.exit]
        for stream in movable:
            if not stream.opened:
                stream.reset(StreamReason.CANCELLED)
            elif stream.label.protocol is StreamProtocol.UDP:
                stream.reset(StreamReason.CANCELLED)
                stream.handler.reset(StreamReason.SESSION_LOST)
        return [stream.label for stream in movable if not stream.opened]

    def send_packet(self, buffer: memoryview, start: int, end: int, shape: Shape) -> None:
        self.packets.append(bytes(buffer[start:end]))

    def redial(self) -> None:
        self.redials += 1

    def look_at_addresses(self) -> None:
        self.looks += 1

    def refused(self) -> Counter[Any]:
        return Counter()

    def traffic(self) -> Traffic:
        return Traffic(sent=1, received=2)

    def status(self) -> ClientStatus:
        return ClientStatus(link="up" if self.up else "down", carriers=1, bytes=self.traffic(), rotations=3)

    def take_limits(self, limits: SessionLimits) -> None:
        self.settings = replace(self.settings, limits=limits)

    def retire(self) -> list[StreamRequest]:
        self.up, self.retiring = False, True
        return self.waiting

    async def retired(self) -> None:
        await self.ran_out.wait()

    async def run(self) -> None:
        if self.failing is not None:
            raise self.failing
        await self.ended.wait()

    async def stop(self) -> None:
        self.ended.set()
        self.ran_out.set()
        self.stopped = True


class FakeInterface:
    """The network of system-wide mode: writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def received(self, buffer: memoryview, start: int, end: int, run: Run) -> None:
        self.told.append(bytes(buffer[start:end]))

    def addressed(self, ipv4: bytes, ipv6: bytes) -> None:
        self.told.append(("addressed", ipv4))

    def collisions(self, ipv4: bytes, ipv6: bytes) -> list[IPNetwork]:
        return []

    def lets_out(self, address: Destination) -> bool:
        return True

    def link_changed(self, up: bool) -> None:
        self.told.append(("link", up))

    def lane_changed(self) -> None:
        self.told.append("lane")

    def take(self) -> list[Any]:
        told, self.told = self.told, []
        return told


class FakeExits:
    """Exits called a, b, c with priorities 1, 2, 3."""

    def __init__(self, number: int = 2, ports: list[ExitPort] | None = None) -> None:
        self.timers = Timers()
        self.clients = [FakeClient(self.timers) for _ in range(number)]
        entries = [
            ExitEntry("abc"[index], index + 1, client, None if ports is None else ports[index])  # type: ignore[arg-type]
            for index, client in enumerate(self.clients)
        ]
        self.exits = Exits(
            entries,
            SlotPool(),
            wait_for_link=WAIT,
            failback=FAILBACK,
            clock=self.timers.time,
            loop=self.timers,  # type: ignore[arg-type]
        )
        if number > 1:
            self.exits._tick()

    def up(self, *names: str) -> None:
        for name in names:
            self.clients["abc".index(name)].link(True)

    def make(self, plan: PlannedExit) -> ExitEntry:
        """As entry_maker's; the client is the last one of `clients`."""
        self.clients.append(FakeClient(self.timers, plan.settings))
        return ExitEntry(plan.name, plan.priority, self.clients[-1])  # type: ignore[arg-type]

    def ask(self, exit: str = "") -> App:
        app = App()
        self.exits.start(StreamRequest(StreamProtocol.TCP, TARGET, app, lambda stream: None, exit))
        return app

    def served(self) -> list[int]:
        return [len(client.open) for client in self.clients]
