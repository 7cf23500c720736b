"""The exit's own name, resolved past the tunnel: against DNS servers of the test's own on loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from cryprq_proxy.outbound.resolving import dns_addresses
from cryprq_proxy.outbound.resolving.name_server import MAX_STRAYS
from tests.support.dns_servers import (
    DnsServers,
    Server,
    aliases_without_end,
    cut,
    nothing,
    without_aaaa,
    zone,
)
from tun.resolver import bootstrap
from tun.resolver.bootstrap import Bootstrap, BootstrapError, NameNotFoundError, resolve_early
from tun.resolver.known_addresses import KnownAddresses

NAME = "exit.example.org"

BOTH = zone({(NAME, "A"): ["192.0.2.5"], (NAME, "AAAA"): ["2001:db8::5"]})


class Lab(DnsServers):
    """Servers, and what the filter is told."""

    def __init__(self, stack: contextlib.AsyncExitStack) -> None:
        super().__init__(stack)
        self.events: list[str] = []

    @contextlib.asynccontextmanager
    async def opening(self, resolvers: Sequence[str]) -> AsyncIterator[None]:
        self.events.append(f"open {' '.join(resolvers)}")
        try:
            yield
        finally:
            self.events.append("close")

    def bootstrap(self, tmp_path: Path, **more: Any) -> Bootstrap:
        more.setdefault("seconds", 60.0)  # tests in which the time runs out say so
        hosts = tmp_path / "hosts"
        return Bootstrap(lambda: self.addresses, self.opening, mark=0, port=self.port, hosts=hosts, **more)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine changes no result."""
    monkeypatch.setattr(dns_addresses, "OTHER_FAMILY_SECONDS", 60.0)


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with contextlib.AsyncExitStack() as stack:
        yield Lab(stack)


async def test_both_families(lab: Lab, tmp_path: Path) -> None:
    server = await lab.server(Server(BOTH))
    found = await lab.bootstrap(tmp_path).resolve(NAME)
    assert sorted(found) == ["192.0.2.5", "2001:db8::5"]
    assert sorted(server.asked) == [("udp", NAME + ".", "A"), ("udp", NAME + ".", "AAAA")]
    assert lab.events == ["open 127.0.0.1", "close"]


@pytest.mark.parametrize(("kind", "address"), [("A", "192.0.2.5"), ("AAAA", "2001:db8::5")])
async def test_one_family_is_enough(lab: Lab, tmp_path: Path, kind: str, address: str) -> None:
    await lab.server(Server(zone({(NAME, kind): [address]})))
    assert await lab.bootstrap(tmp_path).resolve(NAME) == (address,)


async def test_a_swallowed_question_does_not_hold_the_other(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns_addresses, "OTHER_FAMILY_SECONDS", 0.01)
    await lab.server(Server(without_aaaa(BOTH)))
    assert await lab.bootstrap(tmp_path).resolve(NAME) == ("192.0.2.5",)


async def test_a_literal_and_the_hosts_file_ask_nobody(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n192.0.2.9\tEXIT.example.org alias # comment\n")
    resolver = lab.bootstrap(tmp_path)
    assert await resolver.resolve("192.0.2.1") == ("192.0.2.1",)
    assert await resolver.resolve("2001:DB8::1") == ("2001:db8::1",)
    assert await resolver.resolve(NAME) == ("192.0.2.9",)
    assert lab.events == []


async def test_an_alias_is_followed(lab: Lab, tmp_path: Path) -> None:
    """Within the answer, and where the answer ends with the alias, by another question."""
    server = await lab.server(
        Server(zone({(NAME, "CNAME"): ["a.example"], ("a.example", "A"): ["192.0.2.6"]}))
    )
    assert await lab.bootstrap(tmp_path).resolve(NAME) == ("192.0.2.6",)
    assert ("udp", "a.example.", "AAAA") in server.asked  # there was only the alias
    assert ("udp", "a.example.", "A") not in server.asked


async def test_aliases_without_end_end(lab: Lab, tmp_path: Path) -> None:
    await lab.server(Server(aliases_without_end()))
    with pytest.raises(BootstrapError, match="too many CNAMEs"):
        await lab.bootstrap(tmp_path).resolve(NAME)
    assert lab.events[-1] == "close"


async def test_a_cut_answer_is_asked_for_over_tcp(lab: Lab, tmp_path: Path) -> None:
    server = await lab.server(Server(cut, BOTH))
    assert len(await lab.bootstrap(tmp_path).resolve(NAME)) == 2
    assert [carrier for carrier, _, _ in server.asked].count("tcp") == 2


async def test_what_is_no_answer_is_passed_over(lab: Lab, tmp_path: Path) -> None:
    forged = zone({(NAME, "A"): ["192.0.2.66"], (NAME, "AAAA"): ["2001:db8::66"]})

    def noisy(query: dns.message.Message) -> list[bytes]:
        (bad,) = forged(query)
        wrong_id = bytes([bad[0] ^ 1]) + bad[1:]
        no_answer = bytes([bad[0], bad[1], bad[2] & 0x7F]) + bad[3:]
        other = dns.message.make_query("other.example.org", query.question[0].rdtype, id=query.id)
        elsewhere = zone(
            {("other.example.org", "A"): ["192.0.2.66"], ("other.example.org", "AAAA"): ["::66"]}
        )
        return [b"", b"x", wrong_id, no_answer, *elsewhere(other), bad[:12], *BOTH(query)]

    await lab.server(Server(noisy))
    assert sorted(await lab.bootstrap(tmp_path).resolve(NAME)) == ["192.0.2.5", "2001:db8::5"]


async def test_a_flood_ends_with_tcp(lab: Lab, tmp_path: Path) -> None:
    await lab.server(Server(lambda query: [b"x"] * MAX_STRAYS, BOTH))
    assert len(await lab.bootstrap(tmp_path).resolve(NAME)) == 2


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.FORMERR])
async def test_the_next_resolver_is_asked(lab: Lab, tmp_path: Path, rcode: dns.rcode.Rcode) -> None:
    await lab.server(Server(zone({}, rcode=rcode)))
    await lab.server(Server(BOTH))
    assert len(await lab.bootstrap(tmp_path).resolve(NAME)) == 2
    assert lab.events == ["open 127.0.0.1 127.0.0.2", "close"]


async def test_a_resolver_that_answers_late_or_not_at_all(lab: Lab, tmp_path: Path) -> None:
    """The first says nothing, ever; the second only when asked again."""
    silent = await lab.server(Server(nothing))
    times = 0

    def second_time(query: dns.message.Message) -> list[bytes]:
        nonlocal times
        times += 1
        return BOTH(query) if times > 2 else []

    await lab.server(Server(second_time))
    assert len(await lab.bootstrap(tmp_path, seconds=0.05, rounds=50).resolve(NAME)) == 2
    assert len(silent.asked) >= 4


@pytest.mark.parametrize("rcode", [dns.rcode.NXDOMAIN, dns.rcode.NOERROR])
async def test_a_name_without_an_address(lab: Lab, tmp_path: Path, rcode: dns.rcode.Rcode) -> None:
    await lab.server(Server(zone({}, rcode=rcode)))
    untouched = await lab.server(Server(BOTH))
    with pytest.raises(NameNotFoundError, match=r"exit.example.org does not exist or has no address"):
        await lab.bootstrap(tmp_path).resolve(NAME)
    assert untouched.asked == []
    assert lab.events[-1] == "close"


async def test_failures_are_one_sentence(lab: Lab, tmp_path: Path) -> None:
    await lab.server(Server(zone({}, rcode=dns.rcode.SERVFAIL)))
    lab.addresses.append("127.0.0.9")  # nobody is there
    with pytest.raises(BootstrapError) as caught:
        await lab.bootstrap(tmp_path).resolve(NAME)
    text = str(caught.value)
    for part in ("127.0.0.1: SERVFAIL", "127.0.0.9: connection refused", "on this machine"):
        assert part in text
    assert "\n" not in text
    assert lab.events == ["open 127.0.0.1 127.0.0.9", "close"]


async def test_silence_is_one_sentence(lab: Lab, tmp_path: Path) -> None:
    await lab.server(Server(nothing))
    with pytest.raises(BootstrapError, match=r"cannot be resolved \(127.0.0.1: no answer\)"):
        await lab.bootstrap(tmp_path, seconds=0.01).resolve(NAME)
    assert lab.events == ["open 127.0.0.1", "close"]


async def test_no_resolver_and_no_name(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(BootstrapError, match="names no resolver"):
        await lab.bootstrap(tmp_path).resolve(NAME)
    assert lab.events == []
    lab.addresses.append("127.0.0.1")
    for name in ("a" * 64 + ".example", "a..b", "x" * 300, "\ud800.example"):
        with pytest.raises(BootstrapError, match="not a name that DNS can hold"):
            await lab.bootstrap(tmp_path).resolve(name)
    assert lab.events == []


async def test_the_last_known_address_serves_while_nobody_answers(lab: Lab, tmp_path: Path) -> None:
    server = await lab.server(Server(BOTH))
    resolver = lab.bootstrap(tmp_path)
    found = await resolver.resolve(NAME)
    server.udp = zone({}, rcode=dns.rcode.SERVFAIL)
    assert await resolver.resolve(NAME) == found
    server.udp = zone({}, rcode=dns.rcode.NXDOMAIN)  # that is news, not silence
    with pytest.raises(NameNotFoundError):
        await resolver.resolve(NAME)
    server.udp = zone({}, rcode=dns.rcode.SERVFAIL)
    with pytest.raises(BootstrapError, match="SERVFAIL"):
        await resolver.resolve(NAME)


async def test_resolvers_that_are_silent_do_not_use_up_the_time_for_dialling(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "KNOWN_SECONDS", 0.01)
    await lab.server(Server(nothing))
    known = KnownAddresses(None, {NAME: ("192.0.2.9",)})
    assert await lab.bootstrap(tmp_path, known=known).resolve(NAME) == ("192.0.2.9",)
    assert lab.events == ["open 127.0.0.1", "close"]


async def test_a_name_is_asked_for_before_there_is_a_filter(lab: Lab, tmp_path: Path) -> None:
    """And once: what comes then is the first answer. What fails then is asked for again."""
    server = await lab.server(Server(BOTH))
    known = KnownAddresses()
    await resolve_early([NAME, "no.example.org"], lab.addresses, known, mark=0, port=lab.port)
    assert lab.events == []
    asked = len(server.asked)
    resolver = lab.bootstrap(tmp_path, known=known)
    assert sorted(await resolver.resolve(NAME)) == ["192.0.2.5", "2001:db8::5"]
    assert (lab.events, len(server.asked)) == ([], asked)
    server.udp = zone({(NAME, "A"): ["192.0.2.6"]})
    assert await resolver.resolve(NAME) == ("192.0.2.6",)
    with pytest.raises(NameNotFoundError):
        await resolver.resolve("no.example.org")


async def test_nobody_to_ask_before_the_filter_costs_little(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "EARLY_SECONDS", 0.01)
    await lab.server(Server(nothing))
    known = KnownAddresses()
    await resolve_early([NAME], lab.addresses, known, mark=0, port=lab.port)
    await resolve_early([], lab.addresses, known, mark=0)
    assert known.of(NAME) == ()


async def test_cancelling_closes_the_filter_again(lab: Lab, tmp_path: Path) -> None:
    asked = asyncio.Event()

    def silent(query: dns.message.Message) -> list[bytes]:
        asked.set()
        return []

    await lab.server(Server(silent))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(lab.bootstrap(tmp_path).resolve(NAME))
        await asked.wait()
        task.cancel()
    assert lab.events == ["open 127.0.0.1", "close"]


async def test_bad_answers_over_tcp(lab: Lab, tmp_path: Path) -> None:
    server = await lab.server(Server(lambda query: [b"x"] * MAX_STRAYS))
    resolver = lab.bootstrap(tmp_path, rounds=1)
    for answers, why in (
        ([], "the server closed the connection"),
        ([b"\xff" * (dns_addresses.MAX_MESSAGE + 1)], f"an answer of {dns_addresses.MAX_MESSAGE + 1} bytes"),
        ([b"\xff" * 40], "an answer to another question"),
    ):
        server.tcp = lambda query, answers=answers: answers
        with pytest.raises(BootstrapError, match=why):
            await resolver.resolve(NAME)
