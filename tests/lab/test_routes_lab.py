"""The client's routing in a host of its own: what the kernel answers, and that nothing is left of it.

The code under test runs in a thread whose network is the host's; the host has two cables, to two routers.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from cryprq_proxy.base.netlink_watch import netlink_changes
from cryprq_proxy.errors import ConfigError, CryprqError
from tests.support.lab.net import LONG, NETNS, SILENCE, Lab, Namespace
from tests.support.settings import tunnel_settings
from tun.journal import Entry, Journal, undo
from tun.linux import sysctl
from tun.linux.routing import routes
from tun.linux.routing.kernel_state import read_lan, read_uplinks
from tun.linux.routing.routes import Routes
from tun.reconciler import Reconciler
from tun.routing.lan import Lan, Network, Uplink
from tun.settings import TunnelSettings

MARK = 0x6372
DEVICE = "cryprq0"
SETTINGS = tunnel_settings()
BOTH = frozenset({4, 6})
TUNNEL = ("198.18.0.2/32", "fd63:7279:7071::2/128")
WEB, WEB6 = "198.51.100.9", "2001:db8:99::9"
UNDOERS = {**routes.UNDO, **sysctl.UNDO}
VALID_MARK = "net.ipv4.conf.all.src_valid_mark"


def inside[Result](host: Namespace, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Runs asynchronous work with a loop of its own, in a thread that is in the host's network."""
    done: list[Result] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            with open(NETNS / host.name) as namespace:
                os.setns(namespace.fileno(), os.CLONE_NEWNET)
            done.append(asyncio.run(asyncio.wait_for(work(), 30)))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


@pytest.fixture
def client(lab: Lab) -> Namespace:
    """A host with a LAN and a way out on eth0, and a TUN; eth1 leads to another router and has no address yet."""
    client, router, other = (lab.namespace(name) for name in ("client", "router", "other"))
    lab.veth(client, "eth0", router, "eth0")
    lab.veth(client, "eth1", other, "eth0")
    lab.address(client, "eth0", "192.168.77.2/24", "fd77::2/64")
    lab.address(router, "eth0", "192.168.77.1/24", "fd77::1/64")
    lab.address(router, "lo", f"{WEB}/32", f"{WEB6}/128")
    lab.address(other, "eth0", "192.168.88.1/24", "fd88::1/64")
    for host in (router, other):
        lab.forward(host)
    client.ip("route add default via 192.168.77.1")
    client.ip("-6 route add default via fd77::1")
    client.ip(f"tuntap add dev {DEVICE} mode tun")
    client.ip(f"link set {DEVICE} up")
    lab.address(client, DEVICE, *TUNNEL)
    return client


def way(host: Namespace, destination: str, *more: str) -> str:
    """The device of `ip route get`, or "unreachable"."""
    done = host.attempt(["ip", "-j", "route", "get", destination, *more])
    if done.returncode:
        assert "No route to host" in done.stderr or "unreachable" in done.stderr, done.stderr
        return "unreachable"
    answer = json.loads(done.stdout)[0]
    return "unreachable" if answer.get("type") == "unreachable" else str(answer["dev"])


@dataclass
class Heard:
    """What the watch has called back."""

    lans: list[Lan] = field(default_factory=list)
    uplinks: int = 0
    event: asyncio.Event = field(default_factory=asyncio.Event)

    async def lan_changed(self, lan: Lan) -> None:
        self.lans.append(lan)
        self.event.set()

    def uplink_changed(self) -> None:
        self.uplinks += 1
        self.event.set()

    def prefixes(self) -> tuple[Network, ...]:
        """Of the LAN that was told last; none before that."""
        return self.lans[-1].prefixes if self.lans else ()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Return when it holds; looks after each call."""
        while not holds():
            await self.event.wait()
            self.event.clear()


class UndoneRoutes(Routes):
    """Routes that write to a list, which `remove` undoes."""

    def __init__(self, settings: TunnelSettings = SETTINGS, versions: frozenset[int] = BOTH) -> None:
        self._entries: list[Entry] = []
        self.heard = Heard()
        super().__init__(
            settings, versions, self._entries.append, self.heard.lan_changed, self.heard.uplink_changed
        )

    async def remove(self) -> None:
        for entry in reversed(self._entries):
            UNDOERS[entry["kind"]](entry)


@asynccontextmanager
async def watched(routes: UndoneRoutes) -> AsyncIterator[Heard]:
    await routes.apply()
    reconciler = Reconciler([routes])
    yield routes.heard
    await reconciler.stop()
    await routes.remove()


@asynccontextmanager
async def until(holds: Callable[[], bool]) -> AsyncIterator[None]:
    """Does what is inside, and waits until it holds; looks after each of the kernel's events."""
    with netlink_changes() as changes:
        yield
        while not holds():
            await changes.wait()


def rules(host: Namespace) -> list[str]:
    """In any order: one that was put back is the last of its priority."""
    return sorted(f"{host.ip('rule')}{host.ip('-6 rule')}".splitlines())


def applied(
    host: Namespace, settings: TunnelSettings = SETTINGS, versions: frozenset[int] = BOTH
) -> UndoneRoutes:
    """Routes that stand, without a watch."""

    async def work() -> UndoneRoutes:
        routes = UndoneRoutes(settings, versions)
        await routes.apply()
        return routes

    return inside(host, work)


def test_everything_goes_where_it_should(lab: Lab, client: Namespace) -> None:
    lab.forward(client)
    before = client.snapshot()
    routes = applied(client)
    for destination, mark in (("198.51.100.9", "0"), (WEB6, "0"), ("8.8.8.8", "1"), ("198.18.255.53", "0")):
        assert way(client, destination, "mark", mark) == DEVICE
    for destination in (WEB, WEB6):
        assert way(client, destination, "mark", str(MARK)) == "eth0"
    for destination in ("192.168.77.9", "fd77::9"):
        assert way(client, destination) == "eth0"
    assert way(client, "127.0.0.1") == way(client, "192.168.77.2") == "lo"
    # What is forwarded, from a container for example.
    assert way(client, WEB, "from", "192.168.77.9", "iif", "eth0") == DEVICE
    assert client.sysctl(VALID_MARK) == "1"
    inside(client, routes.remove)
    assert client.snapshot() == before
    inside(client, routes.remove)
    assert client.snapshot() == before


def test_marked_packets_never_go_into_the_tunnel(client: Namespace) -> None:
    applied(client)
    client.ip("route del default")
    client.ip("-6 route del default")
    for destination in (WEB, WEB6):
        assert way(client, destination, "mark", str(MARK)) == "unreachable"
        assert way(client, destination) == DEVICE


def test_what_the_exit_does_not_offer_is_unreachable(client: Namespace) -> None:
    applied(client, versions=frozenset({4}))
    assert way(client, WEB) == DEVICE
    assert way(client, WEB6) == "unreachable"
    assert way(client, "fd77::9") == way(client, WEB6, "mark", str(MARK)) == "eth0"


def test_unreachable_after_the_device_is_gone(client: Namespace) -> None:
    applied(client)
    client.ip(f"link del {DEVICE}")
    assert way(client, WEB) == way(client, WEB6) == "unreachable"


def test_pushed_routes_lead_nowhere_else(client: Namespace) -> None:
    """CVE-2024-3661 with and without a gateway, CVE-2023-36672."""
    for prefix in ("0.0.0.0/1", "128.0.0.0/1", "203.0.113.0/24"):
        client.ip(f"route add {prefix} via 192.168.77.1")
    client.ip("route add 192.0.2.0/24 dev eth0 scope link")
    client.ip("route add 10.9.0.0/16 via 192.168.77.1")
    client.ip("addr add 198.51.100.200/24 dev eth0")
    client.ip("-6 addr add 2001:db8:99::200/64 dev eth0 nodad")
    applied(client)
    for destination in ("8.8.8.8", "203.0.113.9", "192.0.2.9", "198.51.100.9", "10.9.0.9", "2001:db8:99::9"):
        assert way(client, destination) == DEVICE
    assert way(client, "8.8.8.8", "mark", str(MARK)) == "eth0"


def test_exclude_include_users_and_no_lan(client: Namespace) -> None:
    settings = tunnel_settings(
        lan=False,
        exclude=(ip_network("198.51.100.0/24"), ip_network("2001:db8:99::/48")),
        exclude_uids=((1000, 1000), (2000, 2999)),
    )
    inside(client, applied(client, settings).remove)
    applied(client, settings)
    assert way(client, WEB) == way(client, WEB6) == "eth0"
    assert way(client, "8.8.8.8") == way(client, "192.168.77.9") == way(client, "fd77::9") == DEVICE
    for uid, device in (("1000", "eth0"), ("1001", DEVICE), ("2500", "eth0"), ("3000", DEVICE)):
        assert way(client, "8.8.8.8", "uid", uid) == device


def test_include(client: Namespace) -> None:
    included = (ip_network("198.51.100.0/24"), ip_network("192.168.0.0/16"))
    applied(client, tunnel_settings(include=included))
    assert way(client, WEB) == way(client, "192.168.99.9") == way(client, "fd63:7279:7071::53") == DEVICE
    assert way(client, "8.8.8.8") == way(client, WEB6) == way(client, "192.168.77.9") == "eth0"


def test_guests_are_reached_where_the_lan_is_not(lab: Lab, client: Namespace) -> None:
    guest = lab.namespace("guest")
    client.ip("link add br0 type bridge")
    lab.veth(client, "guest0", guest, "eth0")
    client.ip("link set guest0 master br0")
    client.ip("link set br0 up")
    lab.address(client, "br0", "172.17.0.1/16")
    lab.forward(client)
    applied(client, tunnel_settings(lan=False))
    assert way(client, "172.17.0.2") == "br0"
    assert way(client, WEB, "from", "172.17.0.2", "iif", "br0") == DEVICE
    lan = inside(client, lambda: read_lan(DEVICE))
    assert lan.guests == (ip_network("172.17.0.0/16"),)
    assert lan.uplinks == {"eth0", "eth1"}, "both cables lead out of this namespace"
    assert ip_network("192.168.77.0/24") in lan.prefixes


def test_a_killed_process_leaves_nothing_that_hurts_the_next(
    lab: Lab, client: Namespace, tmp_path: Path
) -> None:
    before = client.snapshot()
    path = tmp_path / "journal"

    async def start(settings: TunnelSettings = SETTINGS) -> None:
        with Journal(path) as journal:
            heard = Heard()
            await Routes(settings, BOTH, journal.record, heard.lan_changed, heard.uplink_changed).apply()

    def clean_up() -> None:
        with Journal(path) as journal:
            undo(journal, UNDOERS)
            assert journal.entries() == []

    async def clean_up_in_a_loop() -> None:
        clean_up()

    inside(client, start)
    standing = rules(client)
    inside(client, start)  # over what stands
    assert rules(client) == standing
    client.ip(f"link del {DEVICE}")
    inside(client, clean_up_in_a_loop)
    clean_up()
    client.call(clean_up)
    client.ip(f"tuntap add dev {DEVICE} mode tun")
    client.ip(f"link set {DEVICE} up")
    lab.address(client, DEVICE, *TUNNEL)
    assert _unnumbered(client.snapshot()) == _unnumbered(before)


def _unnumbered(snapshot: str) -> list[str]:
    """Without the numbers of devices, which are never given twice."""
    return [line.partition(": ")[2] if line[:1].isdigit() else line for line in snapshot.splitlines()]


def test_rules_and_routes_of_others_are_refused_and_kept(client: Namespace) -> None:
    for add, remove in (
        ("rule add to 10.0.0.0/8 lookup main priority 25420", "rule del priority 25420"),
        ("-6 rule add from all lookup 25458 priority 25400", "-6 rule del priority 25400"),
        ("route add 10.0.0.0/8 dev eth0 table 25458", "route del 10.0.0.0/8 table 25458"),
        ("-6 route add fd99::/64 dev eth0 table 25458", "-6 route del fd99::/64 table 25458"),
    ):
        client.ip(add)
        before = client.snapshot()
        with pytest.raises(ConfigError, match=r"another program has a rout(e|ing rule)"):
            applied(client)
        assert client.snapshot() == before
        client.ip(remove)


def test_no_device_changes_nothing(client: Namespace) -> None:
    client.ip(f"link set {DEVICE} down")
    before = client.snapshot()
    with pytest.raises(ConfigError, match="cryprq0 is not there or not up"):
        applied(client)
    assert client.snapshot() == before


def test_what_others_remove_comes_back(client: Namespace) -> None:
    before = client.snapshot()

    async def work() -> None:
        routes = UndoneRoutes()
        async with watched(routes):
            full = rules(client)

            def whole() -> bool:
                tables = (client.ip("route show table 25458"), client.ip("-6 route show table 25458"))
                return rules(client) == full and all(f"default dev {DEVICE}" in table for table in tables)

            for version in ("", "-6 "):
                async with until(whole):
                    client.ip(f"{version}rule del priority 25430")
                for _ in range(3):
                    async with until(whole):
                        client.ip(f"{version}rule del priority 25420")
                        client.ip(f"{version}rule del priority 25401")
                async with until(whole):
                    client.ip(f"{version}route flush table 25458")

    inside(client, work)
    assert _sorted(client.snapshot()) == _sorted(before)


def _sorted(snapshot: str) -> list[str]:
    return sorted(snapshot.splitlines())


def test_the_device_comes_back(client: Namespace) -> None:
    """The kernel drops the routes into a device that goes down."""

    async def work() -> None:
        async with watched(UndoneRoutes()):
            async with until(lambda: way(client, WEB) == DEVICE):
                client.ip(f"link set {DEVICE} down")
                assert way(client, WEB) == "unreachable"
                client.ip(f"link set {DEVICE} up")
            client.ip(f"link del {DEVICE}")
            assert way(client, WEB) == "unreachable"
            async with until(lambda: way(client, WEB) == way(client, WEB6) == DEVICE):
                client.ip(f"tuntap add dev {DEVICE} mode tun")
                client.ip(f"link set {DEVICE} up")

    inside(client, work)
    assert "25458" not in client.ip("route show table all") + client.ip("-6 route show table all")


def test_what_the_kernel_refuses_stops_nothing_else(client: Namespace) -> None:
    client.sysctl(f"net.ipv6.conf.{DEVICE}.disable_ipv6", "1")
    routes = UndoneRoutes()
    with pytest.raises(CryprqError):
        inside(client, routes.apply)
    assert way(client, WEB) == DEVICE
    assert way(client, WEB6) == "unreachable"
    assert way(client, WEB6, "mark", str(MARK)) == "eth0"


def test_looking_again_and_again_keeps_nothing_open(client: Namespace) -> None:
    async def work() -> None:
        await read_uplinks(DEVICE)
        before = set(os.listdir("/proc/self/fd"))
        for _ in range(20):
            await read_lan(DEVICE)
        await asyncio.sleep(0)  # transports close in the next round of the loop
        assert len(os.listdir("/proc/self/fd")) <= len(before)

    inside(client, work)


def test_the_lan_is_followed(client: Namespace) -> None:
    added = ip_network("10.3.0.0/16")

    async def work() -> None:
        async with watched(UndoneRoutes()) as heard:
            assert way(client, "10.3.3.3") == DEVICE
            client.ip("addr add 10.3.0.1/16 dev eth1")
            await heard.until(lambda: added in heard.prefixes())
            assert way(client, "10.3.3.3") == "eth1"
            client.ip("addr del 10.3.0.1/16 dev eth1")
            await heard.until(lambda: added not in heard.prefixes())
            assert way(client, "10.3.3.3") == DEVICE
            assert not heard.uplinks

    inside(client, work)


def test_another_way_out_is_told_and_another_metric_is_not(client: Namespace) -> None:
    client.ip("addr add 192.168.88.2/24 dev eth1")
    client.ip("addr add fd88::2/64 dev eth1 nodad")

    async def work() -> None:
        async with watched(UndoneRoutes()) as heard:
            # As a connection manager does it: the new one first, then the old one goes.
            client.ip("route add default via 192.168.77.1 metric 700")
            client.ip("route del default via 192.168.77.1 metric 0")
            client.ip("route add default via 192.168.88.1 metric 600")
            await heard.until(lambda: heard.uplinks > 0)
            assert heard.uplinks == 1
            found = (await read_uplinks(DEVICE))[4]
            assert found is not None and found[1:] == ("eth1", "192.168.88.1", "192.168.88.2")
            client.ip("-6 route replace default via fd88::1")
            await heard.until(lambda: heard.uplinks > 1)
            assert heard.uplinks == 2
            client.ip("route replace default via 192.168.88.1 src 192.168.77.2 metric 600")
            await heard.until(lambda: heard.uplinks > 2)
            assert heard.uplinks == 3
            assert not [lan for lan in heard.lans if lan.prefixes != heard.lans[0].prefixes]

    inside(client, work)


def test_the_way_out_of_before(client: Namespace) -> None:
    found = inside(client, lambda: read_uplinks(DEVICE))[6]
    assert found is not None and found == Uplink(found.device, "eth0", "fd77::1", "fd77::2")
    client.ip("-6 route del default")
    assert inside(client, lambda: read_uplinks(DEVICE))[6] is None


# The link's mark on what comes in, as the filter restores it from conntrack.
MARKS = """table inet marks {
    chain out { type filter hook postrouting priority 0; meta mark 0x6372 ct mark set 0x6372; }
    chain in { type filter hook prerouting priority mangle; meta mark set ct mark; }
}
"""


def marked_ping(host: Namespace, seconds: float = LONG) -> bool:
    return host.attempt(["ping", "-n", "-c1", f"-W{seconds:g}", "-m", str(MARK), WEB]).returncode == 0


def test_answers_pass_the_reverse_path_filter(client: Namespace) -> None:
    for name in ("all", "default", "eth0", DEVICE):
        client.sysctl(f"net.ipv4.conf.{name}.rp_filter", "1")
    assert marked_ping(client)
    applied(client)
    # The answer bears no mark, and the rules would have it come from the tunnel.
    assert not marked_ping(client, SILENCE)
    client.nft(MARKS)
    assert marked_ping(client)
    client.sysctl(VALID_MARK, "0")
    assert not marked_ping(client, SILENCE)  # so it is this setting that makes the difference


def test_what_comes_out_of_the_tunnel_passes_the_reverse_path_filter(client: Namespace) -> None:
    for name in ("all", "default", "eth0", DEVICE):
        client.sysctl(f"net.ipv4.conf.{name}.rp_filter", "1")
    applied(client)
    assert way(client, "198.18.0.2", "from", WEB, "iif", DEVICE) == "lo"
    done = client.attempt(["ip", "route", "get", "198.18.0.2", "from", WEB, "iif", "eth0"])
    assert done.returncode  # not so on another device: an invalid cross-device link


def test_a_router_is_put_back_exactly(client: Namespace) -> None:
    client.sysctl("net.ipv4.conf.eth1.forwarding", "1")
    client.sysctl("net.ipv4.conf.all.accept_redirects", "0")
    client.sysctl("net.ipv6.conf.eth1.forwarding", "1")
    before = client.snapshot()
    entries: list[Mapping[str, object]] = []
    with client.entered():
        for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            sysctl.set_sysctl(name, "1", entries.append)
            assert client.sysctl(name) == "1"
        assert client.sysctl("net.ipv6.conf.eth0.forwarding") == "1"
        for _ in range(2):
            for entry in reversed(entries):
                sysctl.undo_sysctl(entry)
            assert client.snapshot() == before
