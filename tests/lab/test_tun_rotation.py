"""Keys rotated every second under load: not a packet is lost for it, on the lane and on the reliable link."""

from __future__ import annotations

from typing import Any

from tests.support.config_files import Settings
from tests.support.lab.flows import Flow, Numbers, lane, lane_is
from tests.support.lab.hosts import SERVER4, SERVER6, ThreeHosts
from tests.support.lab.links import Links
from tests.support.lab.net import until
from tests.support.lab.server import FarServer

EACH_SECOND: Settings = {"log_level": "info", "rotation": {"interval": 1.0}}
ROTATIONS = 6
PLENTY = 60.0
GENTLE = 0.02
"""Seconds between two pieces of a flow: little enough for the sockets' buffers while a busy machine reads nothing."""


def session(links: Links, name: str) -> dict[str, Any]:
    """The only session of a side, as its status has it."""
    told = links.status(name)
    found: dict[str, Any] = told["session"] if name == "client" else told["sessions"][0]
    return found


def rotated(links: Links, more: int = ROTATIONS) -> None:
    """Wait until the keys have been changed so many times more."""
    goal = session(links, "client")["rotations"] + more
    until(lambda: session(links, "client")["rotations"] >= goal, f"{more} rotations", PLENTY)


def sent_enough(*numbers: Numbers) -> None:
    """Wait until so many datagrams have gone out that each set of keys had its part."""
    until(
        lambda: min(each.sent for each in numbers) > 100 * ROTATIONS, f"{100 * ROTATIONS} datagrams", PLENTY
    )


def test_rotation_each_second_on_the_lane(three_hosts: ThreeHosts, server: FarServer, links: Links) -> None:
    links.exit(three_hosts.exit, EACH_SECOND)
    links.client(three_hosts.client, settings=EACH_SECOND)
    lane_is(links, True)
    client = three_hosts.client
    with Numbers(client, SERVER4) as four, Numbers(client, SERVER6) as six:
        rotated(links)
        sent_enough(four, six)
        assert four.finish() == []
        assert six.finish() == []
    with Flow(client, SERVER4, GENTLE) as flow, Flow(client, SERVER6, GENTLE) as flow6:
        flow.moves()
        rotated(links)
        assert flow.finish() and flow6.finish()
    # TCP sends again when a packet was only late, so what was lost is counted on the lane itself.
    until(lambda: all_arrived(links), "all datagrams of both sides have arrived")
    for side in (lane(links), exits_lane(links)):
        assert {cause: count for cause, count in side["drops"].items() if count} == {}
        assert side["path"]["falls"] == 0
    assert links.status()["carriers"] == 1


def exits_lane(links: Links) -> dict[str, Any]:
    found: dict[str, Any] = session(links, "exit")["packets"]["lane"]
    return found


def all_arrived(links: Links) -> bool:
    """Whether the counters of both sides agree: so they do when no keepalive is under way."""
    here, there = lane(links), exits_lane(links)
    return bool(here["sent"] == there["received"] > 1000 and there["sent"] == here["received"] > 1000)


def test_rotation_each_second_on_the_reliable_link(
    three_hosts: ThreeHosts, server: FarServer, links: Links
) -> None:
    """Packets in frames of the carrier, and no lane at all."""
    settings = {**EACH_SECOND, "carrier": "tcp"}
    links.exit(three_hosts.exit, EACH_SECOND)
    links.client(three_hosts.client, settings=settings)
    client = three_hosts.client
    with Numbers(client, SERVER4) as four:
        rotated(links)
        sent_enough(four)
        assert four.finish() == []
    for name in ("client", "exit"):
        assert session(links, name)["rotations"] >= ROTATIONS
        packets = links.status()["packets"] if name == "client" else session(links, name)["packets"]
        assert packets["dropped"]["packets"] == 0
        # Fewer than datagrams: some are joined.
        assert packets["on_carrier"]["sent"] > ROTATIONS
    # TCP fills the carrier, and what then waits for longer than a moment is dropped, rotation or not.
    with Flow(client, SERVER6) as flow:
        flow.moves()
        rotated(links)
        assert flow.finish()


def test_resumed_while_keys_rotate(three_hosts: ThreeHosts, server: FarServer, links: Links) -> None:
    """Carriers that come and go in between: each begins with keys of its own, and the lane follows."""
    links.exit(three_hosts.exit, EACH_SECOND)
    client = links.client(three_hosts.client, settings=EACH_SECOND)
    lane_is(links, True)
    with Flow(three_hosts.client, SERVER4) as flow:
        for number in range(3):
            rotated(links, 1)
            written = client.written
            three_hosts.move_client(f"192.168.77.{50 + number}/24", f"2a01:e0a:77::{50 + number}/64")
            client.says("link has another path", since=written)
            lane_is(links, True)
            flow.moves()
        assert flow.finish()
    for side in (lane(links), exits_lane(links)):
        assert side["drops"]["tag"] == 0
