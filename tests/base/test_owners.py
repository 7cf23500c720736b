"""Who decides what a path leads to. Made-up users stand for others of the machine; only root can make them owners."""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from cryprq_proxy.base import owners
from cryprq_proxy.base.owners import (
    MAX_LINKS,
    Owner,
    become,
    others_can_write,
    owner_of,
    require_name,
    require_own,
    user_name,
)
from cryprq_proxy.errors import ConfigError
from tests.support.background import PATIENCE

ALICE, BOB = 4_321, 4_322

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory of root, with alice/config of Alice in it."""
    alice = tmp_path / "alice"
    (alice / "config").mkdir(parents=True)
    (alice / "config" / "exit.toml").touch(0o644)
    for path in (alice, alice / "config", alice / "config" / "exit.toml"):
        os.chown(path, ALICE, ALICE + 1)
    tmp_path.chmod(0o755)
    return tmp_path


@only_root
def test_the_first_component_of_another_user_decides(tree: Path) -> None:
    owner = owner_of(tree / "alice" / "config" / "exit.toml")
    assert owner == (ALICE, ALICE + 1, tree / "alice", Path("config/exit.toml"))
    assert owner.name == str(ALICE)
    # Whatever lies below can be moved there by her, so that its owner says nothing.
    os.chown(tree / "alice" / "config", 0, 0)
    assert owner_of(tree / "alice" / "config").uid == ALICE
    assert owner_of(tree / "alice" / "missing" / "x")[2:] == (tree / "alice", Path("missing/x"))


@only_root
def test_root_decides_on_what_it_alone_can_change(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "file").touch()
    for path in (tree, tree / "file", tree / "missing", tree / "missing" / "deeper", Path("/")):
        assert owner_of(path).uid == 0
        require_own(path, "the file")
    monkeypatch.chdir(tree)
    assert owner_of(Path("file")).uid == owner_of(Path()).uid == 0
    assert owner_of(Path("alice/..")).uid == ALICE
    assert owner_of(Path("../..")).uid == 0


@only_root
def test_links_of_root_are_followed_and_those_of_others_decide(tree: Path) -> None:
    (tree / "link").symlink_to("alice")
    (tree / "far").symlink_to(tree / "link" / "config")
    assert owner_of(tree / "far" / "exit.toml")[2:] == (tree / "alice", Path("config/exit.toml"))
    (tree / "file").touch()
    (tree / "own").symlink_to("file")
    assert owner_of(tree / "own").uid == 0
    (tree / "theirs").symlink_to("/etc")
    os.lchown(tree / "theirs", BOB, BOB)
    assert owner_of(tree / "theirs" / "passwd")[2:] == (tree / "theirs", Path("passwd"))


@only_root
def test_links_have_an_end(tree: Path) -> None:
    (tree / "loop").symlink_to("loop")
    with pytest.raises(ConfigError, match=f"more than {MAX_LINKS} links"):
        owner_of(tree / "loop")


@only_root
def test_a_directory_open_to_all_is_nobodys(tree: Path) -> None:
    (tree / "file").touch()
    tree.chmod(0o777)
    for path in (tree, tree / "file", tree / "missing", tree / "alice"):
        with pytest.raises(ConfigError, match=f"several users can write to {tree}: as root, use files"):
            owner_of(path)
    # As in /tmp, nobody can exchange what is there already.
    tree.chmod(0o1777)
    assert owner_of(tree / "file").uid == 0
    assert owner_of(tree / "alice").uid == ALICE
    for path in (tree, tree / "missing"):
        with pytest.raises(ConfigError, match="several users can write"):
            owner_of(path)


@only_root
def test_what_another_user_decides_is_refused_in_one_sentence(tree: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^the list {tree}/alice/x is in the hands of the user {ALICE}, "):
        require_own(tree / "alice" / "x", "the list")
    (tree / "file").touch()
    os.chown(tree / "file", BOB, BOB)
    with pytest.raises(ConfigError, match=rf"belongs to the user {BOB}; run: chown root {tree}/file$"):
        require_own(tree / "file", "the list")


@only_root
def test_a_name_in_another_users_directory_is_harmless_and_one_below_is_not(tree: Path) -> None:
    """The directory could be exchanged for a link while root makes or removes the name."""
    require_name(tree / "client.sock", "the socket")
    require_name(tree / "missing" / "client.sock", "the socket")
    require_name(tree / "alice" / "client.sock", "the socket")
    (tree / "theirs").symlink_to(tree)
    os.lchown(tree / "theirs", ALICE, ALICE)
    for directory in (tree / "alice" / "config", tree / "alice" / "missing", tree / "theirs"):
        with pytest.raises(
            ConfigError, match=rf"^the socket {directory}/x lies where the user {ALICE} decides, "
        ):
            require_name(directory / "x", "the socket")


@only_root
@pytest.mark.parametrize("name", ["nul\0", "x" * 300])
def test_odd_paths_are_one_sentence(tree: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be looked up: "):
        owner_of(tree / name)


def test_other_users_look_at_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: ALICE)
    require_own(Path("/no/such\0path"), "the file")
    require_name(Path("/no/such\0path"), "the file")


def test_names_of_users() -> None:
    assert user_name(0) == pwd.getpwuid(0).pw_name
    assert user_name(ALICE) == str(ALICE)


def test_a_group_of_one_counts_for_its_user(monkeypatch: pytest.MonkeyPatch) -> None:
    user = pwd.struct_passwd(("alice", "x", ALICE, BOB, "", "/", ""))
    members: list[str] = []
    names = ["alice"]
    others = [user]
    monkeypatch.setattr(pwd, "getpwall", lambda: others)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: user)
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group((names[0], "x", gid, members)))
    assert not others_can_write(0o664, ALICE, BOB)
    assert others_can_write(0o666, ALICE, BOB)
    assert others_can_write(0o664, ALICE, BOB + 1)
    members.append("bob")
    assert others_can_write(0o664, ALICE, BOB)
    assert not others_can_write(0o644, ALICE, BOB)
    members.clear()
    # A second name of the same user, and a user whose own group it is (useradd --gid alice bob).
    others.append(pwd.struct_passwd(("al", "x", ALICE, BOB, "", "/", "")))
    assert not others_can_write(0o664, ALICE, BOB)
    others.append(pwd.struct_passwd(("bob", "x", ALICE + 1, BOB, "", "/", "")))
    assert others_can_write(0o664, ALICE, BOB)
    others.pop()
    names[0] = "users"
    assert others_can_write(0o664, ALICE, BOB)


def test_a_group_of_nobody_is_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert others_can_write(0o620, ALICE, 54_321)


# --- how root becomes another user ---


class Given:
    """Stands for the kernel: notes what is given up, and shows what is left."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: dict[str, object]) -> None:
        self.steps: list[object] = []
        self.refuses = False
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: self)
        for name in ("setgroups", "setresgid", "setresuid"):
            monkeypatch.setattr(os, name, lambda *value, name=name: self.steps.append((name, *value)))
        shown = {
            "getresuid": (ALICE,) * 3,
            "getresgid": (BOB,) * 3,
            "getgroups": [],
            "_capabilities": 0,
        } | left
        for name, value in shown.items():
            monkeypatch.setattr(owners if name[0] == "_" else os, name, lambda value=value: value)

    def prctl(self, *arguments: int) -> int:
        self.steps.append(("prctl", arguments[0]))
        return int(self.refuses)


def test_everything_is_given_up_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """No new rights first; groups before the group, and then the user, who is the right to change the others. The saved
    group goes when nobody can look into the process any more."""
    given = Given(monkeypatch, {})
    become(Owner(ALICE, BOB, Path("/"), Path()))
    assert given.steps[0] == ("prctl", 38)
    assert given.steps[1:65] == [("prctl", 24)] * 64
    assert given.steps[65:] == [
        ("setgroups", []),
        ("setresgid", BOB, BOB, os.getegid()),
        ("setresuid", ALICE, ALICE, ALICE),
        ("prctl", 4),
        ("setresgid", BOB, BOB, BOB),
    ]


@pytest.mark.parametrize(
    "left",
    [
        {"getresuid": (ALICE, ALICE, 0)},
        {"getresgid": (0, BOB, BOB)},
        {"getgroups": [0]},
        {"_capabilities": 1},
    ],
    ids=str,
)
def test_a_right_that_was_left_over_is_an_error(
    monkeypatch: pytest.MonkeyPatch, left: dict[str, object]
) -> None:
    Given(monkeypatch, left)
    with pytest.raises(PermissionError):
        become(Owner(ALICE, BOB, Path("/"), Path()))


def test_without_the_flag_nothing_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Given(monkeypatch, {})
    given.refuses = True
    monkeypatch.setattr(ctypes, "get_errno", lambda: 22)
    with pytest.raises(OSError, match="Invalid argument"):
        become(Owner(ALICE, BOB, Path("/"), Path()))
    assert given.steps == [("prctl", 38)]
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(PermissionError, match="only Linux"):
        become(Owner(ALICE, BOB, Path("/"), Path()))


def test_without_being_closed_to_others_nothing_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Given(monkeypatch, {})
    monkeypatch.setattr(given, "prctl", lambda number, *_: int(number == 4))
    monkeypatch.setattr(ctypes, "get_errno", lambda: 22)
    with pytest.raises(OSError, match="Invalid argument"):
        become(Owner(ALICE, BOB, Path("/"), Path()))


@only_root
@pytest.mark.process
def test_a_kernel_that_leaves_it_open_is_no_matter() -> None:
    """As with fs.suid_dumpable=1. In a child, which cannot go back."""
    code = f"""if True:
        import ctypes, os
        from pathlib import Path
        from cryprq_proxy.base.owners import Owner, become
        prctl, change = ctypes.CDLL(None).prctl, os.setresuid
        def open_again(*ids):
            change(*ids)
            prctl(4, 1, 0, 0, 0)
        os.setresuid = open_again
        become(Owner({ALICE}, {BOB}, Path("/"), Path()))
        print(prctl(3, 0, 0, 0, 0), *os.getresuid(), *os.getresgid())
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert done.stdout.split() == ["0", *[str(ALICE)] * 3, *[str(BOB)] * 3]


def test_the_group_is_the_users_own_and_never_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Given(monkeypatch, {"getresgid": (65534,) * 3})
    become(Owner(ALICE, 0, Path("/"), Path()))
    assert given.steps[-1] == ("setresgid", 65534, 65534, 65534)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: pwd.struct_passwd(("a", "x", ALICE, 7, "", "/", "")))
    monkeypatch.setattr(os, "getresgid", lambda: (7, 7, 7))
    become(Owner(ALICE, 0, Path("/"), Path()))
    assert given.steps[-1] == ("setresgid", 7, 7, 7)


def test_capabilities_of_this_process_are_read() -> None:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    (held,) = (int(line.split()[1], 16) for line in lines if line.startswith("CapEff"))
    assert owners._capabilities() & held == held
