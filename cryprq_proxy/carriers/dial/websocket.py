"""Dialling the exit's WebSocket: connect.py makes the connection, asyncio does TLS, aiohttp the upgrade.

So resolver, SO_MARK and upstream proxies are the same as for TCP. A redirect is not followed: an exit never sends one,
and most often it leads to a page that wants a login.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler

from ...base.descriptors import EXHAUSTED
from ...base.file_access import open_own
from ...base.linger import SECONDS
from ...errors import CarrierError, CloseReason, ConfigError, reason_of
from ..websocket import MASKED_MESSAGE, MAX_MESSAGE, Watched, WebSocketPipe
from .connect import Dialling, connect
from .endpoint import Endpoint

if TYPE_CHECKING:
    from aiohttp import ClientRequest, ClientTimeout
    from aiohttp.tracing import Trace

TLS_SECONDS: Final = 10.0
MAX_AUTHORITIES: Final = 4 << 20
"""Bytes of the file `ca`. All that browsers trust is 0.3 million."""


class _Protocol(Watched, ResponseHandler):
    """aiohttp's protocol, which reports an empty buffer."""


class _Connector(aiohttp.BaseConnector):
    """aiohttp's connector for one connection to one endpoint."""

    def __init__(self, endpoint: Endpoint, how: Dialling) -> None:
        super().__init__(force_close=True, limit=1)
        self._endpoint = endpoint
        self._how = how
        self.protocol: _Protocol | None = None

    async def _create_connection(
        self, req: ClientRequest, traces: list[Trace], timeout: ClientTimeout
    ) -> ResponseHandler:
        endpoint, how = self._endpoint, self._how
        if self.protocol is not None:
            if req.url.path == endpoint.path and req.url.host == endpoint.address.host:
                # Else aiohttp would try again.
                raise _failed(endpoint, "ended the connection without an answer")
            raise _failed(endpoint, "sends a redirect; perhaps this network wants a login first")
        loop = asyncio.get_running_loop()
        context = None
        if endpoint.carrier == "wss":
            context = await loop.run_in_executor(None, _context, how.ca)
        sock = await connect(endpoint.address, how)
        tls: dict[str, Any] = {}
        if context is not None:
            tls = {
                "ssl": context,
                "server_hostname": endpoint.address.host,
                "ssl_handshake_timeout": TLS_SECONDS,
                "ssl_shutdown_timeout": SECONDS,
            }
        try:
            _, self.protocol = await loop.create_connection(lambda: _Protocol(loop), sock=sock, **tls)
        except ssl.SSLCertVerificationError as error:
            raise _failed(endpoint, f"shows an invalid certificate: {_why(error)}") from None
        except ssl.SSLError as error:
            raise _failed(endpoint, f"does not speak TLS correctly: {error.reason or error}") from None
        except OSError as error:
            raise _failed(endpoint, f"broke the connection: {reason_of(error)}") from None
        finally:
            if self.protocol is None:
                sock.close()
        return self.protocol


async def dial_websocket(endpoint: Endpoint, how: Dialling) -> WebSocketPipe:
    """An open WebSocket to `endpoint`. Raises CarrierError with the reason in a sentence, ConfigError for an unusable
    `ca`. The caller bounds the time."""
    connector = _Connector(endpoint, how)
    http = aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
        timeout=aiohttp.ClientTimeout(total=None),
    )
    url = f"{endpoint.carrier}://{endpoint.address}{endpoint.path}"
    try:
        try:
            socket = await http.ws_connect(
                url,
                autoping=False,
                max_msg_size=MAX_MESSAGE,
                compress=0,
                timeout=aiohttp.ClientWSTimeout(ws_close=SECONDS),
            )
        except aiohttp.WSServerHandshakeError as error:
            raise _failed(endpoint, _refusal(error.status)) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in EXHAUSTED:
                raise
            raise _failed(endpoint, f"does not answer as a web server: {type(error).__name__}") from None
        protocol = connector.protocol
        if protocol is None or protocol.transport is None:
            raise _failed(endpoint, "broke the connection")
    except BaseException:
        await http.close()
        raise
    return WebSocketPipe(socket, protocol.transport, protocol, http.close, MASKED_MESSAGE)


def _refusal(status: int) -> str:
    if status == 101:
        return "answers the upgrade incorrectly"
    if status == 404:
        return "has nothing at this path (404); compare it with the exit's [websocket] path and the reverse proxy's"
    if status in (502, 503, 504):
        return f"is a reverse proxy that does not reach the exit behind it ({status})"
    if status in (401, 403, 407):
        return f"refuses access ({status})"
    return f"answers, but not as an exit does ({status}); does the reverse proxy pass on the Upgrade header?"


def _context(ca: Path | None) -> ssl.SSLContext:
    """Read the trusted certificates, which takes some milliseconds. Raises OSError without a free descriptor, else
    ConfigError."""
    try:
        context = ssl.create_default_context(cadata=None if ca is None else _authorities(ca))
    except (OSError, ssl.SSLError) as error:
        if error.errno in EXHAUSTED:
            raise
        raise ConfigError(f"{ca}: no certificates could be read from it: {reason_of(error)}") from None
    context.set_alpn_protocols(["http/1.1"])
    return context


def _authorities(ca: Path) -> str:
    """Certificates in PEM, and never "", which would stand for those of the system. Raises OSError and ConfigError."""
    with open_own(ca, "the authority") as file:
        text = file.read(MAX_AUTHORITIES + 1)
    if len(text) > MAX_AUTHORITIES:
        raise ConfigError(f"the authority {ca} is larger than {MAX_AUTHORITIES >> 20} MiB")
    return text.decode("ascii", "ignore") + "\n"


def _why(error: ssl.SSLCertVerificationError) -> str:
    return error.verify_message.rstrip(".") or "unknown reason"


def _failed(endpoint: Endpoint, what: str) -> CarrierError:
    return CarrierError(CloseReason.TIMED_OUT, f"{endpoint} {what}")
