"""The exit's table with real packets: what clients reach through it, under which address, and what they do not."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network

import pytest

from cryprq_proxy.errors import ConfigError
from tests.support.lab.filters import counted
from tests.support.lab.net import LONG, SILENCE, Lab, Namespace
from tests.support.lab.paths import Cable, family, open_tun
from tests.support.settings import exit_network_settings
from tun.linux.firewall import exit_table, nft
from tun.settings import ExitNetworkSettings
from tun.system import Count

TUN = "cryprq-exit0"
EXIT4, EXIT6 = "5.75.10.2", "2a01:4f8:10::2"
SERVER4, SERVER6 = "5.75.10.10", "2a01:4f8:10::10"
GATE4, GATE6 = "198.18.0.1", "fd63:7279:7071::1"
ONE4, ONE6 = "198.18.0.2", "fd63:7279:7071::2"
TWO4, TWO6 = "198.18.0.3", "fd63:7279:7071::3"
SETTINGS = exit_network_settings(
    device=TUN, pool4=IPv4Network("198.18.0.0/16"), pool6=IPv6Network("fd63:7279:7071::/64")
)


class Exit:
    """An exit, a server beside it, and two clients at the other end of its TUN device."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.exit, self.server = lab.namespace("exit"), lab.namespace("server")
        self.one, self.two = lab.namespace("one"), lab.namespace("two")
        lab.veth(self.exit, "eth0", self.server, "eth0")
        lab.address(self.exit, "eth0", f"{EXIT4}/24", f"{EXIT6}/64")
        lab.address(self.server, "eth0", f"{SERVER4}/24", f"{SERVER6}/64")
        lab.forward(self.exit)
        tun = open_tun(self.exit, TUN)
        lab.address(self.exit, TUN, f"{GATE4}/16", f"{GATE6}/64")
        self.exit.ip(f"link set {TUN} mtu 1280")
        devices = {}
        for host, *addresses in ((self.one, ONE4, ONE6), (self.two, TWO4, TWO6)):
            device = open_tun(host, "cryprq0")
            for address in addresses:
                devices[socket.inet_pton(family(address), address)] = device
                lab.address(host, "cryprq0", f"{address}/{128 if ':' in address else 32}")
            host.ip("route add default dev cryprq0")
            host.ip("-6 route add default dev cryprq0")

        def choose(device: int, packet: bytes) -> int | None:
            if device != tun:
                return tun
            return devices.get(packet[16:20] if packet[0] >> 4 == 4 else packet[24:40])

        lab.on_close(Cable(tun, *set(devices.values()), choose=choose).close)
        self._sockets: list[socket.socket] = []
        lab.on_close(self._close)
        self.journal: list[Mapping[str, object]] = []

    def _close(self) -> None:
        for each in self._sockets:
            each.close()

    def put_up(
        self, settings: ExitNetworkSettings = SETTINGS, *, ipv6: bool = True, ours: bool = False
    ) -> None:
        with self.exit.entered():
            exit_table.ExitFilter.up(settings, self.journal.append, ipv6=ipv6, ours=ours)

    def counts(self) -> dict[str, Count]:
        with self.exit.entered():
            return nft.counts(nft.ask("list", "counters", "table", "inet", nft.EXIT) or [])

    def dropped(self, cause: str) -> int:
        return self.counts()[cause].packets

    def warnings(self) -> list[str]:
        with self.exit.entered():
            return exit_table.warnings(TUN)

    def make(self, host: Namespace, address: str, kind: socket.SocketKind) -> socket.socket:
        with host.entered():
            made = socket.socket(family(address), kind)
        self._sockets.append(made)
        made.settimeout(LONG)
        return made

    def listen(self, host: Namespace, address: str, port: int = 80) -> socket.socket:
        made = self.make(host, address, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        made.listen()
        return made

    def seen(self, host: Namespace, listener: socket.socket) -> str | None:
        """Connects; gives the source that the listener sees, or None if it was refused at once."""
        address, port = listener.getsockname()[:2]
        made = self.make(host, address, socket.SOCK_STREAM)
        try:
            made.connect((address, port))
        except TimeoutError:
            raise
        except OSError:
            return None
        accepted, peer = listener.accept()
        self._sockets.append(accepted)
        self.accepted = accepted
        return str(peer[0])

    def pings(self, host: Namespace, address: str, seconds: float = LONG) -> bool:
        return host.attempt(["ping", "-c1", f"-W{seconds:g}", address]).returncode == 0


@pytest.fixture
def net(lab: Lab) -> Exit:
    made = Exit(lab)
    made.put_up()
    return made


@pytest.mark.parametrize(("server", "exit"), [(SERVER4, EXIT4), (SERVER6, EXIT6)], ids=["ipv4", "ipv6"])
def test_clients_go_out_with_the_address_of_the_exit(net: Exit, server: str, exit: str) -> None:
    listener = net.listen(net.server, server)
    for host in (net.one, net.two):
        assert net.seen(host, listener) == exit
        # Segments fit the tunnel's MTU of 1280 on their way back.
        assert net.accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 1280 - 40
        assert net.pings(host, server)
    there = net.make(net.server, server, socket.SOCK_DGRAM)
    there.bind((server, 4433))
    here = net.make(net.one, server, socket.SOCK_DGRAM)
    here.sendto(b"question", (server, 4433))
    question, peer = there.recvfrom(100)
    there.sendto(b"answer", peer)
    assert (question, peer[0], here.recv(100)) == (b"question", exit, b"answer")
    assert not any(each.packets for each in net.counts().values())


@pytest.mark.parametrize("other", [TWO4, TWO6], ids=["ipv4", "ipv6"])
def test_clients_do_not_reach_each_other(net: Exit, other: str) -> None:
    listener = net.listen(net.two, other)
    with counted(net, "isolated"):
        assert not net.pings(net.one, other, SILENCE)
    with counted(net, "isolated"):
        assert net.seen(net.one, listener) is None
    net.put_up(replace(SETTINGS, isolate=False), ours=True)
    assert net.seen(net.one, listener) == (ONE6 if ":" in other else ONE4)
    assert net.pings(net.one, other)
    assert net.dropped("isolated") == 0


@pytest.mark.parametrize("gate", [GATE4, GATE6], ids=["ipv4", "ipv6"])
def test_clients_do_not_reach_the_exit(net: Exit, gate: str) -> None:
    outer = EXIT6 if ":" in gate else EXIT4
    assert net.pings(net.one, gate)
    assert net.dropped("local") == 0
    with counted(net, "local"):
        assert not net.pings(net.one, outer, SILENCE)
    for address in (gate, outer):
        with counted(net, "local"):
            assert net.seen(net.one, net.listen(net.exit, address)) is None


def test_wrong_sources_are_dropped_in_silence(net: Exit) -> None:
    net.lab.address(net.one, "cryprq0", "10.9.9.9/32", "2a01:1::9/128")
    for source, right, server, gate in (
        ("10.9.9.9", ONE4, SERVER4, GATE4),
        ("2a01:1::9", ONE6, SERVER6, GATE6),
    ):
        there = net.make(net.server, server, socket.SOCK_DGRAM)
        there.bind((server, 4433))
        spoofed = net.make(net.one, server, socket.SOCK_DGRAM)
        spoofed.bind((source, 0))
        for target in ((server, 4433), (gate, 9)):
            with counted(net, "spoofed"):
                spoofed.sendto(b"spoofed", target)
        own = net.make(net.one, server, socket.SOCK_DGRAM)
        own.bind((right, 0))
        own.sendto(b"own", (server, 4433))
        assert there.recv(100) == b"own"


def test_nothing_comes_in_unasked(net: Exit) -> None:
    for pool, gateway in (("198.18.0.0/16", EXIT4), ("fd63:7279:7071::/64", EXIT6)):
        net.server.ip(f"{'-6' if ':' in pool else ''} route add {pool} via {gateway}")
    for address in (ONE4, GATE4, ONE6, GATE6):
        with counted(net, "guard"):
            net.make(net.server, address, socket.SOCK_DGRAM).sendto(b"probe", (address, 9))
    # Another table sends somebody's connection to a client.
    net.exit.nft(
        "table ip other {\nchain pre {\ntype nat hook prerouting priority -100;\n"
        f"iifname eth0 udp dport 8080 dnat to {ONE4}\n}}\n}}\n"
    )
    with counted(net, "unsolicited"):
        net.make(net.server, EXIT4, socket.SOCK_DGRAM).sendto(b"probe", (EXIT4, 8080))


def test_an_exit_without_ipv6(net: Exit) -> None:
    net.put_up(ipv6=False, ours=True)
    there = net.make(net.server, SERVER6, socket.SOCK_DGRAM)
    there.bind((SERVER6, 4433))
    with counted(net, "spoofed"):
        net.make(net.one, SERVER6, socket.SOCK_DGRAM).sendto(b"x", (SERVER6, 4433))
    there.setblocking(False)
    with pytest.raises(BlockingIOError):
        there.recv(100)
    assert net.seen(net.one, net.listen(net.server, SERVER4)) == EXIT4


def test_the_rest_of_the_host_is_left_alone(net: Exit) -> None:
    """Forwarding between other devices, connections to the exit and from it."""
    net.lab.veth(net.exit, "eth1", net.two, "eth1")
    net.lab.address(net.exit, "eth1", "172.30.0.1/24")
    net.lab.address(net.two, "eth1", "172.30.0.2/24")
    net.server.ip(f"route add 172.30.0.0/24 via {EXIT4}")
    net.two.ip("route add 5.75.10.0/24 via 172.30.0.1")
    assert net.seen(net.server, net.listen(net.two, "172.30.0.2")) == SERVER4
    assert net.seen(net.server, net.listen(net.exit, EXIT4)) == SERVER4
    assert net.seen(net.exit, net.listen(net.server, SERVER4)) == EXIT4


def test_another_table_that_drops_is_named(net: Exit) -> None:
    assert net.warnings() == []
    net.exit.nft(
        "table ip filter {\nchain FORWARD {\ntype filter hook forward priority 0; policy drop;\n}\n}\n"
    )
    assert net.seen(net.one, net.listen(net.server, SERVER6)) == EXIT6
    (warning,) = net.warnings()
    assert "FORWARD of table ip filter" in warning and TUN in warning


def test_up_and_down_leave_nothing(lab: Lab) -> None:
    net = Exit(lab)
    before = net.exit.snapshot()
    net.put_up()
    assert net.journal == [{"kind": "nft_table", "table": "cryprq_exit"}]
    for stands in (True, False):
        with net.exit.entered():
            assert nft.exists(nft.EXIT) == stands
            nft.UNDO["nft_table"](net.journal[0])
    assert net.exit.snapshot() == before


def test_a_table_of_somebody_else(lab: Lab) -> None:
    net = Exit(lab)
    net.exit.nft("table inet cryprq_exit {\n}\n")
    before = net.exit.snapshot()
    with pytest.raises(ConfigError, match="has not recorded"):
        net.put_up()
    assert (net.exit.snapshot(), net.journal) == (before, [])
    net.put_up(ours=True)
    assert net.seen(net.one, net.listen(net.server, SERVER4)) == EXIT4
