"""One TCP connection to a host, by whichever of its addresses answers first (RFC 8305, by aiohappyeyeballs).

    2001:db8::1  ---------------- no answer          families take turns, the resolver's first one begins
       192.0.2.1  ----- connected                    each attempt starts STAGGER after the one before it,
         2001:db8::2                                 or as soon as that one fails; the first success ends the rest

An IPv4 address without a route may have one by the network's NAT64: then the resolver translates it.

An address can also fail before anything is sent: no IPv6 in the kernel, no route, no file descriptor. Each of these is
one failed address and lets the next one start.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from ipaddress import IPv4Address
from typing import Final

import aiohappyeyeballs

from ...address import Destination
from ...base.descriptors import EXHAUSTED, SHORTAGE
from ...base.nat64 import WELL_KNOWN_NAME, translated
from ...base.sockets import prepare, set_mark
from ...errors import CarrierError, CloseReason, CryprqError, reason_of

STAGGER: Final = 0.25
"""Seconds between two attempts: the "Connection Attempt Delay" of RFC 8305 section 5."""

_ERRNO: Final = re.compile(r"\[Errno (\d+)\]")

type Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""From a name to IP addresses, the best first; from an IPv4 address to what the network's NAT64 makes of it. Raises
CryprqError saying why there are none."""


async def by_system(name: str) -> Sequence[str]:
    """Resolve `name` by the system's resolver."""
    loop = asyncio.get_running_loop()
    literal = _ipv4(name)
    try:
        if literal is not None:
            known = await loop.getaddrinfo(
                WELL_KNOWN_NAME, None, family=socket.AF_INET6, type=socket.SOCK_STREAM
            )
            return translated(literal, [str(entry[4][0]) for entry in known])
        found = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise _failed(f"the name {name} could not be resolved: {_reason(error)}") from None
    return [str(entry[4][0]) for entry in found]


async def connect_tcp(
    address: Destination,
    resolve: Resolve = by_system,
    mark: int = 0,
    segment: int = 0,
    *,
    what: str = "the exit",
) -> socket.socket:
    """A connected, non-blocking socket, with `mark` as its SO_MARK and `segment` as its TCP_MAXSEG if they are not 0.

    Raises CarrierError saying that `what` cannot be reached and why. The caller bounds the time.
    """
    host, port = address
    try:
        addresses = [host] if address.is_ip else await resolve(host)
    except CryprqError as error:
        raise _failed(str(error)) from None
    # Without an address there is nothing to try, and no error that would say so.
    if not addresses:
        raise _failed(f"the name {host} could not be resolved: it has no address")
    try:
        return await _start(addresses, port, mark, segment)
    except OSError as error:
        if error.errno in EXHAUSTED:
            SHORTAGE.note(error)
        failed = f"{what} at {address} cannot be reached: {_reason(error)}"
        if error.errno != errno.ENETUNREACH or _ipv4(host) is None:
            raise _failed(failed) from None
    with contextlib.suppress(CryprqError, OSError):
        if translations := await resolve(host):
            return await _start(translations, port, mark, segment)
    raise _failed(f"{failed}, and this network's DNS names no NAT64 that leads there")


async def _start(addresses: Sequence[str], port: int, mark: int, segment: int) -> socket.socket:
    return await aiohappyeyeballs.start_connection(
        [_info(found, port) for found in dict.fromkeys(addresses)],
        happy_eyeballs_delay=STAGGER,
        socket_factory=partial(_open, mark, segment),
    )


def _ipv4(host: str) -> IPv4Address | None:
    try:
        return IPv4Address(host)
    except ValueError:
        return None


def _info(address: str, port: int) -> aiohappyeyeballs.AddrInfoType:
    """As getaddrinfo has it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port)


def _open(mark: int, segment: int, info: aiohappyeyeballs.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, (host, *_) = info
    sock = socket.socket(family, kind, protocol)
    try:
        if mark:
            set_mark(sock, mark)
        if segment:
            # Before the connection: the other end learns it as well.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment)
        return prepare(sock, host)
    except BaseException:
        sock.close()
        raise


def _failed(text: str) -> CarrierError:
    return CarrierError(CloseReason.TIMED_OUT, text)


def _reason(error: OSError) -> str:
    """Why, as a sentence part.

    For addresses that failed for different reasons, aiohappyeyeballs raises one error without a number, which quotes
    theirs.
    """
    numbers = dict.fromkeys(_ERRNO.findall(str(error)))
    if error.errno is not None or not numbers:
        return reason_of(error)
    return ", ".join(reason_of(OSError(int(number), "")) for number in numbers)
