"""Exits that come, go and change while others are in use: what stays, what runs out, who is asked from then on."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from cryprq_proxy.client.exit_entry import PlannedExit
from cryprq_proxy.client.exits import MOST_LEAVING
from cryprq_proxy.client.packet_ports import ExitPort
from cryprq_proxy.client.requests import StreamRequest
from cryprq_proxy.client.selection import Selection
from cryprq_proxy.errors import StreamReason
from cryprq_proxy.rules.engine import Decision
from cryprq_proxy.rules.syntax import RuleAction, Verdict
from cryprq_proxy.session.wire import StreamProtocol
from cryprq_proxy.status import Traffic
from tests.support.fake_exits import FAILBACK, WAIT, FakeExits, FakeInterface
from tests.support.links import TARGET, App
from tests.support.settings import session_limits
from tests.support.settle import settle, until
from tests.support.web_links import Place, ask, echoes, opened

REFUSED = [("refused", StreamReason.LINK_DOWN)]
V4, OTHER4, V6 = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]), bytes(16)


@pytest.fixture
async def world() -> FakeExits:
    world = FakeExits()
    world.up("a", "b")
    return world


def plans(world: FakeExits, *names: str) -> list[PlannedExit]:
    """Those of the present exits with these names, and new ones, in the order of preference."""
    present = {plan.name: plan for plan in world.exits.plans}
    settings = world.clients[0].settings
    return [
        present[name]._replace(priority=priority)
        if name in present
        else PlannedExit(name, priority, settings)
        for priority, name in enumerate(names, 1)
    ]


def change(world: FakeExits, *names: str) -> str:
    return str(world.exits.change(plans(world, *names), world.make))


async def test_what_stays_is_not_touched(world: FakeExits) -> None:
    entries, app = world.exits.entries, world.ask()
    assert change(world, "a", "b") == "2 exits"
    assert world.exits.entries == entries and len(world.clients) == 2
    assert not app.events and world.served() == [1, 0]


async def test_a_new_one_is_used_when_it_is_preferred_and_up(world: FakeExits) -> None:
    world.ask()
    assert change(world, "c", "a", "b") == "3 exits (new: c)"
    assert world.exits.active.name == "a", "until the other one is up"
    world.up("c")
    world.ask()
    world.ask("c")
    assert world.served() == [1, 0, 2]


async def test_one_that_is_taken_out_takes_nothing_new_and_its_streams_run_out(world: FakeExits) -> None:
    world.ask()
    told = world.exits.status().bytes
    left: list[int] = []
    world.exits.left = lambda: left.append(1)
    assert change(world, "b") == "1 exit (removed: a)"
    world.ask()
    assert world.ask("a").events == REFUSED, "asked for by name"
    assert world.served() == [1, 1]
    assert [entry.name for entry in world.exits.all] == ["b", "a"]
    assert world.exits.status().bytes == told
    await settle()
    assert world.clients[0].retiring and not world.clients[0].stopped and not left
    world.clients[0].ran_out.set()
    await until(lambda: left)
    assert world.clients[0].stopped
    assert [entry.name for entry in world.exits.all] == ["b"]
    assert world.exits.status().bytes == told == Traffic(sent=2, received=4), "what it has moved counts on"


async def test_what_waits_for_one_that_goes_is_asked_of_another(world: FakeExits) -> None:
    anywhere, by_name = App(), App()
    world.clients[0].waiting = [
        StreamRequest(StreamProtocol.TCP, TARGET, app, lambda stream: None, exit)
        for app, exit in ((anywhere, ""), (by_name, "a"))
    ]
    change(world, "b")
    assert (world.served(), anywhere.events, by_name.events) == ([0, 1], [], REFUSED)


async def test_what_waits_for_any_is_served_by_the_only_one_that_is_left(world: FakeExits) -> None:
    for client in world.clients:
        client.link(False)
    world.ask()
    by_name = world.ask("a")
    change(world, "b")
    assert world.served() == [0, 1], "which lets it wait for its link"
    assert by_name.events == REFUSED


async def test_another_identity_or_address_is_another_link(world: FakeExits) -> None:
    plan, other = world.exits.plans
    moved = plan._replace(settings=replace(plan.settings, endpoints=plan.settings.endpoints * 2))
    assert str(world.exits.change([moved, other], world.make)) == "2 exits (dialled anew: a)"
    assert world.exits.active.name == "b", "it is up"
    world.clients[2].link(True)
    assert world.exits.active.name == "a"
    world.ask()
    assert world.served() == [0, 0, 1]


async def test_the_log_says_what_becomes_of_new_connections(
    world: FakeExits, caplog: pytest.LogCaptureFixture
) -> None:
    """A link of the same name is no other exit to the person who reads it."""
    caplog.set_level("INFO")
    only = world.exits.plans[0]
    world.exits.change([only], world.make)
    assert not caplog.messages
    moved = only._replace(settings=replace(only.settings, endpoints=only.settings.endpoints * 2))
    world.exits.change([moved], world.make)
    assert caplog.messages == ["new connections go through exit a as it is configured now"]
    caplog.clear()
    world.exits.change([moved._replace(name="c")], world.make)
    assert caplog.messages == ["new connections go through exit c, no longer through a"]


async def test_other_limits_and_priorities_keep_the_link(world: FakeExits) -> None:
    first, second = world.exits.plans
    limits = session_limits(streams=5)
    turned = [
        second._replace(priority=1, settings=replace(second.settings, limits=limits)),
        first._replace(priority=2),
    ]
    assert str(world.exits.change(turned, world.make)) == "2 exits"
    assert world.clients[1].settings.limits == limits
    world.timers.advance(FAILBACK + 2)
    assert world.exits.active.name == "b"


async def test_one_that_was_chosen_by_a_person_may_go(world: FakeExits) -> None:
    world.exits.pin("b")
    change(world, "c", "b", "a")
    assert world.exits.active.name == "b", "chosen is chosen"
    change(world, "c", "a")
    assert world.exits.active.name == "a" and not any(exit.pinned for exit in world.exits.status().exits)


async def test_from_one_to_two_and_back() -> None:
    world = FakeExits(1)
    world.up("a")
    world.ask()
    world.clients[0].open[0].opened = True
    change(world, "a", "b")
    world.timers.advance(3.0)
    assert world.clients[0].probes, "there is a choice now"
    world.clients[1].link(True)
    world.clients[0].link(False)
    world.ask()
    assert world.served() == [1, 1]
    change(world, "b")
    probes = world.clients[1].probes
    world.timers.advance(10.0)
    assert world.clients[1].probes == probes, "and now there is none"


async def test_the_links_of_new_ones_are_kept_up(world: FakeExits) -> None:
    running = asyncio.ensure_future(world.exits.run())
    await settle()
    change(world, "c", "a")
    await settle()
    assert len(world.exits._links) == 2
    change(world, "c")
    await settle()
    world.clients[1].ran_out.set()
    await settle()
    assert not running.done()
    await world.exits.stop()
    await running
    assert all(client.stopped for client in world.clients)


async def test_the_interface_follows_to_a_new_one() -> None:
    interface = FakeInterface()
    ports = [ExitPort(interface)]
    world = FakeExits(1, ports)
    ports[0].link_changed(True)
    ports[0].addressed(V4, V6)
    ports[0].addressed(bytes(4), V6)
    assert ("addressed", bytes(4)) in interface.take(), "the only one says that it carries nothing"
    new = ExitPort(interface)

    def make(plan: PlannedExit) -> object:
        entry = world.make(plan)
        entry.port = new
        return entry

    world.exits.change(plans(world, "c"), make)  # type: ignore[arg-type]
    new.link_changed(True)
    new.addressed(OTHER4, V6)
    ports[0].received(memoryview(b"late"), 0, 4, None)  # type: ignore[arg-type]
    assert interface.take() == [("link", False), "lane", ("link", True), ("addressed", OTHER4)]


def test_the_choice_keeps_what_it_knows() -> None:
    selection = Selection([1, 2], 30.0, 0.0)
    selection.healthy[:] = [False, True]
    selection.rearrange([1, 5, 2], [None, 0, 1], 100.0)
    assert (selection.healthy, selection.active) == ([False, False, True], 1)
    selection.rearrange([1, 2], [0, 2], 100.0)
    assert selection.active == 1, "of those that are left, one that is healthy"


async def test_a_waiting_request_has_its_time() -> None:
    world = FakeExits()
    app = world.ask()
    change(world, "a", "b", "c")
    world.timers.advance(WAIT + 0.1)
    assert app.events == REFUSED


async def test_those_that_run_out_are_bounded(world: FakeExits) -> None:
    """However often a file is written while nothing ends."""
    for number in range(MOST_LEAVING + 5):
        change(world, f"x{number}")
        await settle()
    assert len(world.exits.leaving) == MOST_LEAVING
    assert [client.stopped for client in world.clients[:7]] == [True] * 6 + [False]


# --- a real link ---


@pytest.mark.usefixtures("hasty")
async def test_a_retired_link_lets_its_streams_end_and_is_not_dialled_again(here: Place) -> None:
    client = here.client(here.endpoint("tcp"))
    await until(lambda: client.up)
    old, own = await opened(client, here.echo), await opened(client, here.echo)
    assert old.stream is not None and isinstance(old.stream.label, StreamRequest)
    old.stream.label.decision = Decision(RuleAction(Verdict.TUNNEL), "default", -1)
    assert client.retire() == []
    assert not client.up
    assert own.events[-1] == ("reset", StreamReason.SESSION_LOST), "of this program, as for names"
    await echoes(old, b"on and on")
    assert client.open_streams == 1
    app = ask(client, here.echo)
    await until(lambda: app.events)
    assert app.events == REFUSED
    retired = asyncio.ensure_future(client.retired())
    await settle()
    assert not retired.done()
    old.say(b"", finish=True)
    await retired
    await until(lambda: not len(here.exit.sessions))
    assert ("eof",) in old.events
    assert client.status().bytes == Traffic(sent=9, received=9)
    await client.stop()


@pytest.mark.usefixtures("hasty")
async def test_a_link_that_is_down_is_retired_at_once(here: Place) -> None:
    here.exit.authorize({})
    client = here.client(here.endpoint("tcp"))
    app = ask(client, here.echo)
    (request,) = client.retire()
    assert request.handler is app
    await client.retired()
    await client.stop()
