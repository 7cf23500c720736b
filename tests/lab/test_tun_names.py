"""The exit's name in system-wide mode, where the only resolver of the client is one on the client itself.

It is dnsmasq without a cache, so whatever it is asked it asks the network's resolver, by sockets that the closed filter
does not let out.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.support.lab.hosts import EXIT4, ROUTER_LAN4
from tests.support.lab.links import PORT
from tests.support.lab.net import until
from tests.support.lab.stage import Stage, beside_the_link

NAME = "exit.example.com"
DNSMASQ = (
    *("--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--cache-size=0", "--pid-file="),
    *(f"--server={ROUTER_LAN4}", "--listen-address=127.0.0.1", "--bind-interfaces", "--user=root"),
)


@pytest.fixture(scope="module")
def stage(namespaces: None) -> Iterator[Stage]:
    """With a local resolver; the exit's name is known to the network's."""
    if shutil.which("dnsmasq") is None:
        pytest.skip("dnsmasq is not installed; on Debian: apt-get install dnsmasq-base")
    with Stage() as stage:
        stage.resolver.dns.answers[(f"{NAME}.", "A")] = [EXIT4]
        stage.client.popen(["dnsmasq", *DNSMASQ])
        until(lambda: "127.0.0.1:53" in stage.client.run(["ss", "-Hlun"]), "dnsmasq listens")
        stage.client.resolv_conf.write_text("nameserver 127.0.0.1\n")
        yield stage


def test_a_first_start_and_a_later_one(stage: Stage) -> None:
    """The first start asks before the filter closes. After a kill the filter stands: the last addresses are used."""
    client, address = stage.client, f"{NAME}:{PORT}"
    before = client.snapshot()
    first = stage.links.client(client, address=address)
    assert {visit.what for visit in stage.resolver.visits} >= {f"{NAME}. A"}
    for server in ((), ("@127.0.0.1",)):
        # What the local resolver asks others goes through the tunnel as well.
        assert client.run(["dig", "+short", *server, "a.example.com"]) == "192.0.2.7\n"
    assert {visit.what.partition(" ")[0] for visit in stage.resolver.visits} == {f"{NAME}."}
    first.kill()
    stage.resolver.forget()
    with stage.wire() as wire:
        later = stage.links.client(client, address=address)
        assert "last known address" in later.log
        assert client.run(["dig", "+short", "a.example.com"]) == "192.0.2.7\n"
        assert not later.stop(), later.log
    assert not beside_the_link(wire)
    assert not stage.resolver.visits
    stage.unchanged_since(before)
