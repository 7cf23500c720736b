"""Traffic of applications while something happens to the link: new connections all the time, and one that stays."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import Final, Self

from cryprq_proxy.base.tasks import spawn
from tests.support.applications import read_exactly
from tests.support.background import PATIENCE, Background
from tests.support.programs import until
from tests.support.targets import HttpTarget, TcpTarget

EVERY: Final = 0.01
"""Seconds between two new connections."""


class Load:
    """New connections through the proxy at `port` to an echo target, one every few milliseconds, until the end of the
    block; all of them have been answered then. `wrong`: what those met that failed. With `plain`, each asks an HTTP
    target for a page, without a tunnel."""

    def __init__(
        self, background: Background, port: int, target: TcpTarget | HttpTarget, *, plain: bool = False
    ) -> None:
        self._plain = plain
        self._get = b"GET http://127.0.0.1:%d/hello HTTP/1.0\r\n\r\n" % target.port
        self._background = background
        self._port = port
        self._head = b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01" + target.port.to_bytes(2)
        self._ending = asyncio.Event()
        self._ended = threading.Event()
        self._seconds: list[float] = []
        self.wrong: list[str] = []

    def __enter__(self) -> Self:
        self._background.call(spawn, self._ask_all(), "load")
        return self

    def __exit__(self, *_: object) -> None:
        self._background.call(self._ending.set)
        assert self._ended.wait(PATIENCE)

    def __str__(self) -> str:
        return f"{self.answered} new connections, {len(self.wrong)} failed, the slowest took {self.slowest:.2f} s"

    @property
    def answered(self) -> int:
        return len(self._seconds)

    @property
    def slowest(self) -> float:
        return max(self._seconds)

    async def _ask_all(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while not self._ending.is_set():
                tasks.create_task(self._ask())
                await asyncio.sleep(EVERY)
        self._ended.set()

    async def _ask(self) -> None:
        began = time.monotonic()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            try:
                if wrong := await self._exchange(reader, writer):
                    self.wrong.append(wrong)
                    return
            finally:
                writer.close()
        except (OSError, EOFError) as error:
            self.wrong.append(repr(error))
        else:
            self._seconds.append(time.monotonic() - began)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """Ask once; what is wrong."""
        return await (self._page(reader, writer) if self._plain else self._echo(reader, writer))

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """What is wrong."""
        writer.write(self._head)
        reply = await reader.readexactly(12)
        return f"SOCKS reply {reply[3]}" if reply[3] else ""

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        if wrong := await self._tunnel(reader, writer):
            return wrong
        writer.write(b"hello")
        return "" if await reader.readexactly(5) == b"hello" else "another answer"

    async def _page(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        writer.write(self._get)
        page = await reader.read()
        return "" if page.endswith(b"hello\n") else f"the answer {page[:40]!r}"


class Talk:
    """A stream that is used all the while, on a thread, until `end`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.rounds = 0
        self._thread.start()

    def _run(self) -> None:
        while not self._ending.wait(EVERY):
            self._sock.sendall(b"still here")
            assert read_exactly(self._sock, 10) == b"still here"
            self.rounds += 1

    def goes_on(self) -> None:
        before = self.rounds
        until(lambda: self.rounds > before + 5, "the stream goes on")

    def end(self) -> None:
        """The target sends its end after this side's, and nothing else."""
        self._ending.set()
        self._thread.join()
        with self._sock:
            self._sock.shutdown(socket.SHUT_WR)
            assert self._sock.recv(1) == b""
