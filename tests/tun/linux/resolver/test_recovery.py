"""A resolv.conf of ours whose journal is lost: from where the earlier one comes back."""

from __future__ import annotations

import errno
import logging
import shutil
from pathlib import Path

import pytest

from cryprq_proxy.base.resolv_conf import nameservers
from cryprq_proxy.errors import ConfigError
from tun.journal import Entry
from tun.linux.resolver.recovery import recover, recover_or_empty, undo
from tun.linux.resolver.resolvconf_files import replace
from tun.linux.resolver.resolvconf_text import is_ours, render

TAG = "0123456789abcdef"
BEFORE = "# by hand\nnameserver 192.0.2.1\nsearch lan\n"
OURS = render(("198.18.255.53",), BEFORE.encode(), TAG)


class Files:
    """A resolv.conf of ours, a state directory, and what a service offers."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "resolv.conf"
        self.path.write_bytes(OURS)
        self.state = directory / "state"
        self.state.mkdir(mode=0o700)
        self.backup = self.state / f"resolv.conf.{TAG}"
        self.offered = (directory / "missing", directory / "offered")

    def recover(self) -> str:
        return recover(self.state, self.path, self.offered)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_a_file_of_others_stays(files: Files) -> None:
    files.path.write_text(BEFORE)
    files.backup.write_text("nameserver 192.0.2.9\n")
    assert files.recover() == ""
    assert files.path.read_text() == BEFORE
    assert files.backup.exists()


def test_the_backup_of_its_tag_comes_back(files: Files) -> None:
    files.backup.write_text(BEFORE)
    files.offered[1].write_text("nameserver 192.0.2.9\n")
    assert files.recover() == "its backup"
    assert files.path.read_text() == BEFORE
    assert not files.backup.exists()


def test_a_link_comes_back_as_a_link(files: Files) -> None:
    files.backup.symlink_to("somewhere")
    assert files.recover() == "its backup"
    assert files.path.is_symlink() and files.path.readlink() == Path("somewhere")


def test_a_backup_that_others_can_write_is_not_believed(files: Files) -> None:
    files.backup.write_text(BEFORE)
    files.state.chmod(0o777)
    with pytest.raises(ConfigError, match="nameserver ADDRESS"):
        files.recover()
    assert files.path.read_bytes() == OURS


def test_without_a_backup_the_system_offers_one(files: Files) -> None:
    files.offered[1].write_bytes(OURS)
    with pytest.raises(ConfigError, match="its backup is gone"):
        files.recover()
    files.offered[1].write_text("nameserver 192.0.2.9\n")
    assert files.recover() == str(files.offered[1])
    assert files.path.readlink() == files.offered[1]


def test_an_entry_without_its_backup_is_undone_by_what_the_system_offers(files: Files) -> None:
    """As where somebody removes the state directory of a client that lives."""
    files.path.write_text(BEFORE)
    entries: list[Entry] = []
    replace(files.path, files.state, BEFORE.encode(), ("198.18.255.53",), entries.append)
    shutil.rmtree(files.state)
    with pytest.raises(ConfigError, match="its backup is gone: put your own in its place"):
        undo(entries[0], files.state, files.path, files.offered)
    files.offered[1].write_text("nameserver 192.0.2.9\n")
    undo(entries[0], files.state, files.path, files.offered)
    assert files.path.readlink() == files.offered[1]
    undo(entries[0], files.state, files.path, files.offered)
    assert files.path.readlink() == files.offered[1]


def test_a_backup_that_cannot_be_removed_is_said_to_be_put_back(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.path.write_text(BEFORE)
    entries: list[Entry] = []
    made = replace(files.path, files.state, BEFORE.encode(), ("198.18.255.53",), entries.append)

    def read_only(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "")

    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(
        ConfigError, match=r"is put back, but its backup .* cannot be removed: its file system is"
    ):
        made.undo()
    assert files.path.read_text() == BEFORE


def test_a_start_goes_on_without_the_earlier_one(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        recover_or_empty(files.state, files.path, files.offered)
    content = files.path.read_bytes()
    assert not is_ours(content) and nameservers(content) == ()
    assert b"search lan" in content
    assert "is lost" in caplog.text


def test_what_is_no_backup_is_not_put_back(files: Files) -> None:
    files.backup.mkdir()
    with pytest.raises(ConfigError, match="cannot be put back from"):
        files.recover()
    assert files.path.read_bytes() == OURS


def test_a_mount_point_gets_a_copy_of_what_the_system_offers(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.offered[0].mkdir()
    files.offered[1].write_text("nameserver 192.0.2.9\n")

    def busy(path: Path, target: str) -> None:
        raise OSError(errno.EBUSY, "")

    monkeypatch.setattr("tun.linux.resolver.recovery.lead_to", busy)
    assert files.recover() == str(files.offered[1])
    assert not files.path.is_symlink() and files.path.read_text() == "nameserver 192.0.2.9\n"


def test_a_start_says_from_where_the_earlier_one_came(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    files.backup.write_text(BEFORE)
    with caplog.at_level(logging.INFO):
        recover_or_empty(files.state, files.path, files.offered)
    assert "it is put back from its backup" in caplog.text


def test_without_a_state_directory_no_backup_is_looked_for(files: Files) -> None:
    files.state.rmdir()
    with pytest.raises(ConfigError, match="its backup is gone"):
        files.recover()
