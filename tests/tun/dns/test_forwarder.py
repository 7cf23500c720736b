"""The whole forwarder on fake servers: what is answered from where, and what happens when nobody answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

import dns.message
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.address import Destination
from cryprq_proxy.errors import ConfigError, StreamReason, StreamRefused
from tests.support.dns_fakes import (
    SOA,
    FramedServer,
    MemoryStream,
    address,
    answer_of,
    now,
    query,
    reply,
    run,
)
from tests.support.settings import dns_settings
from tun.dns.blocklist import load
from tun.dns.codes import FORMERR, NOERROR, NOTIMP, NXDOMAIN, REFUSED, SERVFAIL
from tun.dns.forwarder import UNANSWERED_SAID, Forwarder
from tun.dns.setup import build, check


class Net:
    """A forwarder, the exit's resolver and servers by address behind the exit."""

    def __init__(
        self, handler: Callable[[dns.message.Message], bytes | None] = address, **options: Any
    ) -> None:
        self.exit = FramedServer(handler)
        self.servers: dict[str, FramedServer] = {}
        settings = dns_settings(**options)
        self.forwarder: Forwarder = build(settings, resolver=self.exit.open, connect=self.connect, clock=now)

    async def connect(self, destination: Destination) -> MemoryStream:
        if destination.host not in self.servers:
            raise StreamRefused(StreamReason.CONNECTION_REFUSED)
        return await self.servers[destination.host].open()

    async def ask(
        self, name: str = "www.example.", rdtype: str = "A", tcp: bool = True, **options: Any
    ) -> Any:
        sent = query(name, rdtype, **options)
        answer = await answer_of(self.forwarder, sent, tcp=tcp)
        assert answer is not None
        message = dns.message.from_wire(answer)
        assert dns.message.from_wire(sent).is_response(message)
        return message

    @property
    def counters(self) -> Any:
        return self.forwarder.counters


def test_an_answer_comes_from_the_exit_and_then_from_the_cache() -> None:
    async def main() -> None:
        net = Net()
        assert str((await net.ask()).answer[0]) == "www.example. 300 IN A 192.0.2.1"
        await asyncio.sleep(100)
        assert str((await net.ask("WWW.Example.")).answer[0]) == "WWW.Example. 200 IN A 192.0.2.1"
        assert len(net.exit.questions) == 1
        await asyncio.sleep(200)
        assert (await net.ask()).answer[0].ttl == 300
        assert len(net.exit.questions) == 2
        assert (net.counters.questions, net.counters.cache_hits, net.counters.upstream) == (3, 1, 2)

    run(main())


def test_absences_are_kept_too() -> None:
    async def main() -> None:
        net = Net(lambda q: reply(q, rcode=NXDOMAIN, authority=SOA))
        for _ in range(2):
            assert (await net.ask()).rcode() == NXDOMAIN
        assert len(net.exit.questions) == 1
        await asyncio.sleep(61)
        await net.ask()
        assert len(net.exit.questions) == 2

    run(main())


def test_dnssec_bits_have_answers_of_their_own() -> None:
    async def main() -> None:
        net = Net()
        await net.ask()
        await net.ask(want_dnssec=True)
        await net.ask(flags=0x0110)
        assert [(q.ednsflags, q.flags & 0x10) for q in net.exit.questions] == [(0, 0), (0x8000, 0), (0, 0x10)]

    run(main())


def test_equal_questions_at_once_are_asked_once() -> None:
    async def main() -> None:
        net = Net()
        answers = await asyncio.gather(
            *(net.ask("wWw.example." if i % 2 else "www.example.") for i in range(100))
        )
        assert len(net.exit.questions) == 1
        assert all(answer.answer for answer in answers)
        assert (net.counters.merged, net.counters.upstream) == (99, 1)

    run(main())


def test_who_leaves_does_not_take_the_answer_along() -> None:
    async def main() -> None:
        net = Net(lambda q: None)
        one = asyncio.ensure_future(net.ask())
        other = asyncio.ensure_future(net.ask())
        while not net.exit.questions:
            await asyncio.sleep(0)
        one.cancel()
        answer = address(net.exit.questions[0])
        await net.exit.streams[0].write(len(answer).to_bytes(2) + answer)
        assert (await other).answer
        assert net.forwarder.status().waiting == 0

    run(main())


def test_questions_that_wait_are_bounded() -> None:
    async def main() -> None:
        net = Net(lambda q: None, questions=10)
        begun = now()
        asked = [asyncio.ensure_future(net.ask(f"n{i}.example.")) for i in range(11)]
        assert (await asked[10]).rcode() == SERVFAIL
        assert now() == begun
        assert net.counters.overload == 1
        for answer in await asyncio.gather(*asked[:10]):
            assert answer.rcode() == SERVFAIL
        assert now() - begun == pytest.approx(4.5, abs=0.01)

    run(main())


def test_those_who_wait_for_one_answer_are_bounded_as_well() -> None:
    async def main() -> None:
        net = Net(lambda q: None, questions=10)
        asked = [asyncio.ensure_future(net.ask()) for _ in range(11)]
        begun = now()
        assert (await asked[10]).rcode() == SERVFAIL
        assert (now(), net.counters.overload) == (begun, 1)
        await asyncio.gather(*asked)

    run(main())


def test_questions_that_nobody_waits_for_any_more_are_bounded_too() -> None:
    async def main() -> None:
        net = Net(lambda q: None, questions=3)
        asked = [asyncio.ensure_future(net.ask(f"n{i}.example.")) for i in range(3)]
        while len(net.exit.questions) < 3:
            await asyncio.sleep(0)
        for left in asked:
            left.cancel()
        await asyncio.wait(asked)
        assert net.forwarder.status().waiting == 0
        assert (await net.ask("another.example.")).rcode() == SERVFAIL
        assert (len(net.exit.questions), net.counters.overload) == (3, 1)

    run(main())


def test_a_rule_blocks_names_beside_the_blocklist() -> None:
    async def main() -> None:
        server = FramedServer(address)
        forwarder = build(
            dns_settings(),
            resolver=server.open,
            connect=lambda _: server.open(),
            clock=now,
            also_blocks=lambda name: name.startswith(b"\3ads"),
        )
        for name, rcode in (("ads.example.", NXDOMAIN), ("www.example.", 0)):
            answer = await answer_of(forwarder, query(name), tcp=True)
            assert answer is not None and dns.message.from_wire(answer).rcode() == rcode
        assert len(server.questions) == 1

    run(main())


def test_while_the_link_is_down_questions_wait_three_seconds_and_then_fail() -> None:
    async def main() -> None:
        net = Net()
        net.exit.down = StreamReason.LINK_DOWN
        begun = now()
        assert (await net.ask(use_edns=0)).rcode() == SERVFAIL
        assert 2.5 < now() - begun <= 3
        begun = now()
        failed = await net.ask(use_edns=0)
        assert failed.rcode() == SERVFAIL  # remembered
        assert [int(entry.code) for entry in failed.extended_errors()] == [22]
        assert now() == begun
        net.exit.down = None
        net.forwarder.link_restored()
        assert (await net.ask()).answer
        assert net.counters.failures == 2

    run(main())


def test_on_a_stream_that_outlives_the_link_questions_wait_three_seconds() -> None:
    async def main() -> None:
        net = Net(lambda q: None)
        for lost, seconds in [(False, 4.5), (True, 3.0)]:
            if lost:
                net.forwarder.link_lost()
            begun = now()
            assert (await net.ask(f"{lost}.example.")).rcode() == SERVFAIL
            assert now() - begun == pytest.approx(seconds, abs=0.01)
        net.forwarder.link_restored()
        net.exit.handler = address
        assert (await net.ask()).answer

    run(main())


def test_a_stale_answer_is_better_than_none() -> None:
    async def main() -> None:
        net = Net()
        await net.ask()
        await asyncio.sleep(400)
        net.exit.down = StreamReason.LINK_DOWN
        begun = now()
        message = await net.ask(use_edns=0)
        assert now() - begun == pytest.approx(1.8, abs=0.01)
        assert message.answer[0].ttl == 30
        assert [int(entry.code) for entry in message.extended_errors()] == [3]
        await asyncio.sleep(3)
        begun = now()
        assert (await net.ask()).answer[0].ttl == 30
        assert now() == begun  # upstreams are known to fail
        assert net.counters.stale == 2
        net.exit.down = None
        net.forwarder.link_restored()
        assert (await net.ask()).answer[0].ttl == 300
        await asyncio.sleep(300 + 86_400)
        net.exit.down = StreamReason.LINK_DOWN
        assert (await net.ask()).rcode() == SERVFAIL

    run(main())


def test_a_late_answer_after_a_stale_one_is_kept() -> None:
    async def main() -> None:
        net = Net()
        await net.ask()
        await asyncio.sleep(400)
        net.exit.handler = lambda q: None
        assert (await net.ask()).answer[0].ttl == 30
        answer = address(net.exit.questions[-1])
        await net.exit.streams[-1].write(len(answer).to_bytes(2) + answer)
        await asyncio.sleep(0.1)
        assert (await net.ask()).answer[0].ttl == 300

    run(main())


def test_the_log_says_once_that_names_fail_and_why(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def main() -> None:
        net = Net()
        net.exit.down = StreamReason.CONNECTION_REFUSED
        for number in range(3):
            assert (await net.ask(f"{number}.example.")).rcode() == SERVFAIL
        assert len(caplog.messages) == 1
        assert caplog.messages[0].startswith(
            "no name is found, as what tun.dns.upstreams names (exit) fails: "
        )
        assert caplog.messages[0].endswith("connection refused")
        caplog.clear()
        net.exit.down = None
        await net.ask("found.example.")
        assert caplog.messages == ["names are found again"]
        caplog.clear()
        net.exit.streams[-1].abort()
        net.exit.down = StreamReason.LINK_DOWN
        net.forwarder.link_lost()
        await net.ask("lost.example.")
        assert not caplog.messages, "that is said of the link"

    run(main())


def test_one_silent_domain_is_not_all_names(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        net = Net(lambda q: None if "dead" in str(q.question[0]) else address(q))
        for number in range(UNANSWERED_SAID - 1):
            await net.ask(f"{number}.dead.")
        await net.ask("alive.example.")
        await net.ask("again.dead.")
        assert not caplog.messages
        for number in range(UNANSWERED_SAID):
            await net.ask(f"{number}.as-dead.")
        assert [message[:16] for message in caplog.messages] == ["no name is found"]

    run(main())


def test_servfail_is_remembered_for_seconds_only() -> None:
    async def main() -> None:
        net = Net(lambda q: reply(q, rcode=SERVFAIL))
        for _ in range(3):
            assert (await net.ask()).rcode() == SERVFAIL
        assert len(net.exit.questions) == 1
        net.exit.handler = address
        await asyncio.sleep(5.1)
        assert (await net.ask()).answer

    run(main())


@pytest.mark.parametrize("rcode", [SERVFAIL, FORMERR, NOTIMP, REFUSED])
def test_an_error_of_a_server_is_passed_on_as_what_it_is(rcode: int) -> None:
    """With its extended errors, also to all who ask while it is remembered; and not as if nobody could be reached."""

    async def main() -> None:
        net = Net(lambda q: reply(q, rcode=rcode, edes=[(6, "DNSSEC bogus: größer"), (22, None)]))
        for _ in range(2):
            found = await net.ask(use_edns=0)
            assert found.rcode() == rcode
            edes = [(int(entry.code), entry.text) for entry in found.extended_errors()]
            assert edes == [(6, "DNSSEC bogus: größer"), (22, None)]
            assert not found.answer
        assert (await net.ask()).edns == -1
        assert (len(net.exit.questions), net.counters.failures) == (1, 3)
        net.exit.handler = lambda q: reply(q, rcode=rcode)
        assert not (await net.ask("plain.example.", use_edns=0)).extended_errors()

    run(main())


def test_an_error_that_is_over_says_nothing_of_the_next_one() -> None:
    async def main() -> None:
        net = Net(lambda q: reply(q, rcode=REFUSED, edes=[(18, None)]))
        assert (await net.ask()).rcode() == REFUSED
        await asyncio.sleep(5.1)
        net.exit.down = StreamReason.LINK_DOWN
        net.exit.streams[-1].abort()
        failed = await net.ask(use_edns=0)
        assert failed.rcode() == SERVFAIL
        assert [int(entry.code) for entry in failed.extended_errors()] == [22]

    run(main())


def test_extended_errors_of_an_answer_are_kept_with_it_and_beside_ours() -> None:
    async def main() -> None:
        net = Net(lambda q: reply(q, rcode=NXDOMAIN, authority=SOA, edes=[(17, "filtered")]))

        async def codes() -> list[int]:
            return [int(entry.code) for entry in (await net.ask(use_edns=0)).extended_errors()]

        assert [await codes(), await codes()] == [[17], [17]]
        assert len(net.exit.questions) == 1
        await asyncio.sleep(100)
        net.exit.handler = lambda q: reply(q, rcode=SERVFAIL, edes=[(6, None)])
        assert await codes() == [19, 17], "a stale answer is better than an error"

    run(main())


def test_a_resolver_of_the_lan_is_asked_for_listed_names_only() -> None:
    with pytest.raises(ConfigError, match="is asked for single domains only"):
        check(dns_settings(upstreams=("exit", "lan://192.168.1.1")))
    settings = dns_settings(
        split={"lan": ("lan://192.168.1.1",), "*": ("lan://192.168.1.1", "lan://[fd00::1]", "10.0.0.1")}
    )
    check(settings)
    assert set(map(str, settings.lan_servers)) == {"192.168.1.1", "fd00::1"}

    async def main() -> None:
        net = Net(split={"*": ("10.0.0.1",)})
        net.servers["10.0.0.1"] = FramedServer(lambda q: reply(q, f"{q.question[0].name} 60 IN A 10.9.9.1"))
        assert str((await net.ask("printer.")).answer[0][0]) == "10.9.9.1"
        assert str((await net.ask("local.")).answer[0][0]) == "10.9.9.1"
        assert (await net.ask("localhost.")).answer[0][0].to_text() == "127.0.0.1"
        assert str((await net.ask("www.printer.")).answer[0][0]) == "192.0.2.1"
        assert set(net.forwarder.status().split) == {"*"}

    run(main())


def test_split_domains_go_to_their_servers_only() -> None:
    async def main() -> None:
        net = Net(
            split={
                "corp.example": ("10.0.0.1",),
                "lab.corp.example": ("10.0.0.2", "exit"),
                "local": ("10.0.0.1",),
            }
        )
        for number in (1, 2):
            net.servers[f"10.0.0.{number}"] = FramedServer(
                lambda q, number=number: reply(q, f"{q.question[0].name} 60 IN A 10.9.9.{number}")  # type: ignore[misc]
            )
        for name, expected in [
            ("www.corp.example.", "10.9.9.1"),
            ("Corp.example.", "10.9.9.1"),
            ("a.lab.corp.example.", "10.9.9.2"),
            ("printer.local.", "10.9.9.1"),
            ("example.", "192.0.2.1"),
        ]:
            assert str((await net.ask(name)).answer[0][0]) == expected
        assert len(net.exit.questions) == 1
        del net.servers["10.0.0.1"]
        for server in list(net.servers.values()):
            for stream in server.streams:
                stream.abort()
        net.forwarder.close()
        status = net.forwarder.status()
        assert set(status.split) == {"corp.example", "lab.corp.example", "local"}

    run(main())


def test_the_server_of_a_split_domain_is_not_replaced_by_the_exit() -> None:
    async def main() -> None:
        net = Net(split={"corp.example": ("10.0.0.1",)})
        assert (await net.ask("www.corp.example.")).rcode() == SERVFAIL
        assert net.exit.questions == []

    run(main())


def test_our_own_name_exists_while_its_page_is_open_and_is_asked_of_nobody() -> None:
    async def main() -> None:
        net = Net(split={"test": ("10.0.0.1",), "cryprq.test": ("10.0.0.1",)}, block=("cryprq.test",))
        absent = query("cryprq.test.", "A"), query("abcdef.test.", "A")
        plain = Net()
        answers = [await answer_of(plain.forwarder, sent, tcp=False) for sent in absent]
        assert answers[0] is not None and answers[1] is not None
        # Byte for byte as of any other name below "test".
        assert answers[0].replace(b"cryprq", b"abcdef")[2:] == answers[1][2:]
        for opened in (False, True, False):
            net.forwarder.answer_own_name(IPv4Address("127.8.7.6") if opened else None)
            for name in ("cryprq.test.", "cRyPrQ.TeSt."):
                answer = await net.ask(name)
                assert [str(each) for each in answer.answer] == [f"{name} 60 IN A 127.8.7.6"] * opened
                assert answer.rcode() == (NOERROR if opened else NXDOMAIN)
                for kind in ("AAAA", "HTTPS", "MX"):
                    answer = await net.ask(name, kind)
                    assert not answer.answer and answer.rcode() == (NOERROR if opened else NXDOMAIN)
            assert (await net.ask("a.cryprq.test.")).rcode() == NXDOMAIN
        assert not net.exit.questions and not net.servers
        assert net.counters.local == net.counters.questions == 27

    run(main())


def test_special_names_are_answered_here() -> None:
    async def main() -> None:
        net = Net(ipv6=False)
        assert str((await net.ask("localhost.")).answer[0]) == "localhost. 60 IN A 127.0.0.1"
        assert str((await net.ask("a.localhost.", "AAAA")).answer[0]) == "a.localhost. 60 IN AAAA ::1"
        assert (await net.ask("localhost.", "MX")).answer == []
        assert str((await net.ask("1.0.0.127.in-addr.arpa.", "PTR")).answer[0][0]) == "localhost."
        for name in ("x.local.", "x.onion.", "use-application-dns.net.", "2.1.168.192.in-addr.arpa."):
            assert (await net.ask(name)).rcode() == NXDOMAIN
        assert net.exit.questions == []
        assert net.counters.local == 8

    run(main())


def test_blocked_names_do_not_exist_or_are_zero() -> None:
    async def main() -> None:
        net = Net(block=("ads.example",))
        message = await net.ask("www.Ads.example.", use_edns=0)
        assert message.rcode() == NXDOMAIN
        assert [int(entry.code) for entry in message.extended_errors()] == [15]
        zero = Net(block=("ads.example",), block_answer="zero")
        assert str((await zero.ask("ads.example.")).answer[0]) == "ads.example. 60 IN A 0.0.0.0"
        assert str((await zero.ask("ads.example.", "AAAA")).answer[0]) == "ads.example. 60 IN AAAA ::"
        empty = await zero.ask("ads.example.", "HTTPS")
        assert (empty.rcode(), empty.answer) == (0, [])
        assert net.exit.questions == zero.exit.questions == []
        assert (net.counters.blocked, zero.counters.blocked) == (1, 3)

    run(main())


def test_no_ipv6_addresses_without_ipv6() -> None:
    async def main() -> None:
        net = Net(lambda q: reply(q, "www.example. 300 IN AAAA 2001:db8::1"), ipv6=False)
        message = await net.ask(rdtype="AAAA")
        assert (message.rcode(), message.answer, net.exit.questions) == (0, [], [])
        net.forwarder.offer_ipv6(True)
        assert (await net.ask(rdtype="AAAA")).answer
        net.forwarder.offer_ipv6(False)
        assert not (await net.ask(rdtype="AAAA")).answer

    run(main())


def test_an_answer_that_was_filtered_for_another_exit_is_not_kept() -> None:
    async def main() -> None:
        net = Net(lambda q: None, ipv6=False)
        asked = asyncio.ensure_future(net.ask())
        while not net.exit.questions:
            await asyncio.sleep(0)
        net.forwarder.offer_ipv6(True)
        answer = address(net.exit.questions[0])
        await net.exit.streams[0].write(len(answer).to_bytes(2) + answer)
        assert (await asked).answer
        assert net.forwarder.status().cache_entries == 0

    run(main())


def test_udp_answers_keep_to_the_size_of_the_client() -> None:
    many = "www.example. 300 IN A " + "|".join(f"192.0.2.{i}" for i in range(90))

    async def main() -> None:
        net = Net(lambda q: reply(q, many))
        assert (await net.ask(tcp=False)).flags & 0x0200
        assert (await net.ask(tcp=False, use_edns=0, payload=1232)).flags & 0x0200
        assert len((await net.ask(tcp=True)).answer[0]) == 90

    run(main())


def test_closing_answers_whoever_waits() -> None:
    async def main() -> None:
        net = Net(lambda q: None)
        asked = asyncio.ensure_future(net.ask())
        while not net.exit.questions:
            await asyncio.sleep(0)
        begun = now()
        net.forwarder.close()
        assert (await asked).rcode() == SERVFAIL
        assert (await net.ask("other.example.")).rcode() == SERVFAIL
        assert now() == begun

    run(main())


def test_status_tells_who_answers_and_how_fast() -> None:
    async def main() -> None:
        net = Net(upstreams=("tcp://10.0.0.1", "exit"), block=("a.example",))
        await net.ask()
        status = net.forwarder.status()
        assert status.in_use == "exit"
        assert [(entry.name, entry.healthy) for entry in status.upstreams] == [
            ("tcp://10.0.0.1", False),
            ("exit", True),
        ]
        assert "connection refused" in status.upstreams[0].last_error
        assert status.upstreams[1].latency is not None
        assert (status.cache_entries, status.blocklist_names, status.counters.upstream) == (1, 1, 1)
        assert status.cache_bytes > 600

    run(main())


def test_lists_of_servers_have_bounds() -> None:
    for options in ({"upstreams": ("exit",) * 17}, {"split": {"a": ()}}, {"split": {"a b": ("exit",)}}):
        with pytest.raises(ConfigError):
            Net(**options)


@given(st.lists(st.binary(max_size=80), max_size=5), st.booleans())
def test_random_bytes_get_an_answer_or_none(messages: list[bytes], tcp: bool) -> None:
    async def main() -> None:
        net = Net()
        for message in messages:
            answer = await answer_of(net.forwarder, message, tcp=tcp)
            assert answer is None or answer[:2] == message[:2]

    run(main())


@given(
    st.lists(st.binary(min_size=1, max_size=20), max_size=4).map(
        lambda labels: dns.name.Name([*labels, b""])
    ),
    st.integers(1, 127).filter(lambda number: number != 41),
    st.integers(0, 65_535),
    st.binary(max_size=40),
)
def test_any_question_gets_an_answer_whatever_the_server_says(
    name: dns.name.Name, rdtype: int, id_: int, junk: bytes
) -> None:
    async def main() -> None:
        net = Net(lambda q: address(q)[:40] + junk)
        sent = dns.message.make_query(name, dns.rdatatype.RdataType.make(rdtype), id=id_)
        answer = await answer_of(net.forwarder, sent.to_wire(), tcp=False)
        assert answer is not None
        assert sent.is_response(dns.message.from_wire(answer))

    run(main())


def test_another_blocklist_holds_for_the_next_question() -> None:
    async def main() -> None:
        forwarder = Net(address).forwarder

        async def rcode() -> int:
            answer = await answer_of(forwarder, query("a.example."), tcp=False)
            assert answer is not None
            return dns.message.from_wire(answer).rcode()

        assert await rcode() == 0
        forwarder.block(load(block=("a.example",)))
        assert await rcode() == NXDOMAIN, "although the cache has an answer"
        forwarder.block(load())
        assert await rcode() == 0

    run(main())


def test_a_blocklist_may_be_given_ready() -> None:
    async def main() -> None:
        server = FramedServer()
        forwarder = build(
            dns_settings(),
            resolver=server.open,
            connect=Net().connect,
            blocklist=load(block=("a.example",)),
            clock=now,
        )
        answer = await answer_of(forwarder, query("a.example."), tcp=False)
        assert answer is not None
        assert dns.message.from_wire(answer).rcode() == NXDOMAIN

    run(main())
