"""The sign of life on Linux: an abstract socket (unix(7)) of the role's process, which ends with it.

It belongs to a network namespace, as rules and filter do, and needs no directory: so a role is found whatever its state
directory is. Any user can bind such a name, so only a socket of root counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Final, Self

from .accept_loop import Acceptor

_PEER: Final = struct.Struct("=iII")


class AbstractSign:
    """The sign of `name`, once `take` has returned True."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def take(self) -> bool:
        """Whether it is this process's now."""
        try:
            self._socket.bind(socket_name(self._name))
            self._socket.listen()
        except OSError:
            return False
        return True

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Take those who look for the sign out of its queue, where a loop runs; else the queue is long enough."""
        sign = self._socket
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            yield
            return

        if not sign.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            # Another user has the name. The loop would call for this socket without end.
            yield
            return
        acceptor = Acceptor(loop, sign, lambda caller, _: caller.close())
        acceptor.start()
        try:
            yield
        finally:
            acceptor.close()


def holder(name: str) -> int | None:
    """The process id of who has the sign of `name`: 0 if it is of another PID namespace, None if nobody has it."""
    if sys.platform != "linux":
        return None
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            # A connection that waits in the queue is enough.
            probe.connect(socket_name(name))
            pid, uid, _ = _PEER.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    except OSError:
        return None
    return pid if uid in (0, os.geteuid()) else None


def socket_name(name: str) -> str:
    return f"\0cryprq-proxy-tun-{name}"
