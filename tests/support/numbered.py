"""Requests with a number each, and a target that counts how often each of them has come."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import count, cycle
from typing import Final

from tests.support.background import Background
from tests.support.load import Load
from tests.support.targets import TcpTarget

KINDS: Final = ("tunnel", "get", "post")


class Numbered:
    """A manner: answers one HTTP request of `NumberedLoad`. `came` counts those of each kind and number."""

    def __init__(self) -> None:
        self.came: Counter[str] = Counter()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return  # opened, and left without a request
        name = head.split()[1].decode().rpartition("/")[2]
        if name.startswith("post"):
            await reader.readexactly(4)
        self.came[name] += 1
        body = name.encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        await writer.drain()

    def twice(self, kind: str) -> list[str]:
        """What has come more than once."""
        return [name for name, times in self.came.items() if times > 1 and name.startswith(kind)]


class NumberedLoad(Load):
    """A request in a SOCKS tunnel, a GET and a POST of plain HTTP in turns, each on a connection of its own."""

    def __init__(self, background: Background, port: int, target: TcpTarget) -> None:
        super().__init__(background, port, target)
        self._authority = b"127.0.0.1:%d" % target.port
        self._names = (f"{kind}{number}" for number, kind in zip(count(), cycle(KINDS), strict=False))

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        name = next(self._names)
        verb, body = (b"POST", b"data") if name.startswith("post") else (b"GET", b"")
        url = name.encode()
        if name.startswith("tunnel"):
            if wrong := await self._tunnel(reader, writer):
                return f"{name}: {wrong}"
            url = b"/" + url
        else:
            url = b"http://" + self._authority + b"/" + url
        fields = b"Host: %s\r\nConnection: close\r\nContent-Length: %d" % (self._authority, len(body))
        writer.write(b"%s %s HTTP/1.1\r\n%s\r\n\r\n%s" % (verb, url, fields, body))
        try:
            answer = await reader.read()
        except OSError as error:
            return f"{name}: {error!r}"
        return "" if answer.endswith(b"\r\n\r\n" + name.encode()) else f"{name}: the answer {answer[:40]!r}"
