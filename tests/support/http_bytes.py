"""Any bytes from a client and from origins, through the HTTP proxy; what an origin gets is judged.

`play` raises RuntimeError when a stream is left open, or when an origin gets a field that was for the proxy.
"""

from __future__ import annotations

import asyncio
from typing import Final

from cryprq_proxy.address import Destination
from cryprq_proxy.client.requests import Early
from cryprq_proxy.errors import StreamReason, StreamRefused, StreamReset
from cryprq_proxy.fronts.http_proxy import HttpProxy
from cryprq_proxy.session.turns import TurnBudget
from tests.support.fault_watch import FaultWatch
from tests.support.http_fakes import FakeStream
from tests.support.http_grammar import OF_THE_HOP
from tests.support.strict_http import read_requests

CUT: Final = b"\xff"
"""Where this byte stands in the input, the next read begins; two of them end the client's part."""


class Origins:
    """Opens streams that answer what the input says, one input piece per stream."""

    def __init__(self, answers: list[bytes]) -> None:
        self.answers = answers
        self.opened: list[FakeStream] = []

    async def open(self, destination: Destination, early: Early) -> FakeStream:
        if len(self.opened) >= len(self.answers):
            raise StreamRefused(StreamReason.LIMIT)
        stream = FakeStream(*filter(None, self.answers[len(self.opened)].split(b"\xfe")))
        if destination.port % 2:
            stream.feed_eof()
        else:
            stream.reset()
        self.opened.append(stream)
        return stream


async def _serve(data: bytes) -> None:
    said, _, answers = data.partition(CUT + CUT)
    client = FakeStream(*filter(None, said.split(CUT)))
    client.feed_eof()
    origins = Origins(answers.split(CUT))
    tunnel = None
    try:
        async with asyncio.timeout(5):
            tunnel = await HttpProxy(client, origins, TurnBudget(asyncio.get_running_loop().call_soon)).run(
                b""
            )
    except StreamReset:
        pass
    for stream in origins.opened:
        if stream.aborted == (tunnel is not None and stream is tunnel.stream):
            raise RuntimeError("a stream was left open")
        for message in read_requests(bytes(stream.sent)):
            names = {name for name, _ in [*message.fields, *message.trailers]}
            if names & (OF_THE_HOP - {b"x-hop"}):
                raise RuntimeError(f"an origin got a field that was for the proxy: {message}")


def play(data: bytes, loop: asyncio.AbstractEventLoop) -> None:
    """Serve one client on `loop`."""
    with FaultWatch():
        loop.run_until_complete(_serve(data))
