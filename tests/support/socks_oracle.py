"""asyncio-socks-server's SOCKS5 parser and encoders as a second opinion of ours, for tests and for the fuzz target.

What ours accepts theirs must accept, and both must mean the same by it. Known differences:

    a user or password that is not UTF-8   theirs raises UnicodeDecodeError; ours compares bytes, as RFC 1929 says
    names                                  theirs keeps them as they came; ours writes them in one form (canonical_host)
    IPv6 with an IPv4 address inside       the text differs, the 16 bytes do not
    SOCKS4                                 theirs does not speak it

Ours refuses more: port 0, impossible names, fragments of datagrams, names that only look like addresses.
"""

from __future__ import annotations

from collections.abc import Coroutine
from ipaddress import ip_address
from typing import Any, cast

from asyncio_socks_server.core.address import decode_address
from asyncio_socks_server.core.protocol import (
    build_udp_header,
    parse_method_selection,
    parse_request,
    parse_udp_header,
    parse_username_password,
)
from asyncio_socks_server.core.types import Address, AuthMethod, Cmd

from cryprq_proxy.address import Destination, canonical_host
from cryprq_proxy.fronts.socks import SocksServer, encode_datagram


class BytesReader:
    """The part of asyncio.StreamReader that their parsers use; everything is there at once."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    async def readexactly(self, size: int) -> bytes:
        if size > len(self.rest):
            raise EOFError("their parser wants more than ours")
        data, self.rest = self.rest[:size], self.rest[size:]
        return data


def run[T](coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as result:
        return cast(T, result.value)
    raise RuntimeError("their parser waits though all bytes are there")


def their_negotiation(data: bytes, method: int) -> tuple[Cmd, Address, bytes]:
    """Command, destination and what follows. `method` is what our side chose. Raises what their parsers raise."""
    version, offered = parse_method_selection(data)
    agree(version == 5 and method in offered, "the method that ours chose was not offered", data)
    reader = BytesReader(data[2 + data[1] :])
    stream: Any = reader
    if method == AuthMethod.USERNAME_PASSWORD:
        run(parse_username_password(stream))
    command, address = run(parse_request(stream))
    return command, address, reader.rest


def check_negotiation(data: bytes, server: SocksServer) -> None:
    """Raises RuntimeError if `server`, which got `data` and nothing else, accepts what theirs reads differently."""
    request = server.request
    if request is None or request.version != 5:
        return
    method = server.take_output()[1]
    try:
        command, address, rest = their_negotiation(data, method)
    except UnicodeDecodeError:
        agree(method == AuthMethod.USERNAME_PASSWORD, "only a password may be no text", data)
        return
    agree(command == request.command, "the commands differ", data)
    check_address(address, request.destination)
    agree(rest == server.leftover, "the request ends elsewhere", data)


def check_datagram(data: bytes, destination: Destination, payload: bytes) -> None:
    """Raises RuntimeError if theirs reads or writes differently what ours has read from `data`."""
    address, _, rest = parse_udp_header(data)
    check_address(address, destination)
    agree(rest == payload, "the payload begins elsewhere", data)
    theirs = build_udp_header(Address(*destination)) + payload
    agree(theirs == encode_datagram(destination, payload), "the datagrams are written differently", data)


def check_reply(reply: bytes, code: int, bound: tuple[str, int] = ("0.0.0.0", 0)) -> None:
    """Raises RuntimeError if their client would read anything else in our SOCKS5 reply."""
    agree(reply[:3] == bytes((5, code, 0)), "the head of the reply differs", reply)
    reader = BytesReader(reply[3:])
    address = run(decode_address(cast(Any, reader)))
    agree((address.host, address.port) == bound and not reader.rest, "the address differs", reply)


def check_address(theirs: Address, ours: Destination) -> None:
    if ours.is_ip:
        same = ip_address(canonical_host(theirs.host.encode())) == ip_address(ours.host)
    else:
        same = canonical_host(theirs.host.encode()) == ours.host
    agree(same and theirs.port == ours.port, f"{theirs} is not {ours}", b"")


def agree(same: bool, what: str, data: bytes) -> None:
    if not same:
        raise RuntimeError(f"asyncio-socks-server disagrees: {what} ({data.hex()})")
