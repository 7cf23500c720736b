"""Forwarding on macOS: set, kept, and set back only where it is still ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from cryprq_proxy.errors import ConfigError, CryprqError, LocalError
from tun.macos import sysctl
from tun.macos.programs import Command, ProgramAnswer
from tun.macos.sysctl import FORWARD4, FORWARD6, MacSetting


class Sysctls:
    """sysctl(8) with values."""

    def __init__(self) -> None:
        self.values = {FORWARD4: "0", FORWARD6: "0"}
        self.changes: list[str] = []
        self.complaint = ""
        self.deaf = False
        """Whether a change has no effect."""

    def __call__(self, command: Command) -> ProgramAnswer:
        match command.argv:
            case ("sysctl", "-n", name):
                assert not command.changes
                if name not in self.values:
                    return ProgramAnswer("", f"sysctl: unknown oid '{name}'\n", 1)
                return ProgramAnswer(f"{self.values[name]}\n")
            case ("sysctl", "-w", change):
                if self.complaint:
                    return ProgramAnswer("", self.complaint, 1)
                name, _, value = change.partition("=")
                self.changes.append(change)
                before, self.values[name] = self.values[name], self.values[name] if self.deaf else value
                return ProgramAnswer(f"{name}: {before} -> {value}\n")
        raise AssertionError(command)


@pytest.fixture
def kernel() -> Sysctls:
    return Sysctls()


def recorder() -> tuple[list[dict[str, Any]], Any]:
    entries: list[dict[str, Any]] = []

    def record(entry: Mapping[str, object]) -> None:
        entries.append(dict(entry))

    return entries, record


async def test_it_is_set_kept_and_set_back(kernel: Sysctls) -> None:
    entries, record = recorder()
    setting = MacSetting("IPv4 forwarding", record, kernel)
    assert await setting.look() == ""
    await setting.keep(FORWARD4)
    await setting.keep(FORWARD4)
    assert kernel.changes == [f"{FORWARD4}=1"]
    assert entries == [{"kind": "mac_sysctl", "name": FORWARD4, "before": "0", "value": "1"}]
    kernel.values[FORWARD4] = "0"
    assert await setting.look() == f"{FORWARD4} was 0"
    await setting.put_back()
    assert await setting.look() == ""
    assert len(entries) == 1
    sysctl.undo_setting(entries[0], kernel)
    assert kernel.values == {FORWARD4: "0", FORWARD6: "0"}
    sysctl.undo_setting(entries[0], kernel)
    assert kernel.changes[-1] == f"{FORWARD4}=0"


async def test_what_is_on_already_stays_on(kernel: Sysctls) -> None:
    kernel.values[FORWARD6] = "1"
    entries, record = recorder()
    await MacSetting("IPv6 forwarding", record, kernel).keep(FORWARD6)
    assert (entries, kernel.changes) == ([], [])


def test_a_value_that_somebody_has_changed_since_stays(kernel: Sysctls) -> None:
    kernel.values[FORWARD4] = "2"
    entry = {"kind": "mac_sysctl", "name": FORWARD4, "before": "0", "value": "1"}
    sysctl.undo_setting(entry, kernel)
    kernel.values[FORWARD4] = "1"
    sysctl.undo_setting(entry | {"boot": "another"}, kernel)
    assert kernel.changes == []


@pytest.mark.parametrize(
    "change",
    [{"name": "kern.securelevel"}, {"name": None}, {"before": "0 x=1"}, {"before": 0}, {"value": ""}],
)
def test_a_damaged_entry_changes_nothing(change: dict[str, Any], kernel: Sysctls) -> None:
    kernel.values[FORWARD4] = "1"
    entry = {"kind": "mac_sysctl", "name": FORWARD4, "before": "0", "value": "1"} | change
    with pytest.raises(CryprqError, match="does not change"):
        sysctl.undo_setting(entry, kernel)
    assert kernel.changes == []


@pytest.mark.parametrize(
    ("complaint", "said"),
    [("sysctl: net.inet.ip.forwarding: Operation not permitted\n", "needs root"), ("no\n", "does not take")],
)
def test_a_kernel_that_refuses(complaint: str, said: str, kernel: Sysctls) -> None:
    kernel.complaint = complaint
    with pytest.raises(ConfigError, match=said):
        sysctl.set_setting(FORWARD4, "1", lambda _: None, kernel)


def test_a_kernel_that_does_not_listen_or_has_no_such_setting(kernel: Sysctls) -> None:
    kernel.deaf = True
    with pytest.raises(ConfigError, match="it is 0 still"):
        sysctl.set_setting(FORWARD4, "1", lambda _: None, kernel)
    del kernel.values[FORWARD6]
    with pytest.raises(ConfigError, match="has no setting"):
        sysctl.set_setting(FORWARD6, "1", lambda _: None, kernel)
    kernel.values[FORWARD4] = "on"
    with pytest.raises(CryprqError, match="not understood"):
        sysctl.read_setting(FORWARD4, kernel)
    with pytest.raises(LocalError):
        sysctl.set_setting("kern.maxproc", "1", lambda _: None, kernel)


def test_settings_without_a_journal(kernel: Sysctls) -> None:
    assert sysctl.lost_settings((), kernel) == ""
    kernel.values[FORWARD4] = kernel.values[FORWARD6] = "1"
    assert sysctl.lost_settings((), kernel).endswith(f"sysctl -w {FORWARD4}=0 {FORWARD6}=0")
    assert sysctl.lost_settings([FORWARD4], kernel).endswith(f"sysctl -w {FORWARD6}=0")
