"""What another program changes of ours comes back, with nothing outside of the link meanwhile.

One client runs through all of it, under a capture of its outer interface and with traffic that never stops. The
changes are made by the programs that people and services use: ip, nft, sysctl.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple

import pytest

from tests.support.lab.flows import lane
from tests.support.lab.hosts import CLIENT4, EXIT4, EXIT6, ROUTER_LAN4, ROUTER_LAN6, SERVER4, SERVER6
from tests.support.lab.links import Role
from tests.support.lab.net import LONG, RESOLVER, LabError, until
from tests.support.lab.questions import questions
from tests.support.lab.stage import OTHER4, OTHER6, TUN, Stage, beside_the_link
from tun.reconciler import FIGHT, FIGHT_SECONDS, SLOW
from tun.settings import MIN_MTU, MTU, SLICE_OVERHEAD

OUTER: Final = 20.0
"""Seconds for one repair on a machine that is busy with other things."""
REPAIR: Final = 2.0
"""Seconds that the median of all repairs may take."""
COMMANDS: Final = 5
"""On a machine that is busy with other things, it may take as long as so many short commands take there."""
VALID_MARK: Final = "net.ipv4.conf.all.src_valid_mark"
SWITCH: Final = f"net.ipv6.conf.{TUN}.disable_ipv6"


@contextlib.contextmanager
def traffic(stage: Stage) -> Iterator[None]:
    """Datagrams to the server and to port 53 without end, from sockets of before and from new ones."""
    over = threading.Event()
    with stage.client.entered():
        kept = [socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)]

    def send() -> None:
        while not over.wait(0.005):
            for sock, address in zip(kept, (SERVER4, SERVER6), strict=True):
                for port in (7, 53, 443):
                    with contextlib.suppress(OSError):
                        sock.sendto(b"noise", (address, port))

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        over.set()
        sender.join()
        for sock in kept:
            sock.close()


class Running(NamedTuple):
    """A client, and what its status said at first."""

    stage: Stage
    role: Role
    before: dict[str, Any]

    def repairs(self) -> dict[str, dict[str, Any]]:
        return {repair["name"]: repair for repair in self.stage.status()["repairs"]}

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Within OUTER; else says what there is instead."""
        try:
            until(condition, what, OUTER)
        except LabError as error:
            found = (lane(self.stage.links), list(self.repairs().values()), self.ip("addr"))
            raise LabError(f"{error}; lane, repairs, addresses: {found}") from error

    def flows(self) -> None:
        self.until(lambda: self.stage.fetches(SERVER4) == EXIT4, "IPv4 flows")
        self.until(lambda: self.stage.fetches(SERVER6) == EXIT6, "IPv6 flows")

    def ip(self, arguments: str) -> str:
        return self.stage.client.attempt(["sh", "-c", f"ip {arguments}"]).stdout

    def nft(self, what: str) -> str:
        return self.stage.client.attempt(["nft", "list", *what.split(), "inet", "cryprq"]).stdout

    def addressed(self) -> bool:
        listed = self.ip(f"-o addr show dev {TUN}")
        return all(address in listed for address in self.before["addresses"])

    def up(self) -> bool:
        return ",UP" in self.ip(f"-o link show dev {TUN}")

    def sized(self) -> bool:
        # As large as the lane's path takes now, which may be less than at first.
        path = lane(self.stage.links)
        fits = path["size"] - SLICE_OVERHEAD if path.get("up") else MTU
        wanted = max(MIN_MTU, min(MTU, fits))
        return f"mtu {wanted} " in self.ip(f"-o link show dev {TUN}") and self.addressed()

    def no_stranger(self) -> bool:
        return "192.0.2.77" not in self.ip("addr")

    def with_ipv6(self) -> bool:
        return self.stage.client.sysctl(SWITCH) == "0" and self.addressed()

    def marked(self) -> bool:
        return self.stage.client.sysctl(VALID_MARK) == "1"

    def routed(self) -> bool:
        return all(
            "25400:" in self.ip(f"{family} rule")
            and "25430:" in self.ip(f"{family} rule")
            and self.ip(f"{family} route show table 25458").count("\n") == 2
            and f"default dev {TUN}" in self.ip(f"{family} route show table 25458")
            for family in ("-4", "-6")
        )

    def filtered(self) -> bool:
        listed = self.stage.client.attempt(["nft", "list", "chain", "inet", "cryprq", "output"]).stdout
        return (
            "policy drop" in listed
            and "dormant" not in listed
            and listed.count("\n") > 10
            and "\n\t\taccept" not in listed
        )

    def resolving(self) -> bool:
        return self.stage.client.resolv_conf.read_text() != RESOLVER


@pytest.fixture(scope="class")
def running(stage: Stage) -> Iterator[Running]:
    with stage.tunnel() as role:
        # Until before the stop: after it everything is in the open.
        with stage.wire() as wire, traffic(stage):
            yield Running(stage, role, stage.status())
        assert not beside_the_link(wire)


class Change(NamedTuple):
    """What another program does, and how to see that it is undone."""

    fact: str
    command: str
    back: Callable[[Running], bool]


CHANGES: Final = {
    "addresses flushed": Change("device", f"ip addr flush dev {TUN}", Running.addressed),
    "src_valid_mark": Change("src_valid_mark", f"sysctl -qw {VALID_MARK}=0", Running.marked),
    "link down": Change("device", f"ip link set {TUN} down", Running.up),
    "rules deleted": Change(
        "routes and rules",
        "ip rule del pref 25430; ip -6 rule del pref 25430; ip rule del pref 25400",
        Running.routed,
    ),
    "renamed": Change("device", f"ip link set {TUN} name other0", Running.up),
    "table flushed": Change(
        "routes and rules", "ip route flush table 25458; ip -6 route flush table 25458", Running.routed
    ),
    "default route replaced": Change(
        "routes and rules",
        f"ip route replace default via {ROUTER_LAN4} dev eth0 table 25458; "
        f"ip -6 route replace default via {ROUTER_LAN6} dev eth0 table 25458",
        Running.routed,
    ),
    "an address added": Change("device", f"ip addr add 192.0.2.77/32 dev {TUN}", Running.no_stranger),
    "ruleset flushed": Change("kill switch", "nft flush ruleset", Running.filtered),
    "MTU": Change("device", f"ip link set {TUN} mtu 1300", Running.sized),
    "chain flushed": Change("kill switch", "nft flush chain inet cryprq output", Running.filtered),
    "MTU too small for IPv6": Change("device", f"ip link set {TUN} mtu 1000", Running.sized),
    "table put to sleep": Change(
        "kill switch", "nft add table inet cryprq '{ flags dormant; }'", Running.filtered
    ),
    "routes added to our table": Change(
        "routes and rules",
        f"ip route add 93.184.20.0/24 via {ROUTER_LAN4} dev eth0 table 25458; "
        f"ip -6 route add 2606:2800:20::/64 via {ROUTER_LAN6} dev eth0 table 25458; "
        f"ip route append default via {ROUTER_LAN4} dev eth0 table 25458; "
        "ip route add blackhole 192.0.2.0/24 table 25458",
        Running.routed,
    ),
    "rule inserted": Change("kill switch", "nft insert rule inet cryprq output accept", Running.filtered),
    "resolver": Change("system resolver", f"printf '{RESOLVER}' >/etc/resolv.conf", Running.resolving),
    "IPv6 off and on": Change("device", f"sysctl -qw {SWITCH}=1; sysctl -qw {SWITCH}=0", Running.with_ipv6),
    "IPv6 off": Change("device", f"sysctl -qw {SWITCH}=1", Running.with_ipv6),
}


class TestEachFact:
    """Of one client. FIGHT repairs of one fact within FIGHT_SECONDS would be a fight: the order makes them rare, and
    where a fast machine comes near it, the test waits."""

    def test_all_come_back(self, running: Running) -> None:
        took, commands = {}, []
        repaired: list[tuple[float, str, int]] = []

        def calm(fact: str) -> bool:
            since = time.monotonic() - FIGHT_SECONDS
            return sum(count for at, name, count in repaired if name == fact and at > since) < FIGHT // 2

        def repairs_since(fact: str, before: int) -> int:
            return running.repairs()[fact]["repairs"] - before  # type: ignore[no-any-return]

        def is_counted(fact: str, before: int) -> bool:
            return repairs_since(fact, before) > 0

        for what, change in CHANGES.items():
            until(lambda change=change: calm(change.fact), "few repairs lately", OUTER)  # type: ignore[misc]
            asked = time.monotonic()
            before = running.repairs()[change.fact]["repairs"]
            begun = time.monotonic()
            commands.append(begun - asked)
            running.stage.client.run(["sh", "-c", change.command])
            running.until(partial(change.back, running), what)
            took[what] = time.monotonic() - begun
            running.flows()
            running.role.says(f"warning .*{change.fact}: another program changed it: ")
            # What is back is counted a moment later.
            until(partial(is_counted, change.fact, before), what)
            repaired.append((time.monotonic(), change.fact, repairs_since(change.fact, before)))
        print({what: round(seconds, 2) for what, seconds in took.items()})
        assert statistics.median(took.values()) < max(REPAIR, COMMANDS * statistics.median(commands)), took
        assert running.role.log.count("src_valid_mark: another program changed it") == 1
        assert not [repair for repair in running.repairs().values() if repair["trouble"]]
        assert "put back" in running.stage.command("status")


class TestFights:
    def test_who_always_wins_is_named_and_the_filter_comes_back_at_once(self, running: Running) -> None:
        client, role = running.stage.client, running.role
        flushing = client.popen(
            ["sh", "-c", f"while :; do ip addr flush dev {TUN}; sleep 0.02; done"],
        )
        try:
            role.says("warning .*device: another program changes it again and again", seconds=OUTER)
            took = []
            for _ in range(12):
                client.run(["nft", "flush", "ruleset"])
                begun = time.monotonic()
                until(running.filtered, "the filter is back", OUTER)
                took.append(time.monotonic() - begun)
            assert statistics.median(took) < SLOW / 2, "it is slowed down as the device is"
            role.says("warning .*kill switch: another program changes it again and again")
            repairs = running.repairs()
            assert repairs["device"]["trouble"].startswith(
                "another program changes it again and again, last: "
            )
            assert "kill switch: another program changes it" in running.stage.command("status")
            assert role.log.count("device: another program changes it again and again") == 1
        finally:
            flushing.kill()
            flushing.wait()
        until(running.addressed, "the address is back, slowly", SLOW + OUTER)
        running.flows()


class TestRulesOfOthers:
    """A TUN device without a program stands for the other VPN: what counts is where its rules lead."""

    def test_they_are_named_and_forgotten(self, running: Running) -> None:
        client = running.stage.client
        client.ip("tuntap add wg0 mode tun")
        client.ip("addr add 10.66.0.2/32 dev wg0")
        client.ip("link set wg0 up")
        try:
            # Tailscale without an exit node: nothing of ours goes there.
            client.ip("rule add pref 5210 fwmark 0x80000/0xff0000 lookup main")
            client.ip("rule add pref 5270 lookup 52")
            client.ip("route add 100.101.102.103/32 dev wg0 table 52")
            # wg-quick.
            client.ip("route add default dev wg0 table 51820")
            client.ip("rule add pref 25399 not fwmark 0xca6c lookup 51820")
            client.ip("rule add pref 25398 lookup main suppress_prefixlength 0")
            running.role.says(
                r"warning .*rules of others: IPv4 rule 25399 \(not fwmark 0xca6c lookup 51820\) stands before ours: "
                r"it sends the link to wg0 and this machine's traffic to wg0$"
            )
            assert running.repairs()["rules of others"]["trouble"].startswith("IPv4 rule 25399 ")
            client.ip("rule del pref 25399")
            running.role.says("rules of others: stands again as it was set")
            assert not running.repairs()["rules of others"]["trouble"]
            # For some packets only.
            for rule, words in (
                ("ipproto udp dport 53 lookup 51820", "ipproto udp dport 53 lookup 51820"),
                ("uidrange 1000-2000 lookup 51820", "uidrange 1000-2000 lookup 51820"),
                ("ipproto tcp dport 443 blackhole", "ipproto tcp dport 443 blackhole"),
            ):
                since = running.role.written
                client.ip(f"rule add pref 300 {rule}")
                where = "nowhere" if "blackhole" in rule else "wg0"
                running.role.says(
                    rf"warning .*IPv4 rule 300 \({words}\) stands before ours: it sends some of this machine's traffic "
                    f"to {where}$",
                    since=since,
                )
                client.ip("rule del pref 300")
                running.role.says("rules of others: stands again as it was set", since=since)
        finally:
            for rule in ("300", "5210", "5270", "25398", "25399"):
                client.attempt(["ip", "rule", "del", "pref", rule])
            client.ip("link del wg0")
        running.flows()


class TestDuringAStart:
    """No exit answers, so the client never gets further."""

    NOBODY: Final = "5.75.10.77:4433"
    STARTING: Final = "nothing gets out until the link is up"

    def test_the_routes_hold_while_another_program_has_flushed_the_filter(self, stage: Stage) -> None:
        client = stage.client
        with stage.left_clean():
            role = stage.links.client(client, address=self.NOBODY, ready=self.STARTING)
            with stage.wire() as wire, traffic(stage), questions(client, (ROUTER_LAN4, OTHER4, OTHER6)):
                for _ in range(3):
                    since = role.written
                    # Stopped, so that all of it is sent without a filter.
                    role.process.send_signal(signal.SIGSTOP)
                    try:
                        client.run(["nft", "flush", "ruleset"])
                        for address in (SERVER4, SERVER6):
                            assert not stage.fetches(address)
                    finally:
                        role.process.send_signal(signal.SIGCONT)
                    role.says("kill switch: another program changed it", since=since)
            assert not beside_the_link(wire, (self.NOBODY.partition(":")[0],))
            role.kill()

    def test_a_pause_is_possible(self, stage: Stage) -> None:
        """As a captive portal needs it before the link can be up."""
        with stage.left_clean():
            role = stage.links.client(stage.client, address=self.NOBODY, ready=self.STARTING)
            stage.pause(60)
            for address in (SERVER4, SERVER6):
                until(lambda address=address: bool(stage.fetches(address)), "it goes past the tunnel", OUTER)  # type: ignore[misc]
            role.kill()


class TestNameServersPastTheTunnel:
    """The routes of the LAN and of excluded networks lead past the tunnel; questions there do not follow them."""

    SERVERS: Final = (ROUTER_LAN4, OTHER4, OTHER6)

    def test_none_is_asked_while_there_is_no_filter(self, stage: Stage) -> None:
        excluded = ("--exclude", f"{OTHER4}/32", "--exclude", f"{OTHER6}/128")
        with stage.tunnel(*excluded) as role:
            running = Running(stage, role, stage.status())
            with stage.wire() as wire, questions(stage.client, self.SERVERS):
                for _ in range(5):
                    stage.client.run(["nft", "flush", "ruleset"])
                    until(running.filtered, "the filter is back", OUTER)
                # What is sent there on other ports leaves: so would a question.
                assert stage.fetch(OTHER4) and stage.fetch(OTHER6)
            sent = [packet for packet in wire.sent() if packet.destination in self.SERVERS]
            assert {packet.destination for packet in sent} >= {OTHER4, OTHER6}
            asked = [packet for packet in sent if packet.destination_port in (53, 853)]
            assert not asked, (len(asked), asked[:5])

    def test_their_programs_get_answers_at_once(self, stage: Stage) -> None:
        """The forwarder's to a question, and a refusal to DNS over TLS, as for a server past the tunnel."""
        stage.server.dns.answers["far.example.com.", "A"] = ["192.0.2.7"]
        with stage.tunnel("--exclude", f"{OTHER4}/32"):
            for server in (ROUTER_LAN4, OTHER4):
                answer = stage.client.run(
                    ["dig", "+short", f"+time={LONG:g}", "+tries=1", f"@{server}", "far.example.com", "A"]
                )
                assert answer.strip() == "192.0.2.7"
                with stage.socket(server) as sock, pytest.raises(ConnectionRefusedError):
                    sock.connect((server, 853))

    def test_the_lan_asks_a_name_server_of_this_machine(self, stage: Stage) -> None:
        """Also where the reverse path filter is strict, as it is here."""
        with stage.tunnel():
            server = stage.socket(CLIENT4, socket.SOCK_DGRAM)
            asks = stage.socket(CLIENT4, socket.SOCK_DGRAM, stage.hosts.router)
            with server, asks:
                server.bind((CLIENT4, 53))
                asks.sendto(b"question", (CLIENT4, 53))
                question, source = server.recvfrom(100)
                server.sendto(b"answer", source)
                assert (question, asks.recv(100)) == (b"question", b"answer")


class TestReversePathRules:
    RULES: Final = """
table inet strict {
    chain rpfilter {
        type filter hook prerouting priority mangle; policy drop;
        iif lo accept
        icmpv6 type { nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept
        fib saddr . mark . iif oif exists accept
    }
}
"""

    def test_what_another_program_loads_after_us_does_not_cut_the_link(self, running: Running) -> None:
        """As NixOS and firewalld do. Nor does a table of others count as a change of ours."""
        running.stage.client.nft(self.RULES)
        try:
            running.flows()
            assert running.stage.fetch(SERVER4) == EXIT4
            assert not running.repairs()["kill switch"]["repairs"]
        finally:
            running.stage.client.run(["nft", "delete", "table", "inet", "strict"])
