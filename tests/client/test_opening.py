"""A link that opens: the client has sent its third flight, and the exit has not said yet whether it lets it in.

A whole client against a whole exit on loopback. The exit's verdict waits for the test.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import Any

import pytest

from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.carriers.dial.endpoint import CarrierKind, Endpoint
from cryprq_proxy.client import client as client_module
from cryprq_proxy.client import path_opening
from cryprq_proxy.client.client import Client
from cryprq_proxy.client.requests import ClientObserver, Early, StreamRequest
from cryprq_proxy.crypto.identity import PeerId
from cryprq_proxy.errors import StreamReason
from cryprq_proxy.exit.providers import Redeemed
from cryprq_proxy.session.path import MAX_EARLY
from cryprq_proxy.session.wire import StreamProtocol
from tests.support.fake_exits import FakeExits
from tests.support.links import App
from tests.support.settings import client_settings
from tests.support.settle import settle, until
from tests.support.web_links import CLIENT_IDENTITY, EXIT_IDENTITY, FAST, Place, Relay, ask

DATA = b"first data"
KINDS: tuple[CarrierKind, ...] = ("tcp", "ws")


class Gate:
    """Holds back the exit's verdicts while it is shut. `waiting`: those that are held."""

    def __init__(self, here: Place) -> None:
        self.open = asyncio.Event()
        self.waiting = 0
        reception = here.exit.listener.reception
        admit = reception._admit

        async def gated(*arguments: Any) -> PeerId | None:
            self.waiting += 1
            await self.open.wait()
            self.waiting -= 1
            return await admit(*arguments)

        reception._admit = gated


class Told(ClientObserver):
    """What the owner of a client hears."""

    def __init__(self) -> None:
        self.changes = 0

    def changed(self) -> None:
        self.changes += 1


@pytest.fixture
async def gate(here: Place) -> Gate:
    return Gate(here)


def new_client(here: Place, *endpoints: Endpoint, **options: Any) -> Client:
    """Not yet running, and without pauses between its attempts but one turn."""

    async def pause(seconds: float) -> None:
        await asyncio.sleep(0.01)

    settings = client_settings(EXIT_IDENTITY.peer_id, endpoints or (here.endpoint("tcp"),), **options)
    client = Client(CLIENT_IDENTITY, settings, FAST, pause=pause)
    here.clients.append(client)
    return client


def run(client: Client) -> asyncio.Task[None]:
    return spawn(client.run(), "link")


async def opens(client: Client, gate: Gate) -> None:
    await until(lambda: client.opens and gate.waiting)


@pytest.mark.parametrize("kind", KINDS)
async def test_requests_and_data_are_sent_before_the_verdict_and_served_behind_it(
    here: Place, gate: Gate, kind: CarrierKind
) -> None:
    """Those that wait, and those that come meanwhile. Nobody else takes the link for up."""
    client = new_client(here, here.endpoint(kind))
    client.observer = told = Told()
    waiting = ask(client, here.echo)
    run(client)
    await opens(client, gate)
    later = ask(client, here.echo)
    for app in (waiting, later):
        assert app.stream is not None
        app.say(DATA)
    session = client._kept.session
    assert session is not None
    await until(lambda: not session.retention.waits and not session.scheduler.queued)
    assert session.current is not None and session.current._early < MAX_EARLY
    status = client.status()
    assert (status.link, status.carrier, status.session, status.carriers) == ("down", None, None, 0)
    assert not client.up and not told.changes and not here.exit.sessions.streams_total
    gate.open.set()
    await until(lambda: waiting.received == DATA and later.received == DATA)
    assert client.up and told.changes == 1
    assert here.exit.sessions.streams_total == 2 and client.status().carriers == 1


async def test_a_front_that_may_goes_on_while_a_link_opens(here: Place, gate: Gate) -> None:
    """So its first data follows the third flight, and not the verdict."""

    class Front(App):
        def expected(self) -> None:
            self.say(DATA)

    client, app = new_client(here), Front()

    def begin(stream: object) -> None:
        app.stream = stream  # type: ignore[assignment]

    client.start(StreamRequest(StreamProtocol.TCP, here.echo, app, begin, early=Early.ALWAYS))
    run(client)
    await opens(client, gate)
    session = client._kept.session
    assert app.stream is not None and app.stream.sent == len(DATA) and session is not None
    await until(lambda: session.bytes_sent == len(DATA))
    gate.open.set()
    await until(lambda: app.received == DATA)


@pytest.mark.parametrize("links", [0, 1])
@pytest.mark.parametrize("connect", ["exact", "learned", "eager"])
async def test_an_application_is_answered_before_the_verdict_by_eager_at_the_first_link_only(
    here: Place, gate: Gate, connect: str, links: int
) -> None:
    """The exit has proved who it is; but it may still refuse the client, and "learned" promises precise replies. Later
    links open while exits are restarted, and then nobody is to be reset."""

    class Front(App):
        def expected(self) -> None:
            self._note("expected")

    client, app = new_client(here, connect=connect), Front()
    client._reached.add(here.echo)
    client._link.carriers = links
    client.start(
        StreamRequest(StreamProtocol.TCP, here.echo, app, lambda stream: None, early=Early.AS_CONFIGURED)
    )
    run(client)
    await opens(client, gate)
    before = [("expected",)] if connect == "eager" and not links else []
    assert app.events == before
    gate.open.set()
    await until(lambda: ("opened",) in app.events)
    assert app.events == [*before, ("opened",)]


async def test_requests_wait_for_the_verdict_on_a_path_that_joins(here: Place, gate: Gate) -> None:
    """What the session has already may leave before it."""
    gate.open.set()
    client = new_client(here)
    run(client)
    await until(lambda: client.up)
    session = client._kept.session
    gate.open.clear()
    for path in list(client._link.paths.values()):
        path.carrier.drop()
    await until(lambda: gate.waiting)
    app = ask(client, here.echo)
    await settle()
    assert app.stream is None and not client.opens and client.status().waiting == 1
    gate.open.set()
    await until(lambda: ("opened",) in app.events)
    assert client._kept.session is session


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stopping", [False, True], ids=["not on the list", "about to stop"])
async def test_what_a_refusal_leaves(
    here: Place, gate: Gate, kind: CarrierKind, stopping: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A request on which nothing was sent is made again in the next session, and one with data is reset: it must not
    run twice. The exit serves none before."""
    client = new_client(here, here.endpoint(kind))
    bare, busy = ask(client, here.echo), ask(client, here.echo)
    run(client)
    await opens(client, gate)
    busy.say(DATA)
    here.exit._stopping = stopping
    here.exit.authorize({CLIENT_IDENTITY.peer_id: ""} if stopping else {})
    gate.open.set()
    await until(lambda: busy.ended)
    assert busy.events == [("reset", StreamReason.SESSION_LOST)]
    assert not bare.events and not here.exit.sessions.streams_total
    await until(lambda: caplog.text)
    assert ("shutting down" if stopping else "at the exit, run: cryprq-proxy peers add") in caplog.text
    here.exit._stopping = False
    here.exit.authorize({CLIENT_IDENTITY.peer_id: ""})
    await until(lambda: ("opened",) in bare.events)
    assert here.exit.sessions.streams_total == 1


async def test_a_connection_that_breaks_before_the_verdict(here: Place, gate: Gate) -> None:
    relay = Relay(here.tcp)
    client = new_client(here, here.endpoint("tcp", await relay.start()))
    bare, busy = ask(client, here.echo), ask(client, here.echo)
    run(client)
    await opens(client, gate)
    busy.say(DATA)
    relay.cut()
    await until(lambda: busy.ended)
    assert busy.events == [("reset", StreamReason.SESSION_LOST)]
    gate.open.set()
    await until(lambda: ("opened",) in bare.events)
    await relay.stop()


async def test_a_verdict_that_does_not_come(here: Place, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path_opening, "HANDSHAKE_TIMEOUT", 0.3)
    client = new_client(here)
    bare, busy = ask(client, here.echo), ask(client, here.echo)
    run(client)
    await opens(client, gate)
    busy.say(DATA)
    await until(lambda: busy.ended)
    assert busy.events == [("reset", StreamReason.SESSION_LOST)]
    assert "did not finish the handshake in time" in str(client.status().last_error)
    gate.open.set()
    await until(lambda: ("opened",) in bare.events)


async def test_a_request_waits_no_longer_because_it_was_sent(
    here: Place, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "SWEEP_SECONDS", 0.0)
    client = new_client(here, wait_for_link=1.0)
    bare, busy = ask(client, here.echo), ask(client, here.echo)
    run(client)
    await opens(client, gate)
    busy.say(DATA)
    await until(lambda: bare.ended and busy.ended)
    assert client.opens
    assert bare.events == busy.events == [("refused", StreamReason.LINK_DOWN)]
    gate.open.set()
    await until(lambda: client.up)
    await until(lambda: here.exit.sessions.streams_total == 2)
    assert not client.streams()


async def test_an_exit_that_refuses_again_and_again_keeps_nobody_waiting(here: Place) -> None:
    here.exit.authorize({})
    client = new_client(here, wait_for_link=0.3)
    app = ask(client, here.echo)
    run(client)
    await until(lambda: app.ended)
    assert app.events == [("refused", StreamReason.LINK_DOWN)]
    assert client._link._attempts > 1


async def test_time_that_is_over_while_a_link_opens_does_not_count_once_it_is_up(
    here: Place, gate: Gate
) -> None:
    """It would end a request that waits for its target, at the next loss of the link."""
    client = new_client(here)
    app = ask(client, here.echo)
    run(client)
    await opens(client, gate)
    request: Any = client.streams()[0].label
    assert request.wait_until is not None
    gate.open.set()
    await until(lambda: ("opened",) in app.events)
    assert request.wait_until is None


async def test_stopping_while_a_link_opens(here: Place, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    client = new_client(here)
    app = ask(client, here.echo)
    running = run(client)
    await opens(client, gate)
    app.say(DATA)
    stopping = spawn(client.stop(), "stop")
    gate.open.set()
    await stopping
    await running
    assert app.ended and not client.opens and not client.up
    assert ask(client, here.echo).events == [("refused", StreamReason.LINK_DOWN)]
    await until(lambda: not here.exit.counts()[0])
    assert "no link" not in caplog.text and "never retrieved" not in caplog.text


async def test_a_fault_while_a_link_opens_leaves_nothing_behind(
    here: Place, gate: Gate, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = new_client(here)
    app = ask(client, here.echo)
    failed: list[int] = []

    def fail(path: object) -> None:
        failed.append(1)
        raise RuntimeError("a fault")

    # A record of the fault would keep all that its traceback names.
    with monkeypatch.context() as patch, caplog.at_level(logging.CRITICAL + 1):
        patch.setattr(client._link, "path_opens", fail)
        run(client)
        await until(lambda: failed)
    gate.open.set()
    await until(lambda: ("opened",) in app.events)
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_another_network_does_not_disturb_a_link_that_opens(here: Place, gate: Gate) -> None:
    client = new_client(here)
    app = ask(client, here.echo)
    run(client)
    await opens(client, gate)
    client.redial()
    gate.open.set()
    await until(lambda: ("opened",) in app.events)
    assert client._link._attempts == client.status().carriers == 1


async def test_unanswered_requests_can_be_withdrawn_while_a_link_opens(here: Place, gate: Gate) -> None:
    client = new_client(here)
    bare, busy = ask(client, here.echo), ask(client, here.echo)
    run(client)
    await opens(client, gate)
    busy.say(DATA)
    assert [request.handler for request in client.withdraw()] == [bare]
    gate.open.set()
    await until(lambda: busy.received == DATA)
    assert not bare.events


async def test_an_invite_is_shown_and_its_requests_follow(
    here: Place, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit writes the peer into its list before it serves anything."""
    here.exit.authorize({})

    async def redeem(secret: bytes, peer: object) -> tuple[Redeemed, str]:
        assert not here.exit.sessions.streams_total
        return (Redeemed.NOW if secret == bytes(16) else Redeemed.NOT), "alice"

    monkeypatch.setattr(here.exit._invites, "redeem", redeem)
    client = new_client(here, invite=bytes(16))
    app = ask(client, here.echo)
    run(client)
    await opens(client, gate)
    app.say(DATA)
    gate.open.set()
    await until(lambda: app.received == DATA)


async def test_a_request_through_a_resolver_stream_is_early_too(here: Place, gate: Gate) -> None:
    client = new_client(here)
    app = ask(client, here.echo, StreamProtocol.RESOLVER)
    run(client)
    await opens(client, gate)
    assert app.stream is not None
    gate.open.set()
    await until(lambda: app.events)
    assert app.events == [("refused", StreamReason.NOT_ALLOWED)]


# --- several exits ---


async def test_requests_go_to_the_active_exit_while_its_link_opens() -> None:
    world = FakeExits()
    waiting = world.ask()
    assert world.served() == [0, 0]
    preferred, other = world.clients
    preferred.opens = True
    preferred.observer.opens()
    assert world.served() == [1, 0]
    world.ask()
    named = world.ask("b")
    assert world.served() == [2, 0] and isinstance(named, App)
    other.opens = True
    other.observer.opens()
    assert world.served() == [2, 1]
    assert isinstance(waiting, App)


async def test_what_an_exit_that_only_opens_has_not_answered_moves_to_one_that_is_up() -> None:
    world = FakeExits()
    preferred, _ = world.clients
    preferred.opens = True
    world.ask()
    assert world.served() == [1, 0]
    world.timers.advance(5.0)
    world.up("b")
    world.timers.advance(10.0)
    assert world.served() == [0, 1]
