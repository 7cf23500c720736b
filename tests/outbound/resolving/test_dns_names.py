"""Look-ups by DNS, against servers of the test's own on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from cryprq_proxy.errors import StreamReason
from cryprq_proxy.outbound.resolving import dns_addresses, dns_names
from cryprq_proxy.outbound.resolving.dns_names import DnsNames, candidates
from cryprq_proxy.outbound.resolving.host_configuration import (
    ConfigurationReader,
    HostConfiguration,
    HostFiles,
)
from cryprq_proxy.outbound.resolving.outcome import FoundAddresses, LookupResult
from tests.support.dns_servers import DnsServers, Server, cut, nothing, zone
from tests.support.settle import settle, until

NAME = "www.example.org"
RECORDS = {(NAME, "A"): ["192.0.2.5"], (NAME, "AAAA"): ["2001:db8::5"]}
BOTH = zone(RECORDS)
SERVFAIL = zone({}, rcode=dns.rcode.SERVFAIL)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine changes no result: tests in which time runs out say so."""
    monkeypatch.setattr(dns_addresses, "OTHER_FAMILY_SECONDS", 60.0)
    monkeypatch.setattr(dns_names, "LOOKUP_SECONDS", 60.0)


class Stage(DnsServers):
    """The servers, and a host whose files name them."""

    def __init__(self, stack: contextlib.AsyncExitStack, directory: Path) -> None:
        super().__init__(stack)
        self.reader = ConfigurationReader(HostFiles(*[directory / "missing"] * 3))
        stack.callback(self.reader.close)

    def configure(self, **options: Any) -> None:
        configuration = HostConfiguration(seconds=60.0, servers=tuple(self.addresses))
        self.reader.latest = configuration._replace(**options)

    async def look_up(self, name: str = NAME) -> LookupResult:
        return await DnsNames(self.reader, port=self.port).look_up(name)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with contextlib.AsyncExitStack() as stack:
        yield Stage(stack, tmp_path)


def addresses(result: LookupResult) -> Sequence[str]:
    assert isinstance(result, FoundAddresses), result
    return sorted(result.addresses)


# --- answers ---


async def test_both_families_and_their_ttl(stage: Stage) -> None:
    server = await stage.server(Server(BOTH))
    stage.configure()
    found = await stage.look_up()
    assert addresses(found) == ["192.0.2.5", "2001:db8::5"]
    assert isinstance(found, FoundAddresses)
    assert found.seconds == 60
    assert sorted(server.asked) == [("udp", NAME + ".", "A"), ("udp", NAME + ".", "AAAA")]


async def test_a_long_answer_comes_over_tcp(stage: Stage) -> None:
    server = await stage.server(Server(cut, BOTH))
    stage.configure()
    assert len(addresses(await stage.look_up())) == 2
    assert sorted(carrier for carrier, _, _ in server.asked) == ["tcp", "tcp", "udp", "udp"]


async def test_tcp_alone_if_the_host_says_so(stage: Stage) -> None:
    server = await stage.server(Server(nothing, BOTH))
    stage.configure(only_tcp=True)
    assert len(addresses(await stage.look_up())) == 2
    assert [carrier for carrier, _, _ in server.asked] == ["tcp", "tcp"]


async def test_a_chain_of_aliases(stage: Stage) -> None:
    await stage.server(Server(zone({(NAME, "CNAME"): ["a.example"], ("a.example", "A"): ["192.0.2.6"]})))
    stage.configure()
    assert addresses(await stage.look_up()) == ["192.0.2.6"]


async def test_one_family_is_enough(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_addresses, "OTHER_FAMILY_SECONDS", 0.01)

    def no_aaaa(query: dns.message.Message) -> list[bytes]:
        return [] if query.question[0].rdtype == dns.rdatatype.AAAA else BOTH(query)

    await stage.server(Server(no_aaaa))
    stage.configure()
    assert addresses(await stage.look_up()) == ["192.0.2.5"]


async def test_each_question_has_a_port_of_its_own(stage: Stage) -> None:
    server = await stage.server(Server(BOTH))
    stage.configure()
    for _ in range(10):
        await stage.look_up()
    assert len(server.ports) == 20
    assert len(set(server.ports)) > 10


# --- what the host's files say ---


async def test_the_hosts_file_comes_first(stage: Stage) -> None:
    server = await stage.server(Server(BOTH))
    stage.configure(hosts={NAME: ("192.0.2.9",)})
    for name in (NAME, "WWW.Example.Org."):
        assert addresses(await stage.look_up(name)) == ["192.0.2.9"]
    assert addresses(await stage.look_up("localhost")) == ["127.0.0.1", "::1"]
    assert addresses(await stage.look_up("app.localhost.")) == ["127.0.0.1", "::1"]
    assert server.asked == []


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("intranet", ("intranet.a.example", "intranet.b.example", "intranet")),
        ("db.prod", ("db.prod.a.example", "db.prod.b.example", "db.prod")),
        ("www.example.org", ("www.example.org",)),
        ("intranet.", ("intranet.",)),
    ],
)
def test_which_names_get_the_search_list(name: str, asked: tuple[str, ...]) -> None:
    configuration = HostConfiguration(search=("a.example", "b.example"), dots=2)
    assert candidates(name, configuration) == asked


async def test_the_search_list(stage: Stage) -> None:
    records = {("intranet.b.example", "A"): ["192.0.2.7"]}
    server = await stage.server(Server(zone(records, rcode=dns.rcode.NXDOMAIN)))
    stage.configure(search=("x" * 300, "a.example", "b.example", "c.example"))
    assert addresses(await stage.look_up("intranet")) == ["192.0.2.7"]
    assert {name for _, name, _ in server.asked} == {"intranet.a.example.", "intranet.b.example."}


async def test_rotation(stage: Stage) -> None:
    servers = [await stage.server(Server(BOTH)) for _ in range(3)]
    stage.configure(rotate=True)
    names = DnsNames(stage.reader, port=stage.port)
    for _ in range(3):
        await names.look_up(NAME)
    assert [len(server.asked) for server in servers] == [2, 2, 2]


# --- failures stay apart ---


@pytest.mark.parametrize("rcode", [dns.rcode.NXDOMAIN, dns.rcode.NOERROR])
async def test_a_name_that_does_not_exist_or_has_no_address(stage: Stage, rcode: dns.rcode.Rcode) -> None:
    await stage.server(Server(zone({}, rcode=rcode)))
    second = await stage.server(Server(BOTH))
    stage.configure()
    assert await stage.look_up() is StreamReason.NAME_NOT_FOUND
    assert second.asked == [], "it was an answer"


@pytest.mark.parametrize("name", ["a" * 64 + ".example", "a..b", "\ud800"])
async def test_what_dns_cannot_hold(stage: Stage, name: str) -> None:
    assert await stage.look_up(name) is StreamReason.NAME_NOT_FOUND


async def test_the_next_server_is_asked_and_a_failure_is_one(stage: Stage) -> None:
    first = await stage.server(Server(SERVFAIL))
    second = await stage.server(Server(BOTH))
    stage.configure()
    assert len(addresses(await stage.look_up())) == 2
    second.udp = SERVFAIL
    first.asked.clear()
    assert await stage.look_up() is StreamReason.NAME_FAILED
    assert len(first.asked) == 2, "who has failed is not asked again"


async def test_nobody_listens(stage: Stage) -> None:
    await stage.server(Server(BOTH))
    stage.configure(servers=("127.0.0.99",))
    assert await stage.look_up() is StreamReason.NAME_FAILED


async def test_a_silent_server_is_asked_again_and_then_it_is_a_time_out(stage: Stage) -> None:
    server = await stage.server(Server(nothing))
    stage.configure(seconds=0.01)
    assert await stage.look_up() is StreamReason.NAME_TIMED_OUT
    assert len(server.asked) == 4, "twice, each time for both families"


async def test_a_silent_server_is_asked_last_for_a_while(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, alive = await stage.server(Server(nothing)), await stage.server(Server(BOTH))
    stage.configure(seconds=0.01, servers=tuple(stage.addresses[:1]))
    names = DnsNames(stage.reader, port=stage.port)
    assert await names.look_up(NAME) is StreamReason.NAME_TIMED_OUT
    asked = len(dead.asked)
    stage.configure()
    assert addresses(await names.look_up(NAME)) == ["192.0.2.5", "2001:db8::5"]
    assert len(dead.asked) == asked
    alive.udp = SERVFAIL
    dead.udp = BOTH
    assert len(addresses(await names.look_up(NAME))) == 2, (
        "it is asked all the same where no other can answer"
    )
    asked = len(alive.asked)
    monkeypatch.setattr(dns_names, "_now", lambda: float("inf"))
    await names.look_up(NAME)
    assert len(alive.asked) == asked, "after its time it is the first again"


async def test_all_of_it_has_a_bound_in_time(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_names, "LOOKUP_SECONDS", 0.01)
    await stage.server(Server(nothing))
    stage.configure()
    assert await stage.look_up() is StreamReason.NAME_TIMED_OUT


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
async def test_no_descriptors(stage: Stage, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    await stage.server(Server(BOTH))
    stage.configure()

    def failing(*_: object) -> socket.socket:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(socket, "socket", failing)
    assert await stage.look_up() is StreamReason.EXHAUSTED


async def test_a_failure_of_one_zone_of_the_search_list(stage: Stage) -> None:
    def broken(query: dns.message.Message) -> list[bytes]:
        return SERVFAIL(query) if "a.example" in str(query.question[0].name) else known(query)

    known = zone({("intranet", "A"): ["192.0.2.7"]}, rcode=dns.rcode.NXDOMAIN)
    await stage.server(Server(broken))
    stage.configure(search=("a.example",))
    assert addresses(await stage.look_up("intranet")) == ["192.0.2.7"]
    assert await stage.look_up("other") is StreamReason.NAME_FAILED


async def test_a_cancelled_look_up_leaves_no_socket(stage: Stage) -> None:
    server = await stage.server(Server(nothing))
    stage.configure()
    before = set(os.listdir("/proc/self/fd"))
    task = asyncio.ensure_future(stage.look_up())
    await until(lambda: len(server.asked) == 2)
    assert len(set(os.listdir("/proc/self/fd")) - before) == 2
    task.cancel()
    await settle()
    assert set(os.listdir("/proc/self/fd")) == before
