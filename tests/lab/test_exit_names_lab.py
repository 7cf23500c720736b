"""The names of an exit's clients, with real processes: whose look-ups wait for whose, and what each is told."""

from __future__ import annotations

import asyncio
import resource
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import dns.message
import dns.rcode
import pytest

from cryprq_proxy.base.sockets import set_reset_on_close
from cryprq_proxy.outbound.resolving.c_library import look_up
from cryprq_proxy.outbound.resolving.dns_names import DnsNames
from cryprq_proxy.outbound.resolving.host_configuration import ConfigurationReader
from cryprq_proxy.outbound.resolving.outcome import FoundAddresses, LookupResult
from tests.support.lab.hosts import SERVER4, ThreeHosts, three_hosts
from tests.support.lab.links import Links
from tests.support.lab.net import LONG, Lab, Namespace, until
from tests.support.lab.server import HTTP_PORT, FarServer

DEAD = 100
PORTS = {"client": 1080, "other": 1081}
FOUND, HOST_UNREACHABLE, TTL_EXPIRED = 0, 4, 6
"""Reply codes of RFC 1928 section 6."""


class Place(NamedTuple):
    lab: Lab
    hosts: ThreeHosts
    server: FarServer
    links: Links


@pytest.fixture(scope="module")
def place(namespaces: None) -> Iterator[Place]:
    """An exit and two clients of it. The exit's DNS server says nothing about names that begin with "dead"."""
    with Lab() as lab:
        hosts = three_hosts(lab)
        server, links = FarServer(lab, hosts.server), Links(lab.directory / "links")

        def answer(question: dns.message.QueryMessage) -> dns.message.Message | None:
            name = str(question.question[0].name)
            if name.startswith("dead"):
                return None
            response = server.dns.lookup(question)
            if name.startswith("broken"):
                response.set_rcode(dns.rcode.SERVFAIL)
            return response

        server.dns.answer = answer
        for number in range(10):
            server.dns.answers[f"alive{number}.test.", "A"] = [SERVER4]
        links.exit(hosts.exit, clients=tuple(PORTS), tun=False)
        for name, port in PORTS.items():
            settings = {"listen": f"127.0.0.1:{port}"}
            links.client(hosts.client, tun=False, settings=settings, name=name).says("link up")
        yield Place(lab, hosts, server, links)
        wrong = links.close()
        assert not wrong, "\n".join(wrong)


def ask(host: Namespace, client: str, name: str) -> socket.socket:
    """An application of `client` asks for `name` at the server's HTTP port; the reply comes later."""
    with host.entered():
        sock = socket.create_connection(("127.0.0.1", PORTS[client]), LONG)
    sock.sendall(b"\5\1\0")
    assert sock.recv(2) == b"\5\0"
    text = name.encode()
    sock.sendall(b"\5\1\0\3" + bytes((len(text),)) + text + HTTP_PORT.to_bytes(2))
    return sock


def reply(sock: socket.socket) -> int:
    """Its code."""
    told = b""
    while len(told) < 4:
        piece = sock.recv(100)
        assert piece, "closed without a reply"
        told += piece
    return told[1]


def looked_up(place: Place) -> dict[str, Any]:
    names: dict[str, Any] = place.links.status("exit")["names"]
    return names


def test_names_that_never_answer_delay_nobody_else(place: Place) -> None:
    client = place.hosts.client
    with ExitStack() as stack:
        dead = [stack.enter_context(ask(client, "client", f"dead{number}.test")) for number in range(DEAD)]
        until(lambda: looked_up(place)["waiting"] > 0, "the dead names fill their share")
        seconds = []
        for number in range(5):
            begin = time.monotonic()
            with ask(client, "other", f"alive{number}.test") as sock:
                assert reply(sock) == FOUND
            seconds.append(time.monotonic() - begin)
        ready, _, _ = select.select(dead, [], [], 0)
        assert not ready, f"all others still waited; the five took {seconds} seconds"
        assert {reply(sock) for sock in dead} == {TTL_EXPIRED}
    print("seconds:", *(f"{value:.3f}" for value in seconds))


def test_look_ups_end_with_those_that_wait_for_them(place: Place) -> None:
    with ExitStack() as stack:
        for number in range(DEAD):
            sock = stack.enter_context(ask(place.hosts.client, "client", f"dead{number}.b.test"))
            set_reset_on_close(sock)
        until(lambda: looked_up(place)["waiting"] > 0, "the dead names fill their share")
    until(lambda: looked_up(place)["running"] + looked_up(place)["waiting"] == 0, "nothing is left of them")


def test_the_c_library_finds_the_same(place: Place) -> None:
    """In the exit's host, with its files: what the two kinds of look-up say about one name."""
    exit, answers = place.hosts.exit, place.server.dns.answers
    answers["six.test.", "AAAA"] = ["2606:2800:20::7", "2606:2800:20::8"]
    answers["both.test.", "A"], answers["both.test.", "AAAA"] = ["192.0.2.7"], ["2606:2800:20::7"]
    answers["long.test.", "A"] = [f"192.0.2.{number}" for number in range(1, 31)]
    answers["intranet.office.test.", "A"] = ["192.0.2.9"]
    answers["txt.test.", "TXT"] = ["text"]
    exit.resolv_conf.write_text(f"nameserver {SERVER4}\nsearch nothing.test office.test\noptions timeout:1\n")
    names = [
        *(
            "alive0.test",
            "six.test",
            "both.test",
            "BOTH.test.",
            "long.test",
            "intranet",
            "intranet.",
            "txt.test",
        ),
        *("nowhere.test", "broken.test", "localhost", exit.run(["hostname"]).strip()),
    ]

    async def ours() -> list[LookupResult]:
        reader = ConfigurationReader()
        found = [await DnsNames(reader).look_up(name) for name in names]
        reader.close()
        return found

    found = exit.call(lambda: [sorted_addresses(result) for result in asyncio.run(ours())], LONG)
    theirs = exit.call(lambda: [sorted_addresses(look_up(name)) for name in names], LONG)
    assert dict(zip(names, found, strict=True)) == dict(zip(names, theirs, strict=True))
    assert found[4] == sorted(answers["long.test.", "A"])
    exit.resolv_conf.write_text(f"nameserver {SERVER4}\n")


def sorted_addresses(result: LookupResult) -> list[str] | str:
    return sorted(result.addresses) if isinstance(result, FoundAddresses) else result.name


@contextmanager
def patience_for(place: Place, name: str) -> Iterator[None]:
    """The server is given up after a second where it never answers; else a busy machine has more time for it."""
    options = "options timeout:1 attempts:1\n" if name.startswith("dead") else ""
    place.hosts.exit.resolv_conf.write_text(f"nameserver {SERVER4}\n{options}")
    try:
        yield
    finally:
        place.hosts.exit.resolv_conf.write_text(f"nameserver {SERVER4}\n")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("alive9.test", FOUND),
        ("nowhere.test", HOST_UNREACHABLE),
        ("broken.test", HOST_UNREACHABLE),
        ("dead.test", TTL_EXPIRED),
    ],
)
def test_what_the_application_is_told(place: Place, name: str, code: int) -> None:
    with patience_for(place, name), ask(place.hosts.client, "client", name) as sock:
        assert reply(sock) == code


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nowhere.test", "There is no such host name"),
        ("broken.test", "A DNS server could not resolve the name"),
        ("dead.test", "No DNS server answered in time"),
    ],
)
def test_the_page_says_which_failure_it_was(place: Place, name: str, text: str) -> None:
    proxy = f"http://127.0.0.1:{PORTS['client']}"
    with patience_for(place, name):
        page = place.hosts.client.run(
            ["curl", "-s", "--max-time", f"{LONG:g}", "-x", proxy, f"http://{name}/"]
        )
    assert text in page


@pytest.mark.parametrize("target", ["alive6.test", SERVER4])
def test_an_exit_without_descriptors_says_so(place: Place, target: str) -> None:
    """Whether it needs a socket for the name or for the target."""
    [exit] = (role for role in place.links.roles if role.name == "exit")
    pid = exit.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    # Standard input has the only number below it.
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (1, limits[1]))
    try:
        page = place.hosts.client.run(
            [
                *("curl", "-s", "--max-time", f"{LONG:g}"),
                "-x",
                f"http://127.0.0.1:{PORTS['client']}",
                f"http://{target}/",
            ]
        )
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    assert "no descriptor or memory left" in page
    with ask(place.hosts.client, "client", "alive6.test") as sock:
        assert reply(sock) == FOUND, "nothing of it is remembered"


def test_the_exit_follows_its_resolv_conf_and_hosts_file(place: Place) -> None:
    exit = place.hosts.exit
    assert looked_up(place)["by"] == f"DNS, from {SERVER4}"
    exit.resolv_conf.write_text("nameserver 127.0.0.1\noptions attempts:1\n")
    with ask(place.hosts.client, "client", "alive8.test") as sock:
        assert reply(sock) == HOST_UNREACHABLE
    assert looked_up(place)["by"] == "DNS, from 127.0.0.1"
    exit.resolv_conf.write_text(f"nameserver {SERVER4}\n")
    with ask(place.hosts.client, "client", "alive7.test") as sock:
        assert reply(sock) == FOUND
