"""Whether pf asks our anchor, and what is asked before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.macos.machine import FakeMac
from tests.support.macos.state import Anchor
from tun.macos.main_ruleset import MAX_ANCHORS, not_evaluated
from tun.macos.pfctl import ANCHORS

SCRUB, FILTER = 'scrub-anchor "com.apple/*" all fragment reassemble\n', 'anchor "com.apple/*" all\n'


@pytest.mark.parametrize(
    ("rules", "anchors", "said"),
    [
        (
            'anchor "other" all\n' + FILTER,
            {"other": "pass out quick all no state\n"},
            "of the anchor other stands",
        ),
        ('anchor "other" all\n' + FILTER, {"other": "pass out all no state\n"}, ""),
        ('anchor "other" all\n' + FILTER, {"other": "pass in quick all no state\n"}, ""),
        (
            'anchor "other" all\n' + FILTER,
            {"other": 'anchor "inner" all\n', "other/inner": "pass quick all\n"},
            "of the anchor other/inner stands",
        ),
        (
            'anchor "other/*" all\n' + FILTER,
            {"other/inner": "block quick all\n"},
            "of the anchor other/inner stands",
        ),
        (FILTER + 'anchor "other" all\n', {"other": "pass quick all\n"}, ""),
        (FILTER, {"com.apple/200.AirDrop": "pass quick all\n"}, ""),
        ('anchor "com.apple/*" in on en5 all\n', {}, "(anchor is missing"),
    ],
)
def test_what_is_asked_before_ours_is_looked_into(
    rules: str, anchors: dict[str, str], said: str, tmp_path: Path
) -> None:
    mac = FakeMac(tmp_path / "mac")
    with mac.change() as state:
        state.pf.main.rules = SCRUB + rules
        for name, text in anchors.items():
            state.pf.anchors[name] = Anchor(text)
    found = not_evaluated(mac.run)
    assert (said in found) if said else found == ""


def test_very_many_anchors_in_front_are_an_answer(tmp_path: Path) -> None:
    mac = FakeMac(tmp_path / "mac")
    with mac.change() as state:
        state.pf.main.rules = SCRUB + 'anchor "other/*" all\n' + FILTER
        for number in range(MAX_ANCHORS + 1):
            state.pf.anchors[f"other/{number:03}"] = Anchor("pass out all\n")
    assert "more than 64 anchors" in not_evaluated(mac.run)


def test_our_anchors_are_asked_before_those_of_macos() -> None:
    known = ["com.apple/100.InternetSharing", "com.apple/200.AirDrop", "com.apple/250.ApplicationFirewall"]
    assert all(ours < min(known) for ours in ANCHORS.values())
