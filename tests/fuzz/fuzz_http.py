"""Invariant: whatever client and origins send, only StreamReset leaves HttpProxy.run, no stream is left open, and what
an origin gets is in the one strict form, without a field for the proxy."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["cryprq_proxy", "h11"]):
    from cryprq_proxy.address import Destination
    from cryprq_proxy.errors import StreamReason, StreamRefused, StreamReset
    from cryprq_proxy.fronts.http_proxy import HttpProxy
    from cryprq_proxy.session.turns import TurnBudget
    from tests.support.http_fakes import FakeStream

from tests.support.http_grammar import OF_THE_HOP
from tests.support.strict_http import read_requests

CUT = b"\xff"
"""Where this byte stands in the input, the next read begins; two of them end the client's part."""
LOOP = asyncio.new_event_loop()


class Origins:
    """Opens streams that answer what the input says, one input piece per stream."""

    def __init__(self, answers: list[bytes]) -> None:
        self.answers = answers
        self.opened: list[FakeStream] = []

    async def open(self, destination: Destination) -> FakeStream:
        if len(self.opened) >= len(self.answers):
            raise StreamRefused(StreamReason.LIMIT)
        stream = FakeStream(*filter(None, self.answers[len(self.opened)].split(b"\xfe")))
        if destination.port % 2:
            stream.feed_eof()
        else:
            stream.reset()
        self.opened.append(stream)
        return stream


async def serve(data: bytes) -> None:
    said, _, answers = data.partition(CUT + CUT)
    client = FakeStream(*filter(None, said.split(CUT)))
    client.feed_eof()
    origins = Origins(answers.split(CUT))
    tunnel = None
    try:
        async with asyncio.timeout(5):
            tunnel = await HttpProxy(client, origins, TurnBudget(LOOP.call_soon)).run(b"")
    except StreamReset:
        pass
    for stream in origins.opened:
        if stream.aborted == (tunnel is not None and stream is tunnel.stream):
            raise RuntimeError("a stream was left open")
        for message in read_requests(bytes(stream.sent)):
            names = {name for name, _ in [*message.fields, *message.trailers]}
            if names & (OF_THE_HOP - {b"x-hop"}):
                raise RuntimeError(f"an origin got a field that was for the proxy: {message}")


def fuzz(data: bytes) -> None:
    LOOP.run_until_complete(serve(data))


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
