"""The lab itself: what the other tests here take for granted."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess

import dns.message
import dns.query
import pytest

from tests.support.lab.capture import Capture, Packet, leaving, parse
from tests.support.lab.hosts import (
    CLIENT4,
    CLIENT6,
    EXIT4,
    EXIT6,
    ROUTER_SERVER4,
    SERVER4,
    SERVER6,
    ThreeHosts,
)
from tests.support.lab.links import Links
from tests.support.lab.net import LONG, SILENCE, Lab, LabError, sweep, until
from tests.support.lab.orphans import end_orphans
from tests.support.lab.server import BLOCK, DNS_PORT, ECHO_PORT, FarServer


def need(program: str, package: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed; on Debian: apt-get install {package}")


def ping(hosts: ThreeHosts, address: str, seconds: float = LONG) -> bool:
    need("ping", "iputils-ping")
    return hosts.client.attempt(["ping", "-c", "1", "-W", f"{seconds:g}", address]).returncode == 0


def fetch(hosts: ThreeHosts, url: str) -> str:
    need("curl", "curl")
    return hosts.client.run(["curl", "-sS", "--max-time", f"{LONG:g}", url])


def test_a_host_has_a_resolver_file_of_its_own(lab: Lab) -> None:
    host = lab.namespace("host")
    host.run(["sh", "-c", "echo mine >/etc/new && mv /etc/new /etc/resolv.conf"])
    assert host.resolv_conf.read_text() == "mine\n"
    assert host.call(lambda: open("/etc/resolv.conf").read()) == "mine\n"  # noqa: SIM115
    with open("/etc/resolv.conf") as file:
        assert file.read() != "mine\n"


def test_a_bound_resolver_file_can_be_written_but_not_replaced(lab: Lab) -> None:
    host = lab.namespace("host", "bound")
    with pytest.raises(LabError, match="busy"):
        host.run(
            [
                "sh",
                "-c",
                "echo mine >/tmp/cq-new; mv /tmp/cq-new /etc/resolv.conf; e=$?; rm -f /tmp/cq-new; exit $e",
            ]
        )
    host.run(["sh", "-c", "echo mine >/etc/resolv.conf"])
    assert host.resolv_conf.read_text() == "mine\n"


def test_a_snapshot_shows_each_kind_of_change_and_nothing_else(lab: Lab) -> None:
    host, other = lab.namespace("host"), lab.namespace("other")
    lab.veth(host, "eth0", other, "eth0")
    lab.address(host, "eth0", "10.9.0.1/24", "fd09::1/64")
    before = host.snapshot()
    assert host.snapshot() == before
    for change, undo in (
        (lambda: host.ip("rule add fwmark 1 lookup 99"), lambda: host.ip("rule del fwmark 1 lookup 99")),
        (
            lambda: host.ip("-6 rule add fwmark 1 lookup 99"),
            lambda: host.ip("-6 rule del fwmark 1 lookup 99"),
        ),
        (
            lambda: host.ip("route add unreachable default table 99"),
            lambda: host.ip("route del unreachable default table 99"),
        ),
        (
            lambda: host.ip("-6 route add unreachable default table 99"),
            lambda: host.ip("-6 route del unreachable default table 99"),
        ),
        (lambda: host.nft("table inet x { }"), lambda: host.nft("delete table inet x")),
        (
            lambda: host.sysctl("net.ipv4.conf.eth0.rp_filter", "2"),
            lambda: host.sysctl("net.ipv4.conf.eth0.rp_filter", "0"),
        ),
    ):
        change()
        assert host.snapshot() != before
        undo()
        assert host.snapshot() == before
    kept = host.resolv_conf.read_text()
    host.resolv_conf.write_text("nameserver 9.9.9.9\n")
    assert host.snapshot() != before
    host.resolv_conf.write_text(kept)
    assert host.snapshot() == before


def test_removal_ends_what_runs_inside_and_leaves_nothing() -> None:
    with Lab() as lab:
        host = lab.namespace("host", "bound")
        shell = host.popen(["sh", "-c", "sleep 60 & setsid sleep 60 & wait"], stdout=subprocess.PIPE)
        until(lambda: shell.pid in host.pids(), "the shell is in its host")
        name, directory = host.name, lab.directory
    assert shell.poll() is not None
    assert not os.path.exists(f"/run/netns/{name}")
    assert not os.path.exists(f"/etc/netns/{name}")
    assert not directory.exists()
    lab.close()  # a second time does nothing


def test_a_killed_lab_is_swept_away(namespaces: None) -> None:
    """The child makes a namespace as a lab does, and is gone without a word. While it lives, nobody takes it away."""
    with subprocess.Popen(
        ["sh", "-c", 'ip netns add "cq$$-abcdef-x" && echo "cq$$-abcdef-x" && exec cat'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        name = child.stdout.readline().strip()
        sweep()
        assert os.path.exists(f"/run/netns/{name}")
        child.kill()
    # Another test's lab may be the one that takes it.
    sweep()
    assert not os.path.exists(f"/run/netns/{name}")


def test_without_a_tunnel_the_server_sees_the_client_itself(
    three_hosts: ThreeHosts, server: FarServer
) -> None:
    """IPv4 comes from the home's router, IPv6 from the client: neither from the exit."""
    assert ping(three_hosts, SERVER4)
    assert ping(three_hosts, SERVER6)
    assert fetch(three_hosts, f"http://{SERVER4}/address") == ROUTER_SERVER4
    assert fetch(three_hosts, f"http://[{SERVER6}]/address") == CLIENT6
    assert server.sources("http") == {ROUTER_SERVER4, CLIENT6}


def test_what_the_exit_masquerades_comes_from_the_exit(three_hosts: ThreeHosts, server: FarServer) -> None:
    """The plain form of what the program does: the home's traffic goes to the exit, which forwards it."""
    hosts = three_hosts
    hosts.router.ip("rule add iif lan lookup 100")
    hosts.router.ip(f"route add default via {EXIT4} table 100")
    assert not ping(hosts, SERVER4, SILENCE)
    hosts.lab.forward(hosts.exit)
    hosts.exit.nft("table ip t { chain p { type nat hook postrouting priority 100; masquerade; }; }")
    assert ping(hosts, SERVER4)
    assert fetch(hosts, f"http://{SERVER4}/address") == EXIT4
    assert server.sources() == {EXIT4}


def test_the_services_of_the_far_server(three_hosts: ThreeHosts, server: FarServer) -> None:
    client = three_hosts.client
    size = 3 * len(BLOCK) + 5
    with client.entered(), socket.create_connection((SERVER4, 80), LONG) as sock:
        sock.sendall(f"GET /bytes/{size} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        data = b"".join(iter(lambda: sock.recv(65536), b""))
    assert data.endswith(BLOCK * 3 + BLOCK[:5])
    server.dns.answers[("a.test.", "A")] = ["192.0.2.7"]
    server.dns.answers[("big.test.", "TXT")] = [f'"{i:03}{"x" * 200}"' for i in range(20)]
    with client.entered():
        for ask in (dns.query.udp, dns.query.tcp):
            answer = ask(dns.message.make_query("a.test", "A"), SERVER4, timeout=LONG, port=DNS_PORT)
            assert answer.answer[0][0].to_text() == "192.0.2.7"
        big = dns.message.make_query("big.test", "TXT")
        whole, over_tcp = dns.query.udp_with_fallback(big, SERVER6, timeout=LONG)
        assert over_tcp
        assert len(whole.answer[0]) == 20
        missing = dns.query.udp(dns.message.make_query("no.test", "A"), SERVER4, timeout=LONG)
        assert missing.rcode() == dns.rcode.NXDOMAIN
        server.dns.answer = server.dns.dead
        with pytest.raises(dns.exception.Timeout):
            dns.query.udp(dns.message.make_query("a.test", "A"), SERVER4, timeout=0.1)
        for address in (SERVER4, SERVER6):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.settimeout(LONG)
                sock.sendto(b"hello", (address, ECHO_PORT))
                assert sock.recv(100) == b"hello"
    seen = [visit.what for visit in server.visits if visit.service == "dns-tcp"]
    assert seen == ["a.test. A", "big.test. TXT"]
    with server.iperf3():
        assert "receiver" in client.run(["iperf3", "-c", SERVER4, "-n", "1M"])


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_sockets_that_no_process_has_are_ended_and_others_stay(lab: Lab, address: str) -> None:
    host = lab.namespace("host")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def connected() -> list[tuple[str, int]]:
        """State of each client's side, and the port that it is connected to."""
        lines = host.run(["ss", "-Htan", "state", "connected", "dport", "<", ":10000"]).splitlines()
        return sorted((line.split()[0], int(line.split()[4].rpartition(":")[2])) for line in lines)

    with host.entered():
        servers = [socket.create_server((address, port), family=family) for port in (80, 4433)]
        kept, *closed = [socket.create_connection((address, port)) for port in (80, 80, 4433)]
    with servers[0], servers[1], kept:
        # Nobody acknowledges any more.
        host.nft("table inet cut { chain o { type filter hook output priority 0; policy drop; }; }")
        for sock in (kept, *closed):
            sock.sendall(b"the last")
        for sock in closed:
            sock.close()
        assert connected() == [("ESTAB", 80), ("FIN-WAIT-1", 80), ("FIN-WAIT-1", 4433)]
        end_orphans(host, 4433)
        assert connected() == [("ESTAB", 80), ("FIN-WAIT-1", 80)]
        end_orphans(host)
        assert connected() == [("ESTAB", 80)]


def test_a_capture_shows_what_left_and_what_came(three_hosts: ThreeHosts, server: FarServer) -> None:
    with Capture(three_hosts.client, "eth0") as capture:
        assert fetch(three_hosts, f"http://{SERVER4}/address")
        assert ping(three_hosts, SERVER6)
    sent = capture.sent()
    assert {(p.protocol, p.source, p.destination, p.destination_port) for p in sent} == {
        ("tcp", CLIENT4, SERVER4, 80),
        ("icmpv6", CLIENT6, SERVER6, 0),
    }
    assert any(not p.sent and p.protocol == "tcp" and p.source == SERVER4 for p in capture.packets)
    assert not Capture(three_hosts.client, "lo").stop()


def test_a_capture_is_cut_without_a_gap(three_hosts: ThreeHosts) -> None:
    """What was sent before the cut is in the first part, and only there."""
    assert ping(three_hosts, SERVER4), "no packet waits for a neighbour's address"
    with three_hosts.client.entered():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock, Capture(three_hosts.client, "eth0") as capture:
        parts = []
        for port in range(1000, 1020):
            sock.sendto(b"part", (SERVER4, port))
            parts.append([packet.destination_port for packet in leaving(capture.take())])
        sock.sendto(b"part", (SERVER4, 1020))
    assert parts == [[port] for port in range(1000, 1020)]
    assert [packet.destination_port for packet in capture.sent()] == [1020]


def test_no_capture_of_an_interface_that_is_not_there(three_hosts: ThreeHosts) -> None:
    with pytest.raises(OSError, match="not there"):
        Capture(three_hosts.client, "eth9")


def test_parsing_of_captured_packets() -> None:
    six = bytes.fromhex("6000000000104440") + socket.inet_pton(socket.AF_INET6, "fd00::1") * 2
    assert len(six) == 40
    fragment = (
        six[:6] + bytes([44, 64]) + six[8:] + bytes([17, 0]) + struct.pack(">HI", 8 << 3 | 1, 1) + bytes(8)
    )
    assert parse(True, 0x86DD, fragment, 56) == Packet(True, "udp", "fd00::1", 0, "fd00::1", 0, 56)
    first = fragment[:42] + struct.pack(">HI", 1, 1) + struct.pack(">HH", 5, 6)
    assert parse(True, 0x86DD, first, 56)[3:6:2] == (5, 6)
    for size in range(len(first)):
        parse(False, 0x86DD, first[:size], size)
    assert parse(False, 0x0800, b"", 0).protocol == "ethertype 0x0800"
    assert parse(False, 0x0806, bytes(28), 28).protocol == "arp"


def test_udp_is_blocked_and_unblocked(three_hosts: ThreeHosts, server: FarServer) -> None:
    with three_hosts.client.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((SERVER4, ECHO_PORT))
        sock.settimeout(0.1)
        three_hosts.block_udp()
        sock.send(b"lost")
        with pytest.raises(TimeoutError):
            sock.recv(100)
        three_hosts.unblock_udp()
        sock.settimeout(LONG)
        sock.send(b"found")
        assert sock.recv(100) == b"found"


def test_the_path_mtu_is_told(three_hosts: ThreeHosts) -> None:
    need("ping", "iputils-ping")
    big = ["ping", "-c", "1", "-W", f"{LONG:g}", "-M", "do", "-s", "1400", EXIT4]
    assert three_hosts.client.attempt(big).returncode == 0
    three_hosts.path_mtu(1280)
    done = three_hosts.client.attempt(big)
    assert done.returncode == 1
    assert "mtu" in (done.stdout + done.stderr)


def test_the_program_runs_inside(three_hosts: ThreeHosts, server: FarServer, links: Links) -> None:
    """The local proxy, across the lab: the server sees the exit, the wire shows the link alone."""
    with Capture(three_hosts.client, "eth0") as capture:
        links.exit(three_hosts.exit, tun=False)
        client = links.client(three_hosts.client, tun=False, settings={"listen": "127.0.0.1:1080"})
        client.says("link up")
        url = f"http://[{SERVER6}]/address"
        proxied = ["curl", "-sS", "--max-time", f"{LONG:g}", "-x", "socks5h://127.0.0.1:1080", url]
        assert three_hosts.client.run(proxied) == EXIT6
    assert {(p.destination, p.destination_port) for p in capture.sent()} == {(EXIT4, 4433)}
    assert {p.protocol for p in capture.sent()} <= {"tcp", "udp"}
