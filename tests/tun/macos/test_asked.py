"""Whether pf asks our anchors at all: proved by a packet, refused where none has met them, left open where none can."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.macos.machine import FakeMac
from tests.support.macos.state import Anchor, Interface, Route
from tests.support.pf_program import PfProgram
from tun.macos import asked, pfctl
from tun.macos.asked import FIRST, NOT_ASKED, TARGETS, AnchorsAsked, send
from tun.macos.pfctl import PfError
from tun.macos.programs import Command, ProgramAnswer

CLIENT, EXIT = pfctl.ANCHORS["client"], pfctl.ANCHORS["exit"]
LOOPBACK, UPLINK4, UPLINK6 = TARGETS


class Sending:
    """What is sent, and which of it pf asks our first rule for."""

    def __init__(self) -> None:
        self.program = PfProgram()
        self.program.anchors[CLIENT] = "pass quick on lo0 all\n"
        self.program.evaluations = 0
        self.met: set[str] = set()
        self.refused: set[str] = set()
        self.sent: list[str] = []

    def skip(self, interface: str) -> None:
        self.program.main["Interfaces"] = f"ALL\nen0\n{interface} (skip)\nutun0\n"

    def send(self, address: str) -> bool:
        self.sent.append(address)
        self.program.evaluations += address in self.met
        return address not in self.refused


@pytest.fixture
def sending(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sending]:
    found = Sending()
    monkeypatch.setattr(asked, "send", found.send)
    yield found


def test_a_packet_of_others_proves_it_and_it_is_proved_once(sending: Sending) -> None:
    sending.program.evaluations = 3
    proof = AnchorsAsked(CLIENT, run=sending.program)
    assert proof.missing() == "" and sending.sent == []
    sending.program.anchors.clear()
    sending.program.asked.clear()
    assert proof.missing() == "" and sending.program.asked == ["-v -s Interfaces"]


@pytest.mark.parametrize("met", TARGETS)
@pytest.mark.parametrize("refused", [False, True])
def test_one_of_ours_proves_it(sending: Sending, met: str, refused: bool) -> None:
    """A rule that refuses it was asked as well."""
    sending.met = {met}
    sending.refused = {met} if refused else set()
    assert AnchorsAsked(CLIENT, run=sending.program).missing() == ""
    assert sending.sent == list(TARGETS[: TARGETS.index(met) + 1])


@pytest.mark.parametrize(
    ("refused", "skipped"),
    [
        (set(), ""),
        (set(), "lo0"),
        ({UPLINK4}, "lo0"),
        ({UPLINK6}, "lo0"),
        ({UPLINK4, UPLINK6}, ""),
        ({UPLINK4, UPLINK6}, "awdl0"),
        (set(TARGETS), ""),
    ],
)
def test_packets_that_meet_no_rule_of_ours_are_told(
    sending: Sending, refused: set[str], skipped: str
) -> None:
    sending.refused = refused
    if skipped:
        sending.skip(skipped)
    proof = AnchorsAsked(CLIENT, run=sending.program)
    assert proof.missing() == NOT_ASKED
    sending.met = {LOOPBACK}
    assert proof.missing() == ""


@pytest.mark.parametrize(
    "interface",
    [
        "en0",
        "en",
        "en12",
        "utun3",
        "ppp0",
        "bridge0",
        "bridge",
        "bridge1",
        "bridge1000",
        "feth0",
        "ap1",
        "fw0",
        "vmenet",
        "all",
    ],
)
def test_an_interface_that_pf_is_kept_away_from_is_told_although_ours_are_asked(
    sending: Sending, interface: str
) -> None:
    sending.program.evaluations = 1
    proof = AnchorsAsked(CLIENT, run=sending.program)
    assert proof.missing() == ""
    sending.skip(interface)
    assert f"kept away from {interface} (set skip)" in proof.missing()
    for other in ("lo0", "lo", "awdl0", "llw0"):
        sending.skip(other)
        assert proof.missing() == ""


@pytest.mark.parametrize("interface", ["bridge100", "bridge199", "vmenet0"])
def test_an_interface_of_virtual_machines_may_be_skipped_unless_a_default_route_leads_there(
    interface: str, tmp_path: Path
) -> None:
    mac = FakeMac(tmp_path / "mac")
    with mac.change() as state:
        state.interfaces.append(Interface(interface, 20, ["UP", "RUNNING"], 1500))
        state.pf.enabled, state.pf.skipped = True, [interface]
        state.pf.anchors[CLIENT] = Anchor(f'pass quick on lo0 all label "{FIRST}"\n')
        # As macOS has one for sockets that are bound to the interface.
        state.routes.append(Route("0.0.0.0/0", "link#20", interface, "UCSIg"))
    proof = AnchorsAsked(CLIENT, run=mac.run)
    assert proof.missing() == ""
    for default, gateway in (("0.0.0.0/0", "192.168.64.1"), ("::/0", "fe80::1%en0")):
        with mac.change() as state:
            state.routes.append(Route(default, gateway, interface, "UGSc"))
        assert f"kept away from {interface} (set skip)" in proof.missing()
        with mac.change() as state:
            state.routes.pop()
    assert proof.missing() == ""


def test_where_routes_cannot_be_read_nobody_knows_where_they_lead(sending: Sending) -> None:
    def run(command: Command) -> ProgramAnswer:
        return sending.program(command) if command.argv[0] == "pfctl" else ProgramAnswer("", "", 1)

    sending.skip("bridge100")
    with pytest.raises(PfError):
        AnchorsAsked(CLIENT, run=run).missing()


@pytest.mark.parametrize("by", ["lo0", "lo", "a rule in front"])
def test_offline_where_pf_may_not_ask_for_lo0_nothing_is_known_until_a_network_comes(
    sending: Sending, by: str, caplog: pytest.LogCaptureFixture
) -> None:
    if by.startswith("lo"):
        sending.skip(by)
    else:
        sending.program.main["rules"] += "pass quick on lo0 all no state\n"
    sending.refused = {UPLINK4, UPLINK6}
    proof = AnchorsAsked(CLIENT, run=sending.program)
    assert [proof.missing(), proof.missing()] == ["", ""]
    assert len(caplog.messages) == 1 and "not proved yet" in caplog.text
    sending.refused.clear()
    assert proof.missing() == NOT_ASKED
    sending.met = {UPLINK4}
    assert proof.missing() == ""


def test_an_exit_beside_a_client_is_proved_by_the_clients_anchor(sending: Sending) -> None:
    """It is asked before the exit's, and decides."""
    sending.program.evaluations = 1
    assert AnchorsAsked(EXIT, CLIENT, run=sending.program).missing() == ""
    sending.program.anchors.clear()
    assert AnchorsAsked(EXIT, CLIENT, run=sending.program).missing() == NOT_ASKED


def test_other_labels_prove_nothing(sending: Sending) -> None:
    sending.program.answers[f"-a {CLIENT} -s labels"] = ProgramAnswer(
        f"blocked 9 2 100 0 0 2 100\n{FIRST} 0 0 0 0 0 0 0\n{FIRST} 1\n{FIRST}s 4 1 1 1 1 1 1\n"
    )
    assert AnchorsAsked(CLIENT, run=sending.program).missing() == NOT_ASKED


def test_an_empty_datagram_is_sent_to_this_machine() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
        there.bind((LOOPBACK, 0))
        there.settimeout(20)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asked, "_PORT", there.getsockname()[1])
            assert send(LOOPBACK)
        assert there.recvfrom(9)[0] == b""


@pytest.mark.parametrize("code", [errno.EAFNOSUPPORT, errno.EMFILE])
def test_a_socket_that_cannot_be_had_is_no_error(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: Any) -> None:
        raise OSError(code, "no socket")

    monkeypatch.setattr(socket, "socket", refused)
    assert not send(LOOPBACK)


@pytest.mark.parametrize("address", TARGETS)
def test_what_cannot_be_sent_is_no_error(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: Any) -> None:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    class Offline(socket.socket):
        sendto = offline  # type: ignore[assignment]

    monkeypatch.setattr(socket, "socket", Offline)
    assert not send(address)


@pytest.mark.parametrize(
    ("main", "skipped", "enabled", "times"),
    [
        ('anchor "com.apple/*" all\n', [], True, 2),
        ('anchor "com.apple/*" all\n', ["lo0"], True, 1),
        ('pass quick on lo0 all\nanchor "com.apple/*" all\n', [], True, 1),
        ('anchor "com.apple/*" all\n', [], False, 0),
        ("pass all\n", [], True, 0),
    ],
)
def test_the_fake_pf_counts_what_comes_to_the_first_rule(
    main: str, skipped: list[str], enabled: bool, times: int, tmp_path: Path
) -> None:
    mac = FakeMac(tmp_path / "mac")
    with mac.change() as state:
        state.pf.enabled, state.pf.skipped = enabled, skipped
        state.pf.main.rules = main
        state.pf.anchors[CLIENT] = Anchor(f'pass in on en9 all label "{FIRST}"\nblock all label "blocked"\n')
    assert pfctl.asked(CLIENT, FIRST, mac.run) == times
    assert pfctl.asked(CLIENT, "blocked", mac.run) == 0
    assert pfctl.skipped(mac.run) == set(skipped)
