"""commands/service/move.py: whatever fails, and wherever it stops, the secrets are in the old place or in both."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cryprq_proxy.commands.service.move import Carry, carry, plan
from cryprq_proxy.commands.service.ownership import NewOwner, give
from cryprq_proxy.config.client import load_client
from cryprq_proxy.config.exit import load_exit
from cryprq_proxy.config.keys import save_identity
from cryprq_proxy.crypto.identity import Identity, PeerId
from cryprq_proxy.crypto.primitives import select_provider
from cryprq_proxy.errors import ConfigError, CryprqError
from cryprq_proxy.pairing.invite_store import InviteStore

PEER = f'peer = "cryprq://{"a" * 52}@exit.example:4433"\n'
ALICE = PeerId(bytes(32))
SERVICE = NewOwner(4_321, 4_321)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What a person has: keys, an exit with a client on its list and an open invite."""
    directory = tmp_path / "home"
    save_identity(Identity.generate(select_provider()), directory / "identity")
    (directory / "authorized").write_text(f"{ALICE} laptop\n")
    InviteStore(directory / "invites").create("phone", 3600, 0.0)
    return directory


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    return tmp_path / "etc" / "cryprq"


def held(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


# --- what is carried ---


def test_an_exit_has_keys_and_lists(source: Path, target: Path) -> None:
    what = plan(source, target, "exit")
    assert sorted(file.name for file in what.files) == ["authorized", "identity", "invites"]
    assert what.removed[-1] == "identity"
    assert "identity" in held(source) and not target.exists()
    assert all("PRIVATE" not in repr(file) and repr(file.data) not in repr(file) for file in what.files)


def test_what_the_configuration_names_goes_along(source: Path, target: Path) -> None:
    (source / "keys").mkdir()
    (source / "keys" / "psk").write_text("0" * 64)
    (source / "keys" / "psk").chmod(0o600)
    (source / "ads.txt").write_text("ads.example\n")
    (source / "client.toml").write_text(
        f'{PEER}psk_file = "keys/psk"\n[[rule]]\nlists = ["{source}/ads.txt"]\nto = "block"\n'
    )
    what = plan(source, target, "client")
    assert {file.name for file in what.files} == {"client.toml", "identity", "keys/psk", "ads.txt"}
    # The exit goes on without them, but not without the keys.
    assert what.removed == ("client.toml",)
    carry(what, NewOwner(os.getuid(), os.getgid()))
    config = load_client(target / "client.toml")
    assert config.rules()[0].lists == (target / "ads.txt",)
    assert config.psk_file == target / "keys" / "psk"
    assert set(held(source)) >= {"identity", "authorized", "keys/psk"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("peer = 1\n", "client.toml"),
        (
            f'{PEER}psk_file = "/home/somebody/psk"\n',
            "which a service does not see: put that file beside client.toml",
        ),
        (f'{PEER}user_file = "../user"\n[limits]\nx = 1\n', "unknown key"),
    ],
)
def test_a_damaged_configuration_moves_nothing(source: Path, target: Path, text: str, sentence: str) -> None:
    (source / "client.toml").write_text(text)
    before = held(source)
    with pytest.raises(ConfigError, match=sentence):
        plan(source, target, "client")
    assert held(source) == before and not target.exists()


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("identity", "nonsense\n", "identity"),
        ("authorized", "nonsense\n", "authorized: line 1"),
        ("exit.toml", "listen = \n", "exit.toml"),
    ],
)
def test_damaged_keys_and_lists_move_nothing(
    source: Path, target: Path, name: str, text: str, sentence: str
) -> None:
    (source / name).write_text(text)
    (source / name).chmod(0o600)
    before = held(source)
    with pytest.raises(ConfigError, match=sentence):
        plan(source, target, "exit")
    assert held(source) == before


def test_without_files_of_that_kind_there_is_nothing_to_carry(tmp_path: Path, target: Path) -> None:
    (tmp_path / "empty").mkdir()
    for role in ("client", "exit"):
        with pytest.raises(ConfigError, match=r"there is nothing of this kind in .*/empty: no "):
            plan(tmp_path / "empty", target, role)


def test_a_home_that_cannot_be_changed_is_told(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = os.open

    def refuse(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(30, os.strerror(30))
        return plain(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigError, match=r"cannot be changed \(.*\), so nothing is moved out of it"):
        plan(source, target, "exit")


# --- a crash ---

OPERATIONS = ("open", "mkdir", "pwrite", "fsync", "fchown", "chown", "rename", "replace", "unlink", "rmdir")


class Crash(BaseException):
    """The end of the process, as nothing in the program catches it."""


@contextmanager
def fails_at(number: int, error: Callable[[], BaseException]) -> Iterator[list[str]]:
    """The `number`-th operation on a file does not happen."""
    done: list[str] = []
    with pytest.MonkeyPatch.context() as patch:

        def wrap(name: str) -> None:
            plain = getattr(os, name)

            def operation(*arguments: Any, **more: Any) -> Any:
                done.append(name)
                if len(done) == number:
                    raise error()
                return plain(*arguments, **more)

            patch.setattr(os, name, operation)

        for name in OPERATIONS:
            wrap(name)
        yield done


@pytest.mark.parametrize("error", [Crash, lambda: OSError(28, os.strerror(28))], ids=["crash", "full disk"])
def test_wherever_it_stops_no_secret_is_lost(
    source: Path, target: Path, error: Callable[[], BaseException]
) -> None:
    """At each of its operations; and a second run ends what the first one has begun."""
    before = held(source)
    owner = NewOwner(os.getuid(), os.getgid())
    for number in itertools.count(1):
        what = plan(source, target, "exit")
        with contextlib.suppress(Crash, CryprqError), fails_at(number, error) as done:
            carry(what, owner)
        assert done, "nothing was done"
        there = held(target) if target.exists() else {}
        for name, data in before.items():
            assert data in (held(source).get(name), there.get(name)), (
                f"{name} is lost at {done[-1]}, {number}"
            )
        if len(done) < number:
            break
        _again(source, target, before)
    assert number > 20
    assert held(target) == before and held(source) == {}
    assert not list(target.parent.glob(".*"))


def _again(source: Path, target: Path, before: dict[str, bytes]) -> None:
    """As before the run that was ended; what that one has staged stays."""
    if target.exists():
        for path in target.iterdir():
            path.unlink()
        target.rmdir()
    for name, data in before.items():
        (source / name).write_bytes(data)
        (source / name).chmod(0o600)


def test_what_stood_there_is_kept(source: Path, target: Path) -> None:
    owner = NewOwner(os.getuid(), os.getgid())
    for number, name in enumerate(("cryprq.old", "cryprq.old2")):
        target.mkdir(exist_ok=True)
        (target / "identity").write_bytes(b"%d" % number)
        kept = carry(Carry(source, target, plan(source, target, "exit").files, ()), owner)
        assert kept == target.with_name(name) and held(kept)["identity"] == b"%d" % number


# --- whose it is ---


@needs_root
def test_the_files_belong_to_the_service_alone(source: Path, target: Path) -> None:
    carry(plan(source, target, "exit"), SERVICE)
    found = {
        (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o777) for path in target.iterdir()
    }
    assert found == {(*SERVICE, 0o600)}
    assert (target.stat().st_uid, target.stat().st_mode & 0o777) == (SERVICE.uid, 0o700)


@needs_root
def test_roots_directory_is_given_with_all_in_it(source: Path) -> None:
    (source / "lists").mkdir()
    (source / "lists" / "a").touch()
    give(source, SERVICE, frozenset())
    assert {path.stat().st_uid for path in (source, *source.rglob("*"))} == {SERVICE.uid}
    give(source, NewOwner(0, 0), frozenset({SERVICE.uid}))
    assert {path.stat().st_uid for path in (source, *source.rglob("*"))} == {0}


@needs_root
def test_files_of_a_third_user_are_not_given(source: Path, tmp_path: Path) -> None:
    os.chown(source / "invites", 4_322, 4_322)
    with pytest.raises(ConfigError, match="invites belongs to the user 4322 or has a second name"):
        give(source, SERVICE, frozenset())
    assert (source / "identity").stat().st_uid == source.stat().st_uid == 0
    os.chown(source / "invites", 0, 0)
    os.link(source / "invites", tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="has a second name"):
        give(source, SERVICE, frozenset())
    os.chown(source, 4_322, 4_322)
    with pytest.raises(ConfigError, match="belongs to the user 4322: move it away first"):
        give(source, SERVICE, frozenset())
    with pytest.raises(CryprqError, match="cannot be used"):
        give(source / "identity", SERVICE, frozenset())


def test_a_missing_directory_is_made(target: Path) -> None:
    give(target, NewOwner(os.getuid(), os.getgid()), frozenset())
    assert target.stat().st_mode & 0o777 == 0o700
    assert load_exit().peers().allowed == {}
