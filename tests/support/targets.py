"""What the streams go to: an HTTP server, and TCP and UDP servers with the manners that a test needs.

All run in the background loop, on 127.0.0.1 and, where the machine has it, on ::1.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import socket
import threading
from collections.abc import Awaitable, Callable

from aiohttp import WSMsgType, web

from tests.support.background import PATIENCE, Background

BLOCK = random.Random(1).randbytes(1 << 20)
MIB = 1 << 20
RESOURCES = 60

PAGE = """<!doctype html><title>page</title><p id=result>waiting</p><script>
let loaded = 0;
for (let i = 0; i < COUNT; i++)
  fetch("/resource/" + i).then(r => r.text()).then(text => {
    if (text === "resource " + i) loaded++;
    if (loaded === COUNT) document.getElementById("result").textContent = "loaded " + loaded + " of COUNT";
  });
</script>
"""


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def digest(size: int) -> str:
    """SHA-256 of the first `size` bytes of BLOCK repeated, which is what /bytes sends."""
    state = hashlib.sha256()
    for _ in range(size // len(BLOCK)):
        state.update(BLOCK)
    state.update(BLOCK[: size % len(BLOCK)])
    return state.hexdigest()


def pieces(size: int) -> list[memoryview]:
    """The same bytes, in pieces."""
    whole, rest = divmod(size, len(BLOCK))
    return [memoryview(BLOCK)] * whole + ([memoryview(BLOCK)[:rest]] if rest else [])


class HttpTarget:
    """`seen` has a line for every request: method, URL as it came, Host."""

    def __init__(self, background: Background, host: str = "127.0.0.1") -> None:
        self._background = background
        self.seen: list[str] = []
        self.port = background.run(self._start(host))

    async def _start(self, host: str) -> int:
        app = web.Application(middlewares=[self._note], client_max_size=1 << 30)
        app.router.add_get("/hello", self._hello)
        app.router.add_get("/bytes", self._bytes)
        app.router.add_route("*", "/upload", self._upload)
        app.router.add_get("/page", self._page)
        app.router.add_get("/resource/{number}", self._resource)
        app.router.add_get("/ws", self._ws)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, 0)
        await site.start()
        return int(self._runner.addresses[0][1])

    def close(self) -> None:
        self._background.run(self._runner.cleanup())

    @web.middleware
    async def _note(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self.seen.append(f"{request.method} {request.raw_path} {request.headers.get('Host')}")
        return await handler(request)

    async def _hello(self, request: web.Request) -> web.Response:
        return web.Response(text="hello\n")

    async def _bytes(self, request: web.Request) -> web.StreamResponse:
        size = int(request.query["size"])
        response = web.StreamResponse(headers={"Content-Length": str(size)})
        await response.prepare(request)
        # An application that hangs up in the middle is nothing to report.
        with contextlib.suppress(ConnectionError):
            for piece in pieces(size):
                await response.write(piece)
        return response

    async def _upload(self, request: web.Request) -> web.Response:
        state, size = hashlib.sha256(), 0
        async for data in request.content.iter_any():
            state.update(data)
            size += len(data)
        chunked = request.headers.get("Transfer-Encoding", "").lower() == "chunked"
        return web.json_response({"sha256": state.hexdigest(), "size": size, "chunked": chunked})

    async def _page(self, request: web.Request) -> web.Response:
        return web.Response(text=PAGE.replace("COUNT", str(RESOURCES)), content_type="text/html")

    async def _resource(self, request: web.Request) -> web.Response:
        return web.Response(text=f"resource {request.match_info['number']}")

    async def _ws(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        async for message in ws:
            if message.type is WSMsgType.TEXT:
                await ws.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await ws.send_bytes(message.data)
        return ws


type Manner = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class TcpTarget:
    """Serves each connection with `manner`; `accepted` counts them."""

    def __init__(self, background: Background, manner: Manner, host: str = "127.0.0.1") -> None:
        self._background = background
        self._manner = manner
        self.accepted = 0
        self._server = background.run(asyncio.start_server(self._serve, host, 0, backlog=4096))
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            await self._manner(reader, writer)
        except (OSError, asyncio.CancelledError):
            # Nobody takes any more what is not sent yet.
            writer.transport.abort()
        finally:
            writer.close()

    def close(self) -> None:
        self._background.end_server(self._server)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends back what comes; ends when that ends."""
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def answer_after_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speaks when it has heard everything: SHA-256 and size of that."""
    data = await reader.read()
    writer.write(f"{hashlib.sha256(data).hexdigest()} {len(data)}".encode())
    writer.write_eof()


class EndFirst:
    """A manner: says "bye", ends its direction, and goes on hearing. `heard` is what came after that."""

    def __init__(self) -> None:
        self.heard = b""
        self.done = threading.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.write_eof()
        self.heard = await reader.read()
        self.done.set()

    def wait(self) -> bytes:
        assert self.done.wait(PATIENCE), "the target has not heard the end"
        return self.heard


class UdpEcho:
    """Sends every datagram back. One that says "other port" is answered from another socket.

    With plain sockets: asyncio's datagram transports send no empty datagram before CPython 3.13.
    """

    def __init__(self, background: Background, host: str = "127.0.0.1") -> None:
        self._background = background
        self._sock, self._other = self._socket(host), self._socket(host)
        self.port: int = self._sock.getsockname()[1]
        background.call(background.loop.add_reader, self._sock, self._on_readable)

    def _socket(self, host: str) -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((host, 0))
        sock.setblocking(False)
        return sock

    def _on_readable(self) -> None:
        data, address = self._sock.recvfrom(65_536)
        (self._other if data == b"other port" else self._sock).sendto(data, address)

    def close(self) -> None:
        self._background.call(self._background.loop.remove_reader, self._sock)
        self._sock.close()
        self._other.close()
