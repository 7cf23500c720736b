"""System-wide mode on a fake Mac against a real exit: the whole path of packets, and what is left when it is killed.

The Mac's programs, routes, packet filter and resolver are those of tests/support/macos; exit, far server and link are
real. No Mac has run this.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import dns.message
import pytest

from tests.support.lab.hosts import EXIT4, SERVER4, SERVER6, ThreeHosts
from tests.support.lab.links import Role
from tests.support.lab.net import Lab, until
from tests.support.lab.server import ECHO_PORT, FarServer
from tests.support.macos import configd, disturbances, packet
from tests.support.macos.kernel import Fate, Kernel
from tests.support.macos.lab import MacLinks, Programs, prepare
from tests.support.macos.machine import FakeMac
from tests.support.macos.packet import End
from tun.settings import RESOLVER4

SEED = 20261129
CLOSED = "nothing gets out until the link is up"


class Desk:
    """The Mac, a client's files, and an exit that runs."""

    def __init__(self, lab: Lab, hosts: ThreeHosts) -> None:
        self.host = hosts.client
        self.mac = FakeMac(lab.directory / "mac")
        self.links = MacLinks(lab.directory / "links", self.mac)
        self.kernel = Kernel(self.mac)
        self.programs = Programs(self.kernel)
        self.before = self.mac.snapshot()
        prepare(self.host)
        self.links.exit(hosts.exit)

    def client(self, *, ready: str = "ready: ") -> Role:
        settings = {"tun": {"experimental": True}}
        return self.links.client(self.host, settings=settings, ready=ready)

    def held_in(self) -> None:
        """Nothing gets out by the hardware but the link's own, the local network and DHCP."""
        for scope in ("", "en0"):
            for there in (SERVER4, SERVER6, "8.8.8.8"):
                assert self.programs.fate(there, scope=scope).where != "en0", (there, scope)
        assert self.programs.fate(EXIT4).where != "en0", "another user's"


@pytest.fixture
def desk(lab: Lab, three_hosts: ThreeHosts, server: FarServer) -> Iterator[Desk]:
    desk = Desk(lab, three_hosts)
    with desk.kernel:
        try:
            yield desk
        finally:
            wrong = desk.links.close()
    assert not wrong, "\n\n".join(wrong)


def test_packets_go_through_and_a_clean_stop_leaves_nothing(desk: Desk, server: FarServer) -> None:
    server.dns.answers["a.example.com.", "A"] = ["1.2.3.4"]
    role = desk.client()
    desk.held_in()
    programs = desk.programs
    programs.ping(SERVER4)
    assert programs.udp(End(SERVER4, ECHO_PORT), b"hello") == b"hello"
    assert programs.udp(End(SERVER6, ECHO_PORT), b"hello") == b"hello"
    assert programs.tcp(End(SERVER4, ECHO_PORT), b"hello") == b"hello"
    # Another resolver is asked, and the forwarder answers in its place.
    question = dns.message.make_query("a.example.com.", "A")
    answer = dns.message.from_wire(programs.udp(End("8.8.8.8", 53), question.to_wire()))
    assert "1.2.3.4" in answer.answer[0].to_text()
    # To the tunnel's own addresses: the Mac's kernel gives them to the device, and gets them back.
    own, forwarder = End(programs.address(), 40004), End(str(RESOLVER4), 53)
    for sent in (
        packet.tcp(own, forwarder),
        packet.tcp(forwarder, own, "SA"),
        packet.ping(own.address, own.address),
    ):
        assert programs.exchange(sent, sent.__eq__) == sent
    assert programs.fate("192.168.1.77") == Fate("en0")
    assert not desk.kernel.left
    assert role.stop() == 0
    assert not desk.kernel.hub.devices()
    assert desk.mac.snapshot() == desk.before


def test_killed_at_any_moment_it_can_be_undone(desk: Desk) -> None:
    chance = random.Random(SEED)
    began = time.monotonic()
    assert desk.client().stop() == 0
    usual = time.monotonic() - began
    for _ in range(4):
        role = desk.client(ready="")
        time.sleep(chance.uniform(0, usual))
        role.kill()
        assert not desk.kernel.hub.devices()
        done = desk.links.cleanup(desk.host)
        assert not done.returncode, done.stderr
        assert desk.mac.snapshot() == desk.before


def test_killed_while_it_stops_it_can_be_undone(desk: Desk) -> None:
    chance = random.Random(SEED)
    for _ in range(2):
        role = desk.client()
        role.process.terminate()
        time.sleep(chance.uniform(0, 0.5))
        role.kill()
        assert not desk.kernel.hub.devices()
        done = desk.links.cleanup(desk.host)
        assert not done.returncode, done.stderr
        assert desk.mac.snapshot() == desk.before


def test_other_networks_are_followed(desk: Desk) -> None:
    """The link's own route goes by the gateway of the moment, and nothing else gets out on the way."""

    def gateway() -> set[str]:
        return {each.gateway for each in desk.mac.read().routes if each.destination == f"{EXIT4}/32"}

    role = desk.client()
    assert gateway() == {"192.168.1.1"}
    disturbances.roam(desk.mac)
    desk.held_in()
    until(lambda: gateway() == {"10.20.28.1"}, "the route to the exit follows")
    assert desk.programs.fate(EXIT4, uid=0, scope="").where != "utun4"
    disturbances.plug_in(desk.mac)
    until(lambda: gateway() == {"172.16.5.1"}, "the route to the exit follows the cable")
    desk.held_in()
    disturbances.pull_out(desk.mac)
    disturbances.other_vpn(desk.mac)
    disturbances.sleep_and_wake(desk.mac)
    until(lambda: gateway() == {"192.168.1.1"}, "the route to the exit is as at first")
    desk.held_in()
    desk.programs.ping(SERVER4)
    with desk.mac.change() as state:
        configd.remove_interface(state, "utun5")
    assert role.stop() == 0
    assert desk.mac.snapshot() == desk.before


def test_killed_while_it_runs_it_holds_until_cleanup(desk: Desk) -> None:
    desk.client().kill()
    assert not desk.kernel.hub.devices()
    desk.held_in()
    # The next start takes it over, and is killed too; after a reboot only the journal is left.
    desk.client().kill()
    assert not desk.kernel.hub.devices()
    desk.held_in()
    disturbances.reboot(desk.mac)
    fresh = desk.mac.snapshot()
    done = desk.links.cleanup(desk.host)
    assert not done.returncode, done.stderr
    assert desk.mac.snapshot() == fresh


def test_what_others_change_is_put_back(desk: Desk) -> None:
    role = desk.client()
    standing = desk.mac.read()
    anchor = standing.pf.anchors["com.apple/010.cryprq-proxy"]
    disturbances.anchor_flushed(desk.mac, "com.apple/010.cryprq-proxy")
    until(
        lambda: desk.mac.read().pf.anchors.get("com.apple/010.cryprq-proxy") == anchor, "the rules are back"
    )
    disturbances.pf_disabled(desk.mac)
    until(lambda: desk.mac.read().pf.enabled, "pf is enabled again")
    disturbances.delete_routes(desk.mac, ["0.0.0.0/1"])
    until(
        lambda: any(each.destination == "0.0.0.0/1" for each in desk.mac.read().routes), "the route is back"
    )
    key = "State:/Network/Service/cryprq-proxy/DNS"
    disturbances.resolver_removed(desk.mac, key)
    until(lambda: key in desk.mac.read().store, "the resolver is back")
    desk.held_in()
    desk.programs.ping(SERVER4)
    assert role.stop() == 0
    assert desk.mac.snapshot() == desk.before
