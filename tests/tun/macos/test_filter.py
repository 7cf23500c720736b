"""The client's filter in pf, on a Mac that is made up: put up, kept, opened for a while, and undone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from cryprq_proxy.base.clock import CLOCK
from cryprq_proxy.errors import ConfigError, CryprqError, LocalError
from tests.support.macos.machine import FakeMac
from tests.support.macos.pf_model import PfPacket, judge
from tests.support.macos.state import PfState
from tun.firewall.filter_settings import Cgroup, ExitEndpoint, FilterSettings
from tun.macos import asked, pfctl
from tun.macos.closing import Stage
from tun.macos.filter import PfFilter
from tun.macos.pfctl import PfError
from tun.macos.programs import PATHS, Command, ProgramAnswer
from tun.system import Count

ANCHOR = pfctl.ANCHORS["client"]
EXIT = ip_address("5.75.10.2")
OUTSIDE = ip_address("93.184.216.34")
SETTINGS = FilterSettings(
    tun="utun9",
    mark=1,
    exits=frozenset({ExitEndpoint(EXIT, 443)}),
    lan=frozenset({ip_network("192.168.1.0/24")}),
)


class Timer:
    """A process that closes, if somebody lets it."""

    def __init__(self, anchor: str, mark: str, stages: list[Stage]) -> None:
        self.anchor, self.mark, self.stages = anchor, mark, stages
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True


class PfMac:
    """A fake Mac, its runner, a journal, and a clock."""

    def __init__(self, directory: Path) -> None:
        self.fake = FakeMac(directory)
        self.entries: list[dict[str, Any]] = []
        self.now = 100.0
        self.timers: list[Timer] = []
        self.changes: list[str] = []

    def run(self, command: Command) -> ProgramAnswer:
        if command.changes:
            self.changes.append(" ".join(command.argv))
        code, out, err = self.fake.answer([PATHS[command.argv[0]], *command.argv[1:]], command.stdin)[:3]
        return ProgramAnswer(out, err, code)

    def record(self, entry: Mapping[str, object]) -> None:
        self.entries.append(dict(entry))

    def closing(self, anchor: str, mark: str, stages: list[Stage]) -> Timer:
        assert mark not in str(self.fake.read().pf.anchors), "opened before anybody could close it"
        self.timers.append(Timer(anchor, mark, stages))
        return self.timers[-1]

    def up(self, settings: FilterSettings = SETTINGS, **more: Any) -> PfFilter:
        values: dict[str, Any] = {"ours": False, "run": self.run, "clock": lambda: self.now} | more
        return PfFilter.up(settings, self.record, closing=self.closing, **values)

    def lets_out(self, destination: str, port: int, uid: int = 501, proto: str = "tcp") -> bool:
        packet = PfPacket(
            "out", "en0", ip_address("192.168.1.23"), ip_address(destination), proto, 50000, port, uid=uid
        )
        return judge(self.fake.read().pf, packet).passes

    def pfctl(self, *arguments: str, stdin: str = "") -> str:
        """Another program's call."""
        code, out, err = self.fake.answer([PATHS["pfctl"], *arguments], stdin)[:3]
        assert code == 0, err
        return out


@pytest.fixture
def mac(tmp_path: Path) -> PfMac:
    return PfMac(tmp_path / "mac")


def test_the_rules_stand_before_pf_is_enabled_and_all_is_undone(mac: PfMac) -> None:
    before = mac.fake.snapshot()
    mac.up()
    assert mac.changes == [f"pfctl -a {ANCHOR} -f -", "pfctl -E"]
    assert [sorted(entry) for entry in mac.entries] == [
        ["anchor", "kind"],
        ["before", "kind", "token"],
        ["kind", "token"],
    ]
    assert mac.lets_out(str(EXIT), 443, uid=0) and not mac.lets_out(str(OUTSIDE), 443)
    undoers = pfctl.undoers(mac.run)
    for entry in reversed(mac.entries):
        undoers["pf"](entry)
    assert mac.fake.snapshot() == before
    assert mac.lets_out(str(OUTSIDE), 443)


def test_only_roots_dhcp_goes_past_the_tunnel(mac: PfMac) -> None:
    """On macOS any user may have the low ports, and choose the uplink by IP_BOUND_IF."""
    mac.up(replace(SETTINGS, lan_allowed=False))
    for own, to, ports in (
        ("192.168.1.23", str(OUTSIDE), (68, 67)),
        ("0.0.0.0", "255.255.255.255", (68, 67)),
        ("fe80::1c2f:11ff:fe22:3344", "ff02::1:2", (546, 547)),
    ):
        ends = ip_address(own), ip_address(to)
        for uid in (0, 501, None):
            packet = PfPacket("out", "en0", *ends, "udp", *ports, uid=uid)
            assert judge(mac.fake.read().pf, packet).passes == (uid == 0), packet


@pytest.mark.parametrize(
    ("main", "said"),
    [
        ("pass quick all no state\n", "stands in front"),
        ("", "anchor is missing"),
    ],
)
def test_a_main_ruleset_that_does_not_ask_us_is_refused(mac: PfMac, main: str, said: str) -> None:
    with mac.fake.change() as state:
        state.pf.main.rules = main + (state.pf.main.rules if main else "")
    before = mac.fake.snapshot()
    with pytest.raises(PfError, match=said):
        mac.up()
    assert mac.fake.snapshot() == before and not mac.entries
    mac.up(replace(SETTINGS, kill_switch=False))


class Unasked:
    """pf has the rules and counts no packet for them, until it does."""

    def __init__(self, mac: PfMac, monkeypatch: pytest.MonkeyPatch) -> None:
        mac.fake.stand_ins["pfctl"] = self._answer
        monkeypatch.setattr(asked, "send", lambda address: True)

    def _answer(self, argv: Any, stdin: str) -> Any:
        return (0, "first 0 0 0 0 0 0 0\n", "") if argv[-1] == "labels" else None


def test_a_pf_that_asks_none_of_our_rules_is_refused_and_all_is_undone(
    mac: PfMac, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = mac.fake.snapshot()
    Unasked(mac, monkeypatch)
    with pytest.raises(PfError, match="asks none of them"):
        mac.up()
    undoers = pfctl.undoers(mac.run)
    for entry in reversed(mac.entries):
        undoers["pf"](entry)
    assert mac.fake.snapshot() == before
    mac.up(replace(SETTINGS, kill_switch=False))


def test_an_uplink_that_pf_is_kept_away_from_is_refused_and_found_later(mac: PfMac) -> None:
    def skip(*interfaces: str) -> None:
        with mac.fake.change() as state:
            state.pf.skipped = list(interfaces)

    skip("en0")
    with pytest.raises(PfError, match="kept away from en0"):
        mac.up()
    skip("lo0")
    found = mac.up()
    assert found.difference() == "" and found.standing()
    skip("lo0", "en0")
    assert mac.lets_out(str(OUTSIDE), 443)
    assert "kept away from en0" in found.difference() and not found.standing()
    with pytest.raises(PfError, match="kept away from en0"):
        found.restore()


def test_what_could_not_be_proved_at_the_start_is_proved_later(
    mac: PfMac, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mac.fake.change() as state:
        state.pf.skipped = ["lo0"]
    Unasked(mac, monkeypatch)
    monkeypatch.setattr(asked, "send", lambda address: False)
    found = mac.up()
    assert found.difference() == "" and found.standing()
    monkeypatch.setattr(asked, "send", lambda address: True)
    assert "asks none of them" in found.difference() and not found.standing()
    with pytest.raises(PfError, match="asks none of them"):
        found.restore()
    mac.fake.stand_ins.clear()
    assert found.difference() == ""


def test_what_pf_cannot_do_is_refused(mac: PfMac) -> None:
    with pytest.raises(ConfigError, match="no cgroups"):
        mac.up(replace(SETTINGS, excluded_cgroups=frozenset({Cgroup("a", 1, 1)})))
    assert not mac.changes and not mac.entries


def test_states_of_others_that_lead_past_the_tunnel_are_ended(mac: PfMac) -> None:
    own = "192.168.1.23"
    with mac.fake.change() as state:
        state.pf.states = [
            PfState("ALL", "tcp", "out", own, str(OUTSIDE), 50000, 443),
            PfState("ALL", "tcp", "out", own, str(EXIT), 50001, 443),
            PfState("ALL", "udp", "out", own, "192.168.1.9", 50002, 53),
            PfState("ALL", "tcp", "out", own, "192.168.1.9", 50003, 22),
            PfState("lo0", "tcp", "out", "127.0.0.1", "127.0.0.1", 50004, 80),
        ]
    mac.up()
    left = [state.source_port for state in mac.fake.read().pf.states]
    # `pfctl -k` knows addresses only, so the other connection to the same neighbour goes as well.
    assert left == [50001, 50004]


def test_settings_follow_and_equal_ones_change_nothing(mac: PfMac) -> None:
    found = mac.up()
    mac.changes.clear()
    assert not found.update(SETTINGS) and not mac.changes
    assert found.update(replace(SETTINGS, excluded=frozenset({ip_network(f"{OUTSIDE}/32")})))
    assert mac.changes == [f"pfctl -a {ANCHOR} -f -"]
    assert mac.lets_out(str(OUTSIDE), 443)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-d",), "pf was disabled"),
        (("-a", ANCHOR, "-F", "all"), f"the rules of {ANCHOR} were removed"),
        (("-a", ANCHOR, "-f", "-"), f"the rules of {ANCHOR} were changed"),
        (("-F", "all"), "does not evaluate"),
    ],
)
def test_what_others_do_is_found_and_put_back(mac: PfMac, arguments: tuple[str, ...], said: str) -> None:
    found = mac.up()
    standing = mac.fake.snapshot()
    assert found.difference() == "" and found.standing()
    mac.pfctl(*arguments, stdin="pass quick all no state\n")
    assert said in found.difference()
    found.restore()
    assert found.difference() == "" and found.standing()
    if "-d" not in arguments:
        assert mac.fake.snapshot() == standing
    assert not mac.lets_out(str(OUTSIDE), 443)


@pytest.mark.parametrize("failing", ["info", "References", "rules", "nat", "labels", "any"])
def test_rules_are_put_back_where_no_look_works(mac: PfMac, failing: str) -> None:
    found = mac.up()
    mac.pfctl("-a", ANCHOR, "-F", "all")
    mac.changes.clear()
    assert mac.lets_out(str(OUTSIDE), 443)

    def busy(argv: Any, stdin: str) -> Any:
        failed = "-s" in argv and failing in ("any", argv[-1])
        return (0, "", "pfctl: DIOCGETRULES: Resource busy\n") if failed else None

    mac.fake.stand_ins["pfctl"] = busy
    for _ in range(3):
        if failing == "labels":
            found.restore()
        else:
            with pytest.raises(PfError, match="Resource busy"):
                found.restore()
    assert not mac.lets_out(str(OUTSIDE), 443)
    assert mac.changes == [f"pfctl -a {ANCHOR} -f -"] * 3, "pf is not enabled again and again"
    mac.fake.stand_ins.clear()
    if found.difference():
        found.restore()
    assert found.difference() == "" and found.standing()


def test_pf_that_was_disabled_and_enabled_by_another_counts_us_again(mac: PfMac) -> None:
    found = mac.up()
    mac.pfctl("-d")
    mac.pfctl("-e")
    assert found.difference() == "pf was disabled and enabled again"
    found.restore()
    assert found.difference() == ""
    for entry in reversed(mac.entries):
        pfctl.undoers(mac.run)["pf"](entry)
    assert not mac.fake.read().pf.tokens and mac.fake.read().pf.enabled


def test_a_main_ruleset_of_another_is_not_touched(mac: PfMac) -> None:
    found = mac.up()
    mac.pfctl("-f", "-", stdin="pass all no state\n")
    with pytest.raises(PfError, match="does not evaluate"):
        found.restore()
    assert mac.fake.read().pf.main.rules == "pass all no state\n"


def test_a_pause_is_closed_by_a_process_that_is_there_before(mac: PfMac) -> None:
    found = mac.up()
    found.pause(60)
    (timer,) = mac.timers
    assert mac.lets_out(str(OUTSIDE), 443) and mac.lets_out("192.168.1.1", 53, proto="udp")
    assert (found.paused(), found.pause_left()) == (60, 60)
    assert [stage.at for stage in timer.stages] == [160.0]
    assert timer.mark in mac.fake.read().pf.anchors[ANCHOR].rules and timer.mark not in timer.stages[0].text

    mac.now = 160.0
    # The process closes; this one has not been told.
    mac.pfctl("-a", ANCHOR, "-f", "-", stdin=timer.stages[0].text)
    assert not mac.lets_out(str(OUTSIDE), 443)
    assert found.paused() == 0 and found.difference() == ""
    assert timer.stopped
    found.end_pause()
    assert found.difference() == ""


def test_a_pause_counts_the_sleep_of_the_machine(mac: PfMac, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock of the process that closes, or this one would open anew what that one has closed."""
    now = 5000.0
    monkeypatch.setattr(time, "clock_gettime", lambda number: now if number == CLOCK else 0.0)
    found = PfFilter.up(SETTINGS, mac.record, ours=False, run=mac.run, closing=mac.closing)
    found.pause(60)
    assert [stage.at for stage in mac.timers[0].stages] == [5060.0]
    now += 3600
    assert found.paused() == 0


def test_a_pause_goes_on_with_other_settings_and_after_a_repair(mac: PfMac) -> None:
    found = mac.up()
    found.pause(60)
    mac.now += 20
    found.update(replace(SETTINGS, lan=frozenset()))
    first, second = mac.timers
    assert first.stopped and not second.stopped and second.stages[0].at == 160.0
    assert mac.lets_out(str(OUTSIDE), 443) and found.paused() == 40
    mac.pfctl("-a", ANCHOR, "-F", "all")
    assert found.paused() == 0
    found.restore()
    assert found.paused() == 40


def test_a_pause_that_nobody_could_close_opens_nothing(mac: PfMac) -> None:
    def fail(anchor: str, mark: str, stages: list[Stage]) -> Timer:
        raise PfError("nothing was opened")

    found = PfFilter.up(SETTINGS, mac.record, ours=False, run=mac.run, clock=lambda: mac.now, closing=fail)
    with pytest.raises(PfError, match="nothing was opened"):
        found.pause(60)
    assert not mac.lets_out(str(OUTSIDE), 443) and found.pause_left() == 0
    for seconds in (0, 3601):
        with pytest.raises(LocalError):
            found.pause(seconds)


def test_resolvers_may_be_asked_by_root_meanwhile(mac: PfMac) -> None:
    found = mac.up()
    one, other = IPv4Address("9.9.9.9"), IPv4Address("8.8.8.8")
    with found.resolving([one]):
        assert mac.lets_out("9.9.9.9", 53, uid=0, proto="udp")
        assert not mac.lets_out("9.9.9.9", 53, uid=501, proto="udp")
        with found.resolving([other]):
            assert mac.lets_out("9.9.9.9", 53, uid=0, proto="udp") and mac.lets_out("8.8.8.8", 53, uid=0)
        assert not mac.lets_out("8.8.8.8", 53, uid=0)
    assert not mac.lets_out("9.9.9.9", 53, uid=0, proto="udp")
    assert all(timer.stopped for timer in mac.timers)


def test_a_pause_and_a_question_close_one_after_the_other(mac: PfMac) -> None:
    found = mac.up()
    found.pause(60)
    with found.resolving([IPv4Address("9.9.9.9")]):
        first, last = mac.timers[-1].stages
        assert (first.at, last.at) == (130.0, 160.0)
        mark = mac.timers[-1].mark
        assert mark in first.text and "9.9.9.9" not in first.text and mark not in last.text


def test_counters_go_on_over_loads(mac: PfMac, monkeypatch: pytest.MonkeyPatch) -> None:
    found = mac.up()
    labels = "dns 9 2 100 0 0 2 100\nblocked 9 1 50 0 0 1 50\nblocked 9 2 70 0 0 2 70\nnone 1 1 1\n"

    def stand_in(argv: Any, stdin: str) -> Any:
        return (0, labels, "") if "labels" in argv else None

    mac.fake.stand_ins["pfctl"] = stand_in
    assert found.counters()["blocked"] == Count(3, 120)
    found.update(replace(SETTINGS, lan=frozenset()))
    assert found.counters() == {
        "dns": Count(4, 200),
        "blocked": Count(6, 240),
        "stale": Count(0, 0),
        "guard": Count(0, 0),
        "unsolicited": Count(0, 0),
        "by_rule": Count(0, 0),
    }


def test_a_refused_load_leaves_all_as_it_was(mac: PfMac) -> None:
    found = mac.up()
    before = mac.fake.snapshot()
    mac.fake.uid = 501
    with pytest.raises(CryprqError, match="run this as root"):
        found.update(replace(SETTINGS, lan=frozenset()))
    mac.fake.uid = 0
    assert mac.fake.snapshot() == before and found.settings == SETTINGS
    assert found.difference() == ""


IFCONFIG = """\
lo0: flags=8049<UP,LOOPBACK,RUNNING,MULTICAST> mtu 16384
\tinet 127.0.0.1 netmask 0xff000000
en0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tinet 192.168.1.23 netmask 0xffffff00 broadcast 192.168.1.255
"""
ROUTES = """\
Routing tables

Internet:
Destination        Gateway            Flags        Netif Expire
default            GATEWAY            UGScg          en0
192.168.1          link#6             UCS            en0      !
"""
CONNECTIONS = """\
Active Internet connections (including servers)
Proto Recv-Q Send-Q  Local Address          Foreign Address        (state)
tcp4       0      0  192.168.1.23.22        203.0.113.9.51234      ESTABLISHED
tcp4       0      0  *.22                   *.*                    LISTEN
"""


def test_what_goes_past_the_tunnel_follows_the_uplink(mac: PfMac) -> None:
    gateway = ["192.168.1.1"]

    def run(command: Command) -> ProgramAnswer:
        match command.argv:
            case ("ifconfig", "-a"):
                return ProgramAnswer(IFCONFIG)
            case ("netstat", "-rn", "-f", family):
                return ProgramAnswer(ROUTES.replace("GATEWAY", gateway[0]) if family == "inet" else "")
            case ("netstat", *_):
                return ProgramAnswer(CONNECTIONS)
            case ("sysctl", *_):
                return ProgramAnswer("49152\n")
        return mac.run(command)

    def answered(port: int) -> bool:
        packet = PfPacket(
            "out", "utun9", ip_address("192.168.1.23"), ip_address("203.0.113.9"), "tcp", 22, port, uid=0
        )
        found = judge(mac.fake.read().pf, packet)
        return found.passes and found.route_to == ("en0", gateway[0])

    found = mac.up(run=run, keep_inbound=True)
    assert answered(51234) and not answered(51235)
    mac.changes.clear()
    assert not found.update(SETTINGS) and not mac.changes
    gateway[0] = "192.168.1.254"
    assert not answered(51234)
    assert found.update(SETTINGS) and answered(51234)
