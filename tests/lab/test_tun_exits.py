"""Two exits in system-wide mode: when one is gone, the other's addresses come into force, and the first one's again.

The second exit has another pool and carries no IPv6, so that device, routes, forwarder, filter and resolver all have to
follow. It runs on the far server; what is asked through it is a web server on the first exit's host.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.support.config_files import Settings
from tests.support.lab.hosts import EXIT4, EXIT6, SERVER4, SERVER6
from tests.support.lab.links import PORT
from tests.support.lab.net import LONG, until
from tests.support.lab.server import FarServer
from tests.support.lab.stage import TUN, Stage, beside_the_link

POOL4 = "198.19.0.0/16"


@pytest.fixture
def stage(namespaces: None) -> Iterator[Stage]:
    with Stage() as stage:
        stage.hosts.server.ip("-6 route del default")
        stage.hosts.server.ip("-6 route add 2a01:4f8:10::/64 via 2606:2800:20::1")
        yield stage


def test_another_exit_takes_over_and_gives_back(stage: Stage) -> None:
    second = stage.links.exit(stage.hosts.server, {"tun": {"pool4": POOL4}}, name="exit2")
    exits = [
        {"name": "one", "priority": 1, "peer": f"cryprq://{stage.links.identity('exit')[1]}@{EXIT4}:{PORT}"},
        {
            "name": "two",
            "priority": 2,
            "peer": f"cryprq://{stage.links.identity('exit2')[1]}@{SERVER4}:{PORT}",
        },
    ]
    settings = {"peer": [], "exit": exits, "failback": 1.0}

    def nameservers() -> list[str]:
        lines = stage.client.resolv_conf.read_text().splitlines()
        return [line.partition(" ")[2] for line in lines if line.startswith("nameserver")]

    def addresses() -> list[str]:
        found: list[str] = stage.status()["addresses"]
        return found

    def named() -> str:
        return stage.client.attempt(["dig", "+short", "+tries=1", f"+time={LONG:g}", "a.example.com"]).stdout

    with FarServer(stage.lab, stage.hosts.exit, only=("http",)), stage.tunnel(settings=settings) as client:
        with stage.wire() as wire:
            # The other exit may be there sooner.
            until(lambda: addresses()[0].startswith("198.18."), "the first exit is active")
            first = addresses()
            assert sorted(stage.status()["exits"]) == [[EXIT4, PORT], [SERVER4, PORT]]
            assert stage.fetch(SERVER6) == EXIT6
            assert len(nameservers()) == 2

            def meanwhile() -> None:
                client.says("handed out other addresses")
                until(lambda: stage.fetches(EXIT4) == SERVER4, "packets go through the second exit")
                until(lambda: addresses()[0].startswith("198.19."), "all has followed")
                assert len(addresses()) == len(nameservers()) == 1
                assert stage.client.ip(f"-6 addr show dev {TUN}") == ""
                assert named() == "192.0.2.7\n"
                assert not stage.fetches(SERVER6), "no IPv6 there"

            stage.restart_exit(meanwhile)
            until(lambda: stage.fetches(SERVER6) == EXIT6, "the first one has taken over again")
            until(lambda: addresses() == first, "all has followed")
            assert len(nameservers()) == 2
            assert named() == "192.0.2.7\n"
        assert not beside_the_link(wire, (EXIT4, EXIT6, SERVER4))
        assert second.process.poll() is None


def test_exits_come_and_go_while_it_runs(stage: Stage) -> None:
    """A reload has packets go by an exit that was not there at the start; the filter lets out to those that there are,
    the blocklist is another one, and a forward leads through the tunnel."""
    stage.links.exit(stage.hosts.server, {"tun": {"pool4": POOL4}}, name="exit2")
    one, two = (
        {"name": name, "peer": f"cryprq://{stage.links.identity(identity)[1]}@{address}:{PORT}"}
        for name, identity, address in (("one", "exit", EXIT4), ("two", "exit2", SERVER4))
    )

    def settings(*exits: Settings, block: str = "ads.example.com") -> Settings:
        ranked = [{**exit, "priority": number} for number, exit in enumerate(exits, 1)]
        dns = {"block": [block]}
        return {
            "peer": [],
            "exit": ranked,
            "failback": 0.5,
            "admin": "off",
            "tun": {"state_dir": str(stage.links.state_dir), "dns": dns},
        }

    def pool(prefix: str) -> bool:
        return str(stage.status()["addresses"][0]).startswith(prefix)

    def allowed() -> list[list[object]]:
        return sorted(stage.status()["exits"])

    def status_of(name: str) -> str:
        return stage.client.attempt(["dig", "+tries=1", f"+time={LONG:g}", name]).stdout

    def by_forward() -> str:
        """As stage.fetches."""
        page = "http://127.0.0.1:8081/address"
        return stage.client.attempt(["curl", "-s", "--max-time", "5", page]).stdout

    with (
        FarServer(stage.lab, stage.hosts.exit, only=("http",)),
        stage.tunnel(settings=settings(one)) as client,
        stage.wire() as wire,
    ):

        def reload(wanted: Settings) -> None:
            written = client.written
            stage.links.config("client", wanted)
            client.process.send_signal(signal.SIGHUP)
            client.says("reloaded: ", since=written)

        assert pool("198.18.")
        assert allowed() == [[EXIT4, PORT]]
        assert "NOERROR" in status_of("a.example.com")
        reload(
            {**settings(two, one, block="a.example.com"), "forward": [{"listen": 8081, "to": f"{EXIT4}:80"}]}
        )
        assert allowed() == [[EXIT4, PORT], [SERVER4, PORT]]
        until(lambda: pool("198.19."), "the new exit, which is preferred, is active")
        until(lambda: stage.fetches(EXIT4) == SERVER4, "packets go through it")
        assert by_forward() == SERVER4, "a forward follows as well"
        assert "NXDOMAIN" in status_of("a.example.com")
        reload(settings(two))
        assert not by_forward(), "and is gone"
        until(lambda: allowed() == [[SERVER4, PORT]], "nothing gets out to the first one any more")
        assert stage.fetches(EXIT4) == SERVER4
        assert "NOERROR" in status_of("a.example.com")
        reload(settings(one))
        until(lambda: pool("198.18."), "the first one again, and no other")
        until(lambda: stage.fetches(SERVER6) == EXIT6, "all has followed")
        until(lambda: allowed() == [[EXIT4, PORT]], "nothing gets out to the second one any more")
    assert not beside_the_link(wire, (EXIT4, EXIT6, SERVER4))
