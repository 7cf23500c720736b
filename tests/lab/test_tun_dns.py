"""Names in system-wide mode: who is asked, what is answered when nobody answers, and the system's own resolver file.

The client's forwarder asks the exit's resolver, which is the far server; the home's own resolver (the router) must see
nothing. Names end in example.com: those below "test" are answered by the forwarder itself.
"""

from __future__ import annotations

import random
import re
import signal
import socket
from collections.abc import Iterator
from typing import Final

import dns.edns
import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest

from tests.support.lab.capture import Capture
from tests.support.lab.hosts import EXIT4, ROUTER_EXIT4, SERVER4
from tests.support.lab.net import LONG, RESOLVER, Resolver, until
from tests.support.lab.stage import Stage, beside_the_link

VIRTUAL4, VIRTUAL6 = "198.18.255.53", "fd63:7279:7071::53"
ELSEWHERE: Final = ("8.8.8.8", "2001:4860:4860::8888", "192.168.77.1", SERVER4)
"""Resolvers that a program may be set to, on the internet and on the LAN."""
ANSWERS: Final = {
    ("a.example.com.", "A"): ["192.0.2.7"],
    ("a.example.com.", "AAAA"): ["2001:db8::7"],
    ("big.example.com.", "TXT"): [f'"{i:03}{"x" * 200}"' for i in range(20)],
    ("ads.example.com.", "A"): ["192.0.2.66"],
    ("good.ads.example.com.", "A"): ["192.0.2.8"],
    ("www.corp.example.com.", "A"): ["192.0.2.99"],
}


@pytest.fixture(scope="module")
def stage(namespaces: None) -> Iterator[Stage]:
    with Stage() as stage:
        stage.server.dns.answers |= ANSWERS
        yield stage


@pytest.fixture(scope="module")
def either(namespaces: None, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """With a resolver file that can be replaced, and with one that is bind-mounted as in a container."""
    resolver: Resolver = request.param
    with Stage(resolver) as stage:
        stage.server.dns.answers |= ANSWERS
        yield stage


@pytest.fixture(scope="class")
def tunnel(stage: Stage) -> Iterator[Stage]:
    """A stage on which one client runs, for tests that leave it as it is."""
    blocklist = stage.links.directory / "blocklist"
    blocklist.write_text("0.0.0.0 tracker.example.com  # as in a hosts file\nads.example.com\n")
    dns = {
        "blocklists": [str(blocklist)],
        "block": ["alone.example.com"],
        "allow": ["good.ads.example.com"],
        "split": [f"corp.example.com={ROUTER_EXIT4}", f"lab.test=tcp://{ROUTER_EXIT4}:53"],
    }
    with stage.wire() as wire, stage.tunnel(settings={"tun": {"dns": dns}}):
        yield stage
    assert not beside_the_link(wire)


@pytest.fixture(autouse=True)
def heard(stage: Stage) -> Iterator[None]:
    """The servers answer and have heard nothing yet; and the home's own resolver is never asked."""
    stage.server.dns.answer = stage.server.dns.lookup
    stage.server.dns.ttl = 60
    stage.resolver.dns.answers.clear()
    stage.server.forget()
    stage.resolver.forget()
    yield
    assert not {visit.source for visit in stage.resolver.visits} - {EXIT4}


def ask(
    stage: Stage, name: str, kind: str = "A", server: str = VIRTUAL4, *, tcp: bool = False, size: int = 1232
) -> dns.message.Message:
    """One question from the client's namespace."""
    question = dns.message.make_query(name, kind, use_edns=0, payload=size)
    with stage.client.entered():
        if tcp:
            return dns.query.tcp(question, server, timeout=LONG)
        return dns.query.udp(question, server, timeout=LONG)


def values(answer: dns.message.Message) -> list[str]:
    return [item.to_text() for rrset in answer.answer for item in rrset]


def is_stale(answer: dns.message.Message) -> bool:
    """RFC 8914, codes 3 and 19."""
    return any(isinstance(option, dns.edns.EDEOption) and option.code in (3, 19) for option in answer.options)


# --- questions ----------------------------------------------------------------------------------------------------


class TestQuestions:
    """Of one client that runs all the while."""

    @pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
    @pytest.mark.parametrize("server", [VIRTUAL4, VIRTUAL6, *ELSEWHERE])
    def test_all_dns_is_answered_by_the_forwarder(self, tunnel: Stage, server: str, tcp: bool) -> None:
        """Whichever server a program asks; one that does not exist answers, one that does never hears of it."""
        with Capture(tunnel.hosts.server, "eth0") as arrivals:
            assert values(ask(tunnel, "a.example.com", server=server, tcp=tcp)) == ["192.0.2.7"]
            assert values(ask(tunnel, "a.example.com", "AAAA", server, tcp=tcp)) == ["2001:db8::7"]
            assert ask(tunnel, "none.example.com", server=server, tcp=tcp).rcode() == dns.rcode.NXDOMAIN
            empty = ask(tunnel, "a.example.com", "TXT", server, tcp=tcp)
            assert empty.rcode() == dns.rcode.NOERROR and not empty.answer
        assert {p.source for p in arrivals.packets if not p.sent and p.protocol == "udp"} <= {EXIT4}
        assert tunnel.server.sources("dns") <= {EXIT4}

    def test_programs_find_names_through_the_system_resolver(self, tunnel: Stage) -> None:
        client = tunnel.client
        assert client.run(["dig", "+short", "a.example.com"]) == "192.0.2.7\n"
        assert client.run(["dig", "+short", "+tcp", "a.example.com", "AAAA"]) == "2001:db8::7\n"
        assert set(client.run(["getent", "ahosts", "a.example.com"]).split()) >= {"192.0.2.7", "2001:db8::7"}

        def look_up() -> list[str]:
            return [str(found[4][0]) for found in socket.getaddrinfo("a.example.com", 80, socket.AF_INET)]

        assert set(client.call(look_up)) == {"192.0.2.7"}

    def test_a_big_answer_is_truncated_and_comes_whole_over_tcp(self, tunnel: Stage) -> None:
        short = ask(tunnel, "big.example.com", "TXT", "8.8.8.8", size=512)
        assert short.flags & dns.flags.TC
        assert len(short.to_wire()) <= 512
        assert len(values(ask(tunnel, "big.example.com", "TXT", "8.8.8.8", tcp=True))) == 20
        assert len(tunnel.client.run(["dig", "+short", "big.example.com", "TXT"]).splitlines()) == 20

    def test_an_answer_comes_from_the_cache_with_the_rest_of_its_life(self, tunnel: Stage) -> None:
        tunnel.server.dns.answers[("cached.example.com.", "A")] = ["192.0.2.50"]
        assert values(ask(tunnel, "cached.example.com")) == ["192.0.2.50"]
        asked = tunnel.server.visits
        until(lambda: ask(tunnel, "cached.example.com").answer[0].ttl < 60, "the answer ages")
        assert tunnel.server.visits == asked

    @pytest.mark.parametrize(
        ("name", "blocked"),
        [
            ("ads.example.com", True),
            ("below.ads.example.com", True),
            ("tracker.example.com", True),
            ("below.tracker.example.com", False),
            ("alone.example.com", True),
            ("good.ads.example.com", False),
            ("example.com", False),
        ],
    )
    def test_blocked_names_do_not_exist_and_are_not_asked_for(
        self, tunnel: Stage, name: str, blocked: bool
    ) -> None:
        for server in (VIRTUAL4, "8.8.8.8"):
            answer = ask(tunnel, name, server=server)
            if name == "good.ads.example.com":
                assert values(answer) == ["192.0.2.8"]
            else:
                assert answer.rcode() == dns.rcode.NXDOMAIN
        assert bool(tunnel.server.visits) != blocked

    def test_an_error_of_the_exits_resolver_comes_through(self, tunnel: Stage) -> None:
        """With the reason that it gives (RFC 8914)."""

        def bogus(question: dns.message.QueryMessage) -> dns.message.Message:
            response = dns.message.make_response(question)
            response.set_rcode(dns.rcode.SERVFAIL)
            response.use_edns(
                0, options=[dns.edns.EDEOption(dns.edns.EDECode.DNSSEC_BOGUS, "signature expired")]
            )
            return response

        tunnel.server.dns.answer = bogus
        answer = ask(tunnel, "bogus.example.com")
        assert answer.rcode() == dns.rcode.SERVFAIL
        assert [(int(ede.code), ede.text) for ede in answer.extended_errors()] == [(6, "signature expired")]

    def test_a_domain_of_its_own_server(self, tunnel: Stage) -> None:
        """Asked through the tunnel, over TCP; all other names are asked of the exit's resolver."""
        tunnel.resolver.dns.answers |= {
            ("www.corp.example.com.", "A"): ["192.0.2.10"],
            ("a.example.com.", "A"): ["192.0.2.11"],
            ("host.lab.test.", "A"): ["192.0.2.12"],
        }
        assert values(ask(tunnel, "www.corp.example.com")) == ["192.0.2.10"]
        assert values(ask(tunnel, "www.corp.example.com", server="8.8.8.8", tcp=True)) == ["192.0.2.10"]
        assert values(ask(tunnel, "host.lab.test")) == ["192.0.2.12"], "a special name, but somebody knows it"
        assert values(ask(tunnel, "a.example.com")) == ["192.0.2.7"]
        asked = {(visit.service, visit.source, visit.what) for visit in tunnel.resolver.visits}
        assert asked == {
            ("dns-tcp", EXIT4, "www.corp.example.com. A"),
            ("dns-tcp", EXIT4, "host.lab.test. A"),
        }
        assert not any("corp" in visit.what for visit in tunnel.server.visits)

    def test_names_of_the_home_are_told_to_nobody(self, tunnel: Stage) -> None:
        for name in ("printer.local", "1.77.168.192.in-addr.arpa", "nas.home.arpa", "x.test"):
            assert ask(tunnel, name).rcode() == dns.rcode.NXDOMAIN
        assert not tunnel.server.visits

    def test_garbage_does_no_harm(self, tunnel: Stage) -> None:
        """Loops of compression, cut messages, answers as questions: refused or dropped, and the next is answered."""
        header = bytes.fromhex("123401000001000000000000")
        with tunnel.socket("8.8.8.8", socket.SOCK_DGRAM) as sock:
            for message in (
                b"",
                b"\0" * 11,
                header,
                header + b"\xc0\x0c\0\1\0\1",
                b"\xff" * 600,
                random.Random(53).randbytes(512),
            ):
                sock.sendto(message, ("8.8.8.8", 53))
        with tunnel.socket("8.8.8.8") as sock:
            sock.connect(("8.8.8.8", 53))
            sock.sendall(b"\0\1x" + b"\0\x14" + header + b"\xc0\x0c\0\1\0\1\0\0")
        assert values(ask(tunnel, "a.example.com")) == ["192.0.2.7"]
        assert not {visit.what for visit in tunnel.server.visits} - {"a.example.com. A"}


# --- the system's resolver file -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("either", "way"), [("own", "written"), ("own", "renamed"), ("bound", "written")], indirect=["either"]
)
def test_a_resolver_file_that_others_overwrite_comes_back(either: Stage, way: str) -> None:
    """And what they wrote is what is put back in the end: a DHCP client has news."""
    client = either.client
    original = client.resolv_conf.read_bytes()
    assert original.decode() == RESOLVER
    news = "nameserver 192.168.77.1\n# the lease was renewed\n"
    before = client.snapshot()
    role = either.links.client(client)
    ours = client.resolv_conf.read_bytes()
    assert re.findall(rb"(?m)^nameserver (\S+)$", ours) == [VIRTUAL4.encode(), VIRTUAL6.encode()]
    move = "cat >/etc/resolv.conf" if way == "written" else "cat >/etc/new; mv /etc/new /etc/resolv.conf"
    # Stopped, so that it does not find the file empty and put its own in place before the news are written.
    role.process.send_signal(signal.SIGSTOP)
    try:
        client.run(["sh", "-c", move], stdin=news)
    finally:
        role.process.send_signal(signal.SIGCONT)

    def repaired() -> bool:
        return any(
            repair["name"] == "system resolver" and repair["repairs"] == 1
            for repair in either.status()["repairs"]
        )

    until(repaired, "the file is put back")
    assert client.resolv_conf.read_bytes().splitlines()[1:] == ours.splitlines()[1:]
    assert values(ask(either, "a.example.com")) == ["192.0.2.7"]
    assert not role.stop(), role.log
    assert client.resolv_conf.read_text() == news
    client.resolv_conf.write_bytes(original)
    either.unchanged_since(before)


def test_a_resolver_file_that_was_a_link_is_a_link_again(stage: Stage) -> None:
    client = stage.client
    client.run(["sh", "-c", "mv /etc/resolv.conf /etc/resolv.linked; ln -s resolv.linked /etc/resolv.conf"])
    try:
        with stage.tunnel():
            assert values(ask(stage, "a.example.com")) == ["192.0.2.7"]
            assert client.path("/etc/resolv.linked").read_text() == RESOLVER
        assert client.run(["readlink", "/etc/resolv.conf"]) == "resolv.linked\n"
    finally:
        client.run(["mv", "/etc/resolv.linked", "/etc/resolv.conf"])


# --- when nobody answers ------------------------------------------------------------------------------------------


def test_a_dead_upstream_is_told_in_time(stage: Stage) -> None:
    """SERVFAIL for what nobody knows, the old answer for what was known; and all is well once the server is back."""
    dns_server = stage.server.dns
    with stage.tunnel():
        dns_server.ttl = 1
        assert values(ask(stage, "a.example.com")) == ["192.0.2.7"]
        dns_server.answer = dns_server.dead
        assert ask(stage, "new.example.com").rcode() == dns.rcode.SERVFAIL
        answers: list[dns.message.Message] = []

        def gets_old() -> bool:
            answers.append(ask(stage, "a.example.com"))
            return is_stale(answers[-1])

        until(gets_old, "a stale answer")
        assert all(values(answer) == ["192.0.2.7"] for answer in answers)
        assert answers[-1].answer[0].ttl <= 30, "RFC 8767, section 5"
        dns_server.answer = dns_server.lookup
        dns_server.answers[("new.example.com.", "A")] = ["192.0.2.70"]
        until(lambda: values(ask(stage, "new.example.com")) == ["192.0.2.70"], "the server is asked again")
    del dns_server.answers[("new.example.com.", "A")]


def test_an_exit_that_is_gone_is_told_in_time(stage: Stage) -> None:
    """What is cached is answered; what is not is SERVFAIL; nothing goes to anybody else."""
    with stage.tunnel() as client, stage.wire() as wire:
        assert values(ask(stage, "a.example.com")) == ["192.0.2.7"]
        written = client.written

        def meanwhile() -> None:
            client.says("link (down|to the exit .* left)", since=written)
            assert values(ask(stage, "a.example.com")) == ["192.0.2.7"]
            assert ask(stage, "none.example.com").rcode() == dns.rcode.SERVFAIL

        stage.restart_exit(meanwhile)
        until(lambda: values(ask(stage, "big.example.com", "TXT", tcp=True)) != [], "the link is back")
    assert not beside_the_link(wire)


TAILSCALE: Final = """
table ip tailscale {
    chain input {
        type filter hook input priority 0;
        iifname "tailscale0" accept
        ip saddr 100.64.0.0/10 drop
    }
}
"""
"""The rule of ts-input that keeps others from pretending to be of its network."""


def test_names_resolve_beside_tailscale(stage: Stage) -> None:
    stage.client.nft(TAILSCALE)
    try:
        with stage.tunnel():
            done = stage.client.attempt(["getent", "ahostsv4", "a.example.com"], limit=30)
            assert "192.0.2.7" in done.stdout
            for asked in (VIRTUAL4, *ELSEWHERE):
                question = dns.message.make_query("a.example.com", "A")
                answer = stage.client.call(lambda: dns.query.udp(question, asked, timeout=LONG))  # noqa: B023
                assert answer.answer, asked
    finally:
        stage.client.nft("delete table ip tailscale")
