"""An exit whose DNS server answers over UDP alone: programs that --tun routes find names all the same."""

from __future__ import annotations

import pytest

from tests.support.lab.stage import Stage

BLOCKED = (
    "add table inet lab; add chain inet lab in {{ type filter hook input priority 0; }}; "
    "add rule inet lab in tcp dport 53 {}"
)


@pytest.mark.parametrize("verdict", ["reject with tcp reset", "drop"])
def test_names_are_found_over_udp(verdict: str, namespaces: None) -> None:
    with Stage() as stage:
        server = stage.server
        stage.hosts.server.run(["nft", BLOCKED.format(verdict)])
        with stage.tunnel() as role:
            assert stage.client.run(["dig", "+short", "+tries=3", "a.example.com"]) == "192.0.2.7\n"
            asked = [visit.service for visit in server.visits if visit.what == "a.example.com. A"]
            assert asked == ["dns-udp"], role.log
