"""A person's rules with the whole program in system-wide mode: as written in client.toml, and as they change there.

The far server tells which way a request took, a capture that nothing else went past the tunnel.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.support.config_files import Settings, toml
from tests.support.lab.hosts import CLIENT6, EXIT4, EXIT6, ROUTER_SERVER4, SERVER4, SERVER6
from tests.support.lab.links import Role
from tests.support.lab.net import LONG
from tests.support.lab.server import ECHO_PORT
from tests.support.lab.stage import OTHER4, OTHER6, Stage, beside_the_link, host_of

VIRTUAL4: Final = "198.18.255.53"
WAYS: Final = ((SERVER4, ROUTER_SERVER4, EXIT4), (SERVER6, CLIENT6, EXIT6))
NAMES: Final = {
    "www.example.com": SERVER4,
    "ads.example.com": SERVER4,
    "good.ads.example.com": SERVER4,
    "other.example.com": OTHER4,
}


@pytest.fixture(scope="module")
def stage(namespaces: None) -> Iterator[Stage]:
    with Stage() as stage:
        stage.server.dns.answers |= {(f"{name}.", "A"): [address] for name, address in NAMES.items()}
        yield stage


def rules(*found: Settings, default: str = "tunnel") -> dict[str, Any]:
    return {"default": default, "rule": list(found)}


def resolved(stage: Stage, name: str) -> str:
    """The first line of dig: status and address."""
    said = stage.client.run(["dig", "+tries=1", f"+time={LONG:g}", f"@{VIRTUAL4}", name])
    status = re.search(r"status: (\w+)", said)
    assert status is not None, said
    address = re.search(r"IN\s+A\s+(\S+)", said.partition("ANSWER SECTION")[2])
    return f"{status[1]} {address[1] if address else ''}".strip()


def rewrite(stage: Stage, role: Role, settings: Settings, says: str) -> None:
    """Another client.toml in one step, and the signal; returns when the client has said so."""
    file = stage.links.directory / "client.toml"
    lines = [
        line for line in file.read_text().partition("[[")[0].splitlines() if not line.startswith("default")
    ]
    tables = "\n\n".join(["\n".join(lines[: _first_table(lines)]), toml(settings)])
    written = role.written
    new = file.with_suffix(".new")
    new.write_text(tables + "\n" + "\n".join(lines[_first_table(lines) :]) + "\n")
    new.chmod(0o600)
    new.rename(file)
    role.process.send_signal(signal.SIGHUP)
    role.says(says, since=written)


def _first_table(lines: list[str]) -> int:
    return next((at for at, line in enumerate(lines) if line.startswith("[")), len(lines))


def test_each_rule_does_its_work(stage: Stage) -> None:
    found = rules(
        {"to": "tunnel", "domains": [".good.ads.example.com"]},
        {"to": "block", "domains": [".ads.example.com"], "name": "no ads"},
        {"to": "tunnel", "cidrs": [SERVER4], "ports": [7]},
        {"to": "direct", "cidrs": [SERVER4, f"{SERVER6}/128"]},
        {"to": "block", "cidrs": ["93.184.20.0/24", "2606:2800:20::/64"], "ports": ["70-90"]},
    )
    with stage.tunnel(settings=found) as role, stage.wire() as wire:
        for address, outside, _ in WAYS:
            assert stage.fetch(address) == outside
            assert stage.ping(address)
        assert stage.echo(SERVER4) == EXIT4, "an earlier rule keeps one port inside"
        for address in (OTHER4, OTHER6):
            assert stage.refuses(address)
        with stage.socket(OTHER4) as sock:
            sock.connect((OTHER4, ECHO_PORT))
        assert resolved(stage, "ads.example.com") == "NXDOMAIN"
        assert resolved(stage, "x.ads.example.com") == "NXDOMAIN"
        for name in ("good.ads.example.com", "www.example.com", "other.example.com"):
            assert resolved(stage, name) == f"NOERROR {NAMES[name]}"
        # A name has the rule of its address; and so does a program that asks the proxy.
        assert stage.fetch("www.example.com") == ROUTER_SERVER4
        proxied = ["curl", "-sS", "--max-time", f"{LONG:g}", "-x", "socks5h://127.0.0.1:1080"]
        assert stage.client.run([*proxied, f"http://{host_of(SERVER6)}/address"]) == CLIENT6
        assert stage.client.attempt([*proxied, f"http://{OTHER4}/address"]).returncode
        status = stage.status()
        assert {key: status["rules"][key] for key in ("rules", "dns", "filter", "default")} == {
            "rules": 5,
            "dns": 2,
            "filter": 3,
            "default": "tunnel",
        }
        assert status["kill_switch"]["kept_in"]["by_rule"] >= 2
        assert status["dns"]["counters"]["blocked"] == 2
        assert role.process.poll() is None
    assert {packet.destination for packet in beside_the_link(wire)} == {SERVER4, SERVER6}
    assert not [
        packet for packet in beside_the_link(wire) if 53 in (packet.source_port, packet.destination_port)
    ]
    assert not stage.resolver.visits


def test_the_default_may_be_direct(stage: Stage) -> None:
    found = rules(
        {"to": "tunnel", "cidrs": [OTHER4, OTHER6]}, {"to": "block", "ports": [7]}, default="direct"
    )
    with stage.tunnel(settings=found), stage.wire() as wire:
        for address, outside, _ in WAYS:
            assert stage.fetch(address) == outside
        assert (stage.fetch(OTHER4), stage.fetch(OTHER6)) == (EXIT4, EXIT6)
        assert resolved(stage, "www.example.com") == f"NOERROR {SERVER4}"
        with pytest.raises(PermissionError):
            stage.echo(SERVER4)
    assert not [
        packet for packet in beside_the_link(wire) if 53 in (packet.source_port, packet.destination_port)
    ]
    assert not {OTHER4, OTHER6} & {packet.destination for packet in beside_the_link(wire)}
    assert not stage.resolver.visits


def test_after_a_crash_nothing_gets_out(stage: Stage) -> None:
    """What is direct neither: a packet gets its mark on the way into the tunnel, and that is gone."""
    found = rules({"to": "direct", "cidrs": [SERVER4]})
    before = stage.client.snapshot()
    role = stage.links.client(stage.client, settings=found)
    assert (stage.fetch(SERVER4), stage.fetch(OTHER4)) == (ROUTER_SERVER4, EXIT4)
    role.kill()
    stage.links.roles.remove(role)
    with stage.wire() as wire:
        for address in (SERVER4, OTHER4, SERVER6):
            assert not stage.fetches(address)
    assert not beside_the_link(wire)
    done = stage.links.call(stage.client, "cleanup", "--state-dir", str(stage.links.state_dir))
    assert not done.returncode, done.stderr
    stage.unchanged_since(before)


def test_rules_change_while_it_runs(stage: Stage) -> None:
    """Also to none and back; rules that cannot be kept change nothing, and the log says why."""
    with stage.tunnel(settings=rules({"to": "block", "domains": ["ads.example.com"]})) as role:
        assert stage.fetch(SERVER4) == EXIT4
        assert resolved(stage, "ads.example.com") == "NXDOMAIN"
        direct = {"to": "direct", "cidrs": [SERVER4, SERVER6]}
        rewrite(
            stage, role, rules(direct, {"to": "block", "domains": ["www.example.com"]}), "reloaded: 2 rules"
        )
        for address, outside, _ in WAYS:
            assert stage.fetch(address) == outside
        assert resolved(stage, "ads.example.com") == f"NOERROR {SERVER4}"
        assert resolved(stage, "www.example.com") == "NXDOMAIN"
        rewrite(
            stage,
            role,
            rules({"to": "direct", "domains": ["corp.example.com"], "name": "the office"}),
            r"do not work with --tun: the office says \"direct\" for names",
        )
        for address, outside, _ in WAYS:
            assert stage.fetch(address) == outside
        assert resolved(stage, "www.example.com") == "NXDOMAIN"
        assert stage.status()["rules"]["rules"] == 2
        rewrite(stage, role, {}, "reloaded: 0 rules")
        for address, _, inside in WAYS:
            assert stage.fetch(address) == inside
        assert resolved(stage, "www.example.com") == f"NOERROR {SERVER4}"
        stage.links.roles.remove(role)  # its log has an error line, which is right


@pytest.mark.parametrize(
    ("found", "options", "says"),
    [
        (rules({"to": "direct", "domains": ["corp.example.com"]}), (), 'rule 1 says "direct" for names'),
        (
            rules({"to": "block", "domains": ["ads.example.com"], "ports": [80], "name": "no ads"}),
            (),
            "no ads has names and ports",
        ),
        (
            rules({"to": "tunnel", "ports": [22]}, {"to": "block", "domains": ["ads.example.com"]}),
            (),
            "rule 2 blocks names, but rule 1 stands before it",
        ),
        (rules(default="direct"), ("--lan", "block"), 'the default "direct" lets out what --lan block'),
    ],
)
def test_rules_that_cannot_be_kept_are_refused(
    stage: Stage, found: Settings, options: tuple[str, ...], says: str
) -> None:
    settings = {"peer": f"cryprq://{stage.links.identity('exit')[1]}@{EXIT4}:4433", **found}
    file = stage.links.config("refused", settings)
    before = stage.client.snapshot()
    done = stage.links.call(stage.client, "--tun", *options, "--config", str(file))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert says in line
    stage.unchanged_since(before)
