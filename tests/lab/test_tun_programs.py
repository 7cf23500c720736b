"""Real programs through a tunnel, and what the exit lets its clients do.

Two clients are known to the exit; most tests use the first one only, and all of them share it.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import pytest

from tests.support.lab.capture import Capture
from tests.support.lab.hosts import EXIT4, EXIT6, SERVER4, SERVER6
from tests.support.lab.net import LONG, SILENCE, Namespace, until
from tests.support.lab.server import BLOCK, ECHO_PORT, IPERF_PORT
from tests.support.lab.stage import TUN, Stage, beside_the_link, family

SECOND4, SECOND6 = "192.168.77.3", "2a01:e0a:77::3"
NAME: Final = "www.example.com"
PAGE_PORT: Final = 8080
CHROMIUM: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--virtual-time-budget=10000",  # the page's own time until it is printed
)


@pytest.fixture(scope="module")
def stage(namespaces: None) -> Iterator[Stage]:
    with Stage(clients=("client", "second")) as stage:
        stage.server.dns.answers |= {(f"{NAME}.", "A"): [SERVER4], (f"{NAME}.", "AAAA"): [SERVER6]}
        second = stage.lab.namespace("second")
        stage.hosts.plug(second, f"{SECOND4}/24", f"{SECOND6}/64")
        yield stage


def need(program: str, package: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed; on Debian: apt-get install {package}")
    return path


# --- real programs ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="class")
def tunnel(stage: Stage) -> Iterator[None]:
    with stage.wire() as wire:
        with stage.tunnel():
            yield
        # No packet was malformed or forbidden, and what had no addressee was the kernel's own.
        assert not set(stage.exit_status()["drops"]) - {"for no client"}
    assert not beside_the_link(wire)


@pytest.mark.usefixtures("tunnel")
class TestPrograms:
    """Of one client that runs all the while, under a capture of its outer interface."""

    @pytest.mark.parametrize(("option", "seen"), [("-4", EXIT4), ("-6", EXIT6)])
    def test_curl_downloads_and_uploads(self, stage: Stage, option: str, seen: str) -> None:
        size = 200 * len(BLOCK) + 12_345
        expected = hashlib.sha256(BLOCK * 200 + BLOCK[:12_345]).hexdigest()
        curl = ["curl", "-sS", option, "--max-time", "80"]
        stage.server.forget()
        file = stage.client.directory / "download"
        stage.client.run([*curl, "-o", str(file), f"http://{NAME}/bytes/{size}"], limit=90)
        assert hashlib.sha256(file.read_bytes()).hexdigest() == expected
        sent = [*curl, "--data-binary", f"@{file}", f"http://{NAME}/bytes"]
        assert stage.client.run(sent, limit=90) == expected
        assert stage.server.sources("http") == {seen}

    @pytest.mark.parametrize("option", ["-4", "-6"])
    @pytest.mark.parametrize("size", [0, 56, 1384, 8000], ids=lambda size: f"{size} bytes")
    def test_ping(self, stage: Stage, option: str, size: int) -> None:
        """By name. Larger than the MTU it goes in fragments; with IPv6 the server has to be told first."""
        said = stage.client.run(
            ["ping", option, "-c", "3", "-i", "0.1", "-W", f"{LONG:g}", "-s", str(size), NAME]
        )
        assert "icmp_seq=3" in said

    def test_dig(self, stage: Stage) -> None:
        for options in ([], ["+tcp"], ["@9.9.9.9"], ["+nocookie", "+dnssec"]):
            assert stage.client.run(["dig", "+short", *options, NAME]).split() == [SERVER4]

    @pytest.mark.parametrize("address", [SERVER4, SERVER6])
    @pytest.mark.parametrize("options", [[], ["-R"], ["-P", "4"]], ids=["up", "down", "four"])
    def test_iperf3_by_tcp(self, stage: Stage, address: str, options: list[str]) -> None:
        result = iperf(stage, address, "-n", "60M", *options)
        assert result["sum_sent"]["bytes"] >= 60 << 20
        # What is in buffers at the end is not counted here, and with a slow receiver that may be most of it.
        assert result["sum_received"]["bytes"] > 0

    @pytest.mark.parametrize("address", [SERVER4, SERVER6])
    def test_iperf3_by_udp(self, stage: Stage, address: str) -> None:
        result = iperf(stage, address, "-u", "-b", "20M", "-l", "1300", "-n", "5M")
        assert result["sum"]["packets"] > 3000
        # How many arrive depends on the machine's load; bench/tunnel.py measures it.
        assert result["sum"]["lost_packets"] < result["sum"]["packets"]

    def test_chromium_loads_a_page_by_name(self, stage: Stage) -> None:
        """A page, its script, and what the script fetches."""
        chromium = need("chromium", "chromium")
        with pages(stage.hosts.server) as visitors:
            profile = stage.client.directory / "chromium"
            command = [chromium, *CHROMIUM, f"--user-data-dir={profile}", "--dump-dom"]
            environment = {"HOME": str(profile), "PATH": "/usr/bin:/bin"}
            page = stage.client.attempt([*command, f"http://{NAME}:{PAGE_PORT}/"], limit=60, env=environment)
            assert "the script ran: data" in page.stdout, page.stderr[-2000:]
        assert {path for _, path in visitors} >= {"/", "/script.js", "/data"}
        assert {source for source, _ in visitors} <= {EXIT4, EXIT6}

    def test_the_leak_test_finds_no_leak(self, stage: Stage) -> None:
        done = leak_test(stage)
        assert not done.returncode, done.stdout + done.stderr
        report = json.loads(done.stdout)
        assert not report["leak"]
        verdicts = {row["canary"]["name"] if "canary" in row else row["name"] for row in report["canaries"]}
        assert {"TCP", "QUIC", "ping"} <= verdicts


def leak_test(stage: Stage) -> subprocess.CompletedProcess[str]:
    targets = ("--target", SERVER4, "--target", SERVER6)
    file = stage.links.directory / "client.toml"
    return stage.links.call(stage.client, "leaktest", "--json", *targets, "--config", str(file))


def test_the_leak_test_finds_a_leak(stage: Stage) -> None:
    """Without the kill switch, and with another program's rule before ours."""
    rule = f"to {SERVER4} lookup main priority 100"
    with stage.tunnel("--kill-switch", "off"):
        stage.client.ip(f"rule add {rule}")
        try:
            done = leak_test(stage)
        finally:
            stage.client.ip(f"rule del {rule}")
    assert done.returncode == 1, done.stdout + done.stderr
    assert json.loads(done.stdout)["leak"]


def iperf(stage: Stage, address: str, *options: str) -> dict[str, Any]:
    """The end of iperf3's report, of a run against a server of its own.

    A server that has just served another client may still take itself for busy and refuse. A run by UDP begins with
    one datagram that iperf3 never repeats and a network may lose, so it is tried three times.
    """
    for attempts_left in reversed(range(3 if "-u" in options else 1)):
        with stage.server.iperf3():
            said = stage.client.run(
                ["iperf3", "-J", "-c", address, "-p", str(IPERF_PORT), *options], limit=90
            )
        report = json.loads(said)
        # The program's exit code is 0 all the same.
        if "error" not in report or not attempts_left:
            break
    assert "error" not in report, report["error"]
    end: dict[str, Any] = report["end"]
    return end


PAGES: Final = {
    "/": ("text/html", "<!doctype html><title>lab</title><p id=p>nothing<script src=/script.js></script>"),
    "/script.js": (
        "text/javascript",
        "fetch('/data').then(r => r.text()).then(t => {"
        " document.getElementById('p').textContent = 'the script ran: ' + t })",
    ),
    "/data": ("text/plain", "data"),
}


@contextmanager
def pages(host: Namespace) -> Iterator[list[tuple[str, str]]]:
    """A web site; gives the list of its visitors and what they asked for."""
    visitors: list[tuple[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            visitors.append((self.client_address[0].removeprefix("::ffff:"), self.path))
            kind, text = PAGES.get(self.path, ("text/plain", ""))
            self.send_response(200 if text else 404)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6

    with host.entered():
        server = Server(("::", PAGE_PORT), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield visitors
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# --- what the exit lets its clients do ----------------------------------------------------------------------------

FORBIDDEN: Final = (
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "fd00:ec2::254",
    "fc00::1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::7f00:1",
    "2002:a01:203::1",
    EXIT4,
    EXIT6,
)
"""Private networks and metadata services behind the exit, plainly and wrapped, and the exit itself."""


def test_what_the_policy_forbids_is_refused_at_once(stage: Stage) -> None:
    with stage.tunnel(), Capture(stage.hosts.exit, "eth0") as beyond:
        for address in FORBIDDEN:
            said = stage.client.attempt(["ping", "-n", "-c", "1", "-W", f"{LONG:g}", address]).stdout
            assert "Packet filtered" in said or "Administratively prohibited" in said, address
            with stage.socket(address) as sock, pytest.raises(OSError) as refused:
                sock.connect((address, 80))
            assert not isinstance(refused.value, TimeoutError)
            with stage.socket(address, socket.SOCK_DGRAM) as sock, pytest.raises(OSError) as refused:
                sock.connect((address, 80))
                sock.send(b"x")
                sock.recv(1)
            assert not isinstance(refused.value, TimeoutError), address
        assert stage.exit_status()["drops"]["forbidden by the policy"] >= 3 * len(FORBIDDEN)
    inside = {p.destination for p in beyond.packets if p.sent and p.destination_port != 0}
    assert not inside & (set(FORBIDDEN) - {EXIT4, EXIT6})


def forged(address: str, source: str) -> bytes:
    """An echo packet to the server from somebody else's address; the kernel fills in an IPv4 checksum."""
    payload = struct.pack(">HHHH", 4000, ECHO_PORT, 8, 0)
    ends = [socket.inet_pton(family(address), each) for each in (source, address)]
    if ":" in address:
        return struct.pack(">IHBB", 6 << 28, len(payload), 17, 64) + b"".join(ends) + payload
    return struct.pack(">BBHHHBBH", 0x45, 0, 28, 1, 0, 64, 17, 0) + b"".join(ends) + payload


def send_forged(stage: Stage) -> None:
    for address, source in ((SERVER4, "203.0.113.9"), (SERVER6, "2001:db8::9")):
        with stage.client.entered():
            sock = socket.socket(family(address), socket.SOCK_RAW, socket.IPPROTO_RAW)
        with sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, TUN.encode())
            if ":" in address:
                sock.setsockopt(socket.IPPROTO_IPV6, 36, 1)  # IPV6_HDRINCL
            try:
                sock.sendto(forged(address, source), (address, 0))
            except OSError:
                continue  # the filter refuses it


def test_a_foreign_source_gets_neither_out_of_the_client_nor_past_the_exit(stage: Stage) -> None:
    def at_the_exit() -> int:
        drops: dict[str, int] = stage.exit_status()["drops"]
        return drops.get("source is not the client's", 0)

    def without_the_filter() -> bool:
        stage.client.attempt(["nft", "delete", "table", "inet", "cryprq"])
        send_forged(stage)
        return at_the_exit() >= before + 2

    with stage.tunnel(), Capture(stage.hosts.server, "eth0") as arrivals:
        before = at_the_exit()
        send_forged(stage)
        assert stage.status()["kill_switch"]["kept_in"]["stale"] >= 2
        assert stage.fetch(SERVER4) == EXIT4, "what was sent before has arrived"
        assert at_the_exit() == before
        until(without_the_filter, "the exit has seen forged packets")
        until(lambda: bool(stage.status()["kill_switch"]["standing"]), "the filter is back")
        assert stage.fetch(SERVER4) == EXIT4
    assert ECHO_PORT not in {p.destination_port for p in arrivals.packets if p.protocol == "udp"}


class Second(NamedTuple):
    """The other client of the exit, which runs."""

    host: Namespace
    status: Callable[[], dict[str, Any]]
    """Of its system-wide mode."""


@contextmanager
def two_clients(stage: Stage) -> Iterator[Second]:
    """The first one runs as well."""
    host = next(host for host in stage.lab.hosts if host.label == "second")
    directory = str(stage.links.directory / "state-second")
    file = str(stage.links.directory / "second.toml")

    def status() -> dict[str, Any]:
        done = stage.links.call(host, "status", "--json", "--config", file)
        system: dict[str, Any] = json.loads(done.stdout)["tun"]
        return system

    with stage.tunnel():
        role = stage.links.client(host, name="second", settings={"tun": {"state_dir": directory}})
        try:
            yield Second(host, status)
        finally:
            code = role.stop()
        assert not code, role.log


def test_clients_are_kept_from_each_other(stage: Stage) -> None:
    with two_clients(stage) as second, Capture(second.host, TUN) as tun:
        addresses = second.status()["addresses"]
        assert len(addresses) == 2
        for address in addresses:
            assert not stage.ping(address, seconds=SILENCE)
            assert not stage.fetches(address)
        for server, exit in ((SERVER4, EXIT4), (SERVER6, EXIT6)):
            assert stage.fetch(server) == stage.fetch(server, host=second.host) == exit
    assert {packet.source for packet in tun.packets if not packet.sent} == {SERVER4, SERVER6}


def test_clients_reach_each_other_where_the_exit_says_so(namespaces: None) -> None:
    """Packets arrive; that the other one's own filter takes no connections from the tunnel is its own affair."""
    with Stage(clients=("client", "second"), exit_settings={"tun": {"isolate": False}}) as stage:
        host = stage.lab.namespace("second")
        stage.hosts.plug(host, f"{SECOND4}/24", f"{SECOND6}/64")
        with two_clients(stage) as second:
            for number, address in enumerate(second.status()["addresses"], 1):
                with stage.socket(address, socket.SOCK_DGRAM) as sock:
                    sock.sendto(b"hello", (address, ECHO_PORT))
                until(
                    lambda: second.status()["kill_switch"]["kept_in"]["unsolicited"] >= number,  # noqa: B023
                    "the packet has arrived",
                )
            assert stage.fetch(SERVER4) == EXIT4
