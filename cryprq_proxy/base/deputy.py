"""The deputy: a child process with the rights of another user, which opens that user's files for root.

    root                                       deputy
    owner_of(directory): not root
    open that user's directory, once
    fork ------------------------------------> close all but that directory and the socket
                                               become the user, for good (owners.py)
                                               chdir to the opened directory
    DeputyRequest: read, lock, ... ----------> FileAccess, relative to it; no file that is a link is followed
         <-------------------- DeputyAnswer: bytes, or the number of an error
    the end, or a crash: the socket closes --> exit

Root resolves no path below that directory, and what comes back is data: at most as much as was asked for, and decoded
strictly. The deputy is forked before the first thread starts, and needs no module and no file of the program later, so
the program may be where the user cannot read it.

`act_as_owner` stands for a whole configuration: where its directory is another user's, all paths that it names are
opened with that user's rights, wherever they are. For a single file that root's own configuration names, the deputy
serves that directory alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, Never

import msgspec
from msgspec import Struct

from ..errors import ConfigError, reason_of
from .file_access import FileAccess, FileContent, Mark, appoint, deputy_for
from .owners import ROOT, Owner, become, owner_of

ANSWER_SECONDS: Final = 10.0
"""Longest time that root waits for a whole answer of the deputy: a file system of the user's own may never answer."""
MAX_REQUEST: Final = 32 << 20
"""Bytes; the file that is written is in it."""
_MORE: Final = 256
"""Bytes of an answer beside the data."""
_LENGTH: Final = struct.Struct("!I")
_encode: Final = msgspec.msgpack.Encoder().encode

type _Do = Literal[
    "exists", "mark", "read", "replace", "create", "rename", "remove", "make_directory", "lock", "unlock"
]


class DeputyRequest(Struct, frozen=True, array_like=True):
    """What root asks for. Paths are relative to the user's directory, or absolute."""

    do: _Do
    path: str = ""
    other: str = ""
    number: int = 0
    """The bytes to read, or the lock to give back."""
    data: bytes = b""


class DeputyAnswer(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the deputy says. `error` is an errno, 0 for success."""

    error: int = 0
    data: bytes = b""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    number: int = 0
    mark: Mark = None


# Made now: the child could not load what the first use of a type needs.
_decode_request: Final = msgspec.msgpack.Decoder(DeputyRequest).decode
_decode_answer: Final = msgspec.msgpack.Decoder(DeputyAnswer).decode


class Deputy(FileAccess):
    """Root's side. Safe to use from several threads."""

    def __init__(self, owner: Owner, directory: Path, sock: socket.socket, *, everywhere: bool) -> None:
        super().__init__(links=False)
        self._owner = owner
        self._directory = directory
        self._sock = sock
        self._everywhere = everywhere
        self._turn = threading.Lock()

    @property
    def uid(self) -> int:
        return self._owner.uid

    def serves(self, path: Path) -> bool:
        return self._everywhere or (Path.cwd() / path).is_relative_to(self._directory)

    def exists(self, path: Path) -> bool:
        return bool(self._ask(DeputyRequest("exists", self._seen(path))).number)

    def mark(self, path: Path) -> Mark:
        with contextlib.suppress(OSError, ConfigError):
            return self._ask(DeputyRequest("mark", self._seen(path))).mark
        return None

    def read(self, path: Path, most: int) -> FileContent:
        answer = self._ask(DeputyRequest("read", self._seen(path), number=most), most)
        return FileContent(answer.data, answer.mode, answer.uid, answer.gid)

    def replace(self, path: Path, data: bytes) -> None:
        self._ask(DeputyRequest("replace", self._seen(path), data=data))

    def create(self, path: Path, data: bytes) -> None:
        self._ask(DeputyRequest("create", self._seen(path), data=data))

    def rename(self, old: Path, new: Path) -> None:
        self._ask(DeputyRequest("rename", self._seen(old), self._seen(new)))

    def remove(self, path: Path) -> None:
        self._ask(DeputyRequest("remove", self._seen(path)))

    def make_directory(self, directory: Path) -> None:
        self._ask(DeputyRequest("make_directory", self._seen(directory)))

    def lock(self, directory: Path) -> int:
        return self._ask(DeputyRequest("lock", self._seen(directory))).number

    def unlock(self, lock: int) -> None:
        with contextlib.suppress(OSError, ConfigError):
            self._ask(DeputyRequest("unlock", number=lock))

    def _seen(self, path: Path) -> str:
        """The path as the deputy sees it."""
        path = Path.cwd() / path
        if path.is_relative_to(self._directory):
            path = self._owner.rest / path.relative_to(self._directory)
        return str(path)

    def _ask(self, request: DeputyRequest, most: int = 0) -> DeputyAnswer:
        """Raises the OSError of the deputy, and ConfigError if there is no answer of it."""
        with self._turn:
            try:
                _send(self._sock, _encode(request))
                answer = _decode_answer(_receive(self._sock, most + _MORE))
            except (OSError, EOFError, msgspec.DecodeError, UnicodeError):
                # A late answer must not be taken for that of the next question.
                self._sock.close()
                raise ConfigError(
                    f"the process that works as the user {self._owner.name} has ended; start this program again"
                ) from None
        if answer.error or len(answer.data) > most:
            code = answer.error or errno.EMSGSIZE
            raise OSError(code, os.strerror(code))
        return answer


def act_as_owner(directory: Path, *, everywhere: bool = True) -> None:
    """As root, from now on let a deputy open the files of `directory` if another user decides on that directory, and
    with `everywhere` all files that are opened by FileAccess. The directory may be missing.

    For other users, and where root decides, do nothing. Call it before threads start. Raises ConfigError.
    """
    if os.geteuid() != ROOT or deputy_for(directory) is not None:
        return
    owner = owner_of(directory)
    if owner.uid == ROOT:
        return
    whole = Path.cwd() / directory
    try:
        appoint(Deputy(owner, whole, _start(owner), everywhere=everywhere))
    except OSError as error:
        raise ConfigError(
            f"{directory} belongs to the user {owner.name}, and root cannot act as that user here "
            f"({reason_of(error)}): run this as that user"
        ) from None


def _start(owner: Owner) -> socket.socket:
    """Fork the deputy of `owner`; returns the socket to ask it at. Raises OSError."""
    # O_PATH, where there is such a thing: root without CAP_DAC_OVERRIDE may not read the directory.
    flags = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    base = os.open(owner.base, flags)
    try:
        if os.fstat(base).st_uid != owner.uid:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        ours, theirs = socket.socketpair()
        with theirs:
            if os.fork() == 0:
                _live(owner, base, theirs.detach())
    finally:
        os.close(base)
    ours.settimeout(ANSWER_SECONDS)
    try:
        # The first answer says whether the child could become the user.
        answer = _decode_answer(_receive(ours, _MORE))
    except (EOFError, msgspec.DecodeError):
        answer = DeputyAnswer(errno.ECHILD)
    except OSError as error:
        # Also when it says nothing in time.
        answer = DeputyAnswer(error.errno or errno.ETIMEDOUT)
    if answer.error:
        ours.close()
        raise OSError(answer.error, os.strerror(answer.error))
    return ours


# --- in the child ---


def _live(owner: Owner, base: int, handle: int) -> Never:
    """The whole life of the deputy. No exception and no return leads back into the code of root."""
    try:
        # It ends with the socket alone: whoever asks may need it for a good end after a signal to both.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        sock = socket.socket(fileno=handle)
        low, high = sorted((base, handle))
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(nothing, standard)
        for first, end in ((3, low), (low + 1, high), (high + 1, os.sysconf("SC_OPEN_MAX"))):
            os.closerange(first, end)
        _work(owner, base, sock)
    finally:
        os._exit(0)


def _work(owner: Owner, base: int, sock: socket.socket) -> None:
    """Become the user, say whether that worked, and answer until root closes the socket."""
    try:
        become(owner)
        os.fchdir(base)
    except OSError as error:
        _send(sock, _encode(DeputyAnswer(error.errno or errno.EPERM)))
        return
    _send(sock, _encode(DeputyAnswer()))
    with contextlib.suppress(EOFError):
        _serve(sock)


def _serve(sock: socket.socket) -> None:
    """DeputyAnswer until root closes the socket."""
    access = FileAccess(links=False)
    while True:
        request = _decode_request(_receive(sock, MAX_REQUEST))
        try:
            answer = _DEEDS[request.do](access, request)
        except OSError as error:
            answer = DeputyAnswer(error.errno or errno.EIO)
        except ValueError:
            answer = DeputyAnswer(errno.EINVAL)
        _send(sock, _encode(answer))


def _exists(access: FileAccess, request: DeputyRequest) -> DeputyAnswer:
    return DeputyAnswer(number=int(access.exists(Path(request.path))))


def _mark(access: FileAccess, request: DeputyRequest) -> DeputyAnswer:
    return DeputyAnswer(mark=access.mark(Path(request.path)))


def _read(access: FileAccess, request: DeputyRequest) -> DeputyAnswer:
    found = access.read(Path(request.path), request.number)
    return DeputyAnswer(0, found.data, found.mode, found.uid, found.gid)


def _replace(access: FileAccess, request: DeputyRequest) -> DeputyAnswer:
    access.replace(Path(request.path), request.data)
    return DeputyAnswer()


def _create(access: FileAccess, request: DeputyRequest) -> DeputyAnswer:
    access.create(Path(request.path), request.data)
    return DeputyAnswer()


def _rename(access: FileAccess, request: DeputyRequest) -> DeputyAnswer:
    access.rename(Path(request.path), Path(request.other))
    return DeputyAnswer()


def _remove(access: FileAccess, request: DeputyRequest) -> DeputyAnswer:
    access.remove(Path(request.path))
    return DeputyAnswer()


def _make_directory(access: FileAccess, request: DeputyRequest) -> DeputyAnswer:
    access.make_directory(Path(request.path))
    return DeputyAnswer()


def _lock(access: FileAccess, request: DeputyRequest) -> DeputyAnswer:
    return DeputyAnswer(number=access.lock(Path(request.path)))


def _unlock(access: FileAccess, request: DeputyRequest) -> DeputyAnswer:
    access.unlock(request.number)
    return DeputyAnswer()


_DEEDS: Final[dict[_Do, Callable[[FileAccess, DeputyRequest], DeputyAnswer]]] = {
    "exists": _exists,
    "mark": _mark,
    "read": _read,
    "replace": _replace,
    "create": _create,
    "rename": _rename,
    "remove": _remove,
    "make_directory": _make_directory,
    "lock": _lock,
    "unlock": _unlock,
}


# --- both ---


def _send(sock: socket.socket, message: bytes) -> None:
    sock.sendall(_LENGTH.pack(len(message)) + message)


def _receive(sock: socket.socket, most: int) -> bytes:
    """One message, whole within the time-out of the socket. Raises EOFError if it is larger than `most` or the other
    side has gone, and OSError."""
    limit = sock.gettimeout()
    give_up = None if limit is None else time.monotonic() + limit
    try:
        (size,) = _LENGTH.unpack(_exactly(sock, _LENGTH.size, give_up))
        if size > most:
            raise EOFError
        return _exactly(sock, size, give_up)
    finally:
        sock.settimeout(limit)


def _exactly(sock: socket.socket, size: int, give_up: float | None) -> bytes:
    """Raises TimeoutError at `give_up`, however often a piece comes until then."""
    data = bytearray()
    while len(data) < size:
        if give_up is not None:
            left = give_up - time.monotonic()
            if left <= 0:
                raise TimeoutError
            sock.settimeout(left)
        piece = sock.recv(min(size - len(data), 1 << 20))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)
