"""On a WebSocket too the exit opens nothing before its verdict, and keeps little of what follows the third flight.

The messages of a whole client's pipe against the exit's entrance; what is in them is the test's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, cast

import pytest

from cryprq_proxy.base.linger import farewells_ended
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.carriers.admission import first_keys, frame_flight, meet_exit, read_verdict
from cryprq_proxy.carriers.dial.connect import Dialling
from cryprq_proxy.carriers.dial.websocket import dial_websocket
from cryprq_proxy.carriers.websocket import MAX_MESSAGE, WebSocketPipe
from cryprq_proxy.crypto.client_handshake import ClientHandshake
from cryprq_proxy.crypto.identity import Identity, PeerId
from cryprq_proxy.errors import CarrierError, CloseReason, NotAdmitted
from cryprq_proxy.session import wire
from tests.support.settle import settle
from tests.support.visits import inline
from tests.support.web_links import EXIT_IDENTITY, FAST, Place, place

QUEUE = 524_288
"""Bytes of messages with which aiohttp reads no more."""


class Held:
    """Holds back the exit's verdict until `release` is set; then it is judged. `pipe` is the exit's end."""

    def __init__(self, here: Place) -> None:
        self.pipe: asyncio.Future[WebSocketPipe] = asyncio.get_running_loop().create_future()
        self.release = asyncio.Event()
        reception = here.exit.listener.reception
        admit = reception._admit

        async def held(pipe: Any, *more: Any) -> PeerId | None:
            self.pipe.set_result(pipe)
            await self.release.wait()
            return await admit(pipe, *more)

        reception._admit = held

    @property
    def kept(self) -> int:
        """Bytes that the exit has read behind the third flight."""
        pipe = self.pipe.result()
        queued: int = cast(Any, pipe.socket)._reader._size
        return len(pipe.rest) + queued


@pytest.fixture
async def here() -> AsyncIterator[Place]:
    async with place() as here:
        yield here


async def flood(pipe: WebSocketPipe, first: bytes) -> None:
    with suppress(CarrierError, RuntimeError):
        await pipe.write(first + bytes(MAX_MESSAGE - len(first) - 1))
        for _ in range(200):
            await pipe.write(bytes(60_000))


async def test_what_follows_the_third_flight_waits_unopened_and_is_bounded(here: Place) -> None:
    """Who is refused then hears it all the same."""
    held, stranger = Held(here), Identity.generate(FAST)
    pipe = await dial_websocket(here.endpoint("ws"), Dialling())
    handshake = ClientHandshake(stranger, EXIT_IDENTITY.peer_id, FAST)
    await meet_exit(pipe, handshake, inline)
    flooding = spawn(flood(pipe, frame_flight(handshake.write_third())), "flood")
    await held.pipe
    await settle(200)
    assert not flooding.done()
    assert MAX_MESSAGE // 2 < held.kept <= 2 * MAX_MESSAGE + QUEUE
    held.release.set()
    established = handshake.result
    opener = first_keys(established.cipher, established.epoch.records, 0).opener
    with pytest.raises(NotAdmitted) as caught:
        await read_verdict(pipe, opener, wire.ACCEPT)
    assert caught.value.reason is CloseReason.NOT_AUTHORIZED
    assert not here.exit.sessions.streams_total and not here.exit.counts()[0]
    flooding.cancel()
    pipe.close()
    await farewells_ended()
