"""The sign of life by a locked file, and the marks on macOS. flock(2) is that of Linux: both lock open files, not
processes."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cryprq_proxy.base import leftovers, lock_sign, macos_marks, macos_programs
from cryprq_proxy.base.leftovers import claimed, cleaning_up
from cryprq_proxy.base.lock_sign import LockSign, holder, lock_file
from cryprq_proxy.errors import ConfigError

NOBODY = 2**22 + 1
"""No process of this machine: above the kernel's greatest id."""


@pytest.fixture(autouse=True)
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lock_sign, "DIRECTORY", tmp_path)
    return tmp_path


@pytest.fixture
def darwin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")


@contextmanager
def locked(path: Path, content: str, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    """By another open file, as another process would."""
    path.write_text(content)
    with path.open() as file:
        fcntl.flock(file, kind)
        yield


def test_a_role_is_alone_while_it_lives(darwin: None) -> None:
    assert leftovers.holder("client") is None
    with claimed("client"):
        assert leftovers.holder("client") == os.getpid()
        assert leftovers.holder("exit") is None
        with (
            pytest.raises(ConfigError, match=rf"\(pid {os.getpid()}\): stop that one first"),
            claimed("client"),
        ):
            raise AssertionError("two of them")
        assert leftovers.holder("client") == os.getpid(), "a second one changes nothing"
    assert leftovers.holder("client") is None
    with claimed("client"):
        pass


def test_a_cleanup_and_a_role_exclude_each_other(darwin: None, monkeypatch: pytest.MonkeyPatch) -> None:
    said = rf"\(pid {os.getppid()}\): stop that one first"
    with (
        locked(lock_file("exit"), f"{os.getppid()}\n"),
        pytest.raises(ConfigError, match=said),
        cleaning_up(),
    ):
        raise AssertionError("it cleans up under a role that lives")
    monkeypatch.setattr(leftovers, "CLEANUP_SECONDS", 0.0)
    said = rf"cleanup \(pid {os.getpid()}\) still runs"
    with cleaning_up(), pytest.raises(ConfigError, match=said), claimed("client"):
        raise AssertionError("two of them")


async def test_it_is_taken_inside_a_loop(darwin: None) -> None:
    with claimed("client"):
        assert leftovers.holder("client") == os.getpid()


def test_a_killed_one_has_left_the_file_without_its_lock() -> None:
    lock_file("client").write_text(f"{os.getpid()}\n")
    assert holder("client") is None


@pytest.mark.parametrize("content", ["", "x\n", "-1\n", f"{NOBODY}\n", "9" * 20, "\xff"])
def test_a_lock_without_a_process_is_no_life(content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any user can lock the file, none can write into it."""
    monkeypatch.setattr(lock_sign, "_POLL", 0.0)
    with locked(lock_file("client"), content):
        assert holder("client") is None


def test_a_user_who_has_the_lock_keeps_nobody_from_the_work(
    darwin: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_sign, "_POLL", 0.0)
    with locked(lock_file("client"), "", fcntl.LOCK_SH), claimed("client"):
        assert leftovers.holder("client") is None


def test_who_looks_just_now_delays_the_start_only(monkeypatch: pytest.MonkeyPatch) -> None:
    path = lock_file("client")
    with locked(path, "", fcntl.LOCK_SH) as _, LockSign("client") as sign, path.open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert not sign.take()
    with LockSign("client") as sign, path.open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr("time.sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
        assert sign.take()
        assert holder("client") == os.getpid()


def test_every_user_may_look_and_only_the_owner_may_write() -> None:
    before = os.umask(0o077)
    try:
        with LockSign("client") as sign:
            assert sign.take()
    finally:
        os.umask(before)
    assert lock_file("client").stat().st_mode & 0o777 == 0o644
    assert lock_file("client").read_text() == ""


def test_what_is_no_file_of_ours_is_no_sign(tmp_path: Path) -> None:
    os.mkfifo(lock_file("exit"))
    assert holder("exit") is None, "and it does not wait for a writer"
    lock_file("client").symlink_to(tmp_path / "elsewhere")
    with LockSign("client") as sign:
        assert not sign.take()
    assert not (tmp_path / "elsewhere").exists()


def test_without_a_directory_there_is_no_sign(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lock_sign, "DIRECTORY", tmp_path / "none")
    with LockSign("client") as sign:
        assert not sign.take()
    assert holder("client") is None


# --- the marks ---

CLIENT = "the anchor com.apple/010.cryprq-proxy of the packet filter"
EXIT = "the anchor com.apple/010.cryprq-proxy-exit of the packet filter"
KEY = "the resolver State:/Network/Service/cryprq-proxy/DNS"
NO_KEY = "  No such key\n"
DNS = "<dictionary> {\n  ServerAddresses : <array> {\n    0 : 10.64.0.1\n  }\n}\n"


class Programs:
    """What scutil and pfctl say; None where they cannot be run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.key: str | None = NO_KEY
        self.anchors: dict[tuple[str, str], str | None] = {}
        self.euid = 0
        monkeypatch.setattr(macos_marks, "said", self.said)
        monkeypatch.setattr(os, "geteuid", lambda: self.euid)

    def said(self, argv: list[str], stdin: str = "") -> str | None:
        if argv == [macos_programs.SCUTIL]:
            assert stdin == "show State:/Network/Service/cryprq-proxy/DNS\nquit\n"
            return self.key and self.key.strip()
        assert argv[:2] == [macos_programs.PFCTL, "-a"] and argv[3] == "-s" and self.euid == 0
        return self.anchors.get((argv[2], argv[4]), "")


@pytest.fixture
def programs(darwin: None, monkeypatch: pytest.MonkeyPatch) -> Programs:
    return Programs(monkeypatch)


@pytest.mark.parametrize(
    ("euid", "key", "rules", "nat", "client", "exit_side"),
    [
        (0, NO_KEY, "", "", "", ""),
        (0, None, None, "", "", ""),
        (0, DNS, "", "", f"an earlier --tun has left {KEY}: {leftovers.REMEDY}", ""),
        (0, NO_KEY, "block drop quick all", "", leftovers.KILL_SWITCH_STANDS, EXIT),
        (0, DNS, "block drop quick all", "", leftovers.KILL_SWITCH_STANDS, EXIT),
        (0, NO_KEY, "", "nat on en0 inet all -> (en0)", leftovers.KILL_SWITCH_STANDS, EXIT),
        # Without root nobody sees the filter, and the resolver comes with one.
        (501, DNS, "block drop quick all", "", leftovers.KILL_SWITCH_STANDS, ""),
        (501, NO_KEY, "block drop quick all", "", "", ""),
    ],
)
def test_what_is_left_is_named(
    programs: Programs,
    euid: int,
    key: str | None,
    rules: str | None,
    nat: str | None,
    client: str,
    exit_side: str,
) -> None:
    programs.euid, programs.key = euid, key
    for anchor in macos_marks.ANCHORS.values():
        programs.anchors[anchor, "rules"], programs.anchors[anchor, "nat"] = rules, nat
    assert leftovers.left_by_client() == client
    assert leftovers.marks("exit") == ((exit_side,) if exit_side else ())
    assert not leftovers.lockdown()


def test_what_lives_has_left_nothing(programs: Programs) -> None:
    programs.key = DNS
    programs.anchors[macos_marks.ANCHORS["client"], "rules"] = "block drop quick all"
    assert leftovers.table_stands("client") is True and leftovers.table_stands("exit") is False
    with claimed("client"):
        assert leftovers.marks("client") == ()
    assert leftovers.marks("client") == (CLIENT, KEY)


@pytest.mark.process
def test_a_program_is_asked_by_its_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "scutil"
    program.write_text(
        f"#!{sys.executable} -SE\nimport sys\nprint(' ', repr(sys.stdin.read()))\nsys.exit(1)\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(macos_programs, "SCUTIL", str(program))
    assert macos_marks.has_key()
    program.write_text(f"#!{sys.executable} -SE\nprint('  No such key')\n")
    assert not macos_marks.has_key()
    monkeypatch.setattr(macos_programs, "SCUTIL", str(tmp_path / "none"))
    assert not macos_marks.has_key()


def test_elsewhere_there_is_no_system_wide_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "freebsd14")
    assert leftovers.holder("client") is None
    assert leftovers.left_by_any() == ""
    assert leftovers.table_stands("client") is None
    assert not leftovers.lockdown()
