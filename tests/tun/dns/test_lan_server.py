"""A resolver of the LAN, on loopback: datagrams that are lost or foreign, answers that do not fit, and no answer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import dns.message
import pytest

from cryprq_proxy.outbound.resolving.name_server import MAX_STRAYS
from tests.support.dns_fakes import address, inquiry
from tests.support.dns_servers import udp_and_tcp
from tun.dns import lan_server
from tun.dns.framed import UpstreamError
from tun.dns.lan_server import LanServer

type Datagram = Callable[[bytes], list[bytes]]

ASKED = inquiry()


def good(question: bytes) -> bytes:
    return address(dns.message.from_wire(question))


def truncated(question: bytes) -> list[bytes]:
    answer = bytearray(good(question))
    answer[2] |= 2
    return [bytes(answer)]


class Answering(asyncio.DatagramProtocol):
    """`udp`: a question -> the datagrams that come back; over TCP, `tcp`: the bytes behind the length."""

    def __init__(self) -> None:
        self.udp: Datagram = lambda question: [good(question)]
        self.tcp: Callable[[bytes], bytes] = good
        self.asked: list[tuple[str, bytes, Any]] = []
        self.port = 0

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, source: Any) -> None:
        self.asked.append(("udp", data, source))
        for answer in self.udp(data):
            self.transport.sendto(answer, source)

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        question = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
        self.asked.append(("tcp", question, None))
        answer = self.tcp(question)
        writer.write((len(answer).to_bytes(2) + answer) if answer else b"")
        writer.close()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine changes no result."""
    monkeypatch.setattr(lan_server, "TRY_SECONDS", 60.0)
    monkeypatch.setattr(lan_server, "TCP_SECONDS", 60.0)


@pytest.fixture
async def far() -> AsyncIterator[Answering]:
    far = Answering()
    async with contextlib.AsyncExitStack() as stack:
        far.port = await udp_and_tcp("127.0.0.1", 0, lambda: far, far.stream, stack)
        yield far


def server(far: Answering) -> LanServer:
    return LanServer("127.0.0.1", 0, far.port)


async def test_a_question_is_answered_over_udp(far: Answering) -> None:
    lan = server(far)
    answers = [await lan.ask(ASKED) for _ in range(2)]
    assert [dns.message.from_wire(answer).answer[0][0].to_text() for answer in answers] == ["192.0.2.1"] * 2
    assert [carrier for carrier, _, _ in far.asked] == ["udp", "udp"]
    (_, one, first), (_, other, second) = far.asked
    assert one[2:] == other[2:] == ASKED.wire()[2:]
    assert first != second, "a socket of its own"


async def test_datagrams_that_answer_nothing_are_ignored(far: Answering) -> None:
    def strays(question: bytes) -> list[bytes]:
        answer = good(question)
        forged = answer.replace(b"\xc0\x00\x02\x01", b"\xc0\x00\x02\x42")
        assert forged != answer
        other_id = bytes([question[0] ^ 1]) + forged[1:]
        other_name = forged.replace(b"\3www", b"\3wwx")
        return [b"", b"junk", question, other_id, other_name, answer]

    far.udp = strays
    assert dns.message.from_wire(await server(far).ask(ASKED)).answer[0][0].to_text() == "192.0.2.1"


@pytest.mark.parametrize("udp", [truncated, lambda question: [b"junk"] * MAX_STRAYS])
async def test_what_does_not_fit_a_datagram_comes_over_tcp(far: Answering, udp: Datagram) -> None:
    far.udp = udp
    assert dns.message.from_wire(await server(far).ask(ASKED)).answer
    assert [carrier for carrier, _, _ in far.asked] == ["udp", "tcp"]


async def test_a_lost_question_is_sent_again(far: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lan_server, "TRY_SECONDS", 0.05)
    # So many that an answer which is late does no harm.
    monkeypatch.setattr(lan_server, "TRIES", 100)
    far.udp = lambda question: [] if len(far.asked) < 3 else [good(question)]
    assert await server(far).ask(ASKED)
    assert len({(data, source) for _, data, source in far.asked}) == 1


async def test_failures_are_one_sentence_each(far: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lan_server, "TRY_SECONDS", 0.01)
    lan = server(far)
    far.udp = lambda question: []
    with pytest.raises(UpstreamError, match="did not answer") as silent:
        await lan.ask(ASKED)
    assert not silent.value.unreachable
    far.udp, far.tcp = truncated, lambda question: b""
    monkeypatch.setattr(lan_server, "TRY_SECONDS", 60.0)
    with pytest.raises(UpstreamError, match="closed the connection"):
        await lan.ask(ASKED)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UpstreamError, match="cannot be reached: connection refused") as refused:
        await LanServer("127.0.0.1", 0, port).ask(ASKED)
    assert refused.value.unreachable


async def test_questions_at_once_are_bounded(far: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lan_server, "MAX_IN_FLIGHT", 1)
    arrived = asyncio.Event()

    def silent(question: bytes) -> list[bytes]:
        arrived.set()
        return []

    far.udp = silent
    lan = server(far)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(lan.ask(ASKED))
        await arrived.wait()
        with pytest.raises(UpstreamError, match="too many"):
            await lan.ask(ASKED)
        first.cancel()
    far.udp = lambda question: [good(question)]
    assert await lan.ask(ASKED)
