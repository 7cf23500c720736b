"""Streams to await, for fronts that speak a protocol instead of relaying bytes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Final, Protocol

from ..base.sockets import set_reset_on_close
from ..errors import LocalError, StreamReason, StreamRefused, StreamReset
from ..session.streams import AnyStream, Half, StreamHandler
from .backlog import Backlog

_NOTHING: Final = memoryview(b"")


class ByteStream(Protocol):
    """Bytes in both directions, with back-pressure and half-close."""

    async def read(self) -> bytes:
        """Some bytes, or b"" at the end. Raises StreamReset. A cancelled `read` consumes nothing."""

    async def write(self, data: bytes) -> None:
        """Return when there is room for more. Raises StreamReset."""

    def write_eof(self) -> None:
        """End this direction."""

    def abort(self) -> None:
        """End both directions; has no effect after their end."""


class OriginStream(ByteStream, Protocol):
    """A ByteStream to an origin server."""

    def keep(self) -> bool:
        """Between two messages: whatever comes from now on, be it the end, ends both directions. False if the stream
        cannot be kept."""

    def use(self) -> None:
        """Another message begins."""

    def leave(self) -> None:
        """The application has closed, and is answered no more: end this direction, as it did, and the other one when
        something comes, or after PARTING_SECONDS."""

    @property
    def unserved(self) -> bool:
        """Whether the exit went away before it had connected the origin, after something was sent."""


PARTING_SECONDS: Final = 2.0
_EXIT_GONE: Final = frozenset((StreamReason.SHUTTING_DOWN, StreamReason.SESSION_LOST))


class LinkStream(StreamHandler):
    """An OriginStream over a stream of the link, and that stream's handler until `detach`."""

    def __init__(self) -> None:
        self._idle = False
        self._left = False
        self._opened = False
        self._loop = asyncio.get_running_loop()
        self._incoming = Backlog()
        self._eof = False
        self._reset: StreamReason | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._opening: asyncio.Future[None] = self._loop.create_future()
        self._stream: AnyStream | None = None

    def begin(self, stream: AnyStream) -> None:
        """Take the requested stream."""
        self._stream = stream
        if self._reset is not None:
            stream.reset(self._reset)

    @property
    def stream(self) -> AnyStream:
        if self._stream is None:
            raise LocalError("the stream has not been opened")
        return self._stream

    async def wait_opened(self) -> None:
        """Wait until the stream is opened, or is to be taken as opened. Raises StreamRefused."""
        await self._opening

    @property
    def unserved(self) -> bool:
        return not self._opened and self._reset in _EXIT_GONE

    def give_up(self) -> None:
        """The caller of `wait_opened` was cancelled: reset the stream."""
        self._reset = StreamReason.CANCELLED
        if self._stream is not None:
            self._stream.reset(StreamReason.CANCELLED)

    async def read(self) -> bytes:
        while not self._incoming:
            if self._reset is not None:
                raise StreamReset(self._reset)
            if self._eof:
                return b""
            self._reader = self._loop.create_future()
            await self._reader
        data = bytes(self._incoming.pop())
        self.stream.consumed(len(data))
        return data

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            if self._reset is not None or self.stream.send_half is not Half.OPEN:
                raise StreamReset(self._reset or StreamReason.CANCELLED)
            room = self.stream.request_room()
            if room:
                self.stream.send(view[:room])
                view = view[room:]
            else:
                self._writer = self._loop.create_future()
                await self._writer

    def write_eof(self) -> None:
        if self.stream.send_half is Half.OPEN:
            self.stream.finish()

    def abort(self) -> None:
        if self._reset is None:
            self.stream.reset(StreamReason.CANCELLED)
            self.reset(StreamReason.CANCELLED)

    def keep(self) -> bool:
        self._idle = not self._left and not self._eof and self._reset is None
        return self._idle

    def use(self) -> None:
        self._idle = False

    def leave(self) -> None:
        if (
            self._reset is None
            and not self._eof
            and not self._incoming
            and self.stream.send_half is Half.OPEN
        ):
            Parting(self._loop, self.stream)
            self.reset(StreamReason.CANCELLED)
        else:
            self.abort()

    def detach(self) -> tuple[AnyStream, Backlog, bool]:
        """Give the stream to another handler. Returns it, the data that is not yet read or consumed, and whether its
        end was received. Raises StreamReset."""
        if self._reset is not None:
            raise StreamReset(self._reset)
        return self.stream, self._incoming, self._eof

    # --- handler ---------------------------------------------------------------------------------------------------

    def expected(self) -> None:
        _wake(self._opening)

    def opened(self) -> None:
        self._opened = True
        _wake(self._opening)

    def refused(self, reason: StreamReason) -> None:
        self.reset(reason)

    def data_received(self, data: memoryview) -> None:
        if self._idle:
            self.abort()
            return
        self._incoming.append(data)
        _wake(self._reader)

    def eof_received(self) -> None:
        if self._idle:
            self.abort()
            return
        self._eof = True
        _wake(self._reader)

    def session_left(self) -> None:
        self._left = True
        if self._idle:
            self.abort()

    def reset(self, reason: StreamReason) -> None:
        self._reset = reason
        if not self._opening.done():
            self._opening.set_exception(StreamRefused(reason))
        _wake(self._reader)
        _wake(self._writer)

    def writable(self) -> None:
        _wake(self._writer)


class Parting(StreamHandler):
    """Ends a `stream` in order, whose application has closed after it had sent all. What the origin still says
    is answered with a reset, as the application's own system would answer it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stream: AnyStream) -> None:
        self._stream = stream
        stream.handler = self
        stream.finish()
        self._timer = loop.call_later(PARTING_SECONDS, self._end)

    def _end(self) -> None:
        self._timer.cancel()
        self._stream.reset(StreamReason.CANCELLED)

    def data_received(self, data: memoryview) -> None:
        self._end()

    def eof_received(self) -> None:
        self._end()

    def reset(self, reason: StreamReason) -> None:
        self._timer.cancel()


class SocketStream:
    """A ByteStream over a connected, non-blocking socket, which it owns."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.moved = 0
        """Bytes that were read or written."""
        self._fd = sock.fileno()
        self._rest = _NOTHING
        """What `write` waits for the socket to take."""
        self._loop = asyncio.get_running_loop()

    async def read(self) -> bytes:
        # Not loop.sock_recv: a cancellation at the wrong moment loses the bytes that it has read.
        while True:
            try:
                data = self.sock.recv(65_536)
                self.moved += len(data)
                return data
            except (BlockingIOError, InterruptedError):
                await self._readable()
            except OSError:
                raise StreamReset(StreamReason.CONNECTION_RESET) from None

    async def _readable(self) -> None:
        readable = self._loop.create_future()
        self._loop.add_reader(self._fd, _wake, readable)
        try:
            await readable
        finally:
            self._loop.remove_reader(self._fd)

    async def write(self, data: bytes) -> None:
        # Not loop.sock_sendall: it does not tell how far it is, and a slow reader would look idle.
        try:
            size = self.sock.send(data)
        except (BlockingIOError, InterruptedError):
            size = 0
        except OSError:
            raise StreamReset(StreamReason.CONNECTION_RESET) from None
        self.moved += size
        if size < len(data):
            await self._send_rest(memoryview(data)[size:])

    async def _send_rest(self, rest: memoryview) -> None:
        """Send what the socket has no room for now, with one future for all of it."""
        sent = self._loop.create_future()
        self._rest = rest
        self._loop.add_writer(self._fd, self._send_more, sent)
        try:
            await sent
        except OSError:
            raise StreamReset(StreamReason.CONNECTION_RESET) from None
        finally:
            self._loop.remove_writer(self._fd)
            self._rest = _NOTHING

    def _send_more(self, sent: asyncio.Future[None]) -> None:
        if sent.done():
            return
        try:
            size = self.sock.send(self._rest)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            sent.set_exception(error)
            return
        self.moved += size
        self._rest = self._rest[size:]
        if not self._rest:
            sent.set_result(None)

    def write_eof(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        set_reset_on_close(self.sock)
        self.sock.close()


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
