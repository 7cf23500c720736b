"""How a client comes back to its session: by a ticket, and by a signed handshake where that comes to nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from cryprq_proxy.base.clock import clock
from cryprq_proxy.carriers.dial.endpoint import Endpoint
from cryprq_proxy.client import kept_session
from cryprq_proxy.client.client import Client
from cryprq_proxy.crypto import exit_handshake
from cryprq_proxy.crypto.exit_handshake import ExitHandshake
from cryprq_proxy.crypto.payloads import SIGNED_SECONDS, Choice, Pattern
from cryprq_proxy.crypto.primitives import Cipher
from cryprq_proxy.crypto.signer import Signer
from cryprq_proxy.errors import HandshakeError, StreamReason
from tests.support.settle import until
from tests.support.web_links import (
    EXIT_IDENTITY,
    FAST,
    Place,
    Relay,
    echoes,
    lose_paths,
    lose_sessions,
    opened,
)

pytestmark = pytest.mark.usefixtures("hasty")


@pytest.fixture
def signed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each signature that either side makes."""
    made: list[int] = []
    sign = Signer.sign

    def count(signer: Signer, h: bytes) -> bytes:
        made.append(1)
        return sign(signer, h)

    monkeypatch.setattr(Signer, "sign", count)
    return made


async def up(here: Place, *endpoints: Endpoint) -> Client:
    client = here.client(*(endpoints or (here.endpoint("tcp"),)))
    await until(lambda: client.up)
    return client


async def again(client: Client) -> None:
    """The client loses its link and has it again."""
    carriers = client.status().carriers
    lose_paths(client)
    await until(lambda: client.up and client.status().carriers > carriers)


async def test_nobody_signs(here: Place, signed: list[int]) -> None:
    client = await up(here)
    session, app = client._kept.session, await opened(client, here.echo)
    signed.clear()
    for _ in range(20):
        await again(client)
        await echoes(app, b"still here")
    assert not signed
    assert client._kept.session is session and len(here.exit.sessions) == 1


async def test_an_exit_that_has_lost_the_session(
    here: Place, signed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within one attempt: the ticket is unknown, so is the claim, a new session begins."""
    client = await up(here)
    session, app = client._kept.session, await opened(client, here.echo)
    attempts = client._link._attempts
    with monkeypatch.context() as patch:
        lose_sessions(here.exit, patch)
        signed.clear()
        await again(client)
    assert client._link._attempts == attempts + 1
    assert len(signed) == 2
    assert client._kept.session is not session and client._kept._paths == 2
    assert app.events[-1] == ("reset", StreamReason.SESSION_LOST)
    signed.clear()
    app = await opened(client, here.echo)
    await again(client)
    await echoes(app, b"the new one is joined by its own tickets")
    assert not signed


async def test_a_day_after_the_last_signature_the_client_signs(
    here: Place, signed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await up(here)
    session, app = client._kept.session, await opened(client, here.echo)
    signed.clear()
    monkeypatch.setattr(kept_session, "clock", lambda: clock() + SIGNED_SECONDS)
    for signatures in (2, 2):
        await again(client)
        await echoes(app, b"still here")
        assert len(signed) == signatures, "and not once more"
    assert client._kept.session is session


class Between(Relay):
    """Somebody on the path who knows the exit's id: answers each short first flight himself, and lets all else
    through."""

    def __init__(self, here: Place) -> None:
        super().__init__(here.tcp)
        self.answered = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.readexactly(2)
        first += await reader.readexactly(int.from_bytes(first))
        handshake = ExitHandshake(EXIT_IDENTITY, FAST)  # of which the short pattern uses nothing but the id
        handshake.read_first(first[2:])
        if handshake.pattern is Pattern.SIGNED:
            there_reader, there = await asyncio.open_connection(*self._target)
            self._writers |= {writer, there}
            there.write(first)
            await asyncio.gather(self._pass(reader, there, False), self._pass(there_reader, writer, True))
            return
        self.answered += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            second = handshake.write_second()
            writer.write(len(second).to_bytes(2) + second)
            third = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
            with pytest.raises(HandshakeError):
                handshake.read_short_third(third, lambda ticket: None)
        writer.close()


@pytest.fixture
async def between(here: Place) -> AsyncIterator[Between]:
    relay = Between(here)
    yield relay
    await relay.stop()


async def test_a_man_in_the_middle_costs_a_signature_and_no_session(
    here: Place, between: Between, signed: list[int]
) -> None:
    client = await up(here, Endpoint("tcp", await between.start()))
    session, app = client._kept.session, await opened(client, here.echo)
    for number in range(1, 4):
        signed.clear()
        attempts = client._link._attempts
        await again(client)
        await echoes(app, b"still here")
        assert between.answered == number
        assert len(signed) == 2 and client._link._attempts == attempts + 1
    assert client._kept.session is session and len(here.exit.sessions) == 1


# --- other versions ---


def other_version(monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    """The exit speaks this version from now on: its choice is that, and it closes behind it."""
    monkeypatch.setattr(exit_handshake, "choose", lambda *_: Choice(version, Cipher.CHACHA20_POLY1305, 0))
    monkeypatch.setattr(ExitHandshake, "outdated", property(lambda handshake: version))
    monkeypatch.setattr(ExitHandshake, "pattern", property(lambda handshake: Pattern.SIGNED))


SENTENCE = "the exit speaks version {} of the protocol and this client version 2; update {}"


@pytest.mark.parametrize(("version", "update"), [(1, "the exit"), (3, "this client")])
async def test_an_exit_of_another_version(
    here: Place, version: int, update: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_version(monkeypatch, version)
    client = here.client(here.endpoint("tcp"))
    await until(lambda: client.status().last_error)
    assert client.status().last_error == SENTENCE.format(version, update)


async def test_an_exit_that_has_another_version_when_the_client_comes_back(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer to the short pattern says nothing, so the client asks by the signed one."""
    client = await up(here)
    other_version(monkeypatch, 1)
    lose_paths(client)
    await until(lambda: client.status().last_error)
    assert client.status().last_error == SENTENCE.format(1, "the exit")
