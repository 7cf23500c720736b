"""The unit of lockdown, with this machine's paths, and what systemctl is asked for; no manager is asked here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from cryprq_proxy.base import package_data, systemd
from cryprq_proxy.base.linux_marks import LOCKDOWN_UNIT, LOCKDOWN_WANTED
from cryprq_proxy.base.systemd import Systemd
from cryprq_proxy.config.tun import STATE
from cryprq_proxy.errors import ConfigError
from cryprq_proxy.service.lockdown_unit import SAMPLE_FILE, SAMPLE_NFT, install, remove, start, unit


class Manager:
    def __init__(self, directory: Path) -> None:
        self.path = directory / LOCKDOWN_UNIT
        self.runs = True
        self.calls: list[str] = []

    def call(self, command: Sequence[str]) -> CompletedProcess[str]:
        self.calls.append(" ".join(command[1:]))
        return CompletedProcess(command, 0, "", "")


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Manager:
    manager = Manager(tmp_path)
    monkeypatch.setattr(systemd, "UNIT_DIRECTORY", tmp_path)
    monkeypatch.setattr(Systemd, "runs", lambda self: manager.runs)
    monkeypatch.setattr(systemd, "call", manager.call)
    return manager


def test_the_sample_is_the_unit_of_the_usual_places() -> None:
    assert Path(SAMPLE_FILE).parent == STATE
    assert unit(Path(SAMPLE_FILE), SAMPLE_NFT) == package_data.read(LOCKDOWN_UNIT)


def test_other_places_are_in_every_line() -> None:
    text = unit(Path("/srv/state/lockdown.nft"), "/opt/sbin/nft")
    assert "/var/lib" not in text and "/usr/sbin" not in text
    assert "\nRequiresMountsFor=/srv/state\n" in text
    assert "\nConditionPathExists=/srv/state/lockdown.nft\n" in text


@pytest.mark.parametrize("path", ["/a b/x", "/a'b/x", '/a"b/x', "/a%b/x", "/a$b/x", "/a\nb/x", "/a\\b/x"])
def test_a_path_that_would_end_its_word_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="choose a state_dir"):
        unit(Path(path), SAMPLE_NFT)


def test_written_and_enabled_ended_and_removed(manager: Manager) -> None:
    assert install(Path(SAMPLE_FILE), SAMPLE_NFT)
    assert manager.path.stat().st_mode & 0o777 == 0o644
    assert manager.calls == ["daemon-reload", f"enable {LOCKDOWN_UNIT}"]
    manager.calls.clear()
    for _ in range(2):
        remove()
        assert not manager.path.exists()
        assert manager.calls == [f"disable --now {LOCKDOWN_UNIT}", "daemon-reload"]


def test_started_it_is_taken_along_by_a_restart_of_the_packet_filter(manager: Manager) -> None:
    """PartOf= and ReloadPropagatedFrom= reach a unit that runs, and no other (systemd.unit(5))."""
    start()
    assert manager.calls == [f"start {LOCKDOWN_UNIT}"]
    words = package_data.read(LOCKDOWN_UNIT).splitlines()
    assert {"PartOf=nftables.service", "ReloadPropagatedFrom=nftables.service", "RemainAfterExit=yes"} <= {
        *words
    }


def test_without_a_manager_nothing_is_written(manager: Manager) -> None:
    manager.runs = False
    assert not install(Path(SAMPLE_FILE), SAMPLE_NFT)
    assert not manager.path.exists() and manager.calls == []
    remove()
    assert manager.calls == []


def test_a_directory_that_is_read_only_is_one_sentence(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "UNIT_DIRECTORY", Path("/nowhere"))
    with pytest.raises(ConfigError, match=f"/nowhere/{LOCKDOWN_UNIT} cannot be written"):
        install(Path(SAMPLE_FILE), SAMPLE_NFT)


def test_every_user_sees_that_it_is_enabled() -> None:
    """`enable` puts a link there."""
    assert "\nWantedBy=sysinit.target\n" in package_data.read(LOCKDOWN_UNIT)
    assert LOCKDOWN_WANTED.parent.name == "sysinit.target.wants"
