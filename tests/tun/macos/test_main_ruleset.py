"""Whether pf asks our anchor, and what is asked before it.

What is said is held against a model of pf: where nothing is said, no packet gets past our rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.macos.both_filters import OUTSIDE, OWN, SETTINGS, USER, WIFI
from tests.support.macos.default import default_state
from tests.support.macos.machine import FakeMac
from tests.support.macos.pf_grammar import parse
from tests.support.macos.pf_model import Judgement, PfPacket, judge, with_anchor
from tests.support.macos.state import Anchor, Pf
from tun.macos.front_anchors import MAX_ANCHORS
from tun.macos.main_ruleset import not_evaluated
from tun.macos.pf_rules import anchor_rules
from tun.macos.pfctl import ANCHORS, PfError
from tun.macos.programs import Command, ProgramAnswer

SCRUB, FILTER = 'scrub-anchor "com.apple/*" all fragment reassemble\n', 'anchor "com.apple/*" all\n'
OTHER = 'anchor "other" all\n' + FILTER
PASS = "pass out quick all no state\n"
OURS = ANCHORS["client"]


def mac_with(directory: Path, rules: str, anchors: Mapping[str, str], nat: str = "") -> FakeMac:
    """A Mac with these rules, each as pfctl shows it, and with ours."""
    mac = FakeMac(directory)
    with mac.change() as state:
        pf = with_anchor(OURS, anchor_rules(SETTINGS))
        pf.main.rules = SCRUB + rules
        pf.main.nat = nat + default_state().pf.main.nat
        for name, text in anchors.items():
            found = parse(text)
            assert text == "".join(f"{rule}\n" for rule in (*found.nat, *found.rules))
            written = "".join(f"{rule}\n" for rule in found.rules)
            pf.anchors[name] = Anchor(written, "".join(f"{rule}\n" for rule in found.nat))
        state.pf = pf
    return mac


def leaves(pf: Pf) -> Judgement:
    """What pf makes of a packet that must not get past the tunnel."""
    to = ip_address(OUTSIDE)
    return judge(pf, PfPacket("out", WIFI, OWN[4], to, "udp", 50000, 443, uid=USER))


LEAKS = [
    ("pass quick all no state\n" + FILTER, {}, '"pass quick all no state" stands'),
    (OTHER, {"other": PASS}, "of the anchor other stands"),
    (
        OTHER,
        {"other": 'anchor "inner" all\n', "other/inner": "pass quick all no state\n"},
        "other/inner stands",
    ),
    # A quick anchor decides where any rule in it matches.
    (
        'anchor "other" quick all\n' + FILTER,
        {"other": "pass out all no state\n"},
        "of the anchor other stands",
    ),
    (
        'anchor "other" out quick all\n' + FILTER,
        {"other": "pass all no state\n"},
        "of the anchor other stands",
    ),
    (
        'anchor "other" quick all\n' + FILTER,
        {"other": 'anchor "a" all\n', "other/a": "pass out all no state\n"},
        "of the anchor other/a stands",
    ),
    (OTHER, {"other": 'anchor "a" quick all\n', "other/a": "pass all no state\n"}, "anchor other/a stands"),
    ('anchor "other/*" quick all\n' + FILTER, {"other/a": "pass all no state\n"}, "anchor other/a stands"),
    # Names begin where the rule stands.
    (OTHER, {"other": 'anchor "a/b" all\n', "other/a/b": PASS}, "of the anchor other/a/b stands"),
    (OTHER, {"other": 'anchor "a/*" all\n', "other/a/x": PASS}, "of the anchor other/a/x stands"),
    (OTHER, {"other": 'anchor "*" all\n', "other/x": PASS}, "of the anchor other/x stands"),
    (
        'anchor "other/x" all\n' + FILTER,
        {"other/x": 'anchor "../y" all\n', "other/y": PASS},
        "other/y stands",
    ),
    ('anchor "other/x" all\n' + FILTER, {"other/x": 'anchor "../../y" all\n', "y": PASS}, "anchor y stands"),
    (OTHER, {"other": 'anchor "/abs" all\n', "abs": PASS}, "of the anchor abs stands"),
    (OTHER, {"other": 'anchor "/abs/*" all\n', "abs/x": PASS}, "of the anchor abs/x stands"),
    ('anchor "/abs" all\n' + FILTER, {"abs": PASS}, "of the anchor abs stands"),
    # Others go round in a circle.
    (
        'anchor "other/x" all\n' + FILTER,
        {"other/x": 'anchor "../*" all\n', "other/y": PASS},
        "of the anchor other/y stands",
    ),
    # Below com.apple as well.
    (FILTER, {"com.apple/005.other": PASS}, "of the anchor com.apple/005.other stands"),
    (FILTER, {"com.apple/005": 'anchor "a/b" all\n', "com.apple/005/a/b": PASS}, "com.apple/005/a/b stands"),
    # A tag of ours decides, in rules of ours, also where the rule that sets it does not.
    (
        "pass out all no state tag cryprq_direct\n" + FILTER,
        {},
        '"pass out all no state tag cryprq_direct" stands',
    ),
    ("pass out all no state tag cryprq_past\n" + FILTER, {}, "cryprq_past"),
    (OTHER, {"other": "pass out all no state tag cryprq_past\n"}, "of the anchor other stands"),
    ('anchor "other" all tag cryprq_past\n' + FILTER, {"other": ""}, "tag cryprq_past"),
    # The line that asks us may ask us about some packets only.
    ('anchor "com.apple/*" all tagged OURS\n', {}, "(anchor is missing"),
    ('anchor "com.apple/*" on en5 all\n', {}, "(anchor is missing"),
    ('anchor "com.apple/*" out inet6 all\n', {}, "(anchor is missing"),
]


@pytest.mark.parametrize(("rules", "anchors", "said"), LEAKS)
def test_what_lets_packets_past_our_rules_is_refused(
    rules: str, anchors: dict[str, str], said: str, tmp_path: Path
) -> None:
    mac = mac_with(tmp_path / "mac", rules, anchors)
    assert leaves(mac.read().pf).passes
    assert said in not_evaluated(mac.run)


@pytest.mark.parametrize(
    ("rules", "anchors", "said"),
    [
        # Nothing leaks by these, and nothing works: no rule of ours is asked.
        ('anchor "other/*" all\n' + FILTER, {"other/inner": "block drop quick all\n"}, "other/inner stands"),
        (
            'anchor "other" quick all\n' + FILTER,
            {"other": "block drop out all\n"},
            "of the anchor other stands",
        ),
        # What they let in passes by our rules about packets that come in, and with a state its answers pass too.
        ("pass in quick all flags S/SA keep state\n" + FILTER, {}, "stands in front"),
        (OTHER, {"other": "pass in quick on en0 all no state\n"}, "of the anchor other stands"),
        ('anchor "other" in quick all\n' + FILTER, {"other": "pass all no state\n"}, "anchor other stands"),
        (
            'anchor "other" quick all label "x"\n' + FILTER,
            {"other": "pass all no state\n"},
            "anchor other stands",
        ),
        ('anchor quick all label "x" {\n  pass all no state\n}\n' + FILTER, {}, '"pass all no state" stands'),
        # Forms that are not known, or that pfctl cannot look into.
        ('anchor "*" all\n' + FILTER, {}, '"anchor "*" all", which cannot be followed, stands'),
        ('anchor "/*" all\n' + FILTER, {}, "cannot be followed"),
        ('anchor "a*" all\n' + FILTER, {}, "cannot be followed"),
        ('anchor "a\tb" all\n' + FILTER, {}, "cannot be followed"),
        ('anchor "../a" all\n' + FILTER, {}, "cannot be followed"),
        ('anchor "a/*/b" all\n' + FILTER, {}, "cannot be followed"),
        ("frobnicate all\n" + FILTER, {}, '"frobnicate all", which cannot be followed, stands'),
        (
            "anchor all {\n  pass out quick all no state\n}\n" + FILTER,
            {},
            '"pass out quick all no state" stands',
        ),
        ("anchor out quick all {\n  pass all no state\n}\n" + FILTER, {}, '"pass all no state" stands'),
        ("frobnicate all {\n" + FILTER, {}, "cannot be followed"),
        ("}\n" + FILTER, {}, "cannot be followed"),
        ('"x"\n' + FILTER, {}, "cannot be followed"),
        ('anchor all {\n  anchor "x" all\n}\n' + FILTER, {}, "cannot be followed"),
        ("anchor all {\n  anchor all {\n  pass quick all\n  }\n}\n" + FILTER, {}, '"pass quick all" stands'),
    ],
)
def test_what_decides_in_front_or_cannot_be_followed_is_refused(
    rules: str, anchors: dict[str, str], said: str, tmp_path: Path
) -> None:
    assert said in not_evaluated(mac_with(tmp_path / "mac", rules, anchors).run)


@pytest.mark.parametrize(
    ("rules", "anchors"),
    [
        (FILTER, {}),
        (OTHER, {}),
        (OTHER, {"other": "pass out all no state\n"}),
        (OTHER, {"other": "block drop in quick on en0 all\n"}),
        ("block return in quick on en0 all\n" + FILTER, {}),
        ('anchor "other" in quick all\n' + FILTER, {"other": "block drop all\n"}),
        (OTHER, {"other": "pass quick on lo0 all no state\n"}),
        ('anchor "other" quick on lo0 all\n' + FILTER, {"other": "pass quick all no state\n"}),
        ('anchor "other" quick all\n' + FILTER, {"other": 'anchor "a" all\n', "a": PASS}),
        ('anchor "other" quick all\n' + FILTER, {"other": "scrub all fragment reassemble\n"}),
        (OTHER, {"other": 'anchor "a/b" all\n', "a/b": PASS}),
        (
            'anchor "other/x" all\n' + FILTER,
            {"other/x": 'anchor "../*" all\n', "other/y": "pass all no state\n"},
        ),
        ('pass out all no state label "very quick"\n' + FILTER, {}),
        ('anchor "other" all label "quick"\n' + FILTER, {"other": "pass out all no state\n"}),
        ("anchor all {\n  pass out all no state\n}\n" + FILTER, {}),
        ("anchor quick on lo0 all {\n  pass out quick all no state\n}\n" + FILTER, {}),
        (FILTER + 'anchor "other" all\n', {"other": PASS}),
        (FILTER, {"com.apple/200.AirDrop": PASS}),
        (FILTER, {"com.apple/005.other": "pass out all no state\n"}),
        ("pass out all no state tag other\n" + FILTER, {}),
        # Our own rules are not in front of ours, and those of macOS are asked behind them.
        ('anchor "com.apple/*" in on en5 all\n' + FILTER, {"com.apple/200.AirDrop": PASS}),
        (f'anchor "{OURS}" quick all\n' + FILTER, {}),
        (OTHER, {"other": 'anchor "/com.apple/*" all\n'}),
    ],
)
def test_what_takes_nothing_from_our_rules_is_left(
    rules: str, anchors: dict[str, str], tmp_path: Path
) -> None:
    mac = mac_with(tmp_path / "mac", rules, anchors)
    assert not_evaluated(mac.run) == ""
    if "{" not in rules:
        assert not leaves(mac.read().pf).passes


@pytest.mark.parametrize(
    ("nat", "anchors", "said"),
    [
        ("nat pass on en0 inet all -> 192.168.1.23\n", {}, '"nat pass on en0 inet'),
        (
            'nat-anchor "other" all\n',
            {"other": "nat pass on en0 inet all -> 192.168.1.23\n"},
            "of the anchor other stands",
        ),
        ("nat on en0 inet all -> 192.168.1.23\n", {}, ""),
        # All translations come before all rules, so one behind ours by its name decides as well.
        (
            "",
            {"com.apple/org.example": "nat pass on en0 inet all -> 192.168.1.23\n"},
            "of the anchor com.apple/org.example stands",
        ),
        (
            "",
            {
                "com.apple/200.AirDrop": 'nat-anchor "inner" all\n',
                "com.apple/200.AirDrop/inner": "nat pass on en0 inet all -> 192.168.1.23\n",
            },
            "of the anchor com.apple/200.AirDrop/inner stands",
        ),
        ("", {"com.apple/org.example": "nat on en0 inet all -> 192.168.1.23\n" + PASS}, ""),
        (
            "",
            {"com.apple/org.example": "nat on en0 inet all tag cryprq_past -> 192.168.1.23\n"},
            "cryprq_past",
        ),
        ("rdr pass on lo0 inet proto tcp from any to any port = 80 -> 127.0.0.1 port 8080\n", {}, ""),
    ],
)
def test_a_translation_that_asks_no_rule_is_refused(
    nat: str, anchors: dict[str, str], said: str, tmp_path: Path
) -> None:
    mac = mac_with(tmp_path / "mac", FILTER, anchors, nat)
    assert leaves(mac.read().pf).passes == bool(said)
    found = not_evaluated(mac.run)
    assert (said in found) if said else found == ""


@pytest.mark.parametrize("kind", ["rdr", "binat"])
def test_every_translation_below_com_apple_that_asks_no_rule_is_refused(kind: str, tmp_path: Path) -> None:
    """By an `rdr pass` packets come in that no rule of ours has seen, and their state lets answers out."""
    mac = FakeMac(tmp_path / "mac")
    rule = f"{kind} pass on en0 inet from 192.168.1.23 to any -> 192.168.1.24"
    with mac.change() as state:
        state.pf.anchors["com.apple/org.example"] = Anchor("", rule + "\n")
    assert f'"{rule}" of the anchor com.apple/org.example stands' in not_evaluated(mac.run)


@pytest.mark.parametrize("place", ["com.apple/100.InternetSharing", "com.apple.internet-sharing"])
def test_internet_sharing_of_macos_is_left(place: str, tmp_path: Path) -> None:
    """Its rules as public reports show them, below com.apple or asked by lines of the main ruleset."""
    mac = FakeMac(tmp_path / "mac")
    with mac.change() as state:
        anchors, main = state.pf.anchors, state.pf.main
        if "/" not in place:
            main.rules += f'anchor "{place}" all\n'
            main.nat += f'nat-anchor "{place}" all\nrdr-anchor "{place}" all\n'
        anchors[place] = Anchor(
            'scrub-anchor "base_v4" all fragment reassemble\nanchor "base_v4" all\n',
            'nat-anchor "base_v4" all\nrdr-anchor "base_v4" all\n',
        )
        anchors[f"{place}/base_v4"] = Anchor(
            "scrub on en0 all no-df fragment reassemble\npass on en0 all flags any keep state\n"
            "pass on bridge100 all flags any keep state rtable 2\n",
            "nat on en0 inet from 192.168.2.0/24 to any -> (en0:0) extfilter ei\n"
            "no nat on bridge100 inet from 192.168.2.1 to 192.168.2.0/24\n"
            "rdr on bridge100 inet proto tcp from 192.168.2.0/24 to any port = 21 -> 127.0.0.1 port 8021\n",
        )
    assert not_evaluated(mac.run) == ""


NAMES = ("a", "a/b", "a/*", "*", "/a", "/a/*", "../b", "../*", "b", "/com.apple/*")
FULL = ("a", "b", "a/a", "a/b", "a/a/b", "com.apple/005", "com.apple/005/b", "com.apple/200.AirDrop")
ANCHOR_LINES = st.builds(
    'anchor "{}"{}{}{} all\n'.format,
    st.sampled_from(NAMES),
    st.sampled_from(["", " in", " out"]),
    st.sampled_from(["", " quick"]),
    st.sampled_from(["", " on en0", " on lo0", " on ! lo0"]),
)
RULE_LINES = st.builds(
    "{}{}{}{} all{}\n".format,
    st.sampled_from(["pass", "block drop"]),
    st.sampled_from(["", " in", " out"]),
    st.sampled_from(["", " quick"]),
    st.sampled_from(["", " on en0", " on lo0", " on ! lo0"]),
    st.just(""),
).map(lambda line: line.replace(" all\n", " all no state\n") if line.startswith("pass") else line)
RULESETS = st.lists(ANCHOR_LINES | RULE_LINES, max_size=3).map("".join)


@settings(max_examples=100, deadline=None)
@given(RULESETS, st.dictionaries(st.sampled_from(FULL), RULESETS, max_size=5))
def test_where_nothing_is_said_no_packet_gets_past(
    tmp_path_factory: pytest.TempPathFactory, rules: str, anchors: dict[str, str]
) -> None:
    mac = mac_with(tmp_path_factory.mktemp("mac") / "mac", rules + FILTER, anchors)
    if leaves(mac.read().pf).passes:
        assert not_evaluated(mac.run) != ""


def test_very_many_anchors_in_front_are_an_answer(tmp_path: Path) -> None:
    anchors = {f"other/{number:03}": "pass out all no state\n" for number in range(MAX_ANCHORS + 1)}
    mac = mac_with(tmp_path / "mac", 'anchor "other/*" all\n' + FILTER, anchors)
    assert "more than 64 anchors" in not_evaluated(mac.run)


def test_a_mac_as_it_is_delivered_costs_five_looks(tmp_path: Path) -> None:
    mac, asked = FakeMac(tmp_path / "mac"), []

    def run(command: Command) -> ProgramAnswer:
        asked.append(" ".join(command.argv))
        return mac.run(command)

    assert not_evaluated(run) == ""
    assert asked == [
        "pfctl -s rules",
        "pfctl -s nat",
        "pfctl -v -s Anchors",
        "pfctl -a com.apple/200.AirDrop -s nat",
        "pfctl -a com.apple/250.ApplicationFirewall -s nat",
    ]


def test_a_list_of_anchors_that_breaks_off_is_no_answer(tmp_path: Path) -> None:
    mac = FakeMac(tmp_path / "mac")

    def run(command: Command) -> ProgramAnswer:
        answer = mac.run(command)
        return answer._replace(err="Anchor 'x' not found.\n") if "Anchors" in command.argv else answer

    with pytest.raises(PfError, match="Anchor 'x' not found"):
        not_evaluated(run)


def test_our_anchors_are_asked_before_those_of_macos() -> None:
    known = ["com.apple/100.InternetSharing", "com.apple/200.AirDrop", "com.apple/250.ApplicationFirewall"]
    assert all(ours < min(known) for ours in ANCHORS.values())
