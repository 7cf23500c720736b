"""`cryprq-proxy leaktest` beside a running client: nothing leaks, and what is broken on purpose is found."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import Any

from tests.support.lab.hosts import ROUTER_LAN4, SERVER4, SERVER6, ThreeHosts
from tests.support.lab.links import Links
from tests.support.lab.net import Namespace
from tests.support.lab.server import FarServer

LIMIT = 60.0


def leaktest(links: Links, host: Namespace, *arguments: str) -> subprocess.CompletedProcess[str]:
    config = str(links.directory / "client.toml")
    return links.call(host, "leaktest", "--config", config, *arguments, limit=LIMIT)


def told(done: subprocess.CompletedProcess[str]) -> tuple[int, dict[str, Any], Counter[str]]:
    """Exit code, the JSON, and how many canaries met with each verdict."""
    assert done.stderr == ""
    plain: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, plain, Counter(each["verdict"] for each in plain["canaries"])


def past_the_tunnel(host: Namespace) -> None:
    """A rule before all of ours, as another VPN program or a confused script might add it."""
    host.ip(f"rule add to {SERVER4} lookup main priority 100")
    host.ip(f"-6 rule add to {SERVER6} lookup main priority 100")


def test_nothing_leaks_and_a_rule_of_somebody_else_only_blocks(
    three_hosts: ThreeHosts, server: FarServer, links: Links
) -> None:
    client = three_hosts.client
    links.exit(three_hosts.exit)
    links.client(client)
    to = ("--target", SERVER4, "--target", SERVER6)
    done = leaktest(links, client, *to)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("no leak: 10 tunnelled, 4 answered here, 8 blocked")

    past_the_tunnel(client)
    code, plain, verdicts = told(leaktest(links, client, "--json", *to))
    assert (code, plain["leak"], plain["missed"]) == (0, False, 0)
    assert set(verdicts) == {"blocked", "answered here"}, "the kill switch does not trust the routes"
    assert plain["others"] == []


def test_a_broken_filter_and_a_broken_route_are_a_leak(
    three_hosts: ThreeHosts, server: FarServer, links: Links
) -> None:
    """The program would put its filter back at once, so nft changes nothing for it from then on."""
    client = three_hosts.client
    links.exit(three_hosts.exit)
    gone = links.directory / "gone"
    programs = links.directory / "programs"
    programs.mkdir()
    (programs / "nft").write_text(
        f'#!/bin/sh\n[ "$1" = -f -a -e {gone} ] && exit 1\nPATH=$PATH:/usr/sbin:/sbin exec nft "$@"\n'
    )
    (programs / "nft").chmod(0o755)
    usual = links.environment["PATH"]
    links.environment["PATH"] = f"{programs}:{usual}"
    links.client(client)
    links.environment["PATH"] = usual
    past_the_tunnel(client)
    gone.touch()
    client.nft("insert rule inet cryprq output accept")
    done = leaktest(links, client, "--target", SERVER4)
    gone.unlink()
    assert done.returncode == 1
    assert "LEAK: " in done.stdout.splitlines()[-1]
    leaked = [line.split()[:2] for line in done.stdout.splitlines() if "LEAKED" in line and "eth0 x" in line]
    assert ["ping", SERVER4] in leaked and ["QUIC", f"{SERVER4}:443"] in leaked


def test_without_the_kill_switch_a_rule_of_somebody_else_is_a_leak(
    three_hosts: ThreeHosts, server: FarServer, links: Links
) -> None:
    client = three_hosts.client
    links.exit(three_hosts.exit)
    links.client(client, "--kill-switch", "off")
    past_the_tunnel(client)
    code, plain, verdicts = told(leaktest(links, client, "--json", "--target", SERVER4, "--target", SERVER6))
    assert (code, plain["leak"]) == (1, True)
    leaked = {(each["name"], each["target"]) for each in plain["canaries"] if each["verdict"] == "LEAKED"}
    assert {
        ("ping", SERVER4),
        ("ping", SERVER6),
        ("TCP", f"{SERVER4}:443"),
        ("STUN", f"[{SERVER6}]:3478"),
    } <= leaked
    assert verdicts["answered here"] == 4, "questions are caught before they are routed"


def test_what_the_settings_let_out_is_no_leak(
    three_hosts: ThreeHosts, server: FarServer, links: Links
) -> None:
    client = three_hosts.client
    links.exit(three_hosts.exit)
    links.client(client, "--exclude", f"{SERVER4}/32")
    code, plain, verdicts = told(
        leaktest(links, client, "--json", "--target", SERVER4, "--target", ROUTER_LAN4)
    )
    assert (code, plain["leak"]) == (0, False)
    assert verdicts["allowed"] > 0
    allowed = {each["target"] for each in plain["canaries"] if each["verdict"] == "allowed"}
    assert {SERVER4, ROUTER_LAN4} <= allowed


def test_where_nothing_can_be_proved_it_says_so(three_hosts: ThreeHosts, links: Links) -> None:
    client = three_hosts.client
    links.exit(three_hosts.exit)
    proxy = links.client(client, tun=False)
    done = leaktest(links, client)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        f"no client in system-wide mode is running: start {sys.executable} -m cryprq_proxy --tun first"
        in done.stderr
    )
    paused = links.call(client, "pause", "5", "--config", str(links.directory / "client.toml"))
    assert paused.returncode == 1
    assert "it does not run with --tun, so there is nothing to pause or confirm" in paused.stderr
    assert proxy.stop() == 0
    done = leaktest(links, client)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no cryprq-proxy is running" in done.stderr

    links.client(client)
    assert links.call(client, "pause", "60", "--config", str(links.directory / "client.toml")).returncode == 0
    done = leaktest(links, client)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the client is paused, so all may get out: test again in " in done.stderr
