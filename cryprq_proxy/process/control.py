"""The control socket: another process of the same user asks the running client or exit for its status.

One request and one answer a connection, each a line of JSON:

    {"command": "status"}\\n          at most 4096 bytes, within 5 s
    {"ok": {...}}\\n                  or {"error": "a sentence"}\\n

File modes restrict access: the socket has 0600, and a directory that this module makes has 0700. A socket file left by
a crash is replaced. A socket on which another process answers is an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from ..base.files import locked_directory
from ..base.log import one_line
from ..base.text import to_json
from ..errors import ConfigError, CryprqError, reason_of
from ..status import Status, StatusSource, read
from .actions import Action

MAX_REQUEST: Final = 4096
MAX_ARGUMENT: Final = 1024
MAX_ANSWER: Final = 4 << 20
MAX_CONNECTIONS: Final = 16
"""Open connections; more are closed without an answer, so that a faulty script cannot use up the file limit."""
TIMEOUT: Final = 5.0
"""Seconds for the whole of a request, and for the whole of an answer."""


_log = logging.getLogger(__name__)


class RequestError(CryprqError):
    """An invalid request on the control socket."""


class NotRunning(CryprqError):
    """No process answers on the control socket."""


class ControlRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One line of a client: a command and, for those that need one, its argument."""

    command: str
    argument: str = ""


def parse_request(line: bytes) -> ControlRequest:
    """Decode a request line. Raises RequestError, and nothing else."""
    try:
        request = msgspec.json.decode(line, type=ControlRequest)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise RequestError('expected one line of JSON like {"command": "status"}') from None
    _check_argument(request.argument)
    return request


def _check_argument(argument: str) -> None:
    if len(argument) > MAX_ARGUMENT:
        raise RequestError(f"a name or another value has at most {MAX_ARGUMENT} characters")


class ControlServer:
    """Answers on the socket `path` from `start()` until `stop()`.

    `status` and `actions` (by command name) are called in the event loop, once for each request.
    """

    def __init__(self, path: Path, status: StatusSource, actions: Mapping[str, Action] | None = None) -> None:
        self.path = path
        self._status = status
        self._actions = dict(actions or {})
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listen. Raises ConfigError if another process answers there or the socket cannot be made."""
        listener = _bind(self.path)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MAX_REQUEST)

    async def stop(self) -> None:
        """Stop listening, drop open connections and remove the socket. Does nothing if not started."""
        if self._server is None:
            return
        server, self._server = self._server, None
        # First the file: once the listener is closed, a new process may have its own socket there.
        self.path.unlink(missing_ok=True)
        server.close()
        for connection in self._connections:
            connection.transport.abort()
        await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None or len(self._connections) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._connections.add(writer)
        try:
            await self._exchange(reader, writer)
        except (TimeoutError, asyncio.IncompleteReadError, OSError):
            writer.transport.abort()
        finally:
            writer.close()
            self._connections.discard(writer)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(TIMEOUT):
                line = await reader.readuntil(b"\n")
            answer = await self._answer(line)
        except asyncio.LimitOverrunError:
            answer = to_json({"error": f"a request has at most {MAX_REQUEST} bytes"})
        writer.write(answer + b"\n")
        async with asyncio.timeout(TIMEOUT):
            await writer.drain()

    async def _answer(self, line: bytes) -> bytes:
        try:
            request = parse_request(line)
        except RequestError as error:
            return to_json({"error": str(error)})
        command = request.command
        action = self._actions.get(command)
        if action is None and command != "status":
            known = ", ".join(sorted(["status", *self._actions]))
            return to_json({"error": f"unknown command {command!r}; known: {known}"})
        try:
            return to_json({"ok": await (self._status() if action is None else action(request.argument))})
        except CryprqError as error:
            return to_json({"error": str(error)})
        except Exception:  # noqa: BLE001
            # A bug in a command must still give the person an answer.
            _log.exception("the command %r failed", command)
            return to_json({"error": f"the command {command} failed; the log has the reason"})


def query(
    path: Path, command: str = "status", timeout: float = TIMEOUT, *, argument: str = ""
) -> dict[str, Any]:
    """Ask the process that listens at `path`; blocks for at most `timeout` seconds.

    Raises NotRunning without an answer, or CryprqError with the text of an answer that is an error.
    """
    # The other side would count the bytes of the whole request, which says nothing to a person.
    _check_argument(argument)
    arguments = {"argument": argument} if argument else {}
    request = json.dumps({"command": command, **arguments}).encode() + b"\n"
    try:
        answer = json.loads(_exchange(path, request, timeout))
    except PermissionError:
        raise CryprqError(
            f"the cryprq-proxy at {path} belongs to another user; ask as that user or as root"
        ) from None
    except (OSError, ValueError, RecursionError):
        raise NotRunning(f"no cryprq-proxy is running (no answer at {path})") from None
    match answer:
        case {"ok": dict(result)}:
            return result
        case {"error": str(text)}:
            raise CryprqError(f"the cryprq-proxy at {path} answers: {text}")
    raise CryprqError(f"the process at {path} is not cryprq-proxy, or has another version")


def query_status(path: Path, timeout: float = TIMEOUT) -> Status:
    """The status of the process that listens at `path`. Raises as `query`."""
    return read_status(query(path, timeout=timeout), path)


def read_status(told: dict[str, Any], path: Path) -> Status:
    """Decode the status of the process at `path`. Raises CryprqError if its version has another form of status."""
    try:
        return read(told)
    except msgspec.ValidationError as error:
        raise CryprqError(
            f"the cryprq-proxy at {path} has another version, restart it: its status is invalid "
            f"({one_line(str(error))})"
        ) from None


def _exchange(path: Path, request: bytes, timeout: float) -> bytes:
    """One line out, one line back. Raises OSError, or ValueError for an incomplete or too long answer."""
    deadline = time.monotonic() + timeout
    answer = bytearray()
    with _unix_socket() as connection:
        connection.settimeout(timeout)
        connection.connect(str(path))
        connection.sendall(request)
        while not answer.endswith(b"\n"):
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            chunk = connection.recv(65536)
            if not chunk or len(answer) > MAX_ANSWER:
                raise ValueError("incomplete answer")
            answer += chunk
    return bytes(answer)


def _bind(path: Path) -> socket.socket:
    """A listening socket at `path`, mode 0600. Raises ConfigError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Of two processes that start together, one must not replace the socket of the other.
        with locked_directory(path.parent):
            _remove_stale(path)
            listener = _unix_socket()
            try:
                # Linux gives the file the mode of the socket, so it is never open to others.
                os.fchmod(listener.fileno(), 0o600)
                listener.bind(str(path))
                listener.listen(MAX_CONNECTIONS)
                listener.setblocking(False)
            except BaseException:
                listener.close()
                raise
            return listener
    except (OSError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise ConfigError(
            f"the control socket {path} cannot be made ({reason}); choose another path with control_socket"
        ) from None


def check_free(path: Path) -> None:
    """Raise ConfigError if another process answers at `path`. Call it before changing this machine."""
    with contextlib.suppress(OSError), locked_directory(path.parent):
        _remove_stale(path)


def _remove_stale(path: Path) -> None:
    """Remove a socket file on which no process listens."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path}, the path of the control socket, is not a socket; remove it")
    with _unix_socket() as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # A process listens, with a full backlog.
    raise ConfigError(f"another cryprq-proxy is running (it answers at {path}); stop it first")


def _unix_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
