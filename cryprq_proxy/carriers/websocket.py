"""The WebSocket carrier: runs a session over binary messages (RFC 6455), whose frames aiohttp makes and reads.

The messages together are the same stream of bytes as on TCP; where a message ends means nothing. This side puts whole
records into each message, so that the peer need not join them. Two tasks run, one for each direction.

The session decides what leaves first, so few bytes may wait below it. aiohttp's transport reports every byte that the
kernel has not taken (its high-water mark is 0), the kernel keeps few (TCP_NOTSENT_LOWAT), and the next records are made
only when all have gone.

The session checks that the peer is alive, so no pings of WebSocket are sent. Those that come count as messages, and are
answered while the answer need not wait (RFC 6455 section 5.5.3 allows to leave out some).

aiohttp parses all that one read has brought before the session's budget counts anything. So one read is small.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from ..base.clock import clock
from ..base.linger import SECONDS, wait_for
from ..base.tasks import spawn
from ..errors import CarrierError, CloseReason, PeerError
from ..session.path import SessionPath
from .carrier import Carrier, CarrierOwner, broken
from .lane.batch import SocketAddress

if TYPE_CHECKING:
    from aiohttp import ClientWebSocketResponse
    from aiohttp.web import WebSocketResponse

MAX_MESSAGE: Final = 1 << 20
"""Bytes of the largest message that is accepted, more than twice what this side sends."""
MESSAGE: Final = 131_072
"""A message is ended by the record with which it reaches so many bytes."""
MASKED_MESSAGE: Final = 32_768
"""The same for the client. Masking copies a message several times, which is cheap only within the CPU's cache."""

MESSAGE_WORK: Final = 20
"""What a message costs besides the records in it, as in session/turns.py."""

READ_SIZE: Final = 65_536
"""Bytes of one read; 2 ms of parsing if they are frames of two bytes each. asyncio would read 256 KiB."""
MESSAGES_AT_ONCE: Final = 16
"""Messages taken in one turn of the loop before there is a session that counts them."""

_TEXT, _BINARY, _PING, _PONG, _ERROR = 1, 2, 9, 10, 258
"""Values of aiohttp.WSMsgType; aiohttp is loaded only where a WebSocket is opened."""
_NORMAL_CLOSURE, _GOING_AWAY, _PROTOCOL_ERROR, _UNSUPPORTED_DATA = 1000, 1001, 1002, 1003
"""Codes of RFC 6455 section 7.4.1."""


class Watched(asyncio.Protocol):
    """A mixin for aiohttp's protocols that reports when the transport has nothing more to send."""

    emptied: Callable[[], None] = staticmethod(lambda: None)
    """Called when the transport has nothing to send any more, or has closed."""
    full = False
    """Whether the transport had to keep bytes since this was last set to False."""

    def pause_writing(self) -> None:
        super().pause_writing()
        self.full = True

    def resume_writing(self) -> None:
        super().resume_writing()
        self.emptied()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)  # type: ignore[arg-type]
        self.emptied()


def bound_reads(transport: asyncio.Transport) -> None:
    """Let `transport` read at most READ_SIZE bytes at once. asyncio has no public call for that."""
    tls = getattr(transport, "_ssl_protocol", None)
    if tls is None:
        transport.max_size = READ_SIZE  # type: ignore[attr-defined]
    else:
        tls._ssl_buffer_view = memoryview(tls._ssl_buffer)[:READ_SIZE]


def report_all(transport: asyncio.Transport) -> None:
    """Let `transport` report as soon as one byte waits in it."""
    if transport.get_extra_info("sslcontext") is None:
        transport.set_write_buffer_limits(high=0)
        return
    transport.set_write_buffer_limits(
        high=1, low=0
    )  # asyncio's TLS counts a queue of `high` bytes as too long
    # Below TLS there is a second transport with a buffer of its own, which asyncio does not make public. Without this
    # setting, 64 KiB more may wait.
    below = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    if below is not None:
        below.set_write_buffer_limits(high=0)


class WebSocketPipe:
    """The pipe on an open WebSocket, whose connection is `transport` and its protocol `watched`.

    `ended` is awaited when the connection is closed. Messages have about `message` bytes.
    """

    direct: SocketAddress | None = None

    def __init__(
        self,
        socket: ClientWebSocketResponse | WebSocketResponse,
        transport: asyncio.Transport,
        watched: Watched,
        ended: Callable[[], Awaitable[object]],
        message: int = MESSAGE,
    ) -> None:
        self.socket = socket
        self.transport = transport
        self.rest = bytearray()
        """Bytes that were read and not yet used."""
        self.message = message
        self._ended = ended
        self._emptied = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None
        self._watched = watched
        watched.emptied = self._emptied.set
        report_all(transport)
        bound_reads(transport)

    @property
    def ended(self) -> bool:
        return self.transport.is_closing()

    async def read_exactly(self, size: int) -> bytes:
        messages = 0
        while len(self.rest) < size:
            self.rest += await self.receive()
            messages += 1
            if not messages % MESSAGES_AT_ONCE:
                await asyncio.sleep(0)
        data = bytes(self.rest[:size])
        del self.rest[:size]
        return data

    async def receive(self) -> bytes:
        """The next message; nothing for a ping or a pong. Raises CarrierError if the connection ends, and for a message
        that is not allowed."""
        message = await self.socket.receive()
        if message.type == _BINARY:
            data: bytes = message.data
            return data
        if message.type in (_PING, _PONG):
            if message.type == _PING and not self.transport.get_write_buffer_size():
                await self._answer(message.data)
            return b""
        if message.type == _TEXT:
            raise TextMessageError(CloseReason.BAD_RECORD, "a text message arrived where only bytes may")
        if message.type == _ERROR:
            raise CarrierError(CloseReason.BAD_RECORD, f"a message was too large or damaged: {message.data}")
        raise CarrierError(CloseReason.TIMED_OUT, "the peer ended the connection")

    async def _answer(self, ping: bytes) -> None:
        try:
            await self.socket.pong(ping)
        except OSError as error:
            raise broken(error) from None

    async def write(self, data: bytes) -> None:
        await self.send(data)

    async def send(self, data: bytes | memoryview) -> bool:
        """Send one message, and return when the kernel has taken all of it; until then `data` must not change. True if
        the kernel did not take it at once. Raises CarrierError."""
        self._watched.full = False
        self._emptied.clear()
        try:
            await self.socket.send_bytes(data)  # type: ignore[arg-type]  # aiohttp takes any buffer
            if self.transport.get_write_buffer_size():
                await self._emptied.wait()
            return self._watched.full
        except OSError as error:
            raise broken(error) from None

    async def part(self, last: bytes) -> None:
        self.finish(last, _NORMAL_CLOSURE)
        assert self._closing is not None
        try:
            await asyncio.shield(self._closing)
        finally:
            self.transport.abort()

    def close(self) -> None:
        self.finish(None, _NORMAL_CLOSURE)

    def finish(self, last: bytes | None, code: int, *tasks: asyncio.Task[None]) -> None:
        """Wait for `tasks`, send `last` if there is one, send a close frame with `code` (RFC 6455 section 7.4), and
        close the connection, all within SECONDS."""
        if self._closing is None:
            self._closing = spawn(self._finish(last, code, tasks), "farewell")
            wait_for(self._closing)

    async def _finish(self, last: bytes | None, code: int, tasks: tuple[asyncio.Task[None], ...]) -> None:
        try:
            with contextlib.suppress(OSError, TimeoutError, RuntimeError, CarrierError):
                async with asyncio.timeout(SECONDS):
                    if tasks:
                        await asyncio.wait(tasks)
                    if last:
                        await self.write(last)
                    await self.socket.close(code=code)
        finally:
            self.transport.abort()
            await self._ended()

    def carrier(self, path: SessionPath, owner: CarrierOwner) -> Carrier:
        return WebSocketCarrier(asyncio.get_running_loop(), self, path, owner)


class TextMessageError(CarrierError):
    """A text message came where only binary ones may."""


class WebSocketCarrier(Carrier):
    """A path of a session on `pipe`, which the carrier closes. Call `start`."""

    kind = "ws"

    def __init__(
        self, loop: asyncio.AbstractEventLoop, pipe: WebSocketPipe, path: SessionPath, owner: CarrierOwner
    ) -> None:
        super().__init__(loop, pipe.transport.get_extra_info("socket"), path, owner)
        self._pipe = pipe
        self._wanted = asyncio.Event()
        """Set when there is something to send."""
        self._written = 0
        self._tasks: tuple[asyncio.Task[None], ...] = ()

    def start(self) -> None:
        self.path.ready = self._ready
        self._tasks = (spawn(self._read(), "websocket in"), spawn(self._write(), "websocket out"))
        self._ready()

    def _ready(self) -> None:
        self._wanted.set()

    # --- out -------------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        while self.open:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._send()
                if self.open:
                    self._after()
            except PeerError as error:
                self.fail(error)
            except Exception as error:  # noqa: BLE001  see carrier.py
                self.crash(error)

    async def _send(self) -> None:
        path, turn, pipe = self.path, self._session.turn, self._pipe
        while turn.left > 0:
            now = clock()
            buffer = self._buffers.take()
            size = path.fill(buffer, min(path.queue_target, pipe.message), now)
            if not size:
                self._buffers.give(buffer)
                self._meter.idle()
                return
            full = await pipe.send(buffer[:size])
            self._buffers.give(buffer)
            self._written += size
            if not self.open:
                return
            if full:
                self._measure(self._written, clock())
            elif not self._wanted.is_set():
                # The path has nothing more: else it would have called `ready` again.
                self._meter.idle()
                return
        self._wanted.set()
        await self._next_turn()

    # --- in --------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        turn, pending = self._session.turn, self._pipe.rest
        try:
            while self.open:
                if pending:
                    self._take_pending(pending)
                while self.open and turn.left <= 0:
                    await self._next_turn()
                    self._take_pending(pending)
                if not self.open:
                    return
                message = await self._pipe.receive()
                if not self.open:
                    return
                turn.spend(MESSAGE_WORK)
                if pending:
                    pending += message
                    continue
                view = memoryview(message)
                used = self.path.receive(view, clock())
                pending += view[used:]
                self._after()
        except PeerError as error:
            self.fail(error)
        except Exception as error:  # noqa: BLE001  see carrier.py
            self.crash(error)

    def _take_pending(self, pending: bytearray) -> None:
        """Give what waits to the session; the start of a record stays."""
        with memoryview(pending) as view:
            used = self.path.receive(view, clock())
        del pending[:used]
        self._after()

    async def _next_turn(self) -> None:
        came = asyncio.Event()
        self._session.turn.wait(came.set)
        await came.wait()

    # --- end -------------------------------------------------------------------------------------------------------

    def _finish(self, last: bytes | None, error: PeerError | None) -> None:
        current = asyncio.current_task(self._loop)
        for task in self._tasks:
            if task is not current:
                task.cancel()
        code = _NORMAL_CLOSURE if last is not None else _GOING_AWAY
        if isinstance(error, TextMessageError):
            code = _UNSUPPORTED_DATA
        elif isinstance(error, CarrierError) and error.reason is CloseReason.BAD_RECORD:
            code = _PROTOCOL_ERROR
        self._pipe.finish(last, code, *self._tasks)

    def _abandon(self) -> None:
        try:
            self._pipe.close()
        finally:
            self._pipe.transport.abort()
            # Both tasks end, for the carrier is no longer open.
            self._ready()
