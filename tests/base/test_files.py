"""Tests of cryprq_proxy/base/files.py: what is written is on the disk, whole, and one process writes at a time."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

import pytest

from cryprq_proxy.base import files
from cryprq_proxy.base.file_access import OWN, replace_file, sync_directory
from cryprq_proxy.base.files import SharedFile, is_own_directory, is_own_file, locked_directory
from cryprq_proxy.errors import ConfigError


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What reaches the disk, in order: each fsync by the kind of what it is for, and each renaming."""
    seen: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(handle: int) -> None:
        mode = os.fstat(handle).st_mode
        seen.append(
            "fsync of the directory" if stat.S_ISDIR(mode) else f"fsync of {os.fstat(handle).st_size} bytes"
        )
        fsync(handle)

    def note_replace(source: Path, target: Path) -> None:
        seen.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    return seen


def test_content_and_name_are_on_the_disk_in_that_order(tmp_path: Path, steps: list[str]) -> None:
    path = tmp_path / "list"
    os.close(replace_file(path, b"whole"))
    assert path.read_bytes() == b"whole"
    assert steps == ["fsync of 5 bytes", "rename", "fsync of the directory"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_directory_is_synced(tmp_path: Path, steps: list[str]) -> None:
    sync_directory(tmp_path)
    assert steps == ["fsync of the directory"]


def test_the_returned_descriptor_is_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"old")
    handle = replace_file(path, b"new")
    try:
        os.pwrite(handle, b"er", 3)
        assert path.read_bytes() == b"newer"
    finally:
        os.close(handle)


def test_a_file_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_bytes(b"old")
    path.chmod(0o640)
    os.close(replace_file(path, b"new"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize(("before", "after"), [(0o666, 0o644), (0o602, 0o600), (0o700, 0o700)])
def test_what_would_be_refused_is_not_kept(tmp_path: Path, before: int, after: int) -> None:
    """Else a file that others could write once would be refused after every replacement, too."""
    path = tmp_path / "list"
    path.touch()
    path.chmod(before)
    os.close(replace_file(path, b"new"))
    assert stat.S_IMODE(path.stat().st_mode) == after
    assert SharedFile(path, "the list").read() == "new"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to other groups")
def test_root_leaves_files_with_their_group(tmp_path: Path) -> None:
    """A service's user reads the list by its group."""
    path = tmp_path / "list"
    path.write_bytes(b"old")
    path.chmod(0o640)
    os.chown(path, 0, 4_322)
    os.close(replace_file(path, b"new"))
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 4_322, 0o640)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_stranger_gets_nothing_of_what_replaces_its_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"old")
    path.chmod(0o664)
    os.chown(path, 4_321, 4_322)
    os.close(replace_file(path, b"new"))
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, os.getegid(), 0o600)


def test_another_group_gets_no_rights_of_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who has left the group of a file cannot give it a new one."""
    path = tmp_path / "list"
    path.write_bytes(b"old")
    path.chmod(0o644)
    real = os.fstat

    def of_another_group(handle: int) -> os.stat_result:
        found = list(real(handle))
        found[stat.ST_GID] += 1
        return os.stat_result(found)

    def refuse(handle: int, uid: int, gid: int) -> None:
        assert (uid, gid) == (-1, path.stat().st_gid)
        raise PermissionError(1, os.strerror(1))

    monkeypatch.setattr(os, "fstat", of_another_group)
    monkeypatch.setattr(os, "fchown", refuse)
    os.close(replace_file(path, b"new"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "list"
    path.write_bytes(b"old")
    (tmp_path / ".list.new").write_bytes(b"of a writer that was killed")

    def full(handle: int) -> None:
        raise OSError(28, os.strerror(28))

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["list"]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_new_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    OWN.create(tmp_path / "whole", b"text")
    assert (tmp_path / "whole").read_bytes() == b"text"

    def full(handle: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        OWN.create(tmp_path / "half", b"text")
    assert os.listdir(tmp_path) == ["whole"]


def test_the_lock_keeps_others_out_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.0)
    other = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with locked_directory(tmp_path), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(ConfigError, match=r"^another program keeps .* locked; try again$"):
            locked_directory(tmp_path).__enter__()
    finally:
        os.close(other)


def test_a_lock_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = locked_directory(tmp_path)
    first.__enter__()
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        first.__exit__(None, None, None)

    monkeypatch.setattr("cryprq_proxy.base.files.time.sleep", wait)
    with locked_directory(tmp_path):
        assert len(waits) == 1


def test_what_the_holder_of_a_lock_raises_is_not_an_error_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError), SharedFile(tmp_path / "list", "the list").locked():
        raise TimeoutError


def test_a_shared_file_is_replaced_whole(tmp_path: Path, steps: list[str]) -> None:
    shared = SharedFile(tmp_path / "made" / "list", "the list")
    assert shared.read() == ""
    with shared.locked():
        shared.replace("grüße")
    assert shared.read() == "grüße"
    assert steps == ["fsync of 7 bytes", "rename", "fsync of the directory"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    SharedFile(tmp_path / "link", "the list").replace("new")
    assert (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "link").is_symlink()


def test_a_file_does_not_grow_without_bound(tmp_path: Path) -> None:
    shared = SharedFile(tmp_path / "list", "the list", most=4)
    shared.replace("four")
    with pytest.raises(ConfigError, match="would become larger"):
        shared.replace("fours")
    assert shared.read() == "four"


def test_only_what_no_other_user_can_change_is_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch(0o600)
    tmp_path.chmod(0o755)
    assert is_own_file(file.stat())
    assert is_own_directory(tmp_path.stat())
    assert not is_own_file(tmp_path.stat())
    for mode in (0o640, 0o620, 0o604, 0o602):
        file.chmod(mode)
        assert not is_own_file(file.stat())
    for mode in (0o720, 0o702):
        tmp_path.chmod(mode)
        assert not is_own_directory(tmp_path.stat())
    file.chmod(0o600)
    tmp_path.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: file.stat().st_uid + 1)
    assert not is_own_file(file.stat())
    assert not is_own_directory(tmp_path.stat())
