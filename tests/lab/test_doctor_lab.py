"""`cryprq-proxy doctor` with real hosts: what it says when the fault lies beyond the link."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

from cryprq_proxy import __version__
from cryprq_proxy.doctor.packet_filter import FirstPacket, culprit
from cryprq_proxy.exit.report import TRIAL_NAME
from tests.support.lab.hosts import SERVER4, ThreeHosts, three_hosts
from tests.support.lab.links import Links
from tests.support.lab.net import LONG, Lab
from tests.support.lab.server import FarServer

NAME = "www.example.test"
BEFORE = (
    *("leftovers", "configuration", "identity", "clock", "algorithms", "disk", "running", "rules", "name"),
    *("reach", "handshake", "link"),
)
BEYOND = ("exit", "exit's clock", "exit's routes", "exit's names", "other exits", "system's names", "target")
BEHIND = (
    *("UDP", "MTU", "round trip", "congestion", "throughput", "port", "PAC", "variables", "desktop"),
    "system-wide",
)
AT_EXIT = (
    *("leftovers", "configuration", "identity", "clock", "algorithms", "disk", "running", "peers", "invites"),
    *(
        "listeners",
        "public address",
        "firewall",
        "routes",
        "names",
        "target",
        "peers' clocks",
        "descriptors",
    ),
    *("congestion", "UDP buffers", "system-wide"),
)
OF_THE_MACHINE = {"clock", "descriptors", "congestion"}
"""Checks of the machine that runs the tests."""
ALL_WELL = {
    "exit": f"5.75.10.2, of version {__version__}, tells about itself in N ms",
    "exit's clock": "this machine and the exit have the same time",
    "exit's routes": "the exit reaches the Internet by IPv4 and IPv6",
    "exit's names": "the exit finds names, one in N ms",
    "other exits": "there are no others",
    "system's names": "no client runs with --tun here: applications leave names to the proxy, as the exit finds them",
    "target": f"{NAME}:80 is reached through the exit, in N ms",
}


class Place(NamedTuple):
    hosts: ThreeHosts
    server: FarServer
    links: Links

    def at_exit(self, *arguments: str) -> tuple[int, dict[str, str], dict[str, list[str]]]:
        """As `doctor`, of the exit itself: exit code, all that is said, and the checks by their states."""
        config = str(self.links.directory / "exit.toml")
        done = self.links.call(
            self.hosts.exit, "doctor", "--json", "--config", config, *arguments, limit=3 * LONG
        )
        assert not done.stderr
        checks: list[dict[str, Any]] = json.loads(done.stdout)["checks"]
        assert [check["name"] for check in checks] == list(AT_EXIT)
        states: dict[str, list[str]] = {"fail": [], "warn": []}
        for check in checks:
            states.setdefault(check["state"], []).append(check["name"])
        return done.returncode, {check["name"]: plain(check["text"]) for check in checks}, states

    def doctor(self, *arguments: str) -> tuple[int, dict[str, str], list[str]]:
        """The exit code, what is said beyond the link, and which checks have failed."""
        config = str(self.links.directory / "client.toml")
        done = self.links.call(
            self.hosts.client, "doctor", "--json", "--config", config, *arguments, limit=3 * LONG
        )
        assert not done.stderr
        checks: list[dict[str, Any]] = json.loads(done.stdout)["checks"]
        assert [check["name"] for check in checks] == [*BEFORE, *BEYOND, *BEHIND]
        said = {check["name"]: plain(check["text"]) for check in checks}
        bad = [check["name"] for check in checks if check["state"] == "fail"]
        assert all(check["remedy"] for check in checks if check["state"] in ("fail", "warn"))
        return done.returncode, {name: said[name] for name in BEYOND}, bad


def plain(text: str) -> str:
    return re.sub(r"\d+\.\d ms", "N ms", text)


@pytest.fixture(scope="module")
def place(namespaces: None) -> Iterator[Place]:
    with Lab() as lab:
        hosts = three_hosts(lab)
        server, links = FarServer(lab, hosts.server), Links(lab.directory / "links")
        server.dns.answers[f"{NAME}.", "A"] = [SERVER4]
        server.dns.answers[f"{TRIAL_NAME}.", "A"] = ["198.41.0.4"]
        links.exit(hosts.exit, tun=False)
        links.config(
            "client",
            {
                "peer": f"cryprq://{links.identity('exit')[1]}@5.75.10.2:4433",
                "listen": "127.0.0.1:1080",
                "admin": "off",
            },
        )
        yield Place(hosts, server, links)
        wrong = links.close()
        assert not wrong, "\n".join(wrong)


@pytest.fixture(params=["its own link", "a client that runs"])
def asking(place: Place, request: pytest.FixtureRequest) -> Iterator[Place]:
    """By both routes to the exit."""
    if request.param == "its own link":
        yield place
        return
    role = place.links.client(place.hosts.client, tun=False, settings={"listen": "127.0.0.1:1080"})
    role.says("link up")
    yield place
    assert role.stop() == 0


def test_all_is_well(asking: Place) -> None:
    code, said, failed = asking.doctor(f"{NAME}:80")
    assert (code, failed) == (0, [])
    assert said == ALL_WELL
    _, said, _ = asking.doctor()
    assert said["target"].startswith("give a name to have it reached through the exit")


@contextmanager
def silent_resolver(place: Place) -> Iterator[None]:
    conf = place.hosts.exit.resolv_conf
    conf.write_text(f"nameserver {SERVER4}\noptions timeout:1 attempts:1\n")
    place.server.dns.answer = place.server.dns.dead
    try:
        yield
    finally:
        place.server.dns.answer = place.server.dns.lookup
        conf.write_text(f"nameserver {SERVER4}\n")


def test_the_exits_resolver_is_silent(asking: Place) -> None:
    with silent_resolver(asking):
        code, said, failed = asking.doctor("another.example.test:80")
    assert (code, failed) == (1, ["exit's names", "target"])
    assert said == ALL_WELL | {
        "exit's names": "no DNS server of the exit answers, so no page loads by its name",
        "target": "another.example.test:80: no DNS server of the exit answers",
    }


def test_the_exits_resolver_is_gone(asking: Place) -> None:
    conf = asking.hosts.exit.resolv_conf
    conf.write_text("nameserver 127.0.0.1\n")
    try:
        code, said, failed = asking.doctor()
    finally:
        conf.write_text(f"nameserver {SERVER4}\n")
    assert (code, failed) == (1, ["exit's names"])
    assert said["exit's names"] == (
        "the DNS servers of the exit answer with a failure, or refuse to be asked, so no page loads by its name"
    )


@pytest.mark.parametrize(
    ("families", "failed", "text"),
    [
        ("4", ["exit's routes"], "the exit has an IPv4 address and no default route for IPv4"),
        ("6", [], "the exit has an IPv6 address and no default route for IPv6"),
        ("46", ["exit's routes"], "the exit has no default route, neither for IPv4 nor for IPv6"),
    ],
)
def test_a_default_route_of_the_exit_is_gone(
    asking: Place, families: str, failed: list[str], text: str
) -> None:
    exit = asking.hosts.exit
    # Its DNS server is beyond the route, and is to be asked all the same.
    exit.ip(f"route add {SERVER4} via 5.75.10.1")
    routes = {family: exit.ip(f"-{family} route show default").strip() for family in families}
    for family in families:
        exit.ip(f"-{family} route del default")
    try:
        code, said, bad = asking.doctor(f"{NAME}:80")
        _, there, _ = asking.doctor("192.0.9.9:80") if "4" in families else (0, {}, [])
    finally:
        for family, route in routes.items():
            exit.ip(f"-{family} route add {route}")
        exit.ip(f"route del {SERVER4}")
    assert (code, bad) == (1 if failed else 0, failed)
    assert said["exit's routes"].startswith(text)
    assert said["exit's names"] == ALL_WELL["exit's names"]
    if there:
        assert there["target"] == "192.0.9.9:80: the exit has no route to it"


def test_a_target_that_is_not_well(asking: Place) -> None:
    for target, text in (
        (f"{NAME}:81", "it was reached, and refuses the connection"),
        ("nowhere.example.test", "there is no such name, says the resolver of the exit"),
        ("127.0.0.1:80", "the egress policy of the exit forbids it"),
    ):
        code, said, failed = asking.doctor(target)
        assert (code, failed) == (1, ["target"])
        assert said["target"].endswith(f": {text}")


def test_the_clock_of_the_exit_is_ahead(place: Place) -> None:
    """Three days; nothing on either side says which of the clocks is kept in step, or both are kept."""
    directory = place.links.directory / "ahead"
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(
        "import time\nnow = time.time\ntime.time = lambda: now() + 259_200\n"
    )
    environment = place.links.environment
    [before] = (role for role in place.links.roles if role.name == "exit")
    assert before.stop() == 0
    place.links.environment = {
        **environment,
        "PYTHONPATH": f"{directory}:{environment.get('PYTHONPATH', '')}",
    }
    exit = place.links.exit(place.hosts.exit, tun=False)
    place.links.environment = environment
    try:
        code, said, failed = place.doctor()
    finally:
        assert exit.stop() == 0
        place.links.exit(place.hosts.exit, tun=False)
    assert (code, failed) == (1, ["exit's clock"])
    assert re.match(r"the exit's clock is (3 d 0 h|2 d 23 h) ahead of this one", said["exit's clock"])


# --- the exit's own ---


def test_an_exit_that_is_well(place: Place) -> None:
    assert place.doctor()[0] == 0, "so it has heard the time of a client"
    code, said, states = place.at_exit(f"{NAME}:80")
    assert (code, states["fail"], set(states["warn"]) - OF_THE_MACHINE) == (0, [], set()), said
    assert said["firewall"] == "no rule of the packet filter keeps clients out"
    assert said["routes"] == "this machine reaches the Internet by IPv4 and IPv6"
    assert said["names"] == f"this machine finds names, one in N ms (by DNS, from {SERVER4})"
    assert said["target"] == f"{NAME}:80 is reached from here, in N ms"


def test_an_exit_whose_resolver_is_silent(place: Place) -> None:
    with silent_resolver(place):
        code, said, states = place.at_exit()
    assert (code, states["fail"]) == (1, ["names"])
    assert said["names"].startswith("no DNS server of this machine answers, so no page loads by its name")


def test_an_exit_without_default_routes(place: Place) -> None:
    exit = place.hosts.exit
    routes = {family: exit.ip(f"-{family} route show default").strip() for family in "46"}
    for family in routes:
        exit.ip(f"-{family} route del default")
    try:
        code, said, states = place.at_exit(f"{SERVER4}:80")
    finally:
        for family, route in routes.items():
            exit.ip(f"-{family} route add {route}")
    assert (code, states["fail"]) == (1, ["routes", "names", "target"])
    assert said["routes"].startswith("this machine has no default route, neither for IPv4 nor for IPv6")
    assert said["target"] == f"{SERVER4}:80: this machine has no route to it"


def test_an_exit_whose_clock_differs_from_those_of_its_clients(place: Place) -> None:
    """The client's is three days ahead; which of them is wrong, a person must see."""
    role = place.links.client(place.hosts.client, tun=False, settings={"listen": "127.0.0.1:1080"})
    role.says("link up")
    directory = place.links.directory / "client-ahead"
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(
        "import time\nnow = time.time\ntime.time = lambda: now() + 259_200\n"
    )
    environment = place.links.environment
    assert role.stop() == 0
    place.links.environment = {
        **environment,
        "PYTHONPATH": f"{directory}:{environment.get('PYTHONPATH', '')}",
    }
    role = place.links.client(place.hosts.client, tun=False, settings={"listen": "127.0.0.1:1080"})
    place.links.environment = environment
    try:
        role.says("link up")
        assert place.doctor()[2] == ["exit's clock"]
        _, said, _ = place.at_exit()
    finally:
        assert role.stop() == 0
    assert re.match(r"this clock is (3 d 0 h|2 d 23 h) behind that of 1 client", said["peers' clocks"])


FILTER = """
table inet filter {
    set home { type ipv4_addr; elements = { 198.18.0.7 } }
    chain input {
        type filter hook input priority filter; policy %s;
        ct state vmap { established : accept, related : accept, invalid : drop }
        iif lo accept
        meta l4proto { icmp, ipv6-icmp } accept
        %s
    }
}
"""


@pytest.mark.parametrize(
    ("policy", "rule", "fates"),
    [
        ("accept", "", ("passed", "passed")),
        ("drop", "", ("dropped", "dropped")),
        ("drop", "tcp dport 4433 accept", ("passed", "dropped")),
        ("drop", "tcp dport { 22, 4400-4500 } ct state new accept", ("passed", "dropped")),
        ("drop", "meta l4proto { tcp, udp } th dport 4433 accept", ("passed", "passed")),
        ("drop", "ip saddr @home tcp dport 4433 accept", ("some", "dropped")),
        ("drop", "tcp dport vmap { 22 : accept, 4433 : accept }", ("passed", "dropped")),
        ("drop", 'iifname "eth0" udp dport 4433 accept', ("dropped", "some")),
        ("accept", "tcp dport != 22 counter reject with tcp reset", ("dropped", "passed")),
        ("accept", "udp dport 4433 limit rate over 10/second drop", ("passed", "passed")),
    ],
)
def test_rules_as_people_write_them(place: Place, policy: str, rule: str, fates: tuple[str, str]) -> None:
    exit = place.hosts.exit
    exit.nft(FILTER % (policy, rule))
    try:
        ruleset = json.loads(exit.run(["nft", "-j", "list", "ruleset"]))["nftables"]
    finally:
        exit.nft("delete table inet filter")
    found = [culprit(ruleset, "input", FirstPacket(4, kind, 4433)) for kind in ("tcp", "udp")]
    assert tuple("passed" if each is None else str(each.fate) for each in found) == fates


def test_an_exit_behind_a_filter(place: Place) -> None:
    exit = place.hosts.exit
    exit.nft(FILTER % ("drop", "tcp dport 22 accept"))
    try:
        code, said, states = place.at_exit()
    finally:
        exit.nft("delete table inet filter")
    assert (code, states["fail"]) == (1, ["firewall"])
    assert said["firewall"] == (
        "the packet filter drops what comes in for TCP port 4433 (chain input of table inet filter), so no client "
        "gets in"
    )
