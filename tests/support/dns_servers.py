"""DNS servers on loopback, over UDP and TCP, that answer what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

type Handler = Callable[[dns.message.Message], list[bytes]]
"""A question -> the datagrams that come back; over TCP their bytes in a row."""


def zone(records: dict[tuple[str, str], list[str]], *, rcode: int = 0) -> Handler:
    """Answers from `records`, (name, type) -> rdata; without a record NODATA, or with `rcode`."""

    def handle(query: dns.message.Message) -> list[bytes]:
        response = dns.message.make_response(query)
        question = query.question[0]
        kind = dns.rdatatype.to_text(question.rdtype)
        name = question.name.to_text(omit_final_dot=True)
        while (name, "CNAME") in records and (name, kind) not in records:
            target = records[name, "CNAME"][0]
            response.answer.append(dns.rrset.from_text(name + ".", 60, "IN", "CNAME", target + "."))
            name = target
        if (name, kind) in records:
            response.answer.append(dns.rrset.from_text(name + ".", 60, "IN", kind, *records[name, kind]))
        else:
            response.set_rcode(dns.rcode.Rcode(rcode))
        return [response.to_wire()]

    return handle


def nothing(query: dns.message.Message) -> list[bytes]:
    return []


def cut(query: dns.message.Message) -> list[bytes]:
    """The rest is to be asked for over TCP."""
    response = dns.message.make_response(query)
    response.flags |= dns.flags.TC
    return [response.to_wire()]


def without_aaaa(handler: Handler) -> Handler:
    """Questions for IPv6 addresses get nothing back."""

    def handle(query: dns.message.Message) -> list[bytes]:
        return [] if query.question[0].rdtype == dns.rdatatype.AAAA else handler(query)

    return handle


def aliases_without_end() -> Handler:
    """Each name is another name for a new one."""
    numbers = itertools.count(1)

    def handle(query: dns.message.Message) -> list[bytes]:
        response = dns.message.make_response(query)
        name, target = query.question[0].name.to_text(), f"x{next(numbers)}.example."
        response.answer.append(dns.rrset.from_text(name, 60, "IN", "CNAME", target))
        return [response.to_wire()]

    return handle


class Server:
    """One DNS server on `address`, UDP and TCP; says nothing where a handler gives nothing."""

    def __init__(self, udp: Handler, tcp: Handler | None = None) -> None:
        self.udp = udp
        self.tcp = tcp
        self.asked: list[tuple[str, str, str]] = []
        self.ports: list[int] = []
        """From which the datagrams came."""

    def handle(self, wire: bytes, carrier: str) -> list[bytes]:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        self.asked.append((carrier, question.name.to_text(), dns.rdatatype.to_text(question.rdtype)))
        handler = self.udp if carrier == "udp" else self.tcp
        return handler(query) if handler is not None else []


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: Server) -> None:
        self.server = server

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.server.ports.append(address[1])
        for answer in self.server.handle(data, "udp"):
            self.transport.sendto(answer, address)


async def udp_and_tcp(
    address: str,
    port: int,
    datagrams: Callable[[], asyncio.DatagramProtocol],
    stream: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    stack: contextlib.AsyncExitStack,
) -> int:
    """Listen on one port over both until the end of `stack`. Port 0: one that is free for both. Returns the port."""
    while True:
        tcp = await asyncio.start_server(stream, address, port)
        found: int = tcp.sockets[0].getsockname()[1]
        try:
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                datagrams, local_addr=(address, found)
            )
        except OSError as error:
            tcp.close()
            if port or error.errno != errno.EADDRINUSE:
                raise
            # Free for TCP alone.
            continue
        stack.push_async_callback(tcp.wait_closed)
        stack.callback(tcp.close)
        stack.callback(transport.close)
        return found


class DnsServers:
    """Servers on one port and several loopback addresses, the `addresses`."""

    def __init__(self, stack: contextlib.AsyncExitStack) -> None:
        self._stack = stack
        self.port = 0
        self.addresses: list[str] = []

    async def server(self, server: Server) -> Server:
        address = f"127.0.0.{len(self.addresses) + 1}"
        self.port = await udp_and_tcp(
            address,
            self.port,
            lambda: Datagrams(server),
            lambda reader, writer: self._stream(server, reader, writer),
            self._stack,
        )
        self.addresses.append(address)
        return server

    async def _stream(
        self, server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        (length,) = struct.unpack("!H", await reader.readexactly(2))
        for answer in server.handle(await reader.readexactly(length), "tcp"):
            writer.write(struct.pack("!H", len(answer)) + answer)
        writer.close()
