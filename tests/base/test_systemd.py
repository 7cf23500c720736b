"""base/systemd.py: when it is there, what it is told, and how its refusals read."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from cryprq_proxy.base import systemd
from cryprq_proxy.base.systemd import Systemd, write
from cryprq_proxy.errors import CryprqError


def test_it_runs_where_its_directory_is_and_its_services_see_this_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(systemd, "_RUNS", tmp_path / "gone")
    monkeypatch.setattr(systemd, "_shares_network", lambda: True)
    assert not Systemd().runs() and Systemd().describe("x") == "" and not Systemd().is_active("x")
    monkeypatch.setattr(systemd, "_RUNS", tmp_path)
    assert Systemd().runs()
    monkeypatch.setattr(systemd, "_shares_network", lambda: False)
    assert not Systemd().runs()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not Systemd().runs()


def test_that_of_a_person_has_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert not Systemd(own=True).runs()
    (tmp_path / "systemd").mkdir()
    (tmp_path / "systemd" / "private").touch()
    assert Systemd(own=True).runs()


@pytest.mark.parametrize("own", [False, True])
def test_a_refusal_is_one_sentence(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def call(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        told.append(" ".join(command))
        return subprocess.CompletedProcess(command, 1, "", "Job for x \x1b failed.\nSee more.\n")

    monkeypatch.setattr(systemd, "call", call)
    manager = Systemd(own=own)
    more = " --user" if own else ""
    for do, words in (
        (manager.enable, "enable"),
        (manager.start_once, "start"),
        (manager.stop, "disable --now"),
    ):
        with pytest.raises(CryprqError) as error:
            do("x.service")
        assert str(error.value) == (
            f"`systemctl{more} {words} x.service` failed: Job for x \\x1b failed; "
            f"`journalctl{more} -u x.service` says more"
        )
        assert told[-1] == f"systemctl{more} {words} x.service"
    with pytest.raises(CryprqError, match=rf"^`systemctl{more} daemon-reload` failed: Job for x .* failed$"):
        manager.read_again()


def test_all_may_read_a_unit(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write(tmp_path / "x.service", text)
        assert (tmp_path / "x.service").read_text() == text
        assert os.stat(tmp_path / "x.service").st_mode & 0o777 == 0o644
