"""The file of lockdown: what it holds, when it is written, and what takes its place in the kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

import pytest

from cryprq_proxy.errors import ConfigError
from tun.firewall.filter_settings import Cgroup, ExitEndpoint, FilterSettings, PagePlace
from tun.firewall.inbound import NOT_KEPT, Inbound, InboundConnection
from tun.linux.firewall import lockdown, nft
from tun.linux.firewall.lockdown import AtRest, Lockdown
from tun.linux.firewall.marks import FIRST_MARKS

EXIT = ExitEndpoint(ip_address("5.75.10.2"), 4433)
RUNNING = FilterSettings(
    tun="cryprq0",
    mark=0x6372,
    exits=frozenset({EXIT}),
    tunnel4=IPv4Address("198.18.0.7"),
    tunnel6=IPv6Address("fd63:7279:7071::7"),
    dns_port=53,
    lan=frozenset({ip_network("192.168.1.0/24")}),
    excluded_cgroups=frozenset({Cgroup("system.slice/backup.service", 2, 7)}),
    portal_resolvers=(IPv4Address("192.168.1.1"),),
    page=PagePlace(IPv4Address("127.8.7.6"), 4444),
    kill_switch=False,
)
SHELL = InboundConnection(ip_address("192.168.1.9"), 22, ip_address("93.184.20.10"), 50000)
KEPT = Inbound(frozenset({SHELL}))


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What nft is given: `check` in front of what is only tried."""
    given: list[str] = []
    monkeypatch.setattr(nft, "run", given.append)
    monkeypatch.setattr(nft, "check", lambda script: given.append(f"check {script}"))
    monkeypatch.setattr(nft, "exists", lambda table: False)
    return given


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "state"
    yield directory


def test_nothing_of_the_tunnel_is_in_it() -> None:
    text = AtRest(RUNNING, KEPT, FIRST_MARKS).script()
    for gone in ("198.18.0.7", "fd63:7279:7071::7", "dnat", "cgroupv2", "93.184.20.10", "127.8.7.6"):
        assert gone not in text, gone
    assert "5.75.10.2 . 4433" in text and "192.168.1.0/24" in text
    assert "type filter hook output priority filter; policy drop;" in text, "whatever the client's is"
    assert text.startswith(
        "add table inet cryprq_lockdown\nadd table inet cryprq\ndelete table inet cryprq\n"
    )


def test_connections_that_are_open_are_in_it_for_the_moment_only() -> None:
    assert "93.184.20.10" in AtRest(RUNNING, KEPT, FIRST_MARKS).script(now=True)


def test_on_is_that_the_file_is_there(state: Path, scripts: list[str]) -> None:
    block = Lockdown(state)
    assert not block.on and not block.turn_off()
    block.turn_on(AtRest(RUNNING, NOT_KEPT, FIRST_MARKS))
    assert block.on and scripts[0] == f"check {block.file.read_text()}"
    assert block.file.stat().st_mode & 0o777 == 0o600 and state.stat().st_mode & 0o777 == 0o700
    assert block.turn_off() and not block.on


def test_what_nft_refuses_is_not_written(
    state: Path, scripts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(script: str) -> None:
        raise nft.NftError("this kernel lacks a part of nftables")

    monkeypatch.setattr(nft, "check", refuse)
    with pytest.raises(nft.NftError, match="lacks a part"):
        Lockdown(state).turn_on(AtRest(RUNNING, NOT_KEPT, FIRST_MARKS))
    assert not Lockdown(state).on


def test_the_file_follows_while_it_is_on(state: Path, scripts: list[str]) -> None:
    block = Lockdown(state)
    at_rest = AtRest(RUNNING, NOT_KEPT, FIRST_MARKS)
    block.turn_on(at_rest)
    running = Lockdown(state)
    running.keep(at_rest)
    first = block.file.stat().st_ino
    running.keep(at_rest)
    assert block.file.stat().st_ino == first, "what has not changed is not written"

    moved = at_rest._replace(settings=replace(RUNNING, exits=frozenset({ExitEndpoint(EXIT.address, 9)})))
    running.keep(moved)
    assert "5.75.10.2 . 9" in block.file.read_text()
    block.turn_on(at_rest)
    running.keep(moved)
    assert "5.75.10.2 . 9" in block.file.read_text(), "the client that runs has the last word"

    block.turn_off()
    running.keep(at_rest)
    assert not block.on, "and does not turn it on"


def test_a_disk_that_is_full_is_told_once(
    state: Path, scripts: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    block = Lockdown(state)
    at_rest = AtRest(RUNNING, NOT_KEPT, FIRST_MARKS)
    block.turn_on(at_rest)

    def full(path: Path, data: bytes) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(lockdown, "replace_file", full)
    for _ in range(3):
        block.keep(at_rest)
    (message,) = caplog.messages
    assert "not kept up to date" in message and "no space left" in message
    assert block.on


def test_the_undo_of_the_journal_puts_it_in_the_place_of_the_filter(state: Path, scripts: list[str]) -> None:
    block = Lockdown(state)
    undo = block.undoers()[nft.KIND]
    undo({"kind": nft.KIND, "table": "cryprq"})
    assert scripts == ["add table inet cryprq\ndelete table inet cryprq\n"]
    block.turn_on(AtRest(RUNNING, NOT_KEPT, FIRST_MARKS))
    scripts.clear()
    undo({"kind": nft.KIND, "table": "cryprq"})
    assert scripts == [block.file.read_text()]


@pytest.mark.parametrize("damage", ["empty", "foreign", "readable", "link"])
def test_a_file_that_is_not_ours_takes_no_place(damage: str, state: Path, scripts: list[str]) -> None:
    """So the filter that stands goes on to stand."""
    block = Lockdown(state)
    block.turn_on(AtRest(RUNNING, NOT_KEPT, FIRST_MARKS))
    scripts.clear()
    match damage:
        case "empty":
            block.file.write_text("")
        case "foreign":
            block.file.write_text("flush ruleset\n")
        case "readable":
            block.file.chmod(0o644)
        case "link":
            block.file.rename(state / "other")
            block.file.symlink_to(state / "other")
    with pytest.raises(ConfigError, match="lockdown on"):
        block.undoers()[nft.KIND]({"kind": nft.KIND, "table": "cryprq"})
    assert scripts == [] and block.on


def test_a_file_without_end_takes_no_place(
    state: Path, scripts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    block = Lockdown(state)
    block.turn_on(AtRest(RUNNING, NOT_KEPT, FIRST_MARKS))
    scripts.clear()
    monkeypatch.setattr(lockdown, "MAX_SIZE", block.file.stat().st_size - 1)
    with pytest.raises(ConfigError, match="not as this program writes it"):
        block.stand()
    assert scripts == []
