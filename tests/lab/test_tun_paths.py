"""System-wide mode with paths of its own: past the tunnel for cgroups, and to an exit behind bad or odd networks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.lab.hosts import (
    CLIENT4,
    CLIENT6,
    EXIT4,
    EXIT6,
    ROUTER_LAN4,
    ROUTER_SERVER4,
    SERVER4,
    SERVER6,
)
from tests.support.lab.links import PORT
from tests.support.lab.net import LONG, until
from tests.support.lab.stage import Stage, beside_the_link, host_of

BLACK_HOLE = f"""
table inet black_hole {{
    chain forward {{
        type filter hook forward priority 0;
        meta length > 1200 tcp sport {PORT} drop
        meta length > 1200 tcp dport {PORT} drop
    }}
}}
"""
CGROUPS = "/sys/fs/cgroup"
NAT64_EXIT = "64:ff9b::54b:a02"


# --- control groups -----------------------------------------------------------------------------------------------


@pytest.fixture
def cgroups(stage: Stage) -> Iterator[Path]:
    """The cgroups of version 2, mounted in the client; what a test makes there has gone at the end."""
    stage.client.run(["mount", "-t", "cgroup2", "none", CGROUPS])
    made = stage.client.path(CGROUPS) / f"cq{os.getpid()}"
    try:
        yield made
    finally:
        if made.exists():
            made.rmdir()
        stage.client.run(["umount", CGROUPS])


def fetch_within(stage: Stage, cgroup: Path, address: str, *command: str) -> str:
    """Run a command, by default a request, as a program of the cgroup."""
    wanted = command or ("curl", "-sS", "--max-time", f"{LONG:g}", f"http://{host_of(address)}/address")
    enter = f'echo $$ >"{CGROUPS}/{cgroup.name}/cgroup.procs" && exec "$@"'
    return stage.client.run(["sh", "-c", enter, "sh", *wanted])


def test_an_excluded_cgroup_goes_past_the_tunnel_but_not_with_dns(stage: Stage, cgroups: Path) -> None:
    cgroups.mkdir()
    past = {SERVER4: ROUTER_SERVER4, SERVER6: CLIENT6}
    through = {SERVER4: EXIT4, SERVER6: EXIT6}
    with stage.tunnel("--exclude-cgroup", f"/{cgroups.name}") as client:
        stage.resolver.forget()
        for address, seen in past.items():
            assert fetch_within(stage, cgroups, address) == seen
            assert stage.fetch(address) == through[address]
        question = ("dig", "+short", f"@{ROUTER_LAN4}", "a.example.com")
        assert fetch_within(stage, cgroups, "", *question) == "192.0.2.7\n"
        assert not stage.resolver.visits
        # Another cgroup of the same name: a new number.
        cgroups.rmdir()
        cgroups.mkdir()
        until(lambda: fetch_within(stage, cgroups, SERVER4) == ROUTER_SERVER4, "the new cgroup is known")
        # Without any, the filter still takes changes.
        cgroups.rmdir()
        stage.client.run(["nft", "flush", "ruleset"])
        until(lambda: bool(stage.status()["kill_switch"]["standing"]), "the filter stands again")
        assert "could not be checked" not in client.log
        assert stage.fetch(SERVER4) == EXIT4


def test_cgroups_that_cannot_be_told_apart_are_one_sentence(stage: Stage) -> None:
    before = stage.client.snapshot()
    file = stage.client_file()
    for path, says in (
        ("/a.slice", "none are mounted below /sys/fs/cgroup"),
        ("/a/../b", "expected the path of"),
    ):
        done = stage.links.call(stage.client, "--tun", "--exclude-cgroup", path, "--config", str(file))
        assert done.returncode == 2
        assert says in done.stderr
    stage.unchanged_since(before)


# --- the path -----------------------------------------------------------------------------------------------------


def test_a_path_that_loses_large_packets_without_a_word(stage: Stage) -> None:
    """No ICMP and no clamped MSS: TCP connects, and no flight of the handshake arrives."""
    ends = (stage.client, stage.hosts.exit)
    with ExitStack() as stack:
        for host in ends:
            # The rule is to see segments as they are on a wire.
            host.ip("link set eth0 gso_max_segs 1")
            stack.callback(host.ip, "link set eth0 gso_max_segs 65535")
        stage.hosts.router.nft(BLACK_HOLE)
        stack.callback(stage.hosts.router.nft, "delete table inet black_hole")
        client = stack.enter_context(stage.tunnel(settings={"carrier": "tcp"}))
        client.says(r"no link to .*\(MTU\)")
        client.says(r"link up: .*\(MTU\)")
        assert stage.fetch(SERVER4) == EXIT4
        size = ["curl", "-sS", "--max-time", f"{LONG:g}", "-o", "/dev/null", "-w", "%{size_download}"]
        assert stage.client.run([*size, f"http://{SERVER4}/bytes/300000"]) == "300000"
        assert "link down" not in client.log


# --- IPv6 only ----------------------------------------------------------------------------------------------------


@pytest.fixture
def only_ipv6(stage: Stage) -> Iterator[None]:
    """The client's network has no IPv4; its DNS makes IPv6 addresses of others' IPv4 ones.

    The exit has its own translated address, in place of a NAT64 that would lead there.
    """
    client, router, exit = stage.client, stage.hosts.router, stage.hosts.exit
    resolv_conf = client.resolv_conf.read_text()
    client.ip("-4 addr flush dev eth0")
    client.resolv_conf.write_text("nameserver 2a01:e0a:77::1\n")
    router.ip(f"-6 route add {NAT64_EXIT} via {EXIT6}")
    exit.ip(f"addr add {NAT64_EXIT}/128 dev lo")
    answers = stage.resolver.dns.answers
    answers[("exit.example.com.", "AAAA")] = [NAT64_EXIT]
    answers[("ipv4only.arpa.", "AAAA")] = ["64:ff9b::c000:aa"]
    try:
        yield
    finally:
        del answers[("ipv4only.arpa.", "AAAA")]
        exit.ip(f"addr del {NAT64_EXIT}/128 dev lo")
        router.ip(f"-6 route del {NAT64_EXIT}")
        client.resolv_conf.write_text(resolv_conf)
        stage.lab.address(client, "eth0", f"{CLIENT4}/24")
        client.ip(f"route replace default via {ROUTER_LAN4} dev eth0")


@pytest.mark.parametrize("exit", ["exit.example.com", EXIT4])
def test_a_network_of_ipv6_only_reaches_the_exit_by_its_nat64(
    stage: Stage, only_ipv6: None, exit: str
) -> None:
    with stage.tunnel(address=f"{exit}:{PORT}"), stage.wire() as wire:
        assert stage.fetch(SERVER4) == EXIT4
        assert stage.fetch(SERVER6) == EXIT6
    assert not beside_the_link(wire, (NAT64_EXIT,))


def test_without_a_nat64_it_is_one_sentence(stage: Stage, only_ipv6: None) -> None:
    stage.resolver.dns.answers[("ipv4only.arpa.", "AAAA")] = []
    client = stage.links.client(stage.client, ready="no link to")
    client.says("network is unreachable, and this network's DNS names no NAT64 that leads there")
    assert not client.stop()
