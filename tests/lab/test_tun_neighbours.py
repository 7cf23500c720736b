"""System-wide mode beside the devices and networks around this machine.

Discovery on the LAN is sent as most programs send it: no interface is named. A capture on the outer interface tells
what reaches the LAN, one on the TUN device what enters the tunnel.
"""

from __future__ import annotations

import os
import pty
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.lab.capture import Capture
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
from tests.support.lab.net import until
from tests.support.lab.stage import SECONDS, TUN, Stage, beside_the_link, host_of

DISCOVERY = (
    ("239.255.255.250", 1900),  # SSDP
    ("224.0.0.251", 5353),  # mDNS
    ("255.255.255.255", 9999),
    ("192.168.77.255", 9999),
    ("ff02::fb", 5353),
    ("ff02::c", 1900),
    ("ff12::1234", 9999),  # the same scope, with the flag of an address that nobody has assigned
    ("ff05::c", 1900),
)
SSH = 2222
NAT64_EXIT = "64:ff9b::54b:a02"
CGROUPS = "/sys/fs/cgroup"
BLACK_HOLE = f"""
table inet black_hole {{
    chain forward {{
        type filter hook forward priority 0;
        meta length > 1200 tcp sport {PORT} drop
        meta length > 1200 tcp dport {PORT} drop
    }}
}}
"""
OTHER_CABLE = "172.30.9"


@pytest.fixture(scope="module")
def stage(namespaces: None) -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


def discover(stage: Stage, address: str, port: int) -> bool:
    """Send one datagram without naming an interface; whether the kernel took it."""
    with stage.socket(address, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        try:
            sock.sendto(b"who is there?", (address, port))
        except OSError:
            return False
    return True


def destinations(capture: Capture) -> set[tuple[str, int]]:
    return {(packet.destination, packet.destination_port) for packet in capture.sent()}


def test_discovery_goes_out_on_the_lan_and_not_into_the_tunnel(stage: Stage) -> None:
    with stage.tunnel("--lan", "allow"):
        # After the TUN device: the kernel takes the oldest route for groups.
        stage.client.ip("link set eth0 multicast off")
        stage.client.ip("link set eth0 multicast on")
        with stage.wire() as wire, Capture(stage.client, TUN) as inside:
            taken = [address for address, port in DISCOVERY if discover(stage, address, port)]
        assert stage.fetch(SERVER4) == EXIT4
    assert taken == [address for address, _ in DISCOVERY]
    assert destinations(wire) >= set(DISCOVERY)
    assert not destinations(inside) & set(DISCOVERY)


@pytest.mark.parametrize("switch", ["on", "off"])
def test_discovery_is_refused_where_the_lan_is_blocked(stage: Stage, switch: str) -> None:
    with (
        stage.tunnel("--lan", "block", "--kill-switch", switch),
        stage.wire() as wire,
        Capture(stage.client, TUN) as inside,
    ):
        taken = [address for address, port in DISCOVERY if discover(stage, address, port)]
    assert not taken
    assert not beside_the_link(wire)
    assert not destinations(inside) & set(DISCOVERY)


def test_a_second_network_of_a_container_is_no_guest(stage: Stage) -> None:
    """This host is a container on two networks: eth1 is a cable like eth0, and has no default route."""
    other = stage.lab.namespace("other")
    stage.lab.veth(stage.client, "eth1", other, "eth0")
    stage.lab.address(stage.client, "eth1", f"{OTHER_CABLE}.2/24")
    stage.lab.address(other, "eth0", f"{OTHER_CABLE}.1/24")
    try:
        assert stage.ping(f"{OTHER_CABLE}.1")
        with stage.tunnel("--lan", "block"), Capture(stage.client, "eth1") as wire:
            with stage.socket(SERVER4) as sock, suppress(OSError):
                sock.connect((f"{OTHER_CABLE}.1", 80))
            assert not stage.ping(f"{OTHER_CABLE}.1")
            assert stage.fetch(SERVER4) == EXIT4
        assert not beside_the_link(wire)
        with stage.tunnel("--lan", "allow"):
            assert stage.ping(f"{OTHER_CABLE}.1")
    finally:
        stage.client.ip("link del eth1")


# --- connections from outside -------------------------------------------------------------------------------------


class Shell:
    """A connection from afar to this machine, as that of somebody who works here."""

    def __init__(self, stage: Stage) -> None:
        with stage.client.entered():
            self._listener = socket.create_server(("::", SSH), family=socket.AF_INET6)
        self._far = stage.socket(CLIENT6, host=stage.hosts.server)
        self._far.connect((CLIENT6, SSH))
        self._near, _ = self._listener.accept()

    def lives(self) -> bool:
        try:
            self._near.sendall(b"$ ")
            return self._far.recv(10) == b"$ "
        except OSError:
            return False

    def close(self) -> None:
        for sock in (self._near, self._far, self._listener):
            sock.close()


def client_config(stage: Stage) -> Path:
    peer = f"cryprq://{stage.links.identity('exit')[1]}@{EXIT4}:{PORT}"
    return stage.links.config("client", {"peer": peer, "tun": {"state_dir": str(stage.links.state_dir)}})


@contextmanager
def at_terminal(stage: Stage, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A client in the foreground of a terminal of its own, and the other end of that terminal."""
    master, slave = pty.openpty()
    try:
        file = client_config(stage)
        command = ["setsid", "--ctty", *stage.links.command("--tun", *options, "--config", str(file))]
        with open(slave) as terminal:
            process = stage.client.popen(
                command, stdin=terminal, stderr=subprocess.PIPE, env=stage.links.environment
            )
        yield process, master
    finally:
        os.close(master)


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What the process writes to standard error, up to `text`."""
    assert process.stderr is not None
    said = ""
    while text not in said:
        letter = process.stderr.read(1)
        assert letter, f"it did not say {text!r}, but: {said}"
        said += letter
    return said


def test_nobody_is_cut_off_without_being_asked(stage: Stage) -> None:
    before = stage.client.snapshot()
    with closing(Shell(stage)) as shell, at_terminal(stage) as (process, terminal):
        assert SERVER6 in read_until(process, "Start nevertheless?")
        assert stage.client.snapshot() == before
        os.write(terminal, b"n\n")
        assert "nothing was changed" in read_until(process, "nothing was changed")
        assert process.wait(SECONDS) == 1
        assert shell.lives()
    stage.unchanged_since(before)


@pytest.mark.parametrize("answer", ["yes", "--yes", "--confirm", "--inbound"])
def test_who_has_answered_is_not_asked(stage: Stage, answer: str) -> None:
    options = {
        "yes": [],
        "--yes": ["--yes"],
        "--confirm": ["--confirm", "60"],
        "--inbound": ["--inbound", "keep"],
    }
    before = stage.client.snapshot()
    with closing(Shell(stage)) as shell, at_terminal(stage, *options[answer]) as (process, terminal):
        if answer == "yes":
            read_until(process, "Start nevertheless?")
            os.write(terminal, b"y\n")
        assert "nevertheless" not in read_until(process, "ready: ")
        if answer == "--inbound":
            assert shell.lives()
        process.terminate()
        process.communicate(timeout=20)
        assert not process.returncode
    stage.unchanged_since(before)


def test_a_service_manager_is_told_and_not_asked(stage: Stage) -> None:
    with closing(Shell(stage)), stage.tunnel() as client:
        client.says(f"ends connections to this machine .*{SERVER6}.*--inbound keep")
    with stage.tunnel() as client:
        assert "--inbound keep" not in client.log
    # The LAN is reached past the tunnel, so a connection from there lives on.
    with stage.client.entered():
        listener = socket.create_server((CLIENT4, SSH))
    with listener, stage.socket(CLIENT4, host=stage.hosts.router) as near:
        near.connect((CLIENT4, SSH))
        with stage.tunnel() as client:
            assert "--inbound keep" not in client.log


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
    wanted = command or ("curl", "-sS", "--max-time", "5", f"http://{host_of(address)}/address")
    enter = f'echo $$ >"{CGROUPS}/{cgroup.name}/cgroup.procs" && exec "$@"'
    return stage.client.run(["sh", "-c", enter, "sh", *wanted])


def test_an_excluded_cgroup_goes_past_the_tunnel_but_not_with_dns(stage: Stage, cgroups: Path) -> None:
    stage.server.dns.answers[("a.example.com.", "A")] = ["192.0.2.7"]
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
    file = client_config(stage)
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
        client = stack.enter_context(stage.tunnel(settings={"lane": {"enabled": False}}))
        client.says(r"no link to .*\(MTU\)")
        client.says(r"link up: .*\(MTU\)")
        assert stage.fetch(SERVER4) == EXIT4
        size = ["curl", "-sS", "--max-time", "10", "-o", "/dev/null", "-w", "%{size_download}"]
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
