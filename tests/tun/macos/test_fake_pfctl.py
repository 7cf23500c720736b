"""The fake pfctl: it counts who needs pf, keeps rulesets apart, and refuses what the real one refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.macos.machine import FakeMac
from tests.support.macos.state import PfState

RULES = """\
table <lan> const { 10.0.0.0/8 }
nat on en0 inet from 10.0.0.1 to any -> 192.168.1.5
block drop out quick to <lan>
"""


@pytest.fixture
def mac(tmp_path: Path) -> FakeMac:
    return FakeMac(tmp_path / "mac")


def pfctl(mac: FakeMac, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
    code, out, err = mac.answer(["/sbin/pfctl", *arguments], stdin)[:3]
    return int(code), str(out), str(err)


def test_tokens_are_counted(mac: FakeMac) -> None:
    first, second = (pfctl(mac, "-E")[2].rpartition("Token : ")[2].strip() for _ in range(2))
    assert first != second and "Status: Enabled" in pfctl(mac, "-s", "info")[1]
    assert first in pfctl(mac, "-s", "References")[1]
    assert "1 more pf enable reference" in pfctl(mac, "-X", first)[2] and mac.read().pf.enabled
    assert pfctl(mac, "-X", first)[0] == 1
    assert "pf disabled" in pfctl(mac, "-X", second)[2] and not mac.read().pf.enabled
    assert "No pf starter references held" in pfctl(mac, "-s", "References")[1]


def test_disabling_asks_nobody(mac: FakeMac) -> None:
    pfctl(mac, "-E")
    pfctl(mac, "-d")
    assert not mac.read().pf.enabled and not mac.read().pf.tokens
    assert pfctl(mac, "-d") == (1, "", pfctl(mac, "-d")[2])
    assert pfctl(mac, "-e")[0] == 0 and pfctl(mac, "-e")[0] == 1


def test_an_anchor_is_loaded_shown_and_flushed(mac: FakeMac) -> None:
    before = mac.snapshot()
    assert pfctl(mac, "-a", "com.apple/x", "-nf", "-", stdin=RULES)[0] == 0
    assert mac.snapshot() == before
    assert pfctl(mac, "-a", "com.apple/x", "-f", "-", stdin=RULES)[0] == 0
    assert pfctl(mac, "-a", "com.apple/x", "-sr")[1] == "block drop out quick from any to <lan>\n"
    assert pfctl(mac, "-a", "com.apple/x", "-s", "nat")[1].startswith("nat on en0 inet from 10.0.0.1 to any")
    assert pfctl(mac, "-a", "com.apple/x", "-t", "lan", "-T", "show")[1] == "   10.0.0.0/8\n"
    assert "com.apple/x\n" in pfctl(mac, "-a", "com.apple", "-s", "Anchors")[1]
    assert pfctl(mac, "-a", "com.apple/x", "-F", "all")[0] == 0
    assert mac.snapshot() == before


def test_an_anchor_that_is_not_there_is_complained_about_and_no_failure(mac: FakeMac) -> None:
    before = mac.snapshot()
    for what in ("rules", "nat", "labels"):
        code, out, err = pfctl(mac, "-a", "com.apple/x", "-s", what)
        assert (code, out, err.splitlines()[-1]) == (0, "", "pfctl: DIOCGETRULES: Invalid argument")
        assert "DIOCGETRULES" not in pfctl(mac, "-s", what)[2] + pfctl(mac, "-a", "com.apple", "-s", what)[2]
    code, out, err = pfctl(mac, "-a", "com.apple/x", "-s", "Anchors")
    assert (code, out, err.splitlines()[-1]) == (0, "", "Anchor 'com.apple/x' not found.")
    code, out, err = pfctl(mac, "-a", "com.apple/x", "-F", "all")
    assert code == 0 and err.endswith("rules cleared\npfctl: Anchor or Ruleset does not exist.\n")
    assert mac.snapshot() == before


def test_the_systems_file_gives_its_main_ruleset_back(mac: FakeMac) -> None:
    before = mac.snapshot()
    pfctl(mac, "-F", "all")
    assert pfctl(mac, "-s", "rules")[1] == ""
    assert pfctl(mac, "-f", "/etc/pf.conf")[0] == 0
    assert mac.snapshot() == before


@pytest.mark.parametrize(
    "text",
    [
        "pass out quick on en0 frobnicate\n",
        "block out quick user 501\n",
        "block out quick from any to any port 53\n",
        "block out quick inet proto tcp from 10.0.0.1 to fd00::1\n",
        "block drop out to <nowhere>\n",
        "pass reply-to (en0 10.0.0.1) all\n",
        "pass out all\nnat on en0 from any to any -> 10.0.0.1\n",
        "nat on en0 inet proto tcp from any to any user 501 -> 10.0.0.1\n",
        "pass out proto udp all flags S/SA\n",
        "pass out proto icmp all icmp-type 8\n",
    ],
)
def test_text_that_is_no_pf_conf_changes_nothing(mac: FakeMac, text: str) -> None:
    before = mac.snapshot()
    code, _, said = pfctl(mac, "-a", "com.apple/x", "-f", "-", stdin=text)
    assert code == 1 and "pf rules not loaded" in said
    assert mac.snapshot() == before


@pytest.mark.parametrize("arguments", [("-Z",), (), ("-s", "nonsense"), ("-F",), ("-a", "x"), ("x",)])
def test_unknown_arguments_are_an_error(mac: FakeMac, arguments: tuple[str, ...]) -> None:
    before = mac.snapshot()
    assert pfctl(mac, *arguments)[0] == (0 if arguments == ("-a", "x") else 1)
    assert mac.snapshot() == before


def test_states_are_shown_and_killed_by_their_ends(mac: FakeMac) -> None:
    with mac.change() as state:
        state.pf.states = [
            PfState("ALL", "tcp", "out", "10.0.0.1", "10.0.0.2", 1, 2),
            PfState("ALL", "udp", "in", "fd00::2", "fd00::1", 5, 6),
        ]
    assert pfctl(mac, "-s", "states")[1].splitlines() == [
        "ALL tcp 10.0.0.1:1 -> 10.0.0.2:2       ESTABLISHED:ESTABLISHED",
        "ALL udp fd00::1[6] <- fd00::2[5]       MULTIPLE:MULTIPLE",
    ]
    pfctl(mac, "-k", "10.0.0.1", "-k", "10.0.0.3")
    assert len(mac.read().pf.states) == 2
    pfctl(mac, "-k", "fd00::/64")
    assert [each.proto for each in mac.read().pf.states] == ["tcp"]


def test_it_is_roots(mac: FakeMac) -> None:
    mac.uid = 501
    assert pfctl(mac, "-s", "info") == (1, "", "pfctl: /dev/pf: Permission denied\n")
