"""Origins that answer never, slowly or without end, and that notice how each of their connections ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator

from tests.support.background import Background
from tests.support.targets import TcpTarget

type Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]

HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
"""Of a body that ends with the connection."""


async def never(writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def slowly(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD)
    while True:
        writer.write(b"x")
        await asyncio.sleep(0.1)


async def stops_in_the_middle(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"x")
    await never(writer)


async def without_end(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD)
    while True:
        writer.write(bytes(65_536))
        await writer.drain()


class Origin(TcpTarget):
    """Reads a head, `answer`s, and reads on until the other side ends, unless it `reads` no body.

    `open` connections are those whose end has not been noticed; `ends` tells how the others ended: "end" or "reset".
    """

    def __init__(self, background: Background, answer: Answer, *, reads: bool = True) -> None:
        self._answer = answer
        self._reads = reads
        self._answering: set[asyncio.Task[None]] = set()
        """The loop keeps no task alive."""
        self.open = 0
        self.ends: list[str] = []
        super().__init__(background, self._manner_of_it)

    async def _manner_of_it(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        answering: asyncio.Task[None] | None = None
        try:
            await reader.readuntil(b"\r\n\r\n")
            answering = asyncio.create_task(_answer(self._answer, writer))
            self._answering.add(answering)
            answering.add_done_callback(self._answering.discard)
            if not self._reads:
                writer.transport.pause_reading()  # type: ignore[attr-defined]
                await answering
            while await reader.read(65_536):
                pass
            self.ends.append("end")
        except (ConnectionError, asyncio.IncompleteReadError):
            self.ends.append("reset")
        finally:
            if answering is not None:
                answering.cancel()
            writer.transport.abort()
            self.open -= 1

    def close(self) -> None:
        super().close()
        self._background.call(lambda: [task.cancel() for task in self._answering])


async def _answer(answer: Answer, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        await answer(writer)


@contextlib.contextmanager
def deaf() -> Iterator[int]:
    """The port of a target that never completes a connection: its queue is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, contextlib.ExitStack() as stack:
        port = server.getsockname()[1]
        for _ in range(8):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        yield port
