"""Several exits as one: who gets a request, who waits, what moves at a fail-over, what the interface hears of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cryprq_proxy.client import exits
from cryprq_proxy.client.exit_entry import ExitEntry
from cryprq_proxy.client.exits import Exits
from cryprq_proxy.client.packet_ports import ExitPort
from cryprq_proxy.client.selection import SILENT_SECONDS
from cryprq_proxy.errors import ConfigError, CryprqError, StreamReason, StreamRefused
from cryprq_proxy.lane.slices import PLAIN, Run, Shape
from cryprq_proxy.session.retention import SlotPool
from cryprq_proxy.status import AskedExit, Traffic
from tests.support.fake_exits import FAILBACK, WAIT, FakeClient, FakeExits, FakeInterface, Timers
from tests.support.links import TARGET


@pytest.fixture
async def world() -> FakeExits:
    return FakeExits()


REFUSED = [("refused", StreamReason.LINK_DOWN)]


async def test_new_streams_go_to_the_preferred_exit(world: FakeExits) -> None:
    world.up("b", "a")
    world.ask()
    assert world.served() == [1, 0]


async def test_requests_wait_for_whichever_comes_first(world: FakeExits) -> None:
    app = world.ask()
    world.timers.advance(WAIT - 1)
    assert not app.events
    world.up("b")
    assert world.served() == [0, 1]


async def test_the_wait_is_bounded(world: FakeExits) -> None:
    first = world.ask()
    world.timers.advance(1.0)
    second = world.ask()
    world.timers.advance(WAIT - 0.5)
    assert (first.events, second.events) == (REFUSED, [])
    world.timers.advance(1.0)
    assert second.events == REFUSED
    assert world.exits.refused() == {StreamReason.LINK_DOWN: 2}


async def test_a_lost_link_sends_new_streams_elsewhere_at_once(world: FakeExits) -> None:
    world.up("a", "b")
    world.clients[0].link(False)
    world.ask()
    assert world.served() == [0, 1]


async def test_a_silent_exit_is_found_out_by_probes(world: FakeExits) -> None:
    world.up("a", "b")
    world.timers.advance(20.0)
    assert world.exits.active.name == "a"
    assert world.clients[0].probes == pytest.approx(20, abs=2)
    world.clients[0].mute = True
    world.timers.advance(SILENT_SECONDS + 0.1)
    world.ask()
    assert world.served() == [0, 1]
    assert [entry.healthy for entry in world.exits.status().exits] == [False, True]


async def test_what_an_exit_refuses_because_it_shuts_down_moves(world: FakeExits) -> None:
    world.up("a", "b")
    world.ask()
    world.ask("a")
    anywhere, by_name = world.clients[0].requests
    world.clients[0].open.clear()
    world.clients[0].link(False)  # what the Client says of an exit that shuts down
    for request in (by_name, anywhere):
        assert world.clients[0].observer.take_over(request)
    assert (world.served(), world.clients[1].requests) == ([0, 1], [anywhere])
    world.up("a")
    assert world.clients[0].requests == [by_name], "it waited for its exit"
    world.clients[1].open.clear()
    for client in world.clients:
        client.link(False)
    assert world.clients[1].observer.take_over(anywhere), "it waits for whichever comes first"
    assert world.exits.status().waiting == 1


async def test_what_the_lost_exit_has_not_answered_moves(world: FakeExits) -> None:
    world.up("a", "b")
    world.ask()
    world.ask()
    world.clients[0].open[0].opened = True
    unanswered = world.clients[0].requests[1]
    world.clients[0].link(False)
    assert world.served() == [1, 1]
    assert world.clients[1].requests == [unanswered]


async def test_unanswered_requests_stay_while_nobody_could_serve_them(world: FakeExits) -> None:
    world.up("a")
    world.ask()
    world.clients[0].link(False)
    assert world.served() == [1, 0]
    world.up("b")
    assert world.served() == [0, 1]


async def test_an_exit_by_name_is_never_replaced(world: FakeExits) -> None:
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


async def test_an_exit_is_asked_about_itself_by_name(
    world: FakeExits, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    async def ask_exit(start: object, name: str) -> AskedExit:
        assert start == world.exits.start
        asked.append(name)
        return AskedExit(exit=name)

    monkeypatch.setattr(exits, "ask_exit", ask_exit)
    world.up("a", "b")
    assert (await world.exits.report()).exit == "a"
    assert (await world.exits.report("b")).exit == "b"
    with pytest.raises(CryprqError, match="there is no exit of that name; choose one of: a, b"):
        await world.exits.report("nowhere")
    assert asked == ["a", "b"]


async def test_an_exit_that_is_not_there(world: FakeExits) -> None:
    world.up("a", "b")
    assert world.ask("nowhere").events == REFUSED


async def test_it_fails_back_after_a_while(world: FakeExits) -> None:
    world.up("a", "b")
    world.timers.advance(20.0)
    world.clients[0].link(False)
    world.timers.advance(1.0)
    world.up("a")
    world.timers.advance(FAILBACK - 2)
    assert world.exits.active.name == "b"
    world.timers.advance(4)
    assert world.exits.active.name == "a"


async def test_a_person_pins_an_exit(world: FakeExits) -> None:
    world.up("a", "b")
    world.exits.pin("b")
    world.ask()
    assert world.served() == [0, 1]
    world.clients[1].link(False)
    app = world.ask()
    world.timers.advance(WAIT + 0.1)
    assert app.events == REFUSED, "not through another one than the person chose"
    assert [entry.pinned for entry in world.exits.status().exits] == [False, True]
    world.exits.pin(None)
    assert world.exits.active.name == "a"
    with pytest.raises(CryprqError, match="no exit of that name; choose one of: a, b"):
        world.exits.pin("c\x1b[2J")


async def test_pinning_serves_who_waits(world: FakeExits) -> None:
    world.up("b")
    world.exits.pin("a")
    world.ask()
    world.exits.pin("b")
    assert world.served() == [0, 1]


async def test_all_are_dialled_again_and_the_choice_stays(world: FakeExits) -> None:
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
    world = FakeExits(1)
    world.timers.advance(100.0)
    assert world.clients[0].probes == 0
    world.ask()
    world.ask("a")
    assert world.served() == [2]
    world.exits.send_packet(memoryview(b"packet"), 0, 6, SHAPE)
    assert world.clients[0].packets == [b"packet"]


async def test_stopping_refuses_who_waits(world: FakeExits) -> None:
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
        Exits(entries, SlotPool(), wait_for_link=WAIT, failback=FAILBACK, clock=timers.time)


async def test_the_status_has_all_exits(world: FakeExits) -> None:
    world.up("b")
    status = world.exits.status()
    assert [(exit.name, exit.active, exit.healthy, exit.link) for exit in status.exits] == [
        ("a", False, False, "down"),
        ("b", True, True, "up"),
    ]
    assert status.link == "up"
    assert status.bytes == Traffic(sent=2, received=4)
    assert status.rotations == 6


async def test_an_exit_that_cannot_do_it_is_one_less(world: FakeExits) -> None:
    world.clients[0].failing = CryprqError("the exit carries no packets")
    running = asyncio.ensure_future(world.exits.run())
    world.up("b")
    while world.exits.entries[0].failure is None:
        await asyncio.sleep(0)
    world.ask()
    assert world.served() == [0, 1]
    assert world.exits.status().exits[0].last_error == "the exit carries no packets"
    running.cancel()
    await asyncio.wait([running])


async def test_without_any_that_can_it_is_the_end(world: FakeExits) -> None:
    for client in world.clients:
        client.failing = CryprqError("the exit carries no packets")
    with pytest.raises(CryprqError, match="carries no packets"):
        await world.exits.run()


async def test_running_ends_with_stop(world: FakeExits) -> None:
    running = asyncio.ensure_future(world.exits.run())
    await asyncio.sleep(0)
    await world.exits.stop()
    await running


# --- system-wide mode ---

V4, V6 = bytes([10, 0, 0, 1]), bytes(16)
OTHER4 = bytes([10, 0, 0, 2])


class WideWorld(FakeExits):
    def __init__(self) -> None:
        self.interface = FakeInterface()
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
        wide.exits.status().exits[0].last_error
        == "the exit carries no packets at the moment; its log says why"
    )


async def test_a_fault_while_one_looks_delays_the_choice_and_does_not_end_it(
    world: FakeExits, caplog: pytest.LogCaptureFixture
) -> None:
    """The timer was not set again, and a silent exit stayed the active one."""
    world.up("a", "b")
    measure = world.clients[1].measure

    def fault() -> None:
        world.clients[1].measure = measure  # type: ignore[method-assign]
        raise ZeroDivisionError

    world.clients[1].measure = fault  # type: ignore[method-assign]
    world.timers.advance(5.0)
    assert [record.getMessage() for record in caplog.records] == [
        "a fault in this program delays the choice of an exit"
    ]
    world.clients[0].mute = True
    world.timers.advance(SILENT_SECONDS + 2.0)
    world.ask()
    assert world.served() == [0, 1]
