"""Two paths at a time: TCP beside WebSocket, and old beside new after a change of the route."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections.abc import AsyncIterator
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from cryprq_proxy.base.clock import clock
from cryprq_proxy.client import backoff, second_path
from cryprq_proxy.client.client import Client
from cryprq_proxy.client.second_path import SecondPath
from cryprq_proxy.commands.status.view import render
from cryprq_proxy.crypto.payloads import SIGNED_SECONDS
from cryprq_proxy.exit.ticket_book import AHEAD
from tests.support.settle import until
from tests.support.web_links import Place, Relay, echoes, opened

MUCH = random.Random(7).randbytes(8 << 20)


@pytest.fixture
async def relays() -> AsyncIterator[list[Relay]]:
    """Relays that are stopped in the end."""
    relays: list[Relay] = []
    yield relays
    for relay in relays:
        await relay.stop()


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow one another at once."""
    monkeypatch.setattr(second_path, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(second_path, "LONGEST_PAUSE", 0.01)


def kinds(client: Client) -> list[str]:
    """The carriers of the paths that are up, the one in use first."""
    paths = sorted(client._link.paths.values(), key=lambda path: path is not client._link._used)
    return [path.reached.endpoint.carrier for path in paths]


async def both(client: Client) -> None:
    await until(lambda: len(client._link.paths) == 2)


def exit_paths(here: Place) -> int:
    (entry,) = here.exit.sessions
    return len(entry.carriers)


async def test_another_endpoint_waits_beside_the_first(here: Place) -> None:
    client = here.client(here.endpoint("tcp"), here.endpoint("ws"))
    await both(client)
    assert kinds(client) == ["tcp", "ws"]
    (entry,) = here.exit.sessions
    app = await opened(client, here.echo)
    await echoes(app, b"hello")
    current = entry.session.current
    assert current is not None and current.number == client._link._used.number  # type: ignore[union-attr]
    status = client.status()
    assert status.link == "up" and status.carrier is not None and status.carrier.kind == "tcp"


async def test_the_status_of_both_sides_tells_of_both_paths(here: Place) -> None:
    client = here.client(here.endpoint("tcp"), here.endpoint("ws"))
    await both(client)
    app = await opened(client, here.echo)
    await echoes(app, b"hello")
    here_told, there = client.status(), await here.exit.status()
    assert here_told.session is not None
    (session,) = there.sessions
    for told in (here_told.session, session):
        assert [(path.kind, path.use) for path in told.paths] == [("tcp", "in use"), ("ws", "standby")]
    assert [path.address for path in here_told.session.paths] == [
        str(here.endpoint("tcp")),
        str(here.endpoint("ws")),
    ]
    assert not any(path.address for path in session.paths)
    shown = render(here_told) + render(there)
    assert f"ws to {here.endpoint('ws')}" in shown and "0 tcp in use" in shown


async def test_the_log_of_both_sides_says_what_joined_and_what_was_lost(
    here: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    client = here.client(here.endpoint("tcp"), here.endpoint("ws"))
    await both(client)
    await until(lambda: exit_paths(here) == 2)
    of_the_exit = [record.getMessage() for record in caplog.records if record.name.endswith("exit.exit")]
    assert [line.split(":")[0] for line in of_the_exit] == ["link up", "link has another path"]
    (entry,) = here.exit.sessions
    caplog.clear()
    entry.carriers[min(entry.carriers)].drop()
    await until(lambda: "is lost, another one carries on" in caplog.text)
    [lost] = [record for record in caplog.records if "is lost" in record.getMessage()]
    assert lost.levelname == "WARNING"
    assert lost.getMessage().startswith(f"the path by {here.endpoint('tcp')} is lost")


async def test_one_endpoint_has_one_path(here: Place) -> None:
    client = here.client(here.endpoint("tcp"))
    app = await opened(client, here.echo)
    await echoes(app, b"hello")
    assert kinds(client) == ["tcp"] and client._link._second.task is None


@pytest.mark.parametrize("first", ["tcp", "ws"])
async def test_a_stream_goes_on_when_the_path_in_use_is_cut(
    here: Place, relays: list[Relay], first: str
) -> None:
    """In the middle of a transfer both ways: every byte once and in order, and the link is never down."""
    relays.append(relay := Relay(here.tcp if first == "tcp" else here.web))
    second = "ws" if first == "tcp" else "tcp"
    client = here.client(
        here.endpoint(first, await relay.start()),  # type: ignore[arg-type]
        here.endpoint(second),  # type: ignore[arg-type]
    )
    await both(client)
    session = client._kept.session
    app = await opened(client, here.echo)
    app.say(MUCH)
    await until(lambda: len(app.received) > 1 << 20)
    downs: list[bool] = []
    client.observer.changed = lambda: downs.append(client.up)  # type: ignore[method-assign]
    relay.cut()
    await until(lambda: len(app.received) == len(MUCH))
    assert hashlib.sha256(app.received).digest() == hashlib.sha256(MUCH).digest()
    assert client._kept.session is session and all(downs)


async def test_the_one_that_waits_may_go_and_come(here: Place, relays: list[Relay]) -> None:
    relays.append(relay := Relay(here.web))
    client = here.client(here.endpoint("tcp"), here.endpoint("ws", await relay.start()))
    await both(client)
    app = await opened(client, here.echo)
    for number in range(3):
        relay.cut()
        await until(lambda: len(client._link.paths) == 1)
        await echoes(app, b"alone %d" % number)
        await both(client)
        assert kinds(client) == ["tcp", "ws"]
    await until(lambda: client.status().rotations >= 1)  # a join has the secret replaced by which it came


class Beside:
    """A SecondPath whose attempts all succeed, and whose waiting ends when it is told. `waits`: how long each is."""

    def __init__(self) -> None:
        self.paths: dict[int, Any] = {}
        self.waits: list[float] = []
        self._go = asyncio.Event()
        kept = SimpleNamespace(advertised=None, session=SimpleNamespace(prefer=lambda _: None))
        endpoints = SimpleNamespace(has_others=lambda _: True, place=lambda _: 0)
        self.second = SecondPath(self._open, self.paths, endpoints, kept, self._pause)  # type: ignore[arg-type]
        self._numbers = count()
        self.up()

    async def _open(self, _: object) -> None:
        self.up()

    async def _pause(self, seconds: float) -> None:
        self.waits.append(seconds)
        self._go.clear()
        await self._go.wait()

    def up(self) -> None:
        keys = SimpleNamespace(joined=clock())
        number = next(self._numbers)
        path: Any = SimpleNamespace(
            number=number,
            carrier=SimpleNamespace(path=SimpleNamespace(keys=keys), drop=lambda: None),
            reached=SimpleNamespace(endpoint=number),
        )
        self.paths[number] = path
        self.second.path_up(path)

    async def attempt(self) -> None:
        """The next attempt is made, and succeeds."""
        await until(lambda: len(self.paths) == 2 or not self._go.is_set())
        self._go.set()
        await until(lambda: len(self.paths) == 2)

    async def lose(self, *, stood: float = 0.0) -> None:
        """The newest path is lost, which has stood so long. Returns when the next attempt waits."""
        path = self.paths.pop(max(self.paths))
        path.carrier.path.keys.joined -= stood
        waits = len(self.waits)
        self.second.path_lost(path)
        await until(lambda: len(self.waits) > waits)

    def end(self) -> None:
        self.paths.clear()
        self.second.stop()


@pytest.fixture
async def beside(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Beside]:
    monkeypatch.setattr(second_path, "FIRST_PAUSE", 1.0)
    monkeypatch.setattr(second_path, "LONGEST_PAUSE", 6.0)
    beside = Beside()
    await until(lambda: beside.waits == [1.0])
    yield beside
    beside.end()


async def test_a_path_that_breaks_at_once_is_tried_less_and_less(beside: Beside) -> None:
    """Something on its route may let the handshake through and then end the connection, each time."""
    for _ in range(4):
        await beside.attempt()
        await beside.lose()
    assert beside.waits == [1.0, 2.0, 4.0, 6.0, 6.0]


async def test_a_path_that_has_stood_is_soon_tried_again(beside: Beside) -> None:
    for _ in range(2):
        await beside.attempt()
        await beside.lose()
    await beside.attempt()
    await beside.lose(stood=second_path.STEADY_SECONDS)
    await beside.attempt()
    await beside.lose(stood=second_path.STEADY_SECONDS - 1.0)
    assert beside.waits == [1.0, 2.0, 4.0, 1.0, 2.0]


async def test_on_another_route_the_times_begin_anew(beside: Beside) -> None:
    await beside.attempt()
    await beside.lose()
    beside.second.replace()
    await until(lambda: len(beside.paths) == 2)
    await beside.lose()
    assert beside.waits == [1.0, 2.0, 1.0]


async def test_beside_the_first_path_of_another_link_the_times_begin_anew(beside: Beside) -> None:
    await beside.attempt()
    await beside.lose()
    beside.end()
    await until(beside.second.task.done)  # type: ignore[union-attr]
    beside.up()
    await until(lambda: len(beside.waits) == 3)
    assert beside.waits == [1.0, 2.0, 1.0]


async def test_a_better_endpoint_that_is_back_is_used_again(here: Place, relays: list[Relay]) -> None:
    relays.append(relay := Relay(here.tcp))
    client = here.client(here.endpoint("tcp", await relay.start()), here.endpoint("ws"))
    await both(client)
    app = await opened(client, here.echo)
    relay.cut()
    await until(lambda: kinds(client)[:1] == ["ws"])
    await both(client)
    await until(lambda: kinds(client) == ["tcp", "ws"])
    await echoes(app, b"back")


async def test_a_path_that_falls_silent_holds_nothing_up(here: Place, relays: list[Relay]) -> None:
    """Nothing is broken, and nothing comes through any more: the other path takes over long before the keepalive. The
    kernel between us acknowledges all the while."""
    relays.append(stalled := StallingRelay(here.tcp))
    client = here.client(here.endpoint("tcp", await stalled.start()), here.endpoint("ws"))
    await both(client)
    app = await opened(client, here.echo)
    await echoes(app, b"one")
    stalled.hold()
    app.say(b"two")
    await until(lambda: app.received == b"onetwo")
    assert client._link._used is not None and kinds(client)[0] == "ws"
    stalled.release()
    await until(lambda: kinds(client)[0] == "tcp")
    await echoes(app, b"three")


async def test_a_change_of_the_route_leaves_the_old_path_when_the_new_one_is_there(here: Place) -> None:
    client = here.client(here.endpoint("tcp"))
    app = await opened(client, here.echo)
    app.say(MUCH)
    session, old = client._kept.session, client._link._used
    client.redial()
    await until(lambda: client._link._used is not old and len(client._link.paths) == 1)
    await until(lambda: len(app.received) == len(MUCH))
    assert app.received == MUCH and client._kept.session is session
    await until(lambda: exit_paths(here) == 1)


async def test_a_change_of_the_route_where_no_new_path_comes_leaves_the_old_one(
    here: Place, relays: list[Relay]
) -> None:
    relays.append(relay := Relay(here.tcp))
    client = here.client(here.endpoint("tcp", await relay.start()))
    app = await opened(client, here.echo)
    assert relay.server is not None
    relay.server.close()
    client.redial()
    await until(lambda: client._link._attempts >= 1 and client._link._second.task is not None)
    await echoes(app, b"still here")
    assert client.up


def a_day_passes(here: Place, client: Client) -> None:
    (entry,) = here.exit.sessions
    entry.signed_at -= SIGNED_SECONDS + 1
    client._kept._signed_at -= SIGNED_SECONDS + 1


@pytest.mark.parametrize("why", ["a path was lost", "the route has changed"])
async def test_a_day_later_the_link_is_signed_for_another_path(
    here: Place, relays: list[Relay], why: str
) -> None:
    """The exit takes no ticket then, and a link may stand for weeks."""
    relays.append(relay := Relay(here.web))
    client = here.client(here.endpoint("tcp"), here.endpoint("ws", await relay.start()))
    await both(client)
    app = await opened(client, here.echo)
    session, old = client._kept.session, set(client._link.paths)
    a_day_passes(here, client)
    if why == "a path was lost":
        relay.cut()
    else:
        client.redial()
    await until(lambda: len(client._link.paths) == 2 and old.isdisjoint(client._link.paths))
    assert client._kept.session is session and client._kept.joins_short
    await echoes(app, b"as before")


async def test_a_day_later_a_path_ends_only_where_the_exit_answers(
    here: Place, relays: list[Relay], monkeypatch: pytest.MonkeyPatch
) -> None:
    relays.append(relay := Relay(here.web))
    client = here.client(here.endpoint("tcp"), here.endpoint("ws", await relay.start()))
    await both(client)
    app = await opened(client, here.echo)
    used = client._link._used
    a_day_passes(here, client)
    assert relay.server is not None
    address = relay.server.sockets[0].getsockname()
    relay.server.close()
    relay.cut()
    attempts = 0
    race = client._link._endpoints.race_others

    async def counted(*arguments: Any) -> Any:
        nonlocal attempts
        attempts += 1
        return await race(*arguments)

    monkeypatch.setattr(client._link._endpoints, "race_others", counted)
    await until(lambda: attempts > 3)
    await echoes(app, b"still here")
    assert client._link._used is used
    relay.server = await asyncio.start_server(relay._serve, *address[:2])
    await both(client)
    await echoes(app, b"together")


async def test_a_join_needs_no_signature(
    here: Place, relays: list[Relay], monkeypatch: pytest.MonkeyPatch
) -> None:
    relays.append(relay := Relay(here.tcp))
    client = here.client(here.endpoint("tcp", await relay.start()))
    app = await opened(client, here.echo)
    signed = 0
    sign = type(here.exit._identity).sign

    def counted(*arguments: object) -> bytes:
        nonlocal signed
        signed += 1
        return sign(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(type(here.exit._identity), "sign", counted)
    relay.cut()
    await echoes(app, b"again")
    assert not signed


async def test_attempts_that_reach_nobody_use_no_ticket_up(
    here: Place, relays: list[Relay], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit has a few for each session. After a night without a network none of them would be left."""
    monkeypatch.setattr(backoff, "BACKOFF_FIRST", 0.001)
    monkeypatch.setattr(backoff, "BACKOFF_LAST", 0.001)
    relays.append(relay := Relay(here.tcp))
    client = here.client(here.endpoint("tcp", await relay.start()))
    app = await opened(client, here.echo)
    signed: list[object] = []
    sign = type(here.exit._identity).sign

    def counted(*arguments: Any) -> bytes:
        signed.append(arguments)
        return sign(*arguments)

    monkeypatch.setattr(type(here.exit._identity), "sign", counted)
    assert relay.server is not None
    address = relay.server.sockets[0].getsockname()
    relay.server.close()
    relay.cut()
    before = client._link._attempts
    await until(lambda: client._link._attempts > before + 2 * AHEAD)
    relay.server = await asyncio.start_server(relay._serve, *address[:2])
    await echoes(app, b"again")
    assert not signed


class StallingRelay(Relay):
    """A relay that can hold back everything, both ways, without an end of any connection."""

    def hold(self) -> None:
        for writer in self._writers:
            writer.transport.pause_reading()  # type: ignore[attr-defined]

    def release(self) -> None:
        for writer in self._writers:
            writer.transport.resume_reading()  # type: ignore[attr-defined]
