"""The control socket: another process of the same user asks the running client or exit for its status.

One request and one answer a connection, each a line of JSON:

    {"command": "status"}\\n          at most 4096 bytes, within 5 s; within 0.5 s while all connections are in use
    {"ok": {...}}\\n                  or {"error": "a sentence"}\\n

File modes restrict access: the socket has 0600, and a directory that this module makes has 0700. A socket file left by
a crash is replaced. A socket on which another process answers is an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
import stat
import struct
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from ..base.accept_loop import Acceptor
from ..base.files import locked_directory
from ..base.log import one_line
from ..base.owners import ROOT, require_name
from ..base.tasks import spawn
from ..base.text import to_json
from ..errors import ConfigError, CryprqError, reason_of
from ..status import Status, StatusSource, read
from .actions import Action
from .answers import OneATurn, SharedAnswer, json_by_turns
from .unix_sockets import bind_closed, may_be_full

MAX_REQUEST: Final = 4096
MAX_ARGUMENT: Final = 1024
MAX_ANSWER: Final = 64 << 20
"""Bytes. An exit with 10,000 sessions needs about ten million."""
MAX_CONNECTIONS: Final = 16
"""Open connections. Others wait in the queue of the socket."""
BACKLOG: Final = 256
TIMEOUT: Final = 5.0
"""Seconds for the whole of a request, and for each PIECE of an answer."""
CROWDED_TIMEOUT: Final = 0.5
"""Seconds for the whole of a request from the moment when MAX_CONNECTIONS are open. `query` sends its request at once,
so only callers that say nothing give place to those that wait."""
PIECE: Final = 262_144
WHOLE: Final = 15.0
"""Seconds, beyond those for the next part of it, in which an answer must be whole."""
_WHAT: Final = "the control socket"
_TIMEVAL: Final = struct.Struct("ll")

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

    `status` and `actions` (by command name) are called in the event loop: an action once for each request, `status`
    once for all requests that wait for it. It answers also while the process has no free descriptor.
    """

    def __init__(self, path: Path, status: StatusSource, actions: Mapping[str, Action] | None = None) -> None:
        self.path = path
        self._actions = dict(actions or {})
        self._loop = asyncio.get_running_loop()
        self._acceptor: Acceptor | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._requests: set[asyncio.Timeout] = set()
        """Of the requests that are being read."""
        self._told = SharedAnswer(partial(self._result, "status", status))
        self._turns = OneATurn()

    async def start(self) -> None:
        """Listen. Raises ConfigError if another process answers there or the socket cannot be made."""
        self._acceptor = Acceptor(self._loop, _bind(self.path), self._accepted, urgent=True)
        self._acceptor.start()

    async def stop(self) -> None:
        """Stop listening, drop open connections and remove the socket. Does nothing if not started."""
        if self._acceptor is None:
            return
        acceptor, self._acceptor = self._acceptor, None
        # First the file: once the listener is closed, a new process may have its own socket there.
        self.path.unlink(missing_ok=True)
        acceptor.close()
        for connection in self._connections:
            connection.cancel()
        if self._connections:
            await asyncio.wait(list(self._connections))

    def _accepted(self, sock: socket.socket, _: str) -> None:
        sock.setblocking(False)
        connection = spawn(self._serve(sock), "control connection")
        self._connections.add(connection)
        connection.add_done_callback(partial(self._ended, sock))
        if self._acceptor is not None and len(self._connections) >= MAX_CONNECTIONS:
            self._acceptor.stop()
            # Not at once: those that were accepted in this turn have not begun to read.
            self._loop.call_soon(self._hurry)

    def _hurry(self) -> None:
        """Leave the requests that are being read CROWDED_TIMEOUT from now on."""
        latest = self._loop.time() + CROWDED_TIMEOUT
        for request in self._requests:
            when = request.when()
            if not request.expired() and when is not None and when > latest:
                request.reschedule(latest)

    def _ended(self, sock: socket.socket, connection: asyncio.Task[None]) -> None:
        sock.close()
        self._connections.discard(connection)
        if self._acceptor is not None:
            # At once, so that the descriptor that is free now goes to nobody else.
            self._acceptor.start()

    async def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            try:
                answer = await self._answer(await self._request(sock))
            except RequestError as error:
                answer = _line(to_json({"error": str(error)}))
            await self._turns.turn()
            await self._send(sock, answer)

    async def _request(self, sock: socket.socket) -> bytes:
        """The line of a request. Raises as `_read_line`, and TimeoutError."""
        async with asyncio.timeout(TIMEOUT) as request:
            self._requests.add(request)
            try:
                return await self._read_line(sock)
            finally:
                self._requests.discard(request)

    async def _read_line(self, sock: socket.socket) -> bytes:
        """Raises RequestError for a line that is too long, OSError if the connection ends before the line does."""
        line = b""
        while b"\n" not in line:
            part = await self._loop.sock_recv(sock, MAX_REQUEST + 1 - len(line))
            if not part:
                raise ConnectionResetError(errno.ECONNRESET, "the request has no end")
            line += part
            if len(line) > MAX_REQUEST:
                raise RequestError(f"a request has at most {MAX_REQUEST} bytes")
        return line[: line.index(b"\n") + 1]

    async def _send(self, sock: socket.socket, answer: bytes) -> None:
        """Raises TimeoutError if the other side takes nothing for TIMEOUT seconds."""
        for start in range(0, len(answer), PIECE):
            async with asyncio.timeout(TIMEOUT):
                await self._loop.sock_sendall(sock, memoryview(answer)[start : start + PIECE])

    async def _answer(self, line: bytes) -> bytes:
        """Raises RequestError."""
        request = parse_request(line)
        command = request.command
        if command == "status":
            return await self._told.get()
        action = self._actions.get(command)
        if action is None:
            known = ", ".join(sorted(["status", *self._actions]))
            raise RequestError(f"unknown command {command!r}; known: {known}")
        await self._turns.turn()
        return await self._result(command, partial(action, request.argument))

    async def _result(self, command: str, action: Callable[[], Awaitable[object]]) -> bytes:
        """The answer of a command, also of one that fails."""
        try:
            result = await action()
            told = await json_by_turns(result) if isinstance(result, msgspec.Struct) else to_json(result)
            answer = _line(b'{"ok":%b}' % told)
        except CryprqError as error:
            return _line(to_json({"error": str(error)}))
        except Exception:  # noqa: BLE001
            # A bug in a command must still give the person an answer.
            _log.exception("the command %r failed", command)
            return _line(to_json({"error": f"the command {command} failed; the log has the reason"}))
        if len(answer) <= MAX_ANSWER:
            return answer
        return _line(
            to_json({"error": f"the answer has {len(answer) >> 20} MiB, and {MAX_ANSWER >> 20} is the most"})
        )


def _line(answer: bytes) -> bytes:
    return answer + b"\n"


def query(
    path: Path, command: str = "status", timeout: float = TIMEOUT, *, argument: str = ""
) -> dict[str, Any]:
    """Ask the process that listens at `path`; blocks for at most `timeout` seconds without progress, and for at most
    WHOLE more in all.

    Raises NotRunning without an answer, ConfigError if root may not use the path, or CryprqError with the text of an
    answer that is an error.
    """
    # The other side would count the bytes of the whole request, which says nothing to a person.
    _check_argument(argument)
    arguments = {"argument": argument} if argument else {}
    request = json.dumps({"command": command, **arguments}).encode() + b"\n"
    try:
        answer = json.loads(_exchange(path, request, timeout))
    except PermissionError:
        raise CryprqError(_not_permitted(path)) from None
    except BlockingIOError:
        raise NotRunning(f"the cryprq-proxy at {path} did not answer within {timeout:g} s") from None
    except (OSError, ValueError, RecursionError):
        raise NotRunning(f"no cryprq-proxy is running (no answer at {path})") from None
    match answer:
        case {"ok": dict(result)}:
            return result
        case {"error": str(text)}:
            raise CryprqError(f"the cryprq-proxy at {path} answers: {text}")
    raise CryprqError(f"the process at {path} is not cryprq-proxy, or has another version")


def _not_permitted(path: Path) -> str:
    try:
        path.lstat()
    except OSError:
        return f"only the owner of {path.parent} and root can see whether a cryprq-proxy runs there; ask as one of them"
    return f"the cryprq-proxy at {path} belongs to another user; ask as that user or as root"


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
    """One line out, one line back. Raises OSError, BlockingIOError for a time-out, or ValueError for an incomplete or
    too long answer."""
    require_name(path, _WHAT)
    answer = bytearray()
    give_up = time.monotonic() + timeout + WHOLE
    with _unix_socket() as connection:
        # A time-out of Python's would make the socket non-blocking, and a full queue an error instead of a wait.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(timeout))
        _connect(connection, path)
        connection.sendall(request)
        while not answer.endswith(b"\n"):
            left = give_up - time.monotonic()
            if left <= 0:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(min(timeout, left)))
            chunk = connection.recv(65536)
            if not chunk or len(answer) > MAX_ANSWER:
                raise ValueError("incomplete answer")
            answer += chunk
    return bytes(answer)


def _timeval(seconds: float) -> bytes:
    """For the socket options. Never 0, which would mean for ever."""
    microseconds = max(int(seconds * 1e6), 1)
    return _TIMEVAL.pack(*divmod(microseconds, 1_000_000))


def _connect(connection: socket.socket, path: Path) -> None:
    """Connect to the socket at `path`. Root follows no link there: in a directory of another user that user would lead
    root to a socket that only root may use. What was looked at is what is connected to. Raises OSError."""
    if os.geteuid() != ROOT or sys.platform != "linux":
        connection.connect(str(path))
        return
    handle = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        # A second name may be a hard link to a socket of somebody else's.
        if not stat.S_ISSOCK(status.st_mode) or status.st_nlink > 1:
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        connection.connect(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)


def _bind(path: Path) -> socket.socket:
    """A listening socket at `path`, mode 0600. Raises ConfigError."""
    require_name(path, _WHAT)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Of two processes that start together, one must not replace the socket of the other.
        with locked_directory(path.parent):
            _remove_stale(path)
            listener = _unix_socket()
            try:
                bind_closed(listener, str(path))
                listener.listen(BACKLOG)
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
    """Raise ConfigError if another process answers at `path`, or root may not use it. Call it before changing this
    machine."""
    require_name(path, _WHAT)
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
            _connect(probe, path)
        except ConnectionRefusedError:
            if not may_be_full(partial(_ask, path)):
                path.unlink()
                return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # A process listens, with a full backlog.
    raise ConfigError(f"another cryprq-proxy is running (it answers at {path}); stop it first")


def _ask(path: Path) -> None:
    """Raises OSError."""
    with _unix_socket() as probe:
        _connect(probe, path)


def _unix_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
