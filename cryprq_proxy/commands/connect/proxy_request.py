"""Asking the local proxy for a target: CONNECT (RFC 9110 section 9.3.6), whose refusals are sentences of the proxy.

dial -> CONNECT -> 200: what the target says may be behind it
                -> 407: once more, on a new connection, with the user and password
                -> else: the sentence that the proxy has put into the body
"""

from __future__ import annotations

import re
import socket
from typing import Final, NamedTuple

from ...address import Destination, parse_host_port
from ...base.sockets import CONNECT_TIMEOUT, keep_alive, set_reset_on_close
from ...carriers.dial.http_connect import answer, request
from ...carriers.dial.upstream import UpstreamProxy
from ...errors import ConfigError, CryprqError, reason_of
from .pump import OutputClosed, Streams, wait_for_data
from .running_proxy import Proxy

PIECE: Final = 4_096
"""Bytes of one read, and of what is read of a refusal's body."""
_ASKS_FOR_LOGIN: Final = 407
_OUR_OWN: Final = re.compile(rb"\r\nproxy-status: cryprq-proxy;", re.IGNORECASE)
_END: Final = b"\r\n\r\n"


class ProxyAnswer(NamedTuple):
    """The proxy's answer on `sock`: its `status`, its `head`, and the bytes `behind` it."""

    sock: socket.socket
    status: int
    head: bytes
    behind: bytes


def parse_target(host: str, port: str) -> Destination:
    """The target that two words name; an IPv6 address may have brackets. Raises ConfigError."""
    bare = ":" in host and not host.startswith("[")
    try:
        target = parse_host_port(f"[{host}]:{port}" if bare else f"{host}:{port}")
    except CryprqError as error:
        raise ConfigError(str(error)) from None
    if not target.port:
        raise ConfigError("nothing listens on port 0; ports are 1 to 65535")
    return target


def connected(proxy: Proxy, target: Destination, streams: Streams) -> tuple[socket.socket, bytes]:
    """A connection to `target`, which a close resets, and what has come from there already. Raises CryprqError, and
    OutputClosed if the reader of `streams` goes while the proxy works."""
    answered = _ask(proxy, target, "", streams)
    if answered.status == _ASKS_FOR_LOGIN:
        answered.sock.close()
        answered = _ask(proxy, target, proxy.login(), streams)
    if answered.status < 300:
        return answered.sock, answered.behind
    with answered.sock:
        if answered.status == _ASKS_FOR_LOGIN:
            raise ConfigError(f"the proxy at {proxy.address} does not accept this user and password")
        raise CryprqError(f"{target}: {_reason(answered, proxy, streams)}")


def _ask(proxy: Proxy, target: Destination, login: str, streams: Streams) -> ProxyAnswer:
    """Raises CryprqError and OutputClosed."""
    name, _, password = login.partition(":")
    asked = request(UpstreamProxy(proxy.address, name or None, password), target)
    try:
        sock = socket.create_connection(proxy.address, CONNECT_TIMEOUT)
    except OSError as error:
        raise proxy.unreachable(reason_of(error)) from None
    try:
        sock.settimeout(None)
        keep_alive(sock)
        set_reset_on_close(sock)
        sock.sendall(asked)
        return _read_answer(sock, streams)
    except OutputClosed:
        sock.close()
        raise
    except (OSError, ValueError) as error:
        sock.close()
        raise proxy.unreachable(reason_of(error) if isinstance(error, OSError) else str(error)) from None


def _read_answer(sock: socket.socket, streams: Streams) -> ProxyAnswer:
    """Raises OSError, and ValueError if it is not an answer of an HTTP proxy."""
    read = b""
    while True:
        wait_for_data(sock, streams)
        part = sock.recv(PIECE)
        if not part:
            raise ValueError("it ended the connection")
        read += part
        head, end, behind = read.partition(_END)
        status = answer(head + end)
        if status is not None:
            return ProxyAnswer(sock, status, head, behind)


def _reason(answered: ProxyAnswer, proxy: Proxy, streams: Streams) -> str:
    """Why the target was not connected. Raises OutputClosed."""
    if not _OUR_OWN.search(answered.head):
        return f"the proxy at {proxy.address}, which is none of this program, answers with status {answered.status}"
    body = answered.behind
    try:
        while len(body) < PIECE:
            wait_for_data(answered.sock, streams)
            part = answered.sock.recv(PIECE)
            if not part:
                break
            body += part
    except OutputClosed:
        raise
    except OSError:
        pass  # What has come says enough.
    sentence = (
        body.decode(errors="replace")
        .partition("\n\n")[2]
        .partition(" (Target: ")[0]
        .strip()
        .removesuffix(".")
    )
    return sentence[:1].lower() + sentence[1:]
