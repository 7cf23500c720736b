"""System-wide mode while the network around it fails: flows inside the tunnel go on, byte for byte.

The lane is blocked and comes back, the carrier is cut, client and NAT change addresses, the default route moves to
another interface, the path's MTU shrinks. Flows go to the echo service and are compared (flows.py).
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.config_files import Settings
from tests.support.lab.capture import Capture
from tests.support.lab.flows import Flow, lane, lane_is
from tests.support.lab.hosts import (
    EXIT4,
    EXIT6,
    ROUTER_EXIT4,
    ROUTER_LAN4,
    ROUTER_LAN6,
    SERVER4,
    SERVER6,
    ThreeHosts,
)
from tests.support.lab.links import PORT, Links
from tests.support.lab.net import until
from tests.support.lab.server import FarServer
from tun.device.packets import Drop

QUIET: Settings = {"log_level": "info"}
SMALL_PATH = 1280 - 28
"""Bytes of the largest UDP payload on a path with an MTU of 1280."""


@pytest.fixture
def tunnel(three_hosts: ThreeHosts, server: FarServer, links: Links) -> ThreeHosts:
    """The standard hosts with exit and client running, and the lane up."""
    links.exit(three_hosts.exit, QUIET)
    links.client(three_hosts.client, settings=QUIET)
    lane_is(links, True)
    return three_hosts


def tcp_is(links: Links, there: bool) -> None:
    """Whether the client's session has a path beside the lane."""
    until(
        lambda: any(path["kind"] != "lane" for path in links.status()["session"]["paths"]) is there,
        f"a path over TCP is {'there' if there else 'gone'}",
        30,
    )


def carriers(links: Links) -> int:
    """How many there have been so far."""
    number: int = links.status()["carriers"]
    return number


def exits_lane(links: Links) -> dict[str, Any]:
    """The exit's part about the lane of its only session."""
    (session,) = links.status("exit")["sessions"]
    found: dict[str, Any] = session["packets"]["lane"]
    return found


def seen_at(links: Links) -> str:
    """The address to which the exit sends."""
    peer: str = exits_lane(links)["peer"]
    return peer.split(":")[0]


def test_udp_blocked_in_mid_transfer_and_unblocked(tunnel: ThreeHosts, links: Links) -> None:
    """Packets take the reliable link meanwhile, and the same TCP connection never notices."""
    with Flow(tunnel.client, SERVER4) as flow, Flow(tunnel.client, SERVER6) as flow6:
        flow.moves()
        tunnel.block_udp()
        lane_is(links, False)
        until(lambda: "not answered" in lane(links)["why"], "the status says why")
        flow.moves()
        flow6.moves()
        before = links.status()["packets"]["on_carrier"]
        flow.moves()
        after = links.status()["packets"]["on_carrier"]
        assert after["sent"] > before["sent"]
        assert after["received"] > before["received"]
        tunnel.unblock_udp()
        lane_is(links, True)
        flow.moves()
        sent = lane(links)["sent"]
        flow.moves()
        assert lane(links)["sent"] > sent
        assert flow.finish() and flow6.finish()
    assert carriers(links) == 1
    assert lane(links)["path"]["falls"] == 1


@pytest.mark.parametrize("way", ["dport", "sport"], ids=["to the exit", "from the exit"])
def test_udp_blocked_in_one_direction(way: str, tunnel: ThreeHosts, links: Links) -> None:
    """Each side notices for itself: the one by its probes, the other by the silence."""
    with Flow(tunnel.client, SERVER4) as flow:
        flow.moves()
        tunnel.router.nft(
            f"table inet cut {{ chain f {{ type filter hook forward priority 0; udp {way} {PORT} drop; }}; }}"
        )
        lane_is(links, False)
        until(lambda: not exits_lane(links)["up"], "the exit has noticed too", 30)
        flow.moves()
        tunnel.router.nft("delete table inet cut")
        lane_is(links, True)
        until(lambda: bool(exits_lane(links)["up"]), "the exit's lane is back", 30)
        flow.moves()
        assert flow.finish()
    assert carriers(links) == 1


def test_the_carrier_is_cut_while_the_lane_runs(tunnel: ThreeHosts, links: Links) -> None:
    """Packets go on by the lane meanwhile, and the session is resumed afterwards."""
    client = links.roles[-1]
    with Flow(tunnel.client, SERVER4) as flow:
        flow.moves()
        tunnel.router.nft(
            f"table inet cut {{ chain f {{ type filter hook forward priority 0; "
            f"tcp dport {PORT} reject with tcp reset; tcp sport {PORT} reject with tcp reset; }}; }}"
        )
        tcp_is(links, False)
        assert lane(links)["up"]
        flow.moves()
        assert links.status()["link"] == "up"
        written = client.written
        tunnel.router.nft("delete table inet cut")
        client.says("link resumed", since=written)
        tcp_is(links, True)
        flow.moves()
        assert flow.finish()
    assert lane(links)["path"]["falls"] == 0


def test_the_client_changes_its_addresses(tunnel: ThreeHosts, links: Links) -> None:
    client = links.roles[-1]
    with Flow(tunnel.client, SERVER4) as flow, Flow(tunnel.client, SERVER6) as flow6:
        flow.moves()
        tunnel.move_client("192.168.77.99/24", "2a01:e0a:77::99/64")
        client.says("link has another path")
        lane_is(links, True)
        flow.moves()
        flow6.moves()
        assert flow.finish() and flow6.finish()


def test_a_nat_on_the_way_gives_the_client_another_address(tunnel: ThreeHosts, links: Links) -> None:
    """Only the exit can see it, by the next datagram; it challenges the new address and goes on there."""
    with Flow(tunnel.client, SERVER4) as flow:
        flow.moves()
        router = tunnel.router
        # What was masqueraded with an address is forgotten when that goes; the new one is chosen from now on.
        router.ip(f"addr del {ROUTER_EXIT4}/24 dev to-exit")
        tunnel.lab.address(router, "to-exit", "5.75.10.66/24", f"{ROUTER_EXIT4}/24")
        until(lambda: seen_at(links) == "5.75.10.66", "the exit sends to the new address")
        flow.moves()
        assert flow.finish()
    assert seen_at(links) == "5.75.10.66"


@pytest.mark.parametrize("address", [f"{EXIT4}:{PORT}", f"[{EXIT6}]:{PORT}"], ids=["over IPv4", "over IPv6"])
def test_the_path_mtu_drops_to_1280(
    address: str, three_hosts: ThreeHosts, server: FarServer, links: Links
) -> None:
    hosts = three_hosts
    links.exit(hosts.exit, QUIET)
    links.client(hosts.client, settings=QUIET, address=address)
    lane_is(links, True)
    with Flow(hosts.client, SERVER4) as flow, Flow(hosts.client, SERVER6) as flow6:
        flow.moves()
        until(lambda: lane(links)["size"] > SMALL_PATH, "the lane has found the whole path", 30)
        hosts.path_mtu(1280)
        until(lambda: lane(links)["size"] <= SMALL_PATH, "the lane has found the smaller path", 30)
        flow.moves()
        flow6.moves()
        assert flow.finish() and flow6.finish()
    assert lane(links)["size"] <= SMALL_PATH
    assert lane(links)["up"]
    assert carriers(links) == 1


def test_the_default_route_moves_to_another_interface(tunnel: ThreeHosts, links: Links) -> None:
    """Wi-Fi to cable: the link follows, flows stay, and nothing but the link leaves by the new interface."""
    client = links.roles[-1]
    with Flow(tunnel.client, SERVER4) as flow, Flow(tunnel.client, SERVER6) as flow6:
        flow.moves()
        tunnel.lab.veth(tunnel.client, "eth1", tunnel.router, "lan-cable")
        tunnel.router.ip("link set lan-cable master lan")
        with Capture(tunnel.client, "eth1") as capture:
            tunnel.lab.address(tunnel.client, "eth1", "192.168.77.3/24", "2a01:e0a:77::3/64")
            tunnel.client.ip(f"route replace default via {ROUTER_LAN4} dev eth1")
            tunnel.client.ip(f"-6 route replace default via {ROUTER_LAN6} dev eth1")
            tunnel.client.ip("link set eth0 down")
            client.says("link has another path")
            lane_is(links, True)
            flow.moves()
            flow6.moves()
            assert flow.finish() and flow6.finish()
    assert {(p.destination, p.destination_port) for p in capture.sent()} == {(EXIT4, PORT)}


OFF: Settings = {"lane": {"offload": "off"}, "tun": {"offload": "off"}}


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (OFF, {}),
        ({}, OFF),
        (OFF, OFF),
        ({"lane": {"offload": "off"}}, {"tun": {"offload": "off"}}),
        ({"carrier": "tcp"}, {}),
    ],
    ids=["client", "exit", "both", "crosswise", "no lane"],
)
def test_without_offloads(
    here: Settings, there: Settings, three_hosts: ThreeHosts, server: FarServer, links: Links
) -> None:
    links.exit(three_hosts.exit, {**QUIET, **there})
    links.client(three_hosts.client, settings={**QUIET, **here})
    with (
        Flow(three_hosts.client, SERVER4, pause=0) as flow,
        Flow(three_hosts.client, SERVER6, pause=0) as flow6,
    ):
        flow.moves(2 << 20)
        flow6.moves(2 << 20)
        assert flow.finish() and flow6.finish()
    system = links.status()["tun"]
    # Two flows that send as fast as they can may be faster than the link.
    assert not {*system["device"]["drops"]} - {Drop.QUEUE.value}
    if here.get("tun"):
        assert not system["device"]["reads"]


def test_two_clients_of_one_exit(three_hosts: ThreeHosts, server: FarServer, links: Links) -> None:
    """Each has addresses of its own, both are the exit to the world, and one cannot reach the other."""
    hosts = three_hosts
    other = hosts.lab.namespace("other")
    hosts.plug(other, "192.168.77.4/24", "2a01:e0a:77::4/64")
    links.exit(hosts.exit, QUIET, clients=("client", "other"))
    links.client(hosts.client, settings=QUIET)
    links.client(
        other, settings={**QUIET, "tun": {"state_dir": str(links.directory / "state-other")}}, name="other"
    )
    lane_is(links, True)
    lane_is(links, True, "other")
    mine, theirs = (links.status(name)["tun"]["addresses"] for name in ("client", "other"))
    assert not {*mine} & {*theirs}
    server.forget()
    with (
        Flow(hosts.client, SERVER4) as one,
        Flow(other, SERVER4) as two,
        Flow(hosts.client, SERVER6) as three,
        Flow(other, SERVER6) as four,
    ):
        for flow in (one, two, three, four):
            flow.moves()
        for flow in (one, two, three, four):
            assert flow.finish()
    assert server.sources("echo") == {EXIT4, EXIT6}
    for address in theirs:
        assert hosts.client.attempt(["ping", "-c", "1", "-W", "1", address]).returncode
