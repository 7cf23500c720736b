"""DNS over HTTPS (RFC 8484), as POST over HTTP/1.1.

A connection carries one request at a time, so there are several: those that are idle are used again, and beyond
`MAX_CONNECTIONS` a question waits. POST, since it needs no encoding and no cache keeps it. A server is not trusted with
the time of the loop: HttpReader bounds its heads, and all connections to it have one TurnBudget together.
"""

from __future__ import annotations

import asyncio
from typing import Final

import h11

from cryprq_proxy.errors import StreamReset
from cryprq_proxy.outbound.bytestream import ByteStream
from cryprq_proxy.outbound.http_reader import HttpReader
from cryprq_proxy.session.turns import TurnBudget

from .codes import MAX_MESSAGE, PADDING
from .framed import IDLE_SECONDS, OpenStream, UpstreamError, open_in_time
from .inquiry import Inquiry

MAX_CONNECTIONS: Final = 8
MEDIA_TYPE: Final = b"application/dns-message"
_NO_ANSWER: Final = "the server closed the connection without an answer"


class HttpsConnection:
    """One stream and the state of HTTP on it."""

    def __init__(self, stream: ByteStream, turns: TurnBudget) -> None:
        self.stream = stream
        self.reader = HttpReader(stream, h11.CLIENT, turns)

    async def fetch(self, host: str, path: str, body: bytes) -> bytes:
        """POST `body`, and return the response's. Raises UpstreamError, StreamReset, h11.RemoteProtocolError."""
        http = self.reader.http
        headers = [
            (b"Host", host.encode("ascii")),
            (b"Accept", MEDIA_TYPE),
            (b"Content-Type", MEDIA_TYPE),
            (b"Content-Length", b"%d" % len(body)),
        ]
        request = h11.Request(method="POST", target=path, headers=headers)
        events = (request, h11.Data(data=body), h11.EndOfMessage())
        await self.stream.write(b"".join(http.send(event) or b"" for event in events))
        while isinstance(response := await self.reader.head(), h11.InformationalResponse):
            pass
        if not isinstance(response, h11.Response):
            raise UpstreamError(_NO_ANSWER)
        _check(response)
        content = bytearray()
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                await self.reader.receive()
            elif isinstance(event, h11.Data):
                content += event.data
                if len(content) > MAX_MESSAGE:
                    raise UpstreamError("the server's answer is too long for DNS")
            elif isinstance(event, h11.EndOfMessage):
                return bytes(content)
            else:
                raise UpstreamError(_NO_ANSWER)

    def renew(self) -> bool:
        """Make ready for another request; False when the stream cannot carry one."""
        reader = self.reader
        complete = reader.http.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}
        if not complete or reader.rest or reader.ended:
            return False
        reader.renew()
        return True


class HttpsUpstream:
    """A server that is asked by HTTP on the streams that `open_stream` opens, which are in TLS already."""

    def __init__(self, open_stream: OpenStream, host: str, path: str) -> None:
        """`host` is the value of the Host field; `path` that of the request, with its query."""
        self._open_stream = open_stream
        self._host = host
        self._path = path
        self._turns = TurnBudget(asyncio.get_running_loop().call_soon)
        self._free = asyncio.Semaphore(MAX_CONNECTIONS)
        self._idle: dict[HttpsConnection, asyncio.TimerHandle] = {}
        """Connection -> what ends it."""
        self._busy: set[HttpsConnection] = set()

    async def ask(self, inquiry: Inquiry) -> bytes:
        """See `Upstream`."""
        async with self._free:
            while True:
                reused = bool(self._idle)
                connection = self._take() if reused else await self._connect()
                self._busy.add(connection)
                kept = False
                try:
                    message = await connection.fetch(self._host, self._path, inquiry.wire(PADDING))
                    kept = connection.renew()
                except (StreamReset, UpstreamError, h11.RemoteProtocolError) as error:
                    # A kept connection may have been closed from the other side at any time.
                    if reused and connection.reader.silent:
                        continue
                    raise UpstreamError(_text(error, silent=connection.reader.silent)) from None
                finally:
                    self._busy.discard(connection)
                    self._put(connection) if kept else connection.stream.abort()
                if not inquiry.is_answered_by(message):
                    raise UpstreamError("the server answered another question")
                return message

    def close(self) -> None:
        """See `Upstream`."""
        for connection in (*self._busy, *self._idle):
            connection.stream.abort()
        while self._idle:
            self._take()

    async def _connect(self) -> HttpsConnection:
        return HttpsConnection(await open_in_time(self._open_stream), self._turns)

    def _take(self) -> HttpsConnection:
        """The connection that was used last."""
        connection, timer = self._idle.popitem()
        timer.cancel()
        return connection

    def _put(self, connection: HttpsConnection) -> None:
        self._idle[connection] = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._expire, connection)

    def _expire(self, connection: HttpsConnection) -> None:
        del self._idle[connection]
        connection.stream.abort()


def _check(response: h11.Response) -> None:
    """Raises UpstreamError unless it brings a DNS message."""
    if response.status_code != 200:
        raise UpstreamError(f"the server answered with HTTP status {response.status_code}")
    kinds = [value for name, value in response.headers if name == b"content-type"]
    if len(kinds) != 1 or kinds[0].partition(b";")[0].strip().lower() != MEDIA_TYPE:
        raise UpstreamError("the server's HTTP response is no DNS message")


def _text(error: Exception, *, silent: bool) -> str:
    if isinstance(error, StreamReset):
        return _NO_ANSWER
    if isinstance(error, h11.RemoteProtocolError):
        return _NO_ANSWER if silent else "the server's HTTP response is malformed"
    return str(error)
