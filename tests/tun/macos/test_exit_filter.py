"""The exit's anchor: put up in order, kept, withheld while it does not stand."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Any

import pytest

from cryprq_proxy.errors import CryprqError
from tests.support.pf_program import FOREIGN, TOKEN, PfProgram
from tun.macos import asked, pfctl
from tun.macos.exit_filter import MacExitFilter
from tun.macos.exit_rules import ExitView, Outward
from tun.macos.main_ruleset import not_evaluated
from tun.macos.pfctl import PfError
from tun.macos.programs import ProgramAnswer
from tun.settings import ExitNetworkSettings

ANCHOR = pfctl.ANCHORS["exit"]
VIEW = ExitView((Outward("en0", ip_address("192.168.1.20")),), (ip_address("192.168.1.20"),))
MOVED = ExitView((Outward("en0", ip_address("10.0.0.5")),), (ip_address("10.0.0.5"),))
SETTINGS = ExitNetworkSettings(
    device="utun7",
    offload=False,
    pool4=IPv4Network("198.18.0.0/16"),
    pool6=IPv6Network("fd63:7279:7071::/64"),
    isolate=True,
    state=Path("/nowhere"),
)


@pytest.fixture
def program() -> PfProgram:
    return PfProgram()


@pytest.fixture
def entries() -> list[dict[str, Any]]:
    return []


async def up(program: PfProgram, entries: list[dict[str, Any]], **more: Any) -> MacExitFilter:
    def record(entry: Mapping[str, object]) -> None:
        assert program.anchors == {} or entry.get("token") is not None
        entries.append(dict(entry))

    values: dict[str, Any] = {"ipv6": False, "ours": False, "run": program} | more
    return await MacExitFilter.up(SETTINGS, VIEW, record, **values)


async def test_the_rules_stand_before_pf_is_enabled_and_both_are_undone(
    program: PfProgram, entries: list[dict[str, Any]]
) -> None:
    table = await up(program, entries)
    assert "nat on en0 inet" in program.anchors[ANCHOR]
    changes = [words for words in program.asked if "-s" not in words]
    assert changes == [f"-a {ANCHOR} -f -", "-E", "-k 198.18.0.0/16"]
    assert await table.look() == ""
    undoers = pfctl.undoers(program)
    for entry in reversed(entries):
        undoers[str(entry["kind"])](entry)
    assert (program.anchors, set(program.tokens)) == ({}, {FOREIGN})


async def test_a_journal_that_names_the_anchor_gets_no_second_entry(
    program: PfProgram, entries: list[dict[str, Any]]
) -> None:
    await up(program, entries, ours=True)
    assert [set(entry) & {"anchor", "token"} for entry in entries] == [{"token"}, {"token"}]


async def test_what_other_programs_do_is_found_withheld_and_put_back(
    program: PfProgram, entries: list[dict[str, Any]]
) -> None:
    table = await up(program, entries)
    told: list[bool] = []
    table.tell(told.append)

    async def found_and_mended() -> str:
        found = await table.look()
        assert told[-1] is True
        await table.put_back()
        assert told[-1] is False
        assert await table.look() == ""
        assert program.asked.count("-k 198.18.0.0/16") > 1
        return found

    program.anchors.clear()
    assert await found_and_mended() == f"the rules of {ANCHOR} were removed"
    program.anchors[ANCHOR] = "pass all\n"
    assert await found_and_mended() == f"the rules of {ANCHOR} were changed"
    program.tokens.clear()
    assert await found_and_mended() == "pf was disabled"
    program.tokens = {FOREIGN: "socketfilterfw"}
    assert await found_and_mended() == "pf was disabled and enabled again"
    # A token that stands in the journal is given up in the end.
    assert [entry["token"] for entry in entries if entry.get("token")] == [
        str(int(TOKEN) + number) for number in range(3)
    ]


async def test_rules_that_the_main_ruleset_no_longer_asks_are_trouble(
    program: PfProgram, entries: list[dict[str, Any]]
) -> None:
    table = await up(program, entries)
    told: list[bool] = []
    table.tell(told.append)
    program.main["nat"] = ""
    assert "nat-anchor is missing" in await table.look()
    with pytest.raises(PfError, match="nat-anchor is missing"):
        await table.put_back()
    assert told == [True]


async def test_a_pf_that_asks_none_of_our_rules_is_refused(
    program: PfProgram, entries: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked, "send", lambda address: True)
    program.evaluations = 0
    with pytest.raises(PfError, match="asks none of them"):
        await up(program, entries)
    undoers = pfctl.undoers(program)
    for entry in reversed(entries):
        undoers[str(entry["kind"])](entry)
    assert (program.anchors, set(program.tokens)) == ({}, {FOREIGN})


async def test_packets_are_withheld_once_it_is_known_that_no_rule_is_asked(
    program: PfProgram, entries: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked, "send", lambda address: False)
    program.evaluations = 0
    program.main["Interfaces"] = "en0\nlo0 (skip)\n"
    table = await up(program, entries)
    told: list[bool] = []
    table.tell(told.append)
    assert await table.look() == ""
    monkeypatch.setattr(asked, "send", lambda address: True)
    assert "asks none of them" in await table.look()
    with pytest.raises(PfError, match="asks none of them"):
        await table.put_back()
    assert told == [False, True]


async def test_what_cannot_be_looked_at_is_withheld(
    program: PfProgram, entries: list[dict[str, Any]]
) -> None:
    table = await up(program, entries)
    told: list[bool] = []
    table.tell(told.append)
    program.answers["-s info"] = ProgramAnswer("", "pfctl: /dev/pf: No such file or directory\n", 1)
    with pytest.raises(CryprqError):
        await table.look()
    assert told == [True]


async def test_it_follows_addresses_and_ipv6(program: PfProgram, entries: list[dict[str, Any]]) -> None:
    table = await up(program, entries)
    loads = program.asked.count(f"-a {ANCHOR} -f -")
    await table.follow(VIEW, ipv6=False)
    assert program.asked.count(f"-a {ANCHOR} -f -") == loads
    await table.follow(MOVED, ipv6=True)
    assert "-> 10.0.0.5" in program.anchors[ANCHOR] and "inet6 proto ipv6-icmp" in program.anchors[ANCHOR]
    assert await table.look() == ""


# --- the main ruleset ---

SCRUB, FILTER = 'scrub-anchor "com.apple/*" all fragment reassemble\n', 'anchor "com.apple/*" all\n'


@pytest.mark.parametrize(
    ("rules", "nat", "said"),
    [
        (SCRUB + FILTER, 'nat-anchor "com.apple/*" all\n', ""),
        (SCRUB + "pass all\n" + FILTER, 'nat-anchor "com.apple/*" all\n', ""),
        (SCRUB + FILTER + "pass quick all\n", 'nat-anchor "com.apple/*" all\n', ""),
        (FILTER, 'nat-anchor "com.apple/*" all\n', "scrub-anchor is missing"),
        (SCRUB, 'nat-anchor "com.apple/*" all\n', "(anchor is missing"),
        (SCRUB + 'anchor "mine" all\n', 'nat-anchor "com.apple/*" all\n', "(anchor is missing"),
        (SCRUB + FILTER, 'rdr-anchor "com.apple/*" all\n', "nat-anchor is missing"),
        (
            SCRUB + "pass quick on en0 all\n" + FILTER,
            'nat-anchor "com.apple/*" all\n',
            '"pass quick on en0 all" stands',
        ),
    ],
)
async def test_a_main_ruleset_that_does_not_ask_us_is_refused(
    rules: str, nat: str, said: str, program: PfProgram, entries: list[dict[str, Any]]
) -> None:
    program.main |= {"rules": rules, "nat": nat}
    assert said in not_evaluated(program)
    if said:
        with pytest.raises(PfError, match="does not evaluate"):
            await up(program, entries)
        assert (entries, program.anchors, set(program.tokens)) == ([], {}, {FOREIGN})
    else:
        assert not_evaluated(program) == ""
        await up(program, entries)


async def test_a_pf_that_takes_rules_and_has_none(program: PfProgram, entries: list[dict[str, Any]]) -> None:
    program.answers[f"-a {ANCHOR} -s rules"] = ProgramAnswer("")
    with pytest.raises(PfError, match="has none of them"):
        await up(program, entries)
