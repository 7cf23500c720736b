"""Kernel settings: only those of the list, and back only where they are still ours. On a made-up /proc/sys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.base.linux_marks import TABLES
from cryprq_proxy.errors import ConfigError, CryprqError, LocalError
from tun.journal import Entry
from tun.linux.sysctl import UNDO, KernelSetting, lost_settings, set_sysctl, undo_sysctl

FORWARD = "net.ipv4.ip_forward"
FILES = {
    "net/ipv4/ip_forward": "0",
    "net/ipv4/conf/all/src_valid_mark": "0",
    "net/ipv4/conf/all/accept_redirects": "0",
    "net/ipv4/conf/all/forwarding": "0",
    "net/ipv4/conf/eth0/forwarding": "0",
    "net/ipv4/conf/eth0.100/forwarding": "1",
    "net/ipv4/conf/eth0.100/rp_filter": "1",
    "kernel/core_pattern": "core",
}


def written(directory: Path, files: Mapping[str, str]) -> Path:
    """The directory, with these files as the kernel shows them."""
    for name, value in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return directory


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    return written(tmp_path, FILES)


def test_recorded_before_it_is_written_and_put_back(proc: Path) -> None:
    path = proc / "net/ipv4/conf/eth0.100/rp_filter"
    entries: list[Entry] = []

    def record(entry: Entry) -> None:
        assert path.read_text() == "1\n"
        entries.append(entry)

    set_sysctl("net.ipv4.conf.eth0.100.rp_filter", "2", record, proc)
    assert path.read_text() == "2"
    assert entries == [
        {"kind": "sysctl", "name": "net.ipv4.conf.eth0.100.rp_filter", "before": "1", "value": "2"}
    ]
    for _ in range(2):
        undo_sysctl(entries[0], proc)
        assert path.read_text() == "1"


def test_a_value_that_is_there_is_nobodys_change(proc: Path) -> None:
    entries: list[Entry] = []
    set_sysctl(FORWARD, "0", entries.append, proc)
    assert not entries


def test_nothing_is_written_that_could_not_be_recorded(proc: Path) -> None:
    def record(entry: Entry) -> None:
        raise CryprqError("full")

    with pytest.raises(CryprqError, match="full"):
        set_sysctl(FORWARD, "1", record, proc)
    assert (proc / "net/ipv4/ip_forward").read_text() == "0\n"


def test_two_changes_are_undone_to_the_first_value(proc: Path) -> None:
    entries: list[Entry] = []
    for value in ("1", "2"):
        set_sysctl("net.ipv4.conf.all.src_valid_mark", value, entries.append, proc)
    for entry in reversed(entries):
        undo_sysctl(entry, proc)
    assert (proc / "net/ipv4/conf/all/src_valid_mark").read_text() == "0"


def test_what_another_has_changed_since_stays(proc: Path) -> None:
    entries: list[Entry] = []
    set_sysctl("net.ipv4.conf.eth0.100.rp_filter", "2", entries.append, proc)
    path = proc / "net/ipv4/conf/eth0.100/rp_filter"
    path.write_text("0\n")
    undo_sysctl(entries[0], proc)
    assert path.read_text() == "0\n"


def test_after_a_reboot_nothing_is_written(proc: Path) -> None:
    entries: list[Entry] = []
    set_sysctl(FORWARD, "1", entries.append, proc)
    undo_sysctl({**entries[0], "boot": "another"}, proc)
    assert (proc / "net/ipv4/ip_forward").read_text() == "1"


def test_an_interface_that_is_gone_needs_no_undo(proc: Path) -> None:
    undo_sysctl({"kind": "sysctl", "name": "net.ipv4.conf.tap9.rp_filter", "before": "1", "value": "2"}, proc)


def test_what_the_kernel_changes_along_with_a_switch_is_kept(proc: Path) -> None:
    entries: list[Entry] = []
    set_sysctl(FORWARD, "1", entries.append, proc)
    assert entries[0]["followers"] == {
        "net.ipv4.conf.eth0.100.forwarding": "1",
        "net.ipv4.conf.all.accept_redirects": "0",
    }
    # As the kernel does on the way back: all the same, and redirects the opposite.
    (proc / "net/ipv4/conf/eth0.100/forwarding").write_text("0\n")
    (proc / "net/ipv4/conf/all/accept_redirects").write_text("1\n")
    undo_sysctl(entries[0], proc)
    for name, value in FILES.items():
        assert (proc / name).read_text().strip() == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kernel.core_pattern", "1"),
        ("net.ipv4.conf.../kernel.forwarding", "1"),
        ("net.ipv4.conf....forwarding", "1"),
        ("net.ipv4.conf...forwarding", "1"),
        ("net.ipv4.conf.a/b.forwarding", "1"),
        ("net.ipv4.conf.interface-too-long.forwarding", "1"),
        ("net.ipv4.conf.eth0.log_martians", "1"),
        ("net/ipv4/ip_forward", "1"),
        ("net.ipv4.ip_forward\n", "1"),
        (FORWARD, "|/bin/sh"),
        (FORWARD, "1\n"),
        (FORWARD, ""),
    ],
)
def test_no_other_name_or_value(proc: Path, name: str, value: str) -> None:
    entries: list[Entry] = []
    with pytest.raises(LocalError):
        set_sysctl(name, value, entries.append, proc)
    assert not entries
    for key in ("before", "value"):
        entry = {"kind": "sysctl", "name": name, "before": "0", "value": "0", key: value}
        with pytest.raises(CryprqError, match="does not change"):
            undo_sysctl(entry, proc)
    with pytest.raises(CryprqError):
        undo_sysctl({"name": FORWARD, "before": "1", "value": "0", "followers": {name: value}}, proc)
    assert (proc / "net/ipv4/ip_forward").read_text() == "0\n"


ANYTHING = st.none() | st.integers() | st.text() | st.lists(st.text()) | st.dictionaries(st.text(), st.text())


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("name", "before", "value", "followers"), ANYTHING)))
def test_undo_raises_nothing_else(entry: Entry) -> None:
    with pytest.raises(CryprqError):
        UNDO["sysctl"](entry)


def test_a_setting_that_the_kernel_does_not_have(proc: Path) -> None:
    with pytest.raises(ConfigError, match="does not take"):
        set_sysctl("net.ipv4.conf.nowhere.rp_filter", "1", lambda entry: None, proc)


async def test_a_setting_is_kept_and_recorded_once(proc: Path) -> None:
    path = proc / "net/ipv4/conf/eth0.100/rp_filter"
    path.write_text("1\n")
    entries: list[Entry] = []
    fact = KernelSetting("reverse path filter", "2", entries.append, proc)
    assert await fact.look() == "", "nothing is kept before it is asked for"
    fact.keep("net.ipv4.conf.eth0.100.rp_filter")
    for _ in range(3):
        assert await fact.look() == ""
        path.write_text("0\n")
        fact.keep("net.ipv4.conf.eth0.100.rp_filter")
        assert await fact.look() == "net.ipv4.conf.eth0.100.rp_filter was 0"
        await fact.put_back()
        assert path.read_text() == "2"
    assert [entry["before"] for entry in entries] == ["1"]
    path.unlink()
    assert await fact.look() == "", "the interface is gone"


async def test_several_settings_are_kept_and_each_is_recorded_once(proc: Path) -> None:
    names = [f"net.ipv4.conf.{interface}.rp_filter" for interface in ("all", "eth0.100")]
    first, second = (proc / f"net/ipv4/conf/{interface}/rp_filter" for interface in ("all", "eth0.100"))
    first.write_text("1\n")
    second.write_text("2\n")
    entries: list[Entry] = []
    fact = KernelSetting("reverse path filter", "2", entries.append, proc)
    fact.keep(*names)
    for _ in range(2):
        first.write_text("0\n")
        second.write_text("1\n")
        assert await fact.look() == f"{names[0]} was 0, {names[1]} was 1"
        await fact.put_back()
        assert await fact.look() == ""
        fact.keep(names[0])
        second.write_text("1\n")
        assert await fact.look() == "", "it is kept no longer"
        fact.keep(*names)
        assert second.read_text() == "2"
    assert [(entry["name"], entry["before"]) for entry in entries] == [(names[0], "1"), (names[1], "1")]


async def test_what_was_right_at_first_is_recorded_when_it_is_put_back(proc: Path) -> None:
    path = proc / "net/ipv4/conf/all/src_valid_mark"
    path.write_text("1\n")
    entries: list[Entry] = []
    fact = KernelSetting("marks", "1", entries.append, proc)
    fact.keep("net.ipv4.conf.all.src_valid_mark")
    assert not entries
    for _ in range(2):
        path.write_text("0\n")
        await fact.put_back()
    assert [entry["before"] for entry in entries] == ["0"]
    undo_sysctl(entries[0], proc)
    assert path.read_text() == "0"


def test_one_that_cannot_be_set_back_leaves_none_of_the_others(proc: Path) -> None:
    (proc / "net/ipv4/conf/eth1/forwarding").parent.mkdir()
    (proc / "net/ipv4/conf/eth1/forwarding").write_text("1\n")
    entries: list[Entry] = []
    set_sysctl(FORWARD, "1", entries.append, proc)
    for name in ("all", "eth0", "eth0.100", "eth1"):
        (proc / f"net/ipv4/conf/{name}/forwarding").write_text("0\n")
    broken = proc / "net/ipv4/conf/eth0.100/forwarding"
    broken.unlink()
    broken.mkdir()
    with pytest.raises(CryprqError, match=r"eth0\.100/forwarding could not be set back to 1"):
        undo_sysctl(entries[0], proc)
    assert (proc / "net/ipv4/conf/eth1/forwarding").read_text() == "1"


# --- without a journal ---

CLIENT, EXIT = TABLES["client"], TABLES["exit"]
LEFT = {
    "net/ipv4/conf/all/src_valid_mark": "1",
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "0",
    "net/ipv6/conf/all/accept_ra": "1",
    "net/ipv6/conf/eth0.5/accept_ra": "2",
    "net/ipv6/conf/$(x)/accept_ra": "2",
}


@pytest.fixture
def left(tmp_path: Path) -> Path:
    written(tmp_path, LEFT)
    (tmp_path / "net/ipv6/conf/gone/accept_ra").mkdir(parents=True)
    return tmp_path


def test_each_role_names_what_it_sets(left: Path) -> None:
    assert lost_settings(CLIENT, proc=left).endswith(": sysctl -w net.ipv4.conf.all.src_valid_mark=0")
    assert lost_settings(EXIT, proc=left).endswith(
        ": sysctl -w net.ipv4.ip_forward=0 'net.ipv6.conf.$(x).accept_ra=1' net/ipv6/conf/eth0.5/accept_ra=1"
    )


def test_what_is_recorded_or_stands_otherwise_is_not_named(left: Path) -> None:
    assert lost_settings(CLIENT, ["net.ipv4.conf.all.src_valid_mark"], left) == ""
    assert lost_settings(EXIT, ["net.ipv4.ip_forward"], left).count("=") == 2
    (left / "net/ipv4/conf/all/src_valid_mark").write_text("0\n")
    assert lost_settings(CLIENT, proc=left) == ""
    assert lost_settings(EXIT, proc=left / "nowhere") == ""
