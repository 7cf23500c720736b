"""TLS on a byte stream of the link, for DNS over TLS and over HTTPS.

The `ssl` module works in memory here: what the stream brings goes into one buffer, what is to be sent comes out of
another. The exit, and the network behind it, are on the path; so the certificate and its name are always checked.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

from cryprq_proxy.outbound.bytestream import ByteStream

from .framed import OpenStream, UpstreamError

READ_SIZE: Final = 65_536


def client_context() -> ssl.SSLContext:
    """The system's authorities, TLS 1.2 and later. Takes tens of milliseconds: make one for all servers."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class TlsStream:
    """A ByteStream inside TLS. One task may read while another writes."""

    def __init__(self, stream: ByteStream, context: ssl.SSLContext, name: str) -> None:
        self._stream = stream
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        # Reading may have to send too (a key update). Records leave in the order in which they were made.
        self._sending = asyncio.Lock()

    async def handshake(self) -> None:
        """To be called first. Raises UpstreamError (certificate, name or protocol) and StreamReset."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._receive()
            except ssl.SSLCertVerificationError as error:
                # The alert.
                await self._flush()
                raise UpstreamError(
                    f"the server's certificate is not valid: {error.verify_message}"
                ) from None
            except ssl.SSLError as error:
                raise _failed(error) from None
            else:
                await self._flush()
                return

    async def read(self) -> bytes:
        """See `ByteStream`. An end without TLS's own farewell is an end as well: DNS and HTTP say what is complete.

        Raises UpstreamError for records that are none.
        """
        while True:
            try:
                return self._tls.read(READ_SIZE)
            except ssl.SSLWantReadError:
                await self._flush()
                await self._receive()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""
            except ssl.SSLError as error:
                raise _failed(error) from None

    async def write(self, data: bytes) -> None:
        """See `ByteStream`. Raises UpstreamError when TLS has failed."""
        if not data:
            return
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            raise _failed(error) from None
        await self._flush()

    def write_eof(self) -> None:
        self._stream.write_eof()

    def abort(self) -> None:
        self._stream.abort()

    async def _receive(self) -> None:
        data = await self._stream.read()
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def _flush(self) -> None:
        async with self._sending:
            while self._outgoing.pending:
                await self._stream.write(self._outgoing.read())


def inside_tls(open_stream: OpenStream, context: ssl.SSLContext, name: str) -> OpenStream:
    """Streams like those of `open_stream`, in TLS, to a server that proves to be `name` (a name or an address)."""

    async def open_tls() -> ByteStream:
        stream = await open_stream()
        tls = TlsStream(stream, context, name)
        try:
            await tls.handshake()
        except BaseException:
            stream.abort()
            raise
        return tls

    return open_tls


def _failed(error: ssl.SSLError) -> UpstreamError:
    reason = (error.reason or "unknown error").lower().replace("_", " ")
    if isinstance(error, ssl.SSLEOFError):
        reason = "the server ended the connection"
    return UpstreamError(f"TLS with the server failed: {reason}")
