"""Several exits as one: who gets a request, who waits, what moves at a fail-over, what the interface hears of it."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.client.exits import ExitEntry, Exits
from cryprq_proxy.client.observer import ClientObserver
from cryprq_proxy.client.packet_ports import ExitPort
from cryprq_proxy.client.requests import StreamRequest
from cryprq_proxy.client.selection import SILENT_SECONDS
from cryprq_proxy.errors import ConfigError, CryprqError, StreamReason, StreamRefused
from cryprq_proxy.lane.slices import PLAIN, Run, Shape
from cryprq_proxy.session.sendlog import SlotPool
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.links import App

TARGET = Destination("192.0.2.1", 443)
WAIT, FAILBACK = 10.0, 30.0


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
        heapq.heappush(self._due, (when, next(self._count), partial(call, *arguments), live))

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

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self.up = False
        self.mute = False
        self.heard = 0.0
        self.round_trip: float | None = 0.05
        self.least_round_trip: float | None = 0.05
        self.observer = ClientObserver()
        self.open: list[FakeStream] = []
        self.last = 0
        self.probes = 0
        self.redials = 0
        self.packets: list[bytes] = []
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
        self.observer.link_changed()

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

    def refused(self) -> Counter[Any]:
        return Counter()

    def status(self) -> dict[str, Any]:
        return {
            "link": "up" if self.up else "down",
            "exit": {"peer_id": "id", "address": "exit.example:4433"},
            "last_error": None,
            "session": None,
            "carriers": 1,
            "waiting": 0,
            "bytes": {"sent": 1, "received": 2},
            "rotations": 3,
        }

    async def run(self) -> None:
        if self.failing is not None:
            raise self.failing
        await self.ended.wait()

    async def stop(self) -> None:
        self.ended.set()


class World:
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

    def ask(self, exit: str = "") -> App:
        app = App()
        self.exits.request(StreamProtocol.TCP, TARGET, app, lambda stream: None, exit)
        return app

    def served(self) -> list[int]:
        return [len(client.open) for client in self.clients]


@pytest.fixture
async def world() -> World:
    return World()


REFUSED = [("refused", StreamReason.LINK_DOWN)]


async def test_new_streams_go_to_the_preferred_exit(world: World) -> None:
    world.up("b", "a")
    world.ask()
    assert world.served() == [1, 0]


async def test_requests_wait_for_whichever_comes_first(world: World) -> None:
    app = world.ask()
    world.timers.advance(WAIT - 1)
    assert not app.events
    world.up("b")
    assert world.served() == [0, 1]


async def test_the_wait_is_bounded(world: World) -> None:
    first = world.ask()
    world.timers.advance(1.0)
    second = world.ask()
    world.timers.advance(WAIT - 0.5)
    assert (first.events, second.events) == (REFUSED, [])
    world.timers.advance(1.0)
    assert second.events == REFUSED
    assert world.exits.refused() == {StreamReason.LINK_DOWN: 2}


async def test_a_lost_link_sends_new_streams_elsewhere_at_once(world: World) -> None:
    world.up("a", "b")
    world.clients[0].link(False)
    world.ask()
    assert world.served() == [0, 1]


async def test_a_silent_exit_is_found_out_by_probes(world: World) -> None:
    world.up("a", "b")
    world.timers.advance(20.0)
    assert world.exits.active.name == "a"
    assert world.clients[0].probes == pytest.approx(20, abs=2)
    world.clients[0].mute = True
    world.timers.advance(SILENT_SECONDS + 0.1)
    world.ask()
    assert world.served() == [0, 1]
    assert [entry["healthy"] for entry in world.exits.status()] == [False, True]


async def test_what_an_exit_refuses_because_it_shuts_down_moves(world: World) -> None:
    world.up("a", "b")
    world.ask()
    world.ask("a")
    anywhere, by_name = world.clients[0].requests
    world.clients[0].open.clear()
    assert not world.clients[0].observer.take_over(by_name)
    world.clients[0].link(False)  # what the Client says of an exit that shuts down
    assert world.clients[0].observer.take_over(anywhere)
    assert world.clients[1].requests == [anywhere]
    world.clients[1].link(False)
    assert not world.clients[1].observer.take_over(anywhere), "there is nobody else"


async def test_what_the_lost_exit_has_not_answered_moves(world: World) -> None:
    world.up("a", "b")
    world.ask()
    world.ask()
    world.clients[0].open[0].opened = True
    unanswered = world.clients[0].requests[1]
    world.clients[0].link(False)
    assert world.served() == [1, 1]
    assert world.clients[1].requests == [unanswered]


async def test_unanswered_requests_stay_while_nobody_could_serve_them(world: World) -> None:
    world.up("a")
    world.ask()
    world.clients[0].link(False)
    assert world.served() == [1, 0]
    world.up("b")
    assert world.served() == [0, 1]


async def test_an_exit_by_name_is_never_replaced(world: World) -> None:
    world.up("a", "b")
    world.ask("b")
    assert world.served() == [0, 1]
    world.clients[1].link(False)
    app = world.ask("b")
    assert world.served() == [0, 1], "the first one stays with its exit, the second one waits"
    world.timers.advance(WAIT + 0.1)
    assert app.events == REFUSED
    world.ask("b")
    world.up("b")
    assert world.served() == [0, 2]


async def test_an_exit_that_is_not_there(world: World) -> None:
    world.up("a", "b")
    assert world.ask("nowhere").events == REFUSED


async def test_it_fails_back_after_a_while(world: World) -> None:
    world.up("a", "b")
    world.timers.advance(20.0)
    world.clients[0].link(False)
    world.timers.advance(1.0)
    world.up("a")
    world.timers.advance(FAILBACK - 2)
    assert world.exits.active.name == "b"
    world.timers.advance(4)
    assert world.exits.active.name == "a"


async def test_a_person_pins_an_exit(world: World) -> None:
    world.up("a", "b")
    world.exits.pin("b")
    world.ask()
    assert world.served() == [0, 1]
    world.clients[1].link(False)
    app = world.ask()
    world.timers.advance(WAIT + 0.1)
    assert app.events == REFUSED, "not through another one than the person chose"
    assert [entry["pinned"] for entry in world.exits.status()] == [False, True]
    world.exits.pin(None)
    assert world.exits.active.name == "a"
    with pytest.raises(CryprqError, match="no exit of that name; choose one of: a, b"):
        world.exits.pin("c\x1b[2J")


async def test_pinning_serves_who_waits(world: World) -> None:
    world.up("b")
    world.exits.pin("a")
    world.ask()
    world.exits.pin("b")
    assert world.served() == [0, 1]


async def test_all_are_dialled_again_and_the_choice_stays(world: World) -> None:
    world.up("a", "b")
    world.timers.advance(10.0)
    world.exits.redial()
    assert [client.redials for client in world.clients] == [1, 1]
    for client in world.clients:
        client.link(False)
    world.up("b")
    assert world.exits.active.name == "a"
    world.up("a")
    assert world.exits.active.name == "a"


async def test_a_single_exit_is_left_alone() -> None:
    world = World(1)
    world.timers.advance(100.0)
    assert world.clients[0].probes == 0
    world.ask()
    world.ask("a")
    assert world.served() == [2]
    assert world.exits.send_packet == world.clients[0].send_packet


async def test_stopping_refuses_who_waits(world: World) -> None:
    app = world.ask()
    await world.exits.stop()
    assert app.events == REFUSED
    assert world.ask().events == REFUSED
    with pytest.raises(StreamRefused):
        await world.exits.open(TARGET)


async def test_names_are_unique() -> None:
    timers = Timers()
    entries: Any = [ExitEntry("a", 1, FakeClient(timers)), ExitEntry("a", 2, FakeClient(timers))]  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="two exits are called a"):
        Exits(entries, SlotPool(), clock=timers.time)


async def test_the_status_has_all_exits(world: World) -> None:
    world.up("b")
    report = world.exits.report()
    assert [(e["name"], e["active"], e["healthy"], e["link"]) for e in report["exits"]] == [
        ("a", False, False, "down"),
        ("b", True, True, "up"),
    ]
    assert report["link"] == "up"
    assert report["bytes"] == {"sent": 2, "received": 4}
    assert report["rotations"] == 6


async def test_an_exit_that_cannot_do_it_is_one_less(world: World) -> None:
    world.clients[0].failing = CryprqError("the exit carries no packets")
    running = asyncio.ensure_future(world.exits.run())
    world.up("b")
    while world.exits.entries[0].failure is None:
        await asyncio.sleep(0)
    world.ask()
    assert world.served() == [0, 1]
    assert world.exits.status()[0]["last_error"] == "the exit carries no packets"
    running.cancel()
    await asyncio.wait([running])


async def test_without_any_that_can_it_is_the_end(world: World) -> None:
    for client in world.clients:
        client.failing = CryprqError("the exit carries no packets")
    with pytest.raises(CryprqError, match="carries no packets"):
        await world.exits.run()


async def test_running_ends_with_stop(world: World) -> None:
    running = asyncio.ensure_future(world.exits.run())
    await asyncio.sleep(0)
    await world.exits.stop()
    await running


# --- system-wide mode ---

V4, V6 = bytes([10, 0, 0, 1]), bytes(16)
OTHER4 = bytes([10, 0, 0, 2])


class Interface:
    """The network of system-wide mode: writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def received(self, buffer: memoryview, start: int, end: int, run: Run) -> None:
        self.told.append(bytes(buffer[start:end]))

    def addressed(self, ipv4: bytes, ipv6: bytes) -> None:
        self.told.append(("addressed", ipv4))

    def link_changed(self, up: bool) -> None:
        self.told.append(("link", up))

    def lane_changed(self) -> None:
        self.told.append("lane")

    def take(self) -> list[Any]:
        told, self.told = self.told, []
        return told


class WideWorld(World):
    def __init__(self) -> None:
        self.interface = Interface()
        self.ports = [ExitPort(self.interface), ExitPort(self.interface)]
        super().__init__(2, self.ports)
        self.interface.take()

    def come(self, index: int, ipv4: bytes) -> None:
        """As a Client does when its link comes up, and the exit hands out addresses."""
        self.ports[index].link_changed(True)
        self.clients[index].link(True)
        self.ports[index].addressed(ipv4, V6)

    def go(self, index: int) -> None:
        self.ports[index].link_changed(False)
        self.clients[index].link(False)


@pytest.fixture
async def wide() -> WideWorld:
    return WideWorld()


SHAPE = Shape(PLAIN, 0, 0)
RUN = Run(SHAPE, 0, 1, 1)


async def test_the_interface_hears_of_the_active_exit_only(wide: WideWorld) -> None:
    wide.come(0, V4)
    wide.come(1, OTHER4)
    assert wide.interface.take() == [("link", True), ("addressed", V4)]
    for port, packet in zip(wide.ports, (b"from a", b"from b"), strict=True):
        port.received(memoryview(packet), 0, len(packet), RUN)
        port.lane_changed()
    assert wide.interface.take() == [b"from a", "lane"]


async def test_the_interface_moves_to_the_other_exit(wide: WideWorld) -> None:
    wide.come(0, V4)
    wide.come(1, OTHER4)
    wide.clients[1].lane_size = 1400
    wide.interface.take()
    wide.go(0)
    assert wide.interface.take() == [("link", False), ("addressed", OTHER4), ("link", True), "lane"]
    assert wide.exits.lane_size == 1400
    wide.exits.send_packet(memoryview(b"packet"), 0, 6, SHAPE)
    assert [client.packets for client in wide.clients] == [[], [b"packet"]]


async def test_an_exit_is_of_use_once_it_has_handed_out_an_address(wide: WideWorld) -> None:
    wide.clients[0].link(True)
    assert wide.exits.active.name == "a" and not wide.exits.active.healthy
    wide.come(1, OTHER4)
    assert wide.exits.active.name == "b"


async def test_an_exit_that_carries_no_packets_any_more_is_left(wide: WideWorld) -> None:
    wide.come(0, V4)
    wide.come(1, OTHER4)
    wide.interface.take()
    wide.ports[0].addressed(bytes(4), bytes(16))
    assert wide.exits.active.name == "b"
    assert ("addressed", bytes(4)) not in wide.interface.take(), "the interface keeps an address that works"
    assert (
        wide.exits.status()[0]["last_error"] == "the exit carries no packets at the moment; its log says why"
    )
