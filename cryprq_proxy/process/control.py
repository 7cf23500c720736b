"""The control socket: another process of the same user asks the running client or exit how it is.

One question and one answer a connection, each a line of JSON:

    {"command": "status"}\\n          at most 4096 bytes, within 5 s
    {"ok": {...}}\\n                  or {"error": "a sentence"}\\n

Access is a matter of the file: the socket is 0600 and a directory that we make is 0700. A socket file that a crash
left behind is replaced; one that somebody answers on is an error.
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
from typing import Annotated, Any, Final

import msgspec

from ..base.files import locked_directory
from ..base.log import one_line
from ..base.text import reason_of
from ..errors import ConfigError, CryprqError
from ..status import Status, StatusSource, encode, read
from .actions import Action

MAX_REQUEST: Final = 4096
MAX_ANSWER: Final = 4 << 20
MAX_CONNECTIONS: Final = 16
"""At once; further ones are closed unanswered, so that a broken script cannot use up our files."""
TIMEOUT: Final = 5.0
"""Seconds for the whole of a request, and for the whole of an answer."""


_log = logging.getLogger(__name__)


class RequestError(CryprqError):
    """A line on the control socket that is no request."""


class NotRunning(CryprqError):
    """Nobody answers on the control socket."""


class ControlRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One line of a client: a command and, for those that need one, its argument."""

    command: str
    argument: Annotated[str, msgspec.Meta(max_length=1024)] = ""


def parse_request(line: bytes) -> ControlRequest:
    """What a request line asks for. Raises RequestError, and nothing else."""
    try:
        return msgspec.json.decode(line, type=ControlRequest)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise RequestError('expected one line of JSON like {"command": "status"}') from None


class ControlServer:
    """Answers on the socket `path` from `start()` until `stop()`.

    `status` is called in the event loop for every such request, and `actions` for the commands of their names.
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
        # First the file: once the listener is closed, a successor may already have put its own there.
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
            answer = encode({"error": f"a request has at most {MAX_REQUEST} bytes"})
        writer.write(answer + b"\n")
        async with asyncio.timeout(TIMEOUT):
            await writer.drain()

    async def _answer(self, line: bytes) -> bytes:
        try:
            request = parse_request(line)
        except RequestError as error:
            return encode({"error": str(error)})
        command = request.command
        action = self._actions.get(command)
        if action is None and command != "status":
            known = ", ".join(sorted(["status", *self._actions]))
            return encode({"error": f"unknown command {command!r}; known: {known}"})
        try:
            return encode({"ok": await (self._status() if action is None else action(request.argument))})
        except CryprqError as error:
            return encode({"error": str(error)})
        except Exception:  # noqa: BLE001
            # A bug in a report must not cost the person the report that there is one.
            _log.exception("the command %r failed", command)
            return encode({"error": f"the {command} cannot be told; the log says why"})


def query(
    path: Path, command: str = "status", timeout: float = TIMEOUT, *, argument: str = ""
) -> dict[str, Any]:
    """Ask the process that listens at `path`; blocks for at most `timeout` seconds.

    Raises NotRunning if nobody answers there, or CryprqError with the text of the answer if that is an error.
    """
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
    raise CryprqError(f"what answers at {path} is no cryprq-proxy, or one of another version")


def query_status(path: Path, timeout: float = TIMEOUT) -> Status:
    """The status of the process that listens at `path`. Raises as `query`."""
    return read_status(query(path, timeout=timeout), path)


def read_status(told: dict[str, Any], path: Path) -> Status:
    """What the process at `path` has told. Raises CryprqError if it is of a version that tells it differently."""
    try:
        return read(told)
    except msgspec.ValidationError as error:
        raise CryprqError(
            f"the cryprq-proxy at {path} is of another version, restart it: its status cannot be read "
            f"({one_line(str(error))})"
        ) from None


def _exchange(path: Path, request: bytes, timeout: float) -> bytes:
    """One line out, one line back. Raises OSError, or ValueError for an answer that is cut off or too long."""
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
                raise ValueError("no whole answer")
            answer += chunk
    return bytes(answer)


def _bind(path: Path) -> socket.socket:
    """A listening socket at `path`, mode 0600; ConfigError if that cannot be."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Of two processes that start together, one must not replace the socket of the other.
        with locked_directory(path.parent):
            _remove_stale(path)
            listener = _unix_socket()
            try:
                # Linux gives the file the mode of the socket: it is never open to others, not for a moment.
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
            f"the control socket {path} cannot be made ({reason}); choose another place with control_socket"
        ) from None


def check_free(path: Path) -> None:
    """Raise ConfigError if another process answers at `path`, before anything else of this machine is changed."""
    with contextlib.suppress(OSError), locked_directory(path.parent):
        _remove_stale(path)


def _remove_stale(path: Path) -> None:
    """Remove a socket file on which nobody listens any more."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} is where the control socket belongs and is no socket; remove it")
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
            pass  # Somebody listens, with a full backlog.
    raise ConfigError(f"another cryprq-proxy is running (it answers at {path}); stop it first")


def _unix_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
