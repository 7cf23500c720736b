"""DNS on a byte stream: each message behind two bytes of length (RFC 1035 section 4.2.2), many in flight (RFC 7766).

One connection serves all questions, in whatever order it answers. It is opened by the first question, closed when
idle, and opened anew when it ended. If a connection that had worked ends before it answered a question, the question
is asked once more on a new one: servers close idle connections, sometimes while a question is on the wire.

Questions are put on the stream by one task of the connection. A question that is given up while being written thus
never leaves half a message behind.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.errors import CryprqError, StreamReset
from cryprq_proxy.outbound.bytestream import ByteStream

from .inquiry import Inquiry

_log = logging.getLogger(__name__)

type OpenStream = Callable[[], Awaitable[ByteStream]]
"""Opens a stream to one server. Raises StreamRefused, StreamReset, UpstreamError or another CryprqError."""

IDLE_SECONDS: Final = 30.0
"""How long a connection without questions is kept."""
CONNECT_SECONDS: Final = 3.0
STALL_SECONDS: Final = 2.0
"""A connection that brought nothing for this long while a question was given up is no longer used."""
MAX_IN_FLIGHT: Final = 4096
"""Questions on one connection: far fewer than ids, so that a free one is found at once."""


def message_end(buffer: bytearray, at: int) -> int:
    """Where the message ends whose length stands at `at`; beyond the buffer if not all of it is there yet."""
    return at + 2 + (int.from_bytes(buffer[at : at + 2]) if len(buffer) - at >= 2 else 0)


class UpstreamError(CryprqError):
    """A server did not answer. `unreachable`: no stream to it could be opened, so it never saw the question."""

    def __init__(self, text: str, *, unreachable: bool = False) -> None:
        super().__init__(text)
        self.unreachable = unreachable


class Upstream(Protocol):
    """A server that answers questions."""

    async def ask(self, inquiry: Inquiry) -> bytes:
        """The server's message, which answers this question. Raises UpstreamError. Waits for ever: cancel it."""

    def close(self) -> None:
        """End all connections and the questions on them. It can be used again."""


class FramedConnection:
    """One stream and the questions on it."""

    def __init__(self, stream: ByteStream, padding: int) -> None:
        self._stream = stream
        self._padding = padding
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, tuple[Inquiry, asyncio.Future[bytes | None]]] = {}
        self._unsent = bytearray()
        self._wake_writer = asyncio.Event()
        self._idle = self._loop.call_later(IDLE_SECONDS, self.end)
        self.heard = 0.0
        """When something came last."""
        self.used = False
        """Whether it has ever brought an answer."""
        self.ended = False
        self._tasks = [spawn(self._read(), "dns read"), spawn(self._write(), "dns write")]

    async def ask(self, inquiry: Inquiry) -> bytes | None:
        """The answer; None if the connection ended before it came."""
        if len(self._waiting) >= MAX_IN_FLIGHT:
            raise UpstreamError("too many questions wait for the server")
        self._idle.cancel()
        id_ = secrets.randbelow(65_536)
        while id_ in self._waiting:
            id_ = secrets.randbelow(65_536)
        answer: asyncio.Future[bytes | None] = self._loop.create_future()
        self._waiting[id_] = inquiry, answer
        message = inquiry.wire(self._padding)
        self._unsent += len(message).to_bytes(2) + id_.to_bytes(2) + message[2:]
        self._wake_writer.set()
        asked = self._loop.time()
        try:
            return await answer
        except asyncio.CancelledError:
            if self.heard <= asked and self._loop.time() - asked >= STALL_SECONDS:
                self.end()
            raise
        finally:
            self._waiting.pop(id_, None)
            if not self._waiting and not self.ended:
                self._idle = self._loop.call_later(IDLE_SECONDS, self.end)

    def end(self) -> None:
        """Close the stream; all questions on it are told."""
        if self.ended:
            return
        self.ended = True
        self._idle.cancel()
        for task in self._tasks:
            task.cancel()
        self._stream.abort()
        for _, answer in self._waiting.values():
            if not answer.done():
                answer.set_result(None)

    async def _read(self) -> None:
        buffer = bytearray()
        try:
            while data := await self._stream.read():
                self.heard = self._loop.time()
                buffer += data
                at = 0
                while (end := message_end(buffer, at)) <= len(buffer):
                    self._received(bytes(buffer[at + 2 : end]))
                    at = end
                del buffer[:at]
        except (StreamReset, UpstreamError) as error:
            _log.debug("a DNS connection ended: %s", error)
        self.end()

    def _received(self, message: bytes) -> None:
        """An answer with an unknown id, or to another question, is dropped: what was asked may still be answered."""
        inquiry, answer = self._waiting.get(int.from_bytes(message[:2]), (None, None))
        if (
            inquiry is not None
            and answer is not None
            and not answer.done()
            and inquiry.is_answered_by(message)
        ):
            self.used = True
            answer.set_result(message)

    async def _write(self) -> None:
        try:
            while True:
                await self._wake_writer.wait()
                self._wake_writer.clear()
                data = bytes(self._unsent)
                self._unsent.clear()
                await self._stream.write(data)
        except (StreamReset, UpstreamError) as error:
            _log.debug("a DNS connection ended: %s", error)
        self.end()


class FramedUpstream:
    """A server on the streams that `open_stream` opens: the exit's resolver, a plain server, or one inside TLS."""

    def __init__(self, open_stream: OpenStream, padding: int = 0) -> None:
        self._open_stream = open_stream
        self._padding = padding
        self._connection: FramedConnection | None = None
        self._opening: asyncio.Task[FramedConnection | UpstreamError] | None = None

    async def ask(self, inquiry: Inquiry) -> bytes:
        """See `Upstream`."""
        for last in (False, True):
            connection = await self._connect()
            worked = connection.used
            message = await connection.ask(inquiry)
            if message is not None:
                return message
            if last or not (worked or connection.used):
                break
        raise UpstreamError("the server closed the connection without an answer")

    def close(self) -> None:
        """See `Upstream`."""
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None
        if self._connection is not None:
            self._connection.end()
            self._connection = None

    async def _connect(self) -> FramedConnection:
        """The open connection, or a new one; questions that need it at the same time wait for the same one."""
        if self._connection is not None and not self._connection.ended:
            return self._connection
        if self._opening is None or self._opening.done():
            self._opening = spawn(self._open(), "dns connect")
        opening = self._opening
        try:
            opened = await asyncio.shield(opening)
        except asyncio.CancelledError:
            # `close` has cancelled the opening; otherwise the question itself was cancelled.
            if opening.cancelled():
                raise UpstreamError("the connection was closed", unreachable=True) from None
            raise
        if isinstance(opened, UpstreamError):
            raise opened
        return opened

    async def _open(self) -> FramedConnection | UpstreamError:
        """The error is returned, not raised: if no question waits any more, no task has failed."""
        try:
            self._connection = FramedConnection(await open_in_time(self._open_stream), self._padding)
        except UpstreamError as error:
            return error
        return self._connection


async def open_in_time(open_stream: OpenStream) -> ByteStream:
    """A stream, or UpstreamError with `unreachable`."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            return await open_stream()
    except TimeoutError:
        raise UpstreamError("the server cannot be reached: timed out", unreachable=True) from None
    except UpstreamError:
        raise
    except CryprqError as error:
        raise UpstreamError(f"the server cannot be reached: {error}", unreachable=True) from None
