"""In-memory ends for the HTTP proxy's tests and fuzz target: byte streams that are written by hand, and a stage."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from cryprq_proxy.address import Destination
from cryprq_proxy.client.requests import Early
from cryprq_proxy.errors import StreamReason, StreamRefused, StreamReset
from cryprq_proxy.fronts.credentials import Credentials
from cryprq_proxy.fronts.http_proxy import HttpProxy, HttpTunnel
from cryprq_proxy.fronts.own_page import TellFacts, no_facts
from cryprq_proxy.session.turns import TurnBudget

PATIENCE = 30.0
"""Seconds after which a step of a script has failed; none of them waits for time to pass."""


class FakeStream:
    """A ByteStream whose other end is the test: `feed`, `feed_eof`, `reset`, and what was `sent`."""

    def __init__(self, *pieces: bytes) -> None:
        self.sent = bytearray()
        self.ended = False
        """The proxy has ended its direction."""
        self.aborted = False
        self.left = False
        """The proxy has passed on that its client has closed."""
        self.kept = False
        """The proxy holds it for another request."""
        self.unserved = False
        """Whether the exit went away before it had connected the origin."""
        self.reads = 0
        self._incoming = deque(pieces)
        self._eof = False
        self._reset: StreamReason | None = None
        self._room = asyncio.Event()
        self._room.set()
        self._changed = asyncio.Event()

    # The proxy's side

    async def read(self) -> bytes:
        self.reads += 1
        while not self._incoming:
            if self._reset is not None:
                raise StreamReset(self._reset)
            if self._eof:
                return b""
            await self._change()
        return self._incoming.popleft()

    async def write(self, data: bytes) -> None:
        if self._reset is not None:
            raise StreamReset(self._reset)
        self.sent += data
        self._notify()
        await self._room.wait()
        if self._reset is not None:
            raise StreamReset(self._reset)

    def write_eof(self) -> None:
        self.ended = True
        self._notify()

    def keep(self) -> bool:
        self.kept = True
        return True

    def use(self) -> None:
        self.kept = False

    def leave(self) -> None:
        self.left = True
        self.abort()

    def abort(self) -> None:
        self.aborted = True
        self.reset(StreamReason.CANCELLED)

    # The test's side

    def feed(self, data: bytes) -> None:
        self._incoming.append(data)
        self._notify()

    def feed_eof(self) -> None:
        self._eof = True
        self._notify()

    def reset(self, reason: StreamReason = StreamReason.CONNECTION_RESET) -> None:
        if self._reset is None:
            self._reset = reason
        self._room.set()
        self._notify()

    def block(self) -> None:
        """From now on `write` takes data and does not return."""
        self._room.clear()

    def unblock(self) -> None:
        self._room.set()

    async def gets(self, expected: bytes) -> None:
        """Wait for as many bytes as `expected` has, and take them off; they must be the same."""
        await self.until(lambda: len(self.sent) >= len(expected))
        taken = bytes(self.sent[: len(expected)])
        assert taken == expected
        del self.sent[: len(expected)]

    async def gets_message_head(self) -> bytes:
        """Wait for a whole header section, and take it off."""
        await self.until(lambda: b"\r\n\r\n" in self.sent)
        end = self.sent.index(b"\r\n\r\n") + 4
        head = bytes(self.sent[:end])
        del self.sent[:end]
        return head

    async def gets_message(self) -> bytes:
        """The same together with the body that Content-Length announces."""
        head = await self.gets_message_head()
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        length = int(lengths[0].partition(b":")[2]) if lengths else 0
        await self.until(lambda: len(self.sent) >= length)
        body = bytes(self.sent[:length])
        del self.sent[:length]
        return head + body

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what anyone's step brings about."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition():
                    await self._change()
        except TimeoutError:
            raise AssertionError(f"nothing more came; there is {bytes(self.sent)!r}") from None

    async def _change(self) -> None:
        # One event serves all waiters: each looks again at what it waits for.
        changed = self._changed
        await changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Stage:
    """One client connection on an HttpProxy, and the streams that the proxy has opened.

    `async with Stage() as stage:` runs the proxy; on leaving, the client goes away if it is still there, and then no
    stream may be open.
    """

    def __init__(
        self,
        credentials: Credentials | None = None,
        via: str | None = None,
        turns: TurnBudget | None = None,
        facts: TellFacts = no_facts,
        at_page: bool = False,
        named: bool = True,
        **limits: float,
    ) -> None:
        self.client = FakeStream()
        self.asked: list[Destination] = []
        self.opened: list[tuple[Destination, FakeStream]] = []
        self.early: list[Early] = []
        """How each was opened."""
        self.refusals: dict[Destination, StreamReason] = {}
        self.tunnel: HttpTunnel | None = None
        self.reset: StreamReason | None = None
        """Why the client's connection is to be aborted."""
        self.done = False
        turns = turns or TurnBudget(asyncio.get_running_loop().call_soon)
        self.proxy = HttpProxy(
            self.client, self, turns, credentials=credentials, via=via,
            facts=facts, at_page=at_page, named=named, **limits,
        )  # fmt: skip
        self._first: asyncio.Future[bytes] | None = None
        self._task: asyncio.Task[None] | None = None
        self._coming: list[FakeStream] = []

    def expect(self, *pieces: bytes) -> FakeStream:
        """The stream that the next `open` yields, with what it answers."""
        stream = FakeStream(*pieces)
        self._coming.append(stream)
        return stream

    async def open(self, destination: Destination, early: Early) -> FakeStream:
        self.asked.append(destination)
        if destination in self.refusals:
            raise StreamRefused(self.refusals[destination])
        stream = self._coming.pop(0) if self._coming else FakeStream()
        self.opened.append((destination, stream))
        self.early.append(early)
        self.client._notify()
        return stream

    async def origin(self, index: int = -1) -> FakeStream:
        """The stream opened as number `index`, or the first one when there is none yet."""
        await self.client.until(lambda: len(self.opened) > max(index, 0))
        return self.opened[index][1]

    def says(self, data: bytes) -> None:
        """The client sends; the first time it is what the listener had read already."""
        if self._first is not None and not self._first.done():
            self._first.set_result(data)
        else:
            self.client.feed(data)

    def gives_up(self) -> None:
        """The client is known to have gone."""
        assert self._task is not None
        self._task.cancel()

    async def ends(self) -> None:
        """Wait for the proxy to be done with this connection."""
        await self.client.until(lambda: self.done)

    async def _run(self, first: asyncio.Future[bytes]) -> None:
        try:
            self.tunnel = await self.proxy.run(await first)
        except StreamReset as reset:
            self.reset = reset.reason
        except asyncio.CancelledError:
            self.reset = StreamReason.CANCELLED
        finally:
            self.done = True
            self.client._notify()

    async def __aenter__(self) -> Self:
        self._first = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(self._first))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        if kind is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            return
        if not self.done:
            self.client.reset()
            await self.ends()
        await self._task
        handed_on = self.tunnel.stream if self.tunnel else None
        for destination, stream in self.opened:
            assert stream.aborted != (stream is handed_on), f"the stream to {destination} was left open"
