"""systemd-resolved itself, left alone or set: its own questions come to the forwarder, or a sentence says why not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.lab import resolved
from tests.support.lab.hosts import ROUTER_LAN4
from tests.support.lab.net import LONG
from tests.support.lab.stage import Stage, beside_the_link

LEAVE = ("--resolver", "leave")


@pytest.fixture
def program() -> Path:
    found = resolved.program()
    if found is None or shutil.which("dbus-daemon") is None:
        pytest.skip("systemd-resolved or dbus-daemon is not here; on Debian: make lab-packages")
    return found


def asks(stage: Stage, *options: str) -> str:
    done = stage.client.attempt(["dig", "+short", f"+time={LONG:g}", "+tries=1", *options])
    return done.stdout if not done.returncode else ""


@pytest.mark.parametrize("servers", [f"DNS={ROUTER_LAN4}", "DNS=2a01:e0a:77::1", "DNSOverTLS=opportunistic"])
@pytest.mark.parametrize("options", [LEAVE, ()], ids=["left alone", "set"])
def test_names_go_through_the_tunnel(
    stage: Stage, program: Path, servers: str, options: tuple[str, ...]
) -> None:
    """By UDP, by TCP after a truncated answer, and by the C library; nothing in the clear."""
    stage.server.dns.answers["big.example.com.", "TXT"] = [f'"{i:03}{"x" * 200}"' for i in range(20)]
    if "DNS=" not in servers:
        servers += f"\nDNS={ROUTER_LAN4}"
    with resolved.resolved(stage.client, program, servers):
        stage.resolver.forget()
        with stage.wire() as wire, stage.tunnel(*options) as client:
            assert stage.status()["dns"]["resolver"] == ("left alone" if options else "systemd-resolved")
            assert asks(stage, "a.example.com") == "192.0.2.7\n"
            assert len(asks(stage, "+tcp", "big.example.com", "TXT").splitlines()) == 20
            assert stage.client.run(["getent", "ahostsv4", "a.example.com"]).startswith("192.0.2.7")
            assert stage.status()["dns"]["counters"]["questions"] >= 2
            assert "warning" not in client.log
            wire.stop()
            assert not stage.resolver.visits
            assert not beside_the_link(wire)


@pytest.mark.parametrize(
    ("servers", "why"),
    [
        ("DNS=fe80::1%eth0", "knows no server whose questions reach the forwarder"),
        (f"DNS={ROUTER_LAN4}\nDNSOverTLS=yes", "asks by TLS only, which is refused past the tunnel"),
    ],
)
def test_where_names_cannot_work_a_sentence_says_so(
    stage: Stage, program: Path, servers: str, why: str
) -> None:
    with resolved.resolved(stage.client, program, servers):
        stage.resolver.forget()
        with stage.wire() as wire, stage.tunnel(*LEAVE) as client:
            client.says(
                f"warning .*the resolver is left alone, but names do not work: systemd-resolved {why}"
            )
            asks(stage, "a.example.com")
            # Before the end: systemd-resolved goes on asking, and gets its answer when nothing of ours stands.
            wire.stop()
            assert not stage.resolver.visits
            assert not beside_the_link(wire)
