"""From the configuration to `tun`: what is refused, what is handed on, cleaning up, what a leak test asks."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.base import leftovers, linux_marks
from cryprq_proxy.config.client import ClientConfig, client_from
from cryprq_proxy.config.exit import ExitConfig, exit_from
from cryprq_proxy.config.tun import STATE, TunTable
from cryprq_proxy.errors import ConfigError, CryprqError
from cryprq_proxy.exit.egress_policy import EgressPolicy
from cryprq_proxy.rules.engine import EVERYTHING
from cryprq_proxy.service import lockdown_unit
from cryprq_proxy.service import system_wide as system
from cryprq_proxy.service.system_wide import (
    clean_up,
    cut_by_start,
    exit_network_settings,
    leak_test,
    make_tunnel,
    start_network,
)
from cryprq_proxy.status import ClientStatus, ExitStatus, Status, read
from tun.firewall.inbound import Inbound, InboundConnection
from tun.firewall.policy import Policy
from tun.journal import Entry, Journal
from tun.leaktest import probe as leakprobe
from tun.leaktest.canaries import CanaryTargets
from tun.leaktest.report import CanaryRow, CanaryVerdict, LeakReport
from tun.linux import sysctl
from tun.linux.firewall import lockdown_switch, nft
from tun.linux.firewall.lockdown import FILE as LOCKDOWN_FILE
from tun.linux.routing import routes
from tun.linux.system import Linux
from tun.routing.lan import Lan
from tun.settings import CLIENT_JOURNAL, EXIT_JOURNAL, TunnelSettings
from tun.tunnel import TunnelPlan

PEER = f'peer = "cryprq://{"a" * 52}@192.0.2.1:4433"\n'


def client(text: str = "") -> ClientConfig:
    return client_from(PEER + text, Path("client.toml"), True, {"tun.enabled": True})


def exit_peer(text: str = "") -> ExitConfig:
    return exit_from(text, Path("exit.toml"), {"tun.enabled": True})


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or so this module believes; the journal's own checks stay."""
    monkeypatch.setattr(system, "_system_for", lambda what: Linux())


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)


# --- making ---


async def test_without_root_it_is_one_sentence(nobody: None) -> None:
    for make in (
        lambda: make_tunnel(client(), EVERYTHING),
        lambda: start_network(exit_peer(), EgressPolicy()),
        lambda: clean_up(Path("/nowhere"), print),
        lambda: leak_test([], []),
    ):
        with pytest.raises(ConfigError, match=r"run it as root \(sudo\)$"):
            make()


async def test_on_another_system_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "freebsd14")
    for make in (
        lambda: make_tunnel(client(), EVERYTHING),
        lambda: start_network(exit_peer(), EgressPolicy()),
    ):
        with pytest.raises(
            ConfigError, match="works on Linux and macOS, not on freebsd14; the local proxy works"
        ):
            make()


async def test_not_through_an_upstream_proxy(nobody: None) -> None:
    """Found before the right to do it is: sudo would not help."""
    with pytest.raises(ConfigError, match="--tun and --upstream exclude each other"):
        make_tunnel(client('upstream = "socks5://127.0.0.1:9"'), EVERYTHING)


@pytest.mark.parametrize("settled", [{"inbound": "keep"}, {"confirm": 60.0}])
def test_nothing_is_cut_where_a_setting_has_settled_it(
    settled: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def observe() -> Inbound:
        own, far = ip_address("192.168.77.2"), ip_address("203.0.113.9")
        return Inbound(frozenset({InboundConnection(own, 22, far, 50000)}))

    async def read_lan(own: str) -> Lan:
        return Lan()

    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("tun.linux.system.observe", observe)
    monkeypatch.setattr("tun.linux.system.read_lan", read_lan)
    assert cut_by_start(TunTable()) == ["203.0.113.9"]
    assert cut_by_start(TunTable(**settled)) == []


async def test_what_the_tunnel_is_told(root: None) -> None:
    text = """
    [tun]
    exclude = "192.0.2.0/24"
    include = "198.51.100.0/24"
    exclude_uid = "5-7"
    exclude_cgroup = "/system.slice/backup.service"
    lan = "block"
    kill_switch = "off"
    inbound = "keep"
    resolver = "leave"
    offload = "off"
    state_dir = "/run/x"
    [tun.dns]
    upstreams = "tcp://10.0.0.1"
    split = "corp.example=10.0.0.2"
    block_answer = "zero"
    """
    plan = make_tunnel(client(text), EVERYTHING)
    assert isinstance(plan, TunnelPlan)
    settings = plan.settings
    assert plan.exits == (Destination("192.0.2.1", 4433),)
    assert (settings.exclude, settings.include) == (
        (IPv4Network("192.0.2.0/24"),),
        (IPv4Network("198.51.100.0/24"),),
    )
    assert settings.exclude_uids == ((5, 7),)
    assert settings.exclude_cgroups == ("/system.slice/backup.service",)
    assert (settings.lan, settings.kill_switch, settings.keep_inbound, settings.offload) == (
        False,
        False,
        True,
        False,
    )
    assert settings.state == Path("/run/x")
    assert settings.dns.upstreams == ("tcp://10.0.0.1",)
    assert settings.dns.split == {"corp.example": ("10.0.0.2",)}
    assert settings.dns.block_answer == "zero"
    other = (
        f"[[exit]]\npeer = ['cryprq+wss://{'q' * 52}@192.0.2.9/p', 'cryprq://{'q' * 52}@exit.example:443']"
    )
    several = make_tunnel(client(other), EVERYTHING)
    assert several.exits == (
        Destination("192.0.2.1", 4433),
        Destination("192.0.2.9", 443),
        Destination("exit.example", 443),
    )
    plain = make_tunnel(client(), EVERYTHING).settings
    assert (settings.leave_resolver, plain.leave_resolver) == (True, False)
    assert (plain.lan, plain.kill_switch, plain.keep_inbound, plain.offload) == (True, True, False, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[tun]\nexclude = "0.0.0.0/0"', "--exclude of every address leaves nothing for the tunnel"),
        ("[tun.dns]\nupstreams = []", "dns.upstreams is empty"),
        ('[tun.dns]\nupstreams = "ftp://x"', "the DNS server 'ftp://x' is not understood"),
        (
            '[tun.dns]\nsplit = "corp.example=dns.corp.example"',
            "the DNS server 'dns.corp.example' is not understood",
        ),
        ('[tun.dns]\nsplit = "a b=10.0.0.1"', "'a b' is not a domain"),
        ('[tun.dns]\nblock = "a b"', "'a b' is not a domain"),
        ('[tun.dns]\nallow = "a b"', "'a b' is not a domain"),
        ('[tun.dns]\nblocklists = "/no/such/file"', "the blocklist /no/such/file cannot be read"),
    ],
)
async def test_settings_that_make_no_sense_are_refused_before_anything_changes(
    root: None, text: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        make_tunnel(client(text), EVERYTHING)
    assert str(caught.value).startswith(message)


async def test_what_the_exits_network_is_told(root: None) -> None:
    text = '[tun]\npool4 = "10.9.0.0/24"\npool6 = "fd00::/64"\nisolate = false\noffload = "off"\nstate_dir = "/run/x"'
    settings = exit_network_settings(exit_peer(text).tun)
    assert (settings.pool4, settings.pool6) == (IPv4Network("10.9.0.0/24"), IPv6Network("fd00::/64"))
    assert (settings.isolate, settings.offload, settings.state) == (False, False, Path("/run/x"))
    with pytest.raises(ConfigError, match=r"the pool 10\.9\.0\.0/30 is too small"):
        start_network(exit_peer('[tun]\npool4 = "10.9.0.0/30"'), EgressPolicy())


# --- cleanup ---


class Kernel:
    """Stands for the tables of nft and the routing rules: what is there, and what was removed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tables: set[str] = set()
        self.removed: list[str] = []
        self.broken = False
        self.rules = True
        self.settings: dict[str, list[str]] = {}
        """Table -> names of the kernel settings that stand as its role sets them."""
        monkeypatch.setattr(routes, "delete_ours", self.delete_ours)
        # The machine has one sign of life, and tests run side by side.
        monkeypatch.setattr(leftovers, "cleaning_up", nullcontext)
        self.header = False
        monkeypatch.setattr(linux_marks, "has_header", lambda: self.header)
        monkeypatch.setattr(sysctl, "lost_settings", self.lost_settings)
        monkeypatch.setattr(nft, "exists", lambda table: table in self.tables)
        monkeypatch.setattr(nft, "remove", self.remove)
        monkeypatch.setitem(nft.UNDO, nft.KIND, lambda entry: self.remove(entry["table"]))

    def delete_ours(self) -> bool:
        if self.broken:
            raise CryprqError("the kernel said no")
        self.removed.append("routing")
        found, self.rules = self.rules, False
        return found

    def lost_settings(self, table: str, recorded: Collection[str]) -> str:
        left = [name for name in self.settings.get(table, ()) if name not in recorded]
        return f"call: sysctl {' '.join(left)}" if left else ""

    def remove(self, table: str) -> None:
        self.tables.discard(table)
        self.removed.append(table)


@pytest.fixture
def kernel(root: None, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


def test_nothing_to_clean_up(kernel: Kernel, tmp_path: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        clean_up(tmp_path / "nowhere", said.append)
    assert said == ["undone: routing", "nothing was left to undo"]
    assert kernel.removed == ["routing"] * 2
    assert list(tmp_path.iterdir()) == []


def test_tables_are_found_without_a_journal(kernel: Kernel, tmp_path: Path) -> None:
    kernel.tables = {nft.CLIENT, "somebody_elses"}
    said: list[str] = []
    clean_up(tmp_path, said.append)
    assert said == [f"undone: routing, table {nft.CLIENT}"]
    assert kernel.tables == {"somebody_elses"}


@pytest.mark.parametrize("table", [nft.CLIENT, nft.EXIT])
def test_settings_are_named_where_marks_but_no_journal_are_found(
    kernel: Kernel, tmp_path: Path, table: str
) -> None:
    kernel.rules, kernel.tables = False, {table}
    kernel.settings = {table: ["net.some"]}
    with pytest.raises(CryprqError, match=rf"^call: sysctl net\.some \(undone: table {table}\)$"):
        clean_up(tmp_path, print)
    said: list[str] = []
    clean_up(tmp_path, said.append)
    assert said == ["nothing was left to undo"], "another program may have set it"


def test_settings_are_named_as_long_as_our_resolv_conf_stands(kernel: Kernel, tmp_path: Path) -> None:
    kernel.rules, kernel.header = False, True
    kernel.settings = {nft.CLIENT: ["net.some"], nft.EXIT: ["net.other"]}
    for _ in range(2):
        with pytest.raises(CryprqError, match=r"^call: sysctl net\.some$"):
            clean_up(tmp_path, print)


@pytest.mark.parametrize("known", ["undone", "not undone", "not recorded"])
def test_settings_are_not_named_where_the_journal_knows_them(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str
) -> None:
    kernel.settings = {nft.CLIENT: ["net.ipv4.conf.all.src_valid_mark"]}

    def undo(entry: Entry) -> None:
        if known == "not undone":
            raise CryprqError("the kernel said no")

    monkeypatch.setitem(sysctl.UNDO, sysctl.KIND, undo)
    tmp_path.chmod(0o700)
    with Journal(tmp_path / CLIENT_JOURNAL) as journal:
        if known == "not recorded":
            journal.record({"kind": "of_the_future"})
        else:
            journal.record({"kind": sysctl.KIND, "name": "net.ipv4.conf.all.src_valid_mark"})
    said: list[str] = []
    if known == "undone":
        clean_up(tmp_path, said.append)
        assert said == [f"undone: {sysctl.KIND}, routing"]
        return
    with pytest.raises(CryprqError, match=r" \(undone: routing\)$") as caught:
        clean_up(tmp_path, said.append)
    assert ("call: sysctl" in str(caught.value)) == (known == "not recorded")


def test_a_state_directory_that_is_a_file(kernel: Kernel, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match="is no directory"):
        clean_up(file, print)
    assert not kernel.removed


def test_journals_of_both_roles_are_undone(kernel: Kernel, tmp_path: Path) -> None:
    state = tmp_path / "state"
    for name, table in ((CLIENT_JOURNAL, nft.CLIENT), (EXIT_JOURNAL, nft.EXIT)):
        with Journal(state / name) as journal:
            journal.record({"kind": nft.KIND, "table": table})
    said: list[str] = []
    clean_up(state, said.append)
    assert said == [f"undone: {nft.KIND}, {nft.KIND}, routing"]
    assert kernel.removed == [nft.CLIENT, nft.EXIT, "routing"]
    clean_up(state, said.append)
    assert said[1:] == ["nothing was left to undo"]


def test_what_cannot_be_undone_is_told_and_the_rest_is_undone(kernel: Kernel, tmp_path: Path) -> None:
    kernel.broken, kernel.tables = True, {nft.EXIT}
    with Journal(tmp_path / CLIENT_JOURNAL) as journal:
        journal.record({"kind": "of_the_future"})
        journal.record({"kind": nft.KIND, "table": nft.CLIENT})
    tmp_path.chmod(0o700)
    with pytest.raises(
        CryprqError,
        match=r"of_the_future: this version does not know .*; the kernel said no "
        rf"\(undone: {nft.KIND}, table {nft.EXIT}\)$",
    ):
        clean_up(tmp_path, print)
    assert kernel.removed == [nft.CLIENT, nft.EXIT]
    with Journal(tmp_path / CLIENT_JOURNAL) as journal:
        assert [entry["kind"] for entry in journal.entries()] == ["of_the_future"]


def test_not_while_one_of_us_runs(kernel: Kernel, tmp_path: Path) -> None:
    with Journal(tmp_path / "state" / CLIENT_JOURNAL) as journal:
        journal.record({"kind": nft.KIND, "table": nft.CLIENT})
        with pytest.raises(ConfigError):
            clean_up(tmp_path / "state", print)
        assert kernel.removed == []


# --- lockdown ---


class Lockdown:
    """Stands for the unit and the filter: what is asked for, in its order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.manager, self.stands, self.was_on, self.left = True, True, True, ""
        self.refuses = False
        self.plan: tuple[TunnelSettings, Sequence[Destination], Policy] | None = None
        monkeypatch.setattr(lockdown_unit, "install", self.install)
        monkeypatch.setattr(lockdown_unit, "start", lambda: self.calls.append("unit started"))
        monkeypatch.setattr(lockdown_unit, "remove", lambda: self.calls.append("unit removed"))
        monkeypatch.setattr(nft, "program", lambda: "/usr/sbin/nft")
        monkeypatch.setattr(lockdown_switch, "turn_on", self.turn_on)
        monkeypatch.setattr(lockdown_switch, "turn_off", self.turn_off)
        monkeypatch.setattr(leftovers, "left_by_client", lambda: self.left)

    def install(self, file: Path, program: str) -> bool:
        self.calls.append(f"unit for {file} with {program}")
        return self.manager

    async def turn_on(self, settings: TunnelSettings, exits: Sequence[Destination], policy: Policy) -> bool:
        self.calls.append("filter")
        self.plan = (settings, exits, policy)
        if self.refuses:
            raise ConfigError("the file is another one's")
        return self.stands

    def turn_off(self, state: Path) -> bool:
        self.calls.append(f"filter of {state} lifted")
        return self.was_on


@pytest.fixture
def lockdown(root: None, monkeypatch: pytest.MonkeyPatch) -> Lockdown:
    return Lockdown(monkeypatch)


def lock(text: str = "") -> list[str]:
    said: list[str] = []
    system.lock_down(client(text), EVERYTHING, said.append)
    return said


def test_lockdown_has_its_unit_before_its_filter_and_starts_it_after(lockdown: Lockdown) -> None:
    said = lock('[tun]\nstate_dir = "/srv/cryprq"\n')
    assert lockdown.calls == [
        f"unit for /srv/cryprq/{LOCKDOWN_FILE} with /usr/sbin/nft",
        "filter",
        "unit started",
    ]
    assert said == ["lockdown is on: nothing gets out until --tun runs"]
    assert lockdown.plan is not None
    settings, exits, _ = lockdown.plan
    assert settings.state == Path("/srv/cryprq")
    assert exits == (Destination("192.0.2.1", 4433),)


def test_lockdown_says_what_a_running_client_and_a_missing_manager_mean(lockdown: Lockdown) -> None:
    lockdown.manager = lockdown.stands = False
    assert lock() == [
        "lockdown is on: when the client that runs has ended, nothing gets out until --tun runs again",
        f"no systemd runs here, so nothing loads it at a boot: call nft -f {STATE / LOCKDOWN_FILE} "
        "before the network comes",
    ]
    assert lockdown.calls[-1] == "filter"


def test_a_lockdown_that_is_refused_says_nothing_else(lockdown: Lockdown) -> None:
    lockdown.refuses = True
    said: list[str] = []
    with pytest.raises(ConfigError, match="another one's"):
        system.lock_down(client(), EVERYTHING, said.append)
    assert said == []


@pytest.mark.parametrize(
    ("was_on", "words"), [(True, "lockdown is off"), (False, "lockdown was off already")]
)
def test_lockdown_is_lifted_filter_first(
    lockdown: Lockdown, tmp_path: Path, was_on: bool, words: str
) -> None:
    lockdown.was_on = was_on
    said: list[str] = []
    system.lift_lockdown(tmp_path, said.append)
    assert lockdown.calls == [f"filter of {tmp_path} lifted", "unit removed"]
    assert said == [words]
    lockdown.left = "a client that was killed has left its routes"
    system.lift_lockdown(tmp_path, said.append)
    assert said[1:] == [words, lockdown.left]


# --- leak test ---

TUN: dict[str, Any] = {
    "device": {"name": "cryprq0"},
    "exits": [["192.0.2.1", 4433]],
    "uplinks": ["eth0"],
    "lan": ["192.168.1.0/24"],
    "exclude": ["198.51.100.0/24"],
    "include": [],
    "exclude_uids": [[4_000_000, 4_000_001]],
    "kill_switch": {"paused": 0},
    "rules": {"direct": ["203.0.113.0/24"]},
}


def running(**changes: Any) -> Status:
    return read({"role": "client", "tun": TUN | changes})


@pytest.fixture
def asked(root: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the probe is told; it finds one leak."""
    told: dict[str, Any] = {}

    async def run(**arguments: Any) -> LeakReport:
        told.update(arguments)
        row = CanaryRow("ping", "192.0.2.7", CanaryVerdict.LEAKED, "eth0 x1")
        return LeakReport((row,), 3, (("eth0", "UDP to 192.0.2.9:1", 2),), 2, 0, {"eth0": 9})

    monkeypatch.setattr(leakprobe, "run", run)
    return told


def test_the_probe_is_told_what_the_client_has_and_lets_out(asked: dict[str, Any]) -> None:
    code, table, plain = leak_test([ExitStatus(), running()], ["192.0.2.7", "2001:DB8::7"])
    assert (asked["tunnel"], asked["exits"]) == ("cryprq0", [("192.0.2.1", 4433)])
    assert asked["allowed"] == list(map(ip_network, ("192.168.1.0/24", "198.51.100.0/24", "203.0.113.0/24")))
    assert asked["targets"].dns == asked["targets"].hosts == ["192.0.2.7", "2001:db8::7"]
    assert asked["targets"].devices == ["eth0"]
    assert code == 1
    assert "LEAK: 1 LEAKED" in table
    assert plain == {
        "leak": True,
        "canaries": [{"name": "ping", "target": "192.0.2.7", "verdict": "LEAKED", "seen": "eth0 x1"}],
        "link_packets": 3,
        "others": [{"interface": "eth0", "what": "UDP to 192.0.2.9:1", "packets": 2}],
        "missed": 0,
        "packets_sent": {"eth0": 9},
    }
    leak_test([running()], [])
    assert asked["targets"] == CanaryTargets(devices=["eth0"])


def test_with_include_all_else_may_get_out(asked: dict[str, Any]) -> None:
    leak_test([running(include=["10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32"])], [])
    allowed = asked["allowed"]

    def may_leave(text: str) -> bool:
        address = ip_address(text)
        return any(address in network for network in allowed)

    assert not any(map(may_leave, ("10.0.0.0", "10.1.2.3", "10.255.255.255", "2001:db8::1")))
    assert all(map(may_leave, ("9.255.255.255", "11.0.0.0", "2001:db7::1", "2001:db9::1", "255.255.255.255")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kill_switch": {"paused": 9}}, "the client is paused, so all may get out: test again in 9 s"),
        ({"exclude_uids": [[0, 5], [os.geteuid(), os.geteuid()]]}, "--exclude-uid lets root past the tunnel"),
        ({"rules": {"direct": None}}, "the rules send so much past the tunnel that this test cannot tell"),
        ({"device": None}, "the client is not ready yet"),
        ({"exits": [["x", 1]]}, "the client is of another version"),
        ({"lan": ["x"]}, "the client is of another version"),
    ],
)
def test_what_proves_nothing_is_not_tested(
    change: dict[str, Any], message: str, asked: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=message):
        leak_test([running(**change)], [])
    assert asked == {}


def test_without_a_tunnel_there_is_nothing_to_test(asked: dict[str, Any]) -> None:
    nothing: list[list[Status]] = [[], [ClientStatus()], [ExitStatus()]]
    for roles in nothing:
        with pytest.raises(ConfigError, match="no client in system-wide mode is running"):
            leak_test(roles, [])
    with pytest.raises(ConfigError, match=r"--target: expected an IP address, got 'example\.com'"):
        leak_test([running()], ["example.com"])
    for group in ("224.0.0.1", "ff02::1", "::", "255.255.255.255"):
        with pytest.raises(ConfigError, match="--target: expected the address of one host"):
            leak_test([running()], [group])
    assert asked == {}


# --- cgroups ---


@pytest.mark.parametrize(
    ("lines", "inside"),
    [
        ("0::/user.slice/games.slice/a.scope\n", True),
        ("1:cpu:/games.slice\n0::/user.slice/games.slice\n", True),
        ("0::/user.slice/games.slices\n", False),
        ("1:cpu:/user.slice/games.slice\n", False),
        (None, False),
    ],
)
def test_whether_this_process_is_in_an_excluded_cgroup(
    lines: str | None, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_text(path: Path, *_: object) -> str:
        assert str(path) == "/proc/self/cgroup"
        if lines is None:
            raise FileNotFoundError
        return lines

    monkeypatch.setattr(Path, "read_text", read_text)
    assert system._in_a_cgroup_of(["/user.slice/games.slice/"]) is inside


def test_no_connection_is_cut_where_the_kernel_cannot_be_asked(
    root: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read_lan(own: str) -> Lan:
        raise CryprqError("the kernel does not answer")

    monkeypatch.setattr("tun.linux.system.read_lan", read_lan)
    assert system.cut_by_start(TunTable()) == []
