"""The exit's routes to its clients: whatever another program does to them, answers leave by no other device.

The judge is the exit's outer interface, while a client asks without end and the server answers.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Any, Final

import pytest

from tests.support.lab.capture import Capture, Packet
from tests.support.lab.faults import slow_nft
from tests.support.lab.hosts import EXIT4, EXIT6, ROUTER_EXIT4, SERVER4, SERVER6
from tests.support.lab.net import until
from tests.support.lab.server import ECHO_PORT
from tests.support.lab.stage import Stage

DEVICE: Final = "cryprq-exit0"
POOL4, POOL6 = "198.18.0.0/16", "fd63:7279:7071::/64"
ROUTER_EXIT6: Final = "2a01:4f8:10::1"
OUTER: Final = 20.0
"""Seconds for one repair on a machine that is busy with other things."""


@contextlib.contextmanager
def asking(stage: Stage) -> Iterator[None]:
    """The client asks the echo service over both families, without end and from one socket each."""
    over = threading.Event()
    sockets = [(stage.socket(server, socket.SOCK_DGRAM), server) for server in (SERVER4, SERVER6)]

    def ask() -> None:
        while not over.wait(0.005):
            for sock, server in sockets:
                with contextlib.suppress(OSError):
                    sock.sendto(b"echo", (server, ECHO_PORT))

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        yield
    finally:
        over.set()
        asker.join()
        for sock, _ in sockets:
            sock.close()


def answered(stage: Stage) -> None:
    """New flows of both families are answered, and with the exit's address."""
    until(lambda: stage.fetches(SERVER4) == EXIT4, "IPv4 flows", OUTER)
    until(lambda: stage.fetches(SERVER6) == EXIT6, "IPv6 flows", OUTER)


def misdirected(capture: Capture) -> list[Packet]:
    """What the exit sent to addresses of clients, past its device."""
    pools = [ip_network(pool) for pool in (POOL4, POOL6)]
    return [
        packet
        for packet in capture.sent()
        if packet.destination and any(ip_address(packet.destination) in pool for pool in pools)
    ]


def fact(stage: Stage, name: str) -> dict[str, Any]:
    found: dict[str, Any]
    (found,) = [fact for fact in stage.exit_status()["repairs"] if fact["name"] == name]
    return found


REMOVED: Final = (
    f"route del {POOL4}",
    f"-6 route del {POOL6} dev {DEVICE}",
    f"route replace {POOL4} via {ROUTER_EXIT4} dev eth0",
    f"route flush table main root {POOL4}",
    f"-6 route flush table main root {POOL6}",
)


def test_a_route_to_clients_that_is_removed_comes_back(stage: Stage) -> None:
    exit = stage.hosts.exit
    before = exit.snapshot()
    with stage.tunnel(), asking(stage), Capture(exit, "eth0") as outer:
        for command in REMOVED:
            answered(stage)
            counted, since = fact(stage, "routes to clients")["repairs"], stage.exit.written
            exit.ip(command)
            stage.exit.says(
                "routes to clients: another program changed it: .*was removed.*; it is put back",
                since=since,
                seconds=OUTER,
            )
            until(lambda: fact(stage, "routes to clients")["repairs"] > counted, "counted")  # noqa: B023
        answered(stage)
        assert exit.snapshot() == before
    assert not misdirected(outer)


NAT: Final = """
table inet engine {
    chain sources {
        type nat hook postrouting priority 100;
        ip saddr 172.17.0.0/16 masquerade
    }
}
"""
"""Of another program, as container engines have one: with it, NAT goes on for known flows while our table is gone."""
WITHOUT_ADDRESS: Final = (
    f"ip addr flush dev {DEVICE}",
    f"ip link set {DEVICE} down",
    f"nft delete table inet cryprq_exit; ip addr flush dev {DEVICE}",
)


def test_answers_never_follow_the_default_route(stage: Stage) -> None:
    """Not while the address is gone either, and with it the kernel's own route."""
    exit = stage.hosts.exit
    exit.nft(NAT)
    with stage.tunnel(), asking(stage), Capture(exit, "eth0") as outer:
        for command in WITHOUT_ADDRESS:
            answered(stage)
            since = stage.exit.written
            exit.run(["sh", "-c", command])
            stage.exit.says("device: another program changed it", since=since, seconds=OUTER)
        answered(stage)
    exit.nft("delete table inet engine")
    assert not misdirected(outer)


def test_a_narrower_route_of_another_program_is_named(stage: Stage) -> None:
    exit = stage.hosts.exit
    with stage.tunnel(), asking(stage), Capture(exit, "eth0") as outer:
        answered(stage)
        client4, client6 = stage.status()["addresses"]
        lanes = [
            (f"route {{}} {client4}/32 via {ROUTER_EXIT4} dev eth0", f"{client4}/32"),
            (f"-6 route {{}} {client6}/128 via {ROUTER_EXIT6} dev eth0", f"{client6}/128"),
        ]
        for command, prefix in lanes:
            since = stage.exit.written
            exit.ip(command.format("add"))
            stage.exit.says(f"routes to clients: another program has a route to {prefix}", since=since)
            until(lambda prefix=prefix: prefix in fact(stage, "routes to clients")["trouble"], "told")  # type: ignore[misc]
            exit.ip(command.format("del"))
            stage.exit.says("routes to clients: stands again", since=since)
        answered(stage)
    assert not misdirected(outer)


def test_while_the_table_is_gone_nothing_leaves_with_a_clients_address(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What leaves before the program knows cannot be helped. The repair is slow here, so that there is a time after."""
    exit = stage.hosts.exit
    hold = slow_nft(stage.links, monkeypatch)
    stage.restart_exit(lambda: None)

    def withheld() -> int:
        count: int = stage.exit_status()["drops"].get("no packet filter", 0)
        return count

    with stage.tunnel(), asking(stage), Capture(exit, "eth0") as outer:
        answered(stage)
        hold.touch()
        exit.run(["nft", "flush", "ruleset"])
        until(lambda: withheld() > 0, "withheld")
        outer.take()
        before = withheld()
        until(lambda: withheld() > before + 100, "more is withheld")
        gone = outer.take()
        hold.unlink()
        answered(stage)
    pools = [ip_network(pool) for pool in (POOL4, POOL6)]
    assert not [
        p for p in gone if p.sent and p.source and any(ip_address(p.source) in pool for pool in pools)
    ]
    monkeypatch.undo()
    stage.restart_exit(lambda: None)


def test_after_a_kill_the_route_holds_and_cleanup_removes_it(stage: Stage) -> None:
    exit = stage.hosts.exit
    state = stage.links.directory / "state-exit"

    def routes() -> str:
        return exit.ip("route") + exit.ip("-6 route")

    def holds() -> None:
        assert f"unreachable {POOL4}" in routes() and f"unreachable {POOL6}" in routes()

    def clean() -> None:
        holds()
        (state / "exit.journal").unlink()
        done = stage.links.call(exit, "cleanup", "--state-dir", str(state))
        assert "routes to clients" in done.stdout + done.stderr
        assert "unreachable" not in routes()

    def lose_the_journal() -> None:
        (state / "exit.journal").unlink()

    for meanwhile in (clean, holds, lose_the_journal):
        stage.restart_exit(meanwhile, killed=True)
        with stage.tunnel():
            assert stage.fetch(SERVER4) == EXIT4
            assert stage.fetch(SERVER6) == EXIT6
        holds()
        assert f"{POOL4} dev {DEVICE}" in routes(), "the pool of before"
    stage.restart_exit(lambda: None)


def test_a_stop_leaves_nothing(stage: Stage) -> None:
    stage.restart_exit(lambda: None)
    left: list[str] = []
    stage.restart_exit(lambda: left.append(stage.hosts.exit.ip("route") + stage.hosts.exit.ip("-6 route")))
    assert "unreachable" not in left[0] and POOL4 not in left[0]
