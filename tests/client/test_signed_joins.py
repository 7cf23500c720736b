"""When the client joins its session by a ticket, and when it signs again."""

from __future__ import annotations

from typing import Any

import pytest

from cryprq_proxy.client.client import Client
from cryprq_proxy.crypto.client_handshake import ShortClientHandshake
from cryprq_proxy.crypto.identity import Identity
from cryprq_proxy.crypto.payloads import SIGNED_SECONDS
from cryprq_proxy.errors import HandshakeError
from cryprq_proxy.session.rotation import NEVER, Rotation
from tests.support.settle import until
from tests.support.web_links import Place, echoes, opened


class Signatures:
    """How many were made since the last time somebody asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._made = 0
        sign = Identity.sign

        def counted(identity: Identity, *arguments: Any) -> bytes:
            self._made += 1
            return sign(identity, *arguments)

        monkeypatch.setattr(Identity, "sign", counted)

    def taken(self) -> int:
        made, self._made = self._made, 0
        return made


@pytest.fixture
def signatures(monkeypatch: pytest.MonkeyPatch) -> Signatures:
    return Signatures(monkeypatch)


async def lose(client: Client) -> None:
    """The path breaks, and there is another one."""
    before = client.status().carriers
    for path in list(client._link.paths.values()):
        path.carrier.drop()
    await until(lambda: client.up and client.status().carriers > before)


def bound(client: Client) -> bool:
    """Whether the rotation that follows a signed join is still to come."""
    session = client._kept.session
    return session is not None and session.rotation.known.bound


async def test_each_loss_is_followed_by_a_ticket(here: Place, signatures: Signatures) -> None:
    """Its verdict says that the exit has the session, so the next one is a ticket again."""
    client = here.client(here.endpoint("tcp"))
    app = await opened(client, here.echo)
    assert signatures.taken() == 2
    for number in range(3):
        await lose(client)
        await echoes(app, b"%d" % number)
    assert not signatures.taken()


async def test_a_ticket_without_a_verdict_is_followed_by_a_signature(
    here: Place, signatures: Signatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that by tickets again."""
    client = here.client(here.endpoint("tcp"))
    app = await opened(client, here.echo)
    session = client._kept.session
    signatures.taken()
    with monkeypatch.context() as patch:
        patch.setattr(here.exit.sessions.tickets, "find", lambda ticket: None)
        await lose(client)
    assert signatures.taken() == 2 and client._kept.session is session
    await echoes(app, b"one")
    await until(lambda: not bound(client))
    await lose(client)
    await echoes(app, b"two")
    assert not signatures.taken()


async def test_an_exit_that_cannot_be_met_by_a_ticket_is_met_by_a_signature_at_once(
    here: Place, signatures: Signatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(handshake: ShortClientHandshake, second: bytes) -> None:
        raise HandshakeError("the second flight does not open")

    client = here.client(here.endpoint("tcp"))
    app = await opened(client, here.echo)
    signatures.taken()
    attempts = client._link._attempts
    with monkeypatch.context() as patch:
        patch.setattr(ShortClientHandshake, "read_second", fail)
        await lose(client)
    assert signatures.taken() == 2 and client._link._attempts == attempts + 1
    await echoes(app, b"here")


async def test_a_day_after_the_last_signature_the_client_signs(here: Place, signatures: Signatures) -> None:
    client = here.client(here.endpoint("tcp"))
    app = await opened(client, here.echo)
    signatures.taken()
    client._kept._signed_at -= SIGNED_SECONDS - 60
    await lose(client)
    assert not signatures.taken()
    client._kept._signed_at -= 60
    await lose(client)
    assert signatures.taken() == 2, "not first a ticket, which the exit would not take"
    await until(lambda: not bound(client))
    await lose(client)
    assert not signatures.taken(), "the day begins anew"
    await echoes(app, b"here")


async def test_until_a_rotation_has_followed_the_client_signs_again(
    here: Place, signatures: Signatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit takes no ticket of an epoch after a signed join."""
    client = here.client(here.endpoint("tcp"))
    app = await opened(client, here.echo)
    signatures.taken()
    with monkeypatch.context() as patch:
        patch.setattr(Rotation, "start", lambda rotation, now: None)
        patch.setattr(Rotation, "deadline", lambda rotation, keys: NEVER)
        client._kept.sign_next = True
        for _ in range(3):
            await lose(client)
            await echoes(app, b"here")
            assert signatures.taken() == 2 and bound(client)
            assert not here.exit.listener.failed, "no ticket was shown before"
    await lose(client)
    await until(lambda: not bound(client))
    signatures.taken()
    await lose(client)
    await echoes(app, b"here")
    assert not signatures.taken()


async def test_a_refusal_is_believed(here: Place, signatures: Signatures) -> None:
    """Only who has the secret can say it, so there is no reason to sign."""
    client = here.client(here.endpoint("tcp"))
    app = await opened(client, here.echo)
    signatures.taken()
    book = here.exit.book
    listed, book.listed = book.listed, {}
    for path in list(client._link.paths.values()):
        path.carrier.drop()
    await until(lambda: client._link.last_error is not None)
    book.listed = listed
    client._link.hasten()
    await until(lambda: client.up)
    await echoes(app, b"here")
    assert not signatures.taken()
