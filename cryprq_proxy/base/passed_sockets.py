"""Listening sockets that the service manager has opened and passes on: socket activation, sd_listen_fds(3).

    LISTEN_PID=1234  LISTEN_FDS=2  ->  descriptors 3 and 4 are listening sockets of the process 1234

They stay with the manager too, so connections that come while the program starts anew wait in their queues. One is used
where its address is one that the program is to listen on; one whose address is not is refused, with a sentence.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping, Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Final

from ..address import Destination
from ..errors import ConfigError

FIRST_DESCRIPTOR: Final = 3
MOST_PASSED: Final = 64
"""Sockets that are looked at."""


class PassedSockets:
    """The sockets that are not taken yet. Close it."""

    def __init__(self, sockets: Sequence[socket.socket] = ()) -> None:
        self._left = list(sockets)

    @classmethod
    def from_environment(
        cls, environment: MutableMapping[str, str] | None = None, first: int = FIRST_DESCRIPTOR
    ) -> PassedSockets:
        """Read the manager's variables and remove them, so that no child process takes the sockets. Raises ConfigError
        for a descriptor that is not a listening TCP socket of one family."""
        variables = os.environ if environment is None else environment
        pid, count, _ = (variables.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
        if pid != str(os.getpid()) or not count.isascii() or not count.isdecimal():
            return cls()
        passed = cls()
        try:
            for descriptor in range(first, first + min(int(count), MOST_PASSED)):
                passed._left.append(_adopt(descriptor))
        except ConfigError:
            passed.close()
            raise
        return passed

    def take(self, address: Destination) -> socket.socket | None:
        """The socket that listens on `address`, if one was passed; it is the caller's from now on."""
        for sock in self._left:
            if _is_at(sock, address):
                self._left.remove(sock)
                return sock
        return None

    def check_all_taken(self) -> None:
        """Raise ConfigError if one is left that nobody has asked for."""
        if self._left:
            address = Destination(*self._left[0].getsockname()[:2])
            raise ConfigError(
                f"the service manager passes a socket on {address}, where nothing is to listen; add that address to "
                "`listen`, or change the socket unit"
            )

    def close(self) -> None:
        """Close those that were not taken."""
        for sock in self._left:
            sock.close()
        self._left.clear()


NO_SOCKETS: Final = PassedSockets()
"""Without a manager."""


def _adopt(descriptor: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError:
        raise ConfigError(
            f"descriptor {descriptor} of the service manager is not a socket; the socket unit needs ListenStream="
        ) from None
    with suppress(OSError):
        sock.set_inheritable(False)
        if sock.type is socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            if sock.family is socket.AF_INET:
                return sock
            if sock.family is socket.AF_INET6:
                if sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
                    return sock
                sock.close()
                raise ConfigError(
                    "a socket of the service manager takes IPv4 and IPv6 together, which hides the addresses of IPv4; "
                    "the socket unit needs BindIPv6Only=ipv6-only, and a ListenStream= for each family"
                )
    sock.close()
    raise ConfigError(
        f"descriptor {descriptor} of the service manager is no listening TCP socket; the socket unit needs "
        "ListenStream= with an address and a port, and Accept=no"
    )


def _is_at(sock: socket.socket, address: Destination) -> bool:
    host, port = sock.getsockname()[:2]
    try:
        return port == address.port and ip_address(host) == ip_address(address.host)
    except ValueError:
        return False  # a name
