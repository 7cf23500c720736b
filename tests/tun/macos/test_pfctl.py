"""How pf is asked and changed, with answers in the words of pfctl(8)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from cryprq_proxy.errors import CryprqError
from tests.support.pf_program import FOREIGN, NOISE, TOKEN, PfProgram
from tun.macos import pfctl
from tun.macos.pfctl import ANCHORS, PfError, Reference
from tun.macos.programs import Command, ProgramAnswer

ANCHOR = ANCHORS["exit"]


@pytest.fixture
def program() -> PfProgram:
    return PfProgram()


def undo(entries: list[dict[str, Any]], program: PfProgram) -> None:
    undoers = pfctl.undoers(program)
    for entry in reversed(entries):
        undoers[str(entry["kind"])](entry)


def recorder() -> tuple[list[dict[str, Any]], Any]:
    entries: list[dict[str, Any]] = []

    def record(entry: Mapping[str, object]) -> None:
        entries.append(dict(entry))

    return entries, record


def test_the_token_is_in_the_journal_and_pf_is_needed_no_more_after_the_undo(program: PfProgram) -> None:
    entries, record = recorder()
    assert pfctl.enable(record, program) == TOKEN
    assert pfctl.holds(TOKEN, program)
    assert [entry["token"] for entry in entries] == ["", TOKEN]
    undo(entries, program)
    assert program.tokens == {FOREIGN: "socketfilterfw"}
    assert not pfctl.holds(TOKEN, program)
    undo(entries, program)
    assert program.tokens == {FOREIGN: "socketfilterfw"}


def test_another_program_that_has_used_pfctl_since_keeps_its_token(program: PfProgram) -> None:
    entries, record = recorder()
    pfctl.enable(record, program)
    program.tokens["42"] = "pfctl"
    undo(entries, program)
    assert set(program.tokens) == {FOREIGN, "42"}


def test_the_journal_is_written_before_pf_is_enabled(program: PfProgram) -> None:
    def refuse(entry: Mapping[str, object]) -> None:
        raise CryprqError("the disk is full")

    with pytest.raises(CryprqError, match="disk is full"):
        pfctl.enable(refuse, program)
    assert "-E" not in program.asked


@pytest.mark.parametrize(
    ("since", "left"),
    [
        ({TOKEN: "pfctl"}, {FOREIGN}),
        ({}, {FOREIGN}),
        ({TOKEN: "pfctl", "42": "pfctl"}, {FOREIGN, TOKEN, "42"}),
        ({"42": "socketfilterfw"}, {FOREIGN, "42"}),
    ],
    ids=["one", "none", "two", "another program's"],
)
def test_a_crash_between_pfctl_and_the_second_entry(
    since: dict[str, str], left: set[str], program: PfProgram
) -> None:
    """The token that pfctl has got since is ours, if it is the only one; else none is given up."""
    entries, record = recorder()
    pfctl.enable(record, program)
    program.tokens = {FOREIGN: "socketfilterfw"} | since
    undo(entries[:1], program)
    assert set(program.tokens) == left


def test_nothing_is_undone_after_a_reboot(program: PfProgram) -> None:
    program.tokens[TOKEN] = "pfctl"
    program.anchors[ANCHOR] = "block drop all\n"
    entries: list[dict[str, Any]] = [
        {"kind": "pf", "anchor": ANCHOR, "boot": "another"},
        {"kind": "pf", "token": "", "before": [], "boot": "another"},
        {"kind": "pf", "token": TOKEN, "boot": "another"},
    ]
    undo(entries, program)
    assert program.asked == []


@pytest.mark.parametrize(
    "entry",
    [
        {"kind": "pf"},
        {"kind": "pf", "token": 5},
        {"kind": "pf", "token": "", "before": "x"},
        {"kind": "pf"},
        {"kind": "pf", "anchor": "com.apple"},
        {"kind": "pf", "anchor": ["com.apple/010.cryprq-proxy"]},
    ],
)
def test_a_damaged_entry_changes_nothing(entry: dict[str, Any], program: PfProgram) -> None:
    with pytest.raises(CryprqError):
        undo([entry], program)
    assert program.asked == []


def test_a_token_that_is_none_is_never_given_up(program: PfProgram) -> None:
    undo([{"kind": "pf", "token": "-a"}, {"kind": "pf", "token": "17"}], program)
    assert not any(words.startswith("-X") for words in program.asked)


def test_an_anchor_is_loaded_listed_and_flushed(program: PfProgram) -> None:
    entries, record = recorder()
    anchor = pfctl.claim("exit", record, ours=False)
    pfctl.claim("exit", record, ours=True)
    assert entries == [{"kind": "pf", "anchor": ANCHOR}]
    assert not pfctl.loaded(anchor, program)
    pfctl.load(anchor, "block drop in all\n", program)
    assert pfctl.loaded(anchor, program) == (("block drop in all",), ())
    undo(entries, program)
    assert program.anchors == {}
    undo(entries, program)


def test_what_pf_refuses_is_a_sentence(program: PfProgram) -> None:
    program.answers["-a x -f -"] = ProgramAnswer("", f"{NOISE}stdin:3: syntax error\n", 1)
    with pytest.raises(PfError, match="not changed"):
        pfctl.load("x", "nonsense", program)
    program.answers["-s info"] = ProgramAnswer("", "pfctl: /dev/pf: Permission denied\n", 1)
    with pytest.raises(PfError, match="run this as root"):
        pfctl.enabled(program)


@pytest.mark.parametrize("answer", ["", "Status: Odd\n", "State: Enabled\n"])
def test_unknown_answers(answer: str, program: PfProgram) -> None:
    program.answers = {
        "-s info": ProgramAnswer(answer),
        "-s References": ProgramAnswer(answer),
        "-E": ProgramAnswer(answer),
    }
    with pytest.raises(PfError, match="not understood"):
        pfctl.enabled(program)
    with pytest.raises(PfError, match="not understood"):
        pfctl.references(program)
    del program.answers["-s References"]
    with pytest.raises(PfError, match="no token"):
        pfctl.enable(lambda _: None, program)


def test_references(program: PfProgram) -> None:
    program.tokens = {"42": "some helper", "7": "pfctl"}
    assert pfctl.references(program) == [Reference("some helper", "42"), Reference("pfctl", "7")]
    program.tokens = {}
    assert pfctl.references(program) == []


def test_states_are_killed_by_source_or_by_both_ends(program: PfProgram) -> None:
    pfctl.kill_states([("198.18.0.0/16",), ("192.0.2.1", "192.0.2.2")], program)
    assert program.asked == ["-k 198.18.0.0/16", "-k 192.0.2.1 -k 192.0.2.2"]


def test_a_look_that_failed_is_not_nothing() -> None:
    """pfctl of macOS ends with 0 then, and complains only."""

    def busy(command: Command) -> ProgramAnswer:
        return ProgramAnswer("", "No ALTQ support in kernel\npfctl: DIOCGETRULES: Resource busy\n", 0)

    for look in (
        lambda: pfctl.loaded(pfctl.ANCHORS["client"], busy),
        lambda: pfctl.state_lines(busy),
        lambda: pfctl.enabled(busy),
    ):
        with pytest.raises(PfError, match="Resource busy"):
            look()


@pytest.mark.parametrize("code", [0, 1])
@pytest.mark.parametrize(
    "complaint", ["pfctl: DIOCGETRULES: Invalid argument\n", f"Anchor '{ANCHOR}' not found.\n"]
)
def test_an_anchor_that_is_not_there_is_empty(complaint: str, code: int) -> None:
    def absent(command: Command) -> ProgramAnswer:
        return ProgramAnswer("", NOISE + complaint, code)

    assert not pfctl.loaded(ANCHOR, absent)
    assert pfctl.counted(ANCHOR, absent) == {}
    assert pfctl.listed(ANCHOR, "rules", absent) == ()
    with pytest.raises(PfError):
        pfctl.loaded(
            "", lambda command: ProgramAnswer("", f"pfctl: DIOCGETRULE: Invalid argument\n{complaint}")
        )


def test_the_main_ruleset_is_always_there() -> None:
    def absent(command: Command) -> ProgramAnswer:
        return ProgramAnswer("", "pfctl: DIOCGETRULES: Invalid argument\n")

    with pytest.raises(PfError, match="Invalid argument"):
        pfctl.loaded_main(absent)


def test_an_anchor_that_goes_while_it_is_listed_is_not_taken_for_what_was_said() -> None:
    def partly(command: Command) -> ProgramAnswer:
        return ProgramAnswer("scrub in all\n", "pfctl: DIOCGETRULES: Invalid argument\n")

    with pytest.raises(PfError, match="Invalid argument"):
        pfctl.loaded(ANCHOR, partly)


def test_undo_empties_an_anchor_that_cannot_be_looked_at() -> None:
    asked: list[str] = []

    def run(command: Command) -> ProgramAnswer:
        asked.append(" ".join(command.argv))
        return ProgramAnswer("")

    pfctl.undoers(run)[pfctl.KIND]({"kind": pfctl.KIND, "anchor": pfctl.ANCHORS["client"]})
    assert asked == [f"pfctl -a {pfctl.ANCHORS['client']} -F all"]
