"""Short handshakes that find no answer, and the signed ones that follow some of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cryprq_proxy.carriers.dial.endpoint import Endpoint
from cryprq_proxy.carriers.pipe import Pipe
from cryprq_proxy.client import backoff
from cryprq_proxy.client.client import Client
from cryprq_proxy.client.unanswered import FIRST_UNANSWERED, MOST_UNANSWERED, UnansweredTickets
from cryprq_proxy.crypto.exit_handshake import ExitHandshake
from cryprq_proxy.crypto.payloads import Pattern
from cryprq_proxy.errors import CarrierError, CloseReason
from tests.support.settle import until
from tests.support.web_links import EXIT_IDENTITY, FAST, Place, Relay, echoes, lose_paths, opened

pytestmark = pytest.mark.usefixtures("hasty", "alone", "at_once")

SHORT, SIGNED = Pattern.SHORT, Pattern.SIGNED


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client hardly waits between its attempts."""
    monkeypatch.setattr(backoff, "BACKOFF_FIRST", 0.001)
    monkeypatch.setattr(backoff, "BACKOFF_LAST", 0.001)


class Middlebox(Relay):
    """Somebody on the path who knows the exit's id, reads each first flight, and lets pass what `passes` names."""

    def __init__(self, here: Place) -> None:
        super().__init__(here.tcp)
        self.passes = {SHORT, SIGNED}
        self.patterns: list[Pattern] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.readexactly(2)
        first += await reader.readexactly(int.from_bytes(first))
        handshake = ExitHandshake(EXIT_IDENTITY, FAST)  # of which nothing but the id is used
        handshake.read_first(first[2:])
        self.patterns.append(handshake.pattern)
        if handshake.pattern not in self.passes:
            writer.transport.abort()
            return
        there_reader, there = await asyncio.open_connection(*self._target)
        self._writers |= {writer, there}
        there.write(first)
        await asyncio.gather(self._pass(reader, there, False), self._pass(there_reader, writer, True))


@pytest.fixture
async def middlebox(here: Place) -> AsyncIterator[Middlebox]:
    middlebox = Middlebox(here)
    yield middlebox
    await middlebox.stop()


async def linked(here: Place, middlebox: Middlebox) -> Client:
    client = here.client(Endpoint("tcp", await middlebox.start()))
    await until(lambda: client.up)
    middlebox.patterns.clear()
    return client


async def test_who_lets_no_short_handshake_pass_costs_a_signature_and_no_session(
    here: Place, middlebox: Middlebox
) -> None:
    """The client tried short ones until its session was over."""
    client = await linked(here, middlebox)
    session, app = client._kept.session, await opened(client, here.echo)
    middlebox.passes = {SIGNED}
    for number in range(1, 4):
        lose_paths(client)
        await until(lambda: client.up)
        await echoes(app, b"still here")
        assert middlebox.patterns == number * [*FIRST_UNANSWERED * [SHORT], SIGNED]
        assert client._kept.next_path == number + 1, "what was cut uses up no number"
    assert client._kept.session is session and len(here.exit.sessions) == 1


async def test_where_a_signature_changes_nothing_the_next_one_comes_later(
    here: Place, middlebox: Middlebox
) -> None:
    client = await linked(here, middlebox)
    session, app = client._kept.session, await opened(client, here.echo)
    middlebox.passes = set()
    lose_paths(client)
    expected = [*3 * [SHORT], SIGNED, *6 * [SHORT], SIGNED, *12 * [SHORT], SIGNED, *24 * [SHORT], SIGNED]
    await until(lambda: len(middlebox.patterns) > len(expected))
    middlebox.passes = {SHORT}
    await until(lambda: client.up)
    assert middlebox.patterns[: len(expected)] == expected
    assert client._kept.next_path == 2
    await echoes(app, b"still here")
    middlebox.patterns.clear()
    middlebox.passes = {SIGNED}
    lose_paths(client)
    await until(lambda: client.up)
    assert middlebox.patterns == [*3 * [SHORT], SIGNED], "counted anew since a path has joined"
    assert client._kept.session is session


async def test_an_outage_ends_without_a_signature(here: Place, middlebox: Middlebox) -> None:
    """Connections do not come about, so nobody has cut a handshake."""
    client = await linked(here, middlebox)
    session, app = client._kept.session, await opened(client, here.echo)
    endpoints, dialled = client._link._endpoints, 0
    dial, before = endpoints._dial, client._link._attempts

    async def fail(*_: object) -> Pipe:
        nonlocal dialled
        dialled += 1
        raise CarrierError(CloseReason.TIMED_OUT, "connection refused")

    endpoints._dial = fail
    lose_paths(client)
    await until(lambda: dialled > 2 * MOST_UNANSWERED)
    endpoints._dial = dial
    assert dialled <= client._link._attempts - before, "no attempt had a second, signed part"
    await until(lambda: client.up)
    await echoes(app, b"still here")
    assert middlebox.patterns == [SHORT] and client._kept.session is session


def test_the_counts() -> None:
    tickets = UnansweredTickets()
    told = [tickets.one_more() for _ in range(3 + 6 + 12 + 24 + 24)]
    assert [number for number, sign in enumerate(told, 1) if sign] == [3, 9, 21, 45, 69]
    tickets.reset()
    assert [tickets.one_more() for _ in range(3)] == [False, False, True]
