"""asyncio-socks-server's SOCKS5 parser and encoders as a second opinion of ours, for tests and for the fuzz target.

What ours accepts theirs must accept, and both must mean the same by it. Known differences:

    a user or password that is not UTF-8   theirs raises UnicodeDecodeError; ours compares bytes, as RFC 1929 says
    names                                  theirs keeps them as they came; ours writes them in one form (canonical_host)
    IPv6 with an IPv4 address inside       the text differs, the 16 bytes do not
    SOCKS4                                 theirs does not speak it
    no host, in UDP ASSOCIATE              theirs gives the text; ours gives 0.0.0.0, since it is a hint only

Ours refuses more, and `explained` knows each reason: a wrong password, port 0, impossible names, names that only look
like addresses, fragments of datagrams. What theirs accepts for no such reason, ours must accept.
"""

from __future__ import annotations

import re
from collections.abc import Coroutine
from ipaddress import ip_address
from typing import Any, cast

from asyncio_socks_server.core.address import decode_address
from asyncio_socks_server.core.protocol import (
    ProtocolError,
    build_udp_header,
    parse_method_selection,
    parse_request,
    parse_udp_header,
    parse_username_password,
)
from asyncio_socks_server.core.types import Address, AuthMethod, Cmd

from cryprq_proxy.address import Destination, canonical_host
from cryprq_proxy.fronts.credentials import Credentials
from cryprq_proxy.fronts.socks import DatagramError, SocksServer, encode_datagram, parse_datagram

LABEL = re.compile("[A-Za-z0-9_-]{1,63}")
LIKE_A_NUMBER = re.compile("[0-9]+|0[xX][0-9a-fA-F]*")


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
        hint = request.command is Cmd.UDP_ASSOCIATE
        agree(
            hint or method == AuthMethod.USERNAME_PASSWORD, "only a password or a hint may be no text", data
        )
        return
    agree(command == request.command, "the commands differ", data)
    if command is Cmd.UDP_ASSOCIATE and explained(address, zero=True):
        address = Address("0.0.0.0", address.port)
    check_address(address, request.destination)
    agree(rest == server.leftover, "the request ends elsewhere", data)


def compare_negotiation(data: bytes, credentials: Credentials | None) -> bool:
    """Raises RuntimeError if ours and theirs differ about `data` without a known reason. Whether ours accepts."""
    server = SocksServer(credentials)
    server.receive(data)
    if server.request is not None:
        check_negotiation(data, server)
        return True
    output = server.take_output()
    if output[:1] != b"\x05" or output[1] == AuthMethod.NO_ACCEPTABLE:
        # Not SOCKS5, or their caller too would refuse: it chooses among the methods that are offered.
        agree(server.failed is not None or not whole_methods(data), "ours waits for nothing", data)
        return False
    try:
        command, address, _ = their_negotiation(data, output[1])
    except (ProtocolError, EOFError, UnicodeDecodeError):
        return False
    agree(server.failed is not None, "ours waits for more than a whole request", data)
    if output[2:4] == b"\x01\x01":
        reader: Any = BytesReader(data[2 + data[1] :])
        login = run(parse_username_password(reader))
        accepted = credentials is None or credentials.check(*(part.encode() for part in login))
        agree(not accepted, "ours refuses the right password", data)
        return False
    agree(explained(address, zero=command is not Cmd.CONNECT), f"ours refuses {address}", data)
    return False


def whole_methods(data: bytes) -> bool:
    return len(data) > 1 and data[0] == 5 and len(data) >= 2 + data[1]


def compare_datagram(data: bytes) -> bool:
    """The same for the header of a datagram."""
    try:
        destination, payload = parse_datagram(data)
    except DatagramError:
        try:
            address, _, _ = parse_udp_header(data)
        except (ProtocolError, IndexError, UnicodeDecodeError):
            return False
        # Theirs does not look at the reserved bytes and at the number of the fragment.
        agree(data[:3] != bytes(3) or explained(address, zero=False), f"ours refuses {address}", data)
        return False
    check_datagram(data, destination, payload)
    return True


def explained(address: Address, *, zero: bool) -> bool:
    """Whether ours has a reason to refuse what theirs has read; `zero` says whether port 0 may be."""
    if not address.port and not zero:
        return True
    try:
        ip_address(address.host.removesuffix(".") if ":" not in address.host else address.host)
    except ValueError:
        name = address.host.removesuffix(".")
        labels = name.split(".")
        like_number = LIKE_A_NUMBER.fullmatch(labels[-1]) is not None
        return len(name) > 253 or like_number or not all(map(LABEL.fullmatch, labels))
    # An address with a zone is one only on one machine.
    return "%" in address.host


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
