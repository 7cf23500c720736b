"""The sockets of the forwarder, on loopback, with raw sockets and with dig."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from typing import Any

import dns.message
import pytest

from cryprq_proxy.errors import ConfigError
from tests.support.dns_fakes import FramedServer, address, query, reply
from tests.support.settings import dns_settings
from tests.support.targets import has_ipv6
from tun.dns import server as module
from tun.dns.forwarder import Forwarder
from tun.dns.server import DRAIN, MAX_PIPELINED, DnsServer
from tun.dns.setup import build

MANY = "|".join(f"192.0.2.{i}" for i in range(200))


def handler(question: dns.message.Message) -> bytes | None:
    name = str(question.question[0].name)
    if name.startswith("big."):
        return reply(question, f"{name} 300 IN A {MANY}")
    return None if name.startswith("never.") else address(question)


@pytest.fixture
def upstream() -> FramedServer:
    return FramedServer(handler)


@pytest.fixture
async def forwarder(upstream: FramedServer) -> AsyncIterator[Forwarder]:
    found = build(
        dns_settings(block=("ads.example",)), resolver=upstream.open, connect=lambda _: upstream.open()
    )
    yield found
    found.close()


@pytest.fixture
async def port(forwarder: Forwarder) -> AsyncIterator[int]:
    server = DnsServer(forwarder)
    await server.listen(["127.0.0.1"])
    yield server.port
    server.close()


class Udp:
    """A client's socket."""

    def __init__(self, host: str, port: int) -> None:
        self.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.connect((host, port))  # takes replies from there only

    async def exchange(self, message: bytes) -> bytes:
        self.sock.send(message)
        return await asyncio.get_running_loop().sock_recv(self.sock, 65_535)

    def __enter__(self) -> Udp:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


async def frame(reader: asyncio.StreamReader) -> dns.message.Message:
    return dns.message.from_wire(await reader.readexactly(int.from_bytes(await reader.readexactly(2))))


def framed(*messages: bytes) -> bytes:
    return b"".join(len(message).to_bytes(2) + message for message in messages)


async def test_udp(port: int, forwarder: Forwarder) -> None:
    with Udp("127.0.0.1", port) as client:
        for _ in range(2):
            answer = dns.message.from_wire(await client.exchange(query()))
            assert str(answer.answer[0][0]) == "192.0.2.1"
        assert forwarder.counters.cache_hits == 1
        # What gets no reply does not disturb what comes behind it.
        for junk in (b"", b"x", b"\xff" * 600, bytes(11)):
            client.sock.send(junk)
        assert dns.message.from_wire(await client.exchange(query("ads.example."))).rcode() == 3
        assert dns.message.from_wire(await client.exchange(bytes(60_000))).rcode() == 1


async def test_more_datagrams_than_one_wake_up_takes(port: int) -> None:
    with Udp("127.0.0.1", port) as client:
        wanted = set()
        for number in range(3 * DRAIN):
            client.sock.send(query("ads.example.", id=number))
            wanted.add(number)
        loop = asyncio.get_running_loop()
        while wanted:
            wanted.remove(int.from_bytes((await loop.sock_recv(client.sock, 512))[:2]))


async def test_tcp_carries_many_questions_at_once(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    total = 3 * MAX_PIPELINED
    for number in range(total):
        writer.write(framed(query(f"n{number}.example.", id=number)))
    ids = {(await frame(reader)).id for _ in range(total)}
    assert ids == set(range(total))
    writer.write(framed(query("big.example.")))
    assert len((await frame(reader)).answer[0]) == 200
    data = framed(query("slow.example."))
    for at in range(len(data)):
        writer.write(data[at : at + 1])
        await writer.drain()
    assert (await frame(reader)).answer
    writer.close()


async def test_open_questions_of_one_connection_are_bounded(port: int, forwarder: Forwarder) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    asked = [query(f"never.{number}.example.") for number in range(2 * MAX_PIPELINED)]
    writer.write(framed(*asked))
    while forwarder.status().waiting < MAX_PIPELINED:
        await asyncio.sleep(0)
    # All of them have arrived in one piece by now: what is taken up beyond the bound would be seen here.
    assert (forwarder.status().waiting, forwarder.counters.questions) == (MAX_PIPELINED, MAX_PIPELINED)
    writer.transport.abort()


async def test_a_tcp_client_that_has_nothing_more_to_say_still_gets_its_answer(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(framed(query(), query("ads.example.")))
    writer.write_eof()
    assert {(await frame(reader)).rcode() for _ in range(2)} == {0, 3}
    assert await reader.read() == b""
    writer.close()


async def test_who_does_not_speak_dns_is_disconnected(port: int) -> None:
    for junk in (b"\0\0", b"\0\1x", framed(address(dns.message.from_wire(query())))):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(junk)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(framed(bytes(65_535)))
    assert (await frame(reader)).rcode() == 1
    writer.close()


async def test_a_silent_connection_is_closed(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    writer.close()


async def test_connections_are_bounded_and_the_most_silent_one_makes_room(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 3)
    clients = []
    for _ in range(3):
        clients.append(await asyncio.open_connection("127.0.0.1", port))
        clients[-1][1].write(framed(query()))
        await frame(clients[-1][0])
    clients[0][1].write(framed(query()))
    await frame(clients[0][0])
    clients.append(await asyncio.open_connection("127.0.0.1", port))
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await clients[1][0].readexactly(1)
    for index in (0, 2, 3):
        clients[index][1].write(framed(query()))
        assert (await frame(clients[index][0])).answer
    for _, writer in clients:
        writer.close()


async def test_a_client_that_takes_no_answers_is_not_read_from(forwarder: Forwarder) -> None:
    server = DnsServer(forwarder)
    await server.listen(["127.0.0.1"])
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=4096)
    writer.write(framed(query("big.example.")))
    await frame(reader)
    total = 200_000  # 6 MB of questions, 600 MB of answers
    writer.write(framed(query("big.example.")) * total)
    before = -1
    while forwarder.counters.questions != before:
        before = forwarder.counters.questions
        for _ in range(500):
            await asyncio.sleep(0)
    assert forwarder.counters.questions < total
    (connection,) = server._clients
    assert len(connection._buffer) < 1 << 20
    writer.transport.abort()
    server.close()


@pytest.mark.skipif(not has_ipv6(), reason="this host has no ::1")
async def test_ipv6(forwarder: Forwarder) -> None:
    server = DnsServer(forwarder)
    await server.listen(["::1"])
    with Udp("::1", server.port) as client:
        assert dns.message.from_wire(await client.exchange(query())).answer
    server.close()


async def test_an_address_that_is_taken_is_said_in_one_sentence(forwarder: Forwarder, port: int) -> None:
    server = DnsServer(forwarder)
    with pytest.raises(
        ConfigError, match=rf"cannot listen on 127\.0\.0\.1, port {port}: address already in use"
    ):
        await server.listen(["127.0.0.2", "127.0.0.1"], port)
    await server.listen(["127.0.0.2"], port)  # the first one was let go
    server.close()


async def test_closing_with_questions_that_wait(forwarder: Forwarder, upstream: FramedServer) -> None:
    server = DnsServer(forwarder)
    await server.listen(["127.0.0.1"])
    port = server.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with Udp("127.0.0.1", port) as client:
        client.sock.send(query("never.example."))
        writer.write(framed(query("never.again.example.")))
        while len(upstream.questions) < 2:
            await asyncio.sleep(0)
        server.close()
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
    writer.close()
    while forwarder.status().waiting:
        await asyncio.sleep(0)


# --- dig -----------------------------------------------------------------------------------------------------------

DIG = shutil.which("dig")


async def dig(port: int, *arguments: str) -> str:
    assert DIG
    process = await asyncio.create_subprocess_exec(
        *(DIG, "@127.0.0.1", "-p", str(port), "+tries=1", "+time=5", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return output.decode()


@pytest.mark.process
@pytest.mark.skipif(DIG is None, reason="dig is not installed; on Debian: apt-get install dnsutils")
@pytest.mark.parametrize(
    ("arguments", "expected", "unexpected"),
    [
        ("www.example A", ["status: NOERROR", "192.0.2.1", "udp: 1232"], ["WARNING", "Warning"]),
        ("www.example A +tcp", ["status: NOERROR", "(TCP)"], ["WARNING"]),
        ("wWw.ExAmPlE A +noedns", ["wWw.ExAmPlE.\t"], ["EDNS"]),
        ("big.example A +ignore", [" tc ", "ANSWER: 0"], []),
        ("big.example A", ["ANSWER: 200", "retrying in TCP mode", "(TCP)"], []),
        ("www.example A +dnssec +cd", ["flags: do", " cd"], []),
        ("www.example A +edns=1 +noednsneg", ["BADVERS"], []),
        ("www.example A +subnet=198.51.100.0/24", ["status: NOERROR"], ["CLIENT-SUBNET"]),
        ("ads.example A", ["status: NXDOMAIN", "EDE: 15 (Blocked)"], []),
        ("localhost AAAA", ["::1"], []),
        ("example AXFR", ["Transfer failed"], []),
        ("version.bind TXT CH", ["status: REFUSED"], []),
        ("+opcode=notify www.example", ["status: NOTIMP"], []),
        ("+header-only", ["status: FORMERR"], []),
    ],
)
async def test_dig(port: int, arguments: str, expected: list[str], unexpected: list[str]) -> None:
    output = await dig(port, *arguments.split())
    for text in expected:
        assert text in output, output
    for text in unexpected:
        assert text not in output, output


async def test_a_fault_leaves_the_one_question_without_an_answer(
    port: int, forwarder: Forwarder, caplog: pytest.LogCaptureFixture
) -> None:
    consider = forwarder.consider

    def faulty(message: bytes, *, tcp: bool) -> Any:
        if message[:1] == b"\xff":
            raise ZeroDivisionError
        return consider(message, tcp=tcp)

    forwarder.consider = faulty  # type: ignore[method-assign,assignment]
    good = dns.message.make_query("www.example.org", "A").to_wire()
    with Udp("127.0.0.1", port) as client:
        for _ in range(2):
            client.sock.send(b"\xff" + good[1:])
        assert (await client.exchange(good))[:2] == good[:2]
    assert len(caplog.records) == 1
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(framed(good))
    assert (await frame(reader)).id == int.from_bytes(good[:2])
    writer.write(framed(b"\xff" + good[1:]))
    assert await reader.read(1) == b""
    writer.close()
    assert len(caplog.records) == 2
