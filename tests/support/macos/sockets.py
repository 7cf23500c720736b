"""Sockets as macOS has them, on Linux's: numbers of options, and what its kernel refuses.

setsockopt    only what CPython names on macOS, or OPTIONS has; any other number is "Protocol not available", which
              is written to the log as an error too
control data  in the numbers of macOS; the type of service goes with no IPv4 datagram
AF_ROUTE      the routing socket, which says nothing by itself
paths         of 103 bytes at most, and no abstract ones
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
from collections.abc import Buffer, Callable, Iterable
from typing import Any, Final

from tests.support.macos.names import names_on

IP_PKTINFO: Final = 26
IP_DONTFRAG: Final = 28
AF_ROUTE: Final = 17
TCP_KEEPALIVE: Final = 0x10
TCP_CONNECTION_INFO: Final = 0x106
NAMED: Final = {
    "AF_ROUTE": AF_ROUTE,
    "AF_SYSTEM": 32,
    "AF_LINK": 18,
    "PF_SYSTEM": 32,
    "SYSPROTO_CONTROL": 2,
    "LOCAL_PEERCRED": 1,
    "SO_USELOOPBACK": 0x40,
    "IP_RECVDSTADDR": 7,
    "TCP_KEEPALIVE": TCP_KEEPALIVE,
    "TCP_CONNECTION_INFO": TCP_CONNECTION_INFO,
}
"""What CPython has by name on macOS alone, and its value there."""

_LEVELS: Final = {
    socket.SOL_SOCKET: "SO_",
    socket.IPPROTO_TCP: "TCP_",
    socket.IPPROTO_IP: "IP_",
    socket.IPPROTO_IPV6: "IPV6_",
}
_LINUX_PKTINFO: Final = 8
_LINUX_MTU_DISCOVER: Final = 10
_LINUX_TOS: Final = 1
_LINUX_INFO: Final = 11
_RECVTOS: Final = socket.IP_RECVTOS
_OPTIONS: Final = {
    (socket.IPPROTO_IP, IP_PKTINFO): (socket.IPPROTO_IP, _LINUX_PKTINFO),
    (socket.IPPROTO_IP, IP_DONTFRAG): (socket.IPPROTO_IP, _LINUX_MTU_DISCOVER),
    (socket.IPPROTO_TCP, TCP_KEEPALIVE): (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
}
"""Numbers of macOS -> those of Linux that do the same."""
_STATES: Final = {1: 4, 2: 2, 3: 3, 4: 6, 5: 9, 6: 10, 7: 0, 8: 5, 9: 8, 10: 1, 11: 7}
"""TCP's states, of Linux -> of macOS (netinet/tcp_fsm.h)."""
_LONGEST_PATH: Final = 103


def known_options() -> frozenset[tuple[int, int]]:
    """Level and number of all options that CPython names on macOS."""
    names = names_on("darwin", "socket")
    return frozenset(
        (level, getattr(socket, name))
        for level, prefix in _LEVELS.items()
        for name in names
        if name.startswith(prefix) and hasattr(socket, name)
    ) | {(0, NAMED["LOCAL_PEERCRED"])}


def complain(text: str) -> None:
    """A line that no test lets pass (tests/support/logged.py)."""
    print(f"00:00:00 error   macOS: {text}", file=sys.stderr, flush=True)


def install() -> None:
    """Let all sockets of this process be as those of macOS. Call it before names are taken out of the module."""
    _KNOWN.update(known_options())
    for name, value in NAMED.items():
        setattr(socket, name, value)
    places: dict[str, Callable[..., Any]] = {
        "__init__": _begin,
        "setsockopt": _setsockopt,
        "getsockopt": _getsockopt,
        "sendmsg": _sendmsg,
        "recvmsg_into": _recvmsg_into,
        "bind": _bind,
        "connect": _connect,
    }
    for name, function in places.items():
        setattr(socket.socket, name, function)
    _refuse_modes_of_sockets()


_REAL: Final = {
    name: getattr(socket.socket, name)
    for name in ("__init__", "setsockopt", "getsockopt", "sendmsg", "recvmsg_into", "bind", "connect")
}
_KNOWN: Final[set[tuple[int, int]]] = set()
_routing: Final[list[socket.socket]] = []
"""The kernel's ends of routing sockets."""


def _begin(
    sock: socket.socket, family: int = -1, kind: int = -1, proto: int = -1, fileno: Any = None
) -> None:
    if family == AF_ROUTE:
        ours, silent = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        _routing.append(silent)
        family, kind, proto, fileno = socket.AF_UNIX, socket.SOCK_DGRAM, 0, ours.detach()
    _REAL["__init__"](sock, family, kind, proto, fileno)


def _on_linux(level: int, option: int) -> tuple[int, int]:
    if (level, option) in _OPTIONS:
        return _OPTIONS[level, option]
    if (level, option) not in _KNOWN:
        complain(f"there is no socket option {option} of level {level}")
        raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
    return level, option


def _setsockopt(sock: socket.socket, level: int, option: int, *value: Any) -> None:
    if (level, option) == (socket.IPPROTO_IP, IP_DONTFRAG):
        value = (3,)  # IP_PMTUDISC_PROBE
    _REAL["setsockopt"](sock, *_on_linux(level, option), *value)


def _getsockopt(sock: socket.socket, level: int, option: int, *size: int) -> Any:
    if (level, option) == (socket.IPPROTO_TCP, TCP_CONNECTION_INFO):
        state = _REAL["getsockopt"](sock, socket.IPPROTO_TCP, _LINUX_INFO, 8)[0]
        return bytes([_STATES[state]]).ljust(size[0], b"\0")
    return _REAL["getsockopt"](sock, *_on_linux(level, option), *size)


def _sendmsg(
    sock: socket.socket, data: Iterable[Buffer], control: Iterable[tuple[int, int, Any]] = (), *more: Any
) -> Any:
    kept = [_sent(*part) for part in control if part[:2] != (socket.IPPROTO_IP, socket.IP_TOS)]
    return _REAL["sendmsg"](sock, data, kept, *more)


def _recvmsg_into(sock: socket.socket, *arguments: Any) -> Any:
    size, control, flags, address = _REAL["recvmsg_into"](sock, *arguments)
    return size, [_received(*part) for part in control], flags, address


def _bind(sock: socket.socket, address: Any) -> None:
    _check_path(sock, address)
    _REAL["bind"](sock, address)


def _connect(sock: socket.socket, address: Any) -> None:
    _check_path(sock, address)
    _REAL["connect"](sock, address)


def _check_path(sock: socket.socket, address: Any) -> None:
    if sock.family != socket.AF_UNIX:
        return
    path = os.fsencode(address)
    if len(path) > _LONGEST_PATH:
        raise OSError("AF_UNIX path too long")
    if path.startswith(b"\0"):
        complain("there are no abstract sockets")
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def _sent(level: int, kind: int, value: Any) -> tuple[int, int, Any]:
    if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
        return level, _LINUX_PKTINFO, value
    if (level, kind) not in (
        (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO),
        (socket.IPPROTO_IPV6, socket.IPV6_TCLASS),
    ):
        complain(f"there is no control data {kind} of level {level}")
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return level, kind, value


def _received(level: int, kind: int, value: bytes) -> tuple[int, int, bytes]:
    if (level, kind) == (socket.IPPROTO_IP, _LINUX_PKTINFO):
        value = value[:4] + bytes(4) + value[8:]
    if level == socket.IPPROTO_IP:
        kind = {_LINUX_PKTINFO: IP_PKTINFO, _LINUX_TOS: _RECVTOS}[kind]
    return level, kind, value


def _refuse_modes_of_sockets() -> None:
    """fchmod(2) of macOS: EINVAL for a socket."""
    fchmod = os.fchmod

    def refuse(fd: int, mode: int) -> None:
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fchmod(fd, mode)

    os.fchmod = refuse
