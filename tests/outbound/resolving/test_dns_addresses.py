"""Both families of a name, asked of one server on loopback."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import dns.message
import dns.rdatatype
import dns.rrset
import pytest

from cryprq_proxy.outbound.resolving import dns_addresses
from cryprq_proxy.outbound.resolving.dns_addresses import MAX_MESSAGE, ask_addresses
from cryprq_proxy.outbound.resolving.dns_answer import AAAA, A, AnswerError, NameAnswer, encode_name
from cryprq_proxy.outbound.resolving.hosts_file import MAX_ADDRESSES
from cryprq_proxy.outbound.resolving.name_server import NameServer
from tests.support.dns_servers import (
    DnsServers,
    Server,
    aliases_without_end,
    cut,
    nothing,
    without_aaaa,
    zone,
)

NAME = "www.example.org"
SECONDS = 60.0


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_addresses, "OTHER_FAMILY_SECONDS", 60.0)


@pytest.fixture
async def servers() -> AsyncIterator[DnsServers]:
    async with contextlib.AsyncExitStack() as stack:
        yield DnsServers(stack)


async def ask(servers: DnsServers, seconds: float = SECONDS) -> NameAnswer:
    return await ask_addresses(
        NameServer(servers.addresses[0], servers.port), encode_name(NAME) or b"", seconds
    )


async def test_ipv6_is_first_and_the_shortest_ttl_counts(servers: DnsServers) -> None:
    def handle(query: dns.message.Message) -> list[bytes]:
        response = dns.message.make_response(query)
        six = query.question[0].rdtype == dns.rdatatype.AAAA
        record = (7, "IN", "AAAA", "2001:db8::5") if six else (90, "IN", "A", "192.0.2.5")
        response.answer.append(dns.rrset.from_text(NAME + ".", *record))
        return [response.to_wire()]

    await servers.server(Server(handle))
    assert await ask(servers) == NameAnswer(("2001:db8::5", "192.0.2.5"), 7)


async def test_an_alias_without_its_addresses_is_another_question(servers: DnsServers) -> None:
    """Its TTL counts for what is found then."""

    def handle(query: dns.message.Message) -> list[bytes]:
        response = dns.message.make_response(query)
        if str(query.question[0].name) == NAME + ".":
            response.answer.append(dns.rrset.from_text(NAME + ".", 5, "IN", "CNAME", "a.example."))
        elif query.question[0].rdtype == dns.rdatatype.A:
            response.answer.append(dns.rrset.from_text("a.example.", 60, "IN", "A", "192.0.2.6"))
        return [response.to_wire()]

    await servers.server(Server(handle))
    assert await ask(servers) == NameAnswer(("192.0.2.6",), 5)


async def test_aliases_without_end_end(servers: DnsServers) -> None:
    await servers.server(Server(aliases_without_end()))
    with pytest.raises(AnswerError, match="too many CNAMEs"):
        await ask(servers)


async def test_a_long_answer_over_tcp_is_refused(servers: DnsServers) -> None:
    server = await servers.server(Server(cut, lambda query: [b"\xff" * (MAX_MESSAGE + 1)]))
    with pytest.raises(AnswerError, match=f"an answer of {MAX_MESSAGE + 1} bytes"):
        await ask(servers)
    many = [f"192.0.2.{number}" for number in range(200)]
    server.tcp = zone({(NAME, "A"): many})
    assert len((await ask(servers)).addresses) == MAX_ADDRESSES


async def test_many_addresses_of_one_family_leave_those_of_the_other(servers: DnsServers) -> None:
    six = [f"2001:db8::{number:x}" for number in range(MAX_ADDRESSES)]
    records = {(NAME, "AAAA"): six, (NAME, "A"): ["192.0.2.1"]}
    await servers.server(Server(cut, zone(records)))
    found = (await ask(servers)).addresses
    assert (len(found), found[-1]) == (MAX_ADDRESSES + 1, "192.0.2.1")


@pytest.mark.parametrize("silent", [A, AAAA])
async def test_a_failure_tells_more_than_silence(silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def exchange(server: NameServer, asked: bytes, seconds: float, only_tcp: bool) -> NameAnswer:
        if int.from_bytes(asked[-4:-2]) == silent:
            raise TimeoutError
        raise AnswerError("SERVFAIL")

    monkeypatch.setattr(dns_addresses, "_exchange", exchange)
    with pytest.raises(AnswerError, match="SERVFAIL"):
        await ask_addresses(NameServer("127.0.0.1"), b"\1a\0", SECONDS)


async def test_a_server_that_closes_the_connection(servers: DnsServers) -> None:
    await servers.server(Server(cut, nothing))
    with pytest.raises(AnswerError, match="closed the connection"):
        await ask(servers)


async def test_a_name_without_addresses(servers: DnsServers) -> None:
    await servers.server(Server(zone({})))
    assert await ask(servers) == NameAnswer()


async def test_one_answer_without_addresses_is_not_enough(servers: DnsServers) -> None:
    await servers.server(Server(without_aaaa(zone({}))))
    with pytest.raises(TimeoutError):
        await ask(servers, 0.01)
