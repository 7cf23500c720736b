"""base/paths.py: the rule for places. What it says of a file that is read is tested with the configuration."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import NamedTuple

import pytest

from cryprq_proxy.base import paths
from cryprq_proxy.base.file_access import FileAccess
from cryprq_proxy.base.owners import user_name
from cryprq_proxy.base.paths import (
    callers_file,
    config_dir,
    control_sockets,
    default_control_socket,
    state_dir,
)
from cryprq_proxy.commands.common import refuse_callers_exit, refuse_callers_keys
from cryprq_proxy.config.client import load_client
from cryprq_proxy.errors import ConfigError

URL = f"cryprq://{'a' * 52}@exit.example:4433"


def test_directories_follow_xdg(monkeypatch: pytest.MonkeyPatch, own_directories: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/c")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/r")
    assert config_dir() == Path("/c/cryprq")
    assert default_control_socket("exit") == Path("/r/cryprq/exit.sock")
    assert control_sockets()[:3] == [
        Path("/r/cryprq/client.sock"),
        Path("/r/cryprq/exit.sock"),
        Path("/run/cryprq/client.sock"),
    ]
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert config_dir() == own_directories / ".config" / "cryprq"
    assert state_dir() == own_directories / ".local/state" / "cryprq"
    assert default_control_socket("client") == config_dir() / "client.sock"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert (config_dir(), state_dir()) == (paths.ROOTS_CONFIG, paths.ROOTS_STATE)
    assert default_control_socket("client") == Path("/run/cryprq/client.sock")


class Called(NamedTuple):
    """What of a user's entry counts (struct passwd)."""

    pw_uid: int
    pw_dir: str


@pytest.fixture
def sudo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Root, as alice's sudo starts it; her directory of the configuration, empty."""
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("SUDO_USER", "alice")
    monkeypatch.setattr(pwd, "getpwnam", {"alice": Called(1000, str(tmp_path))}.__getitem__)
    directory = tmp_path / ".config" / "cryprq"
    directory.mkdir(parents=True)
    return directory


def test_root_is_told_the_flag_that_takes_the_callers_configuration(sudo: Path) -> None:
    assert callers_file("client.toml") is None
    with pytest.raises(ConfigError, match="no exit is named"):
        load_client()
    (sudo / "client.toml").touch()
    assert callers_file("exit.toml", "client.toml") == sudo / "client.toml"
    with pytest.raises(ConfigError) as error:
        load_client()
    assert str(error.value) == (
        f"root has no configuration in {config_dir()}; for yours, add: --config {sudo}/client.toml"
    )
    assert load_client(None, {"peer": (URL,)}).peer


def test_without_sudo_nobodys_configuration_is_looked_for(
    sudo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sudo / "client.toml").touch()
    monkeypatch.setenv("SUDO_USER", "nobody-of-this-name")
    assert callers_file("client.toml") is None
    monkeypatch.setenv("SUDO_USER", "alice")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/c")
    assert callers_file("client.toml") is None
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert callers_file("client.toml") is None


def test_root_is_not_led_to_an_exit_of_its_own_where_the_caller_has_one(sudo: Path) -> None:
    refuse_callers_exit(None)
    (sudo / "authorized").touch()
    with pytest.raises(
        ConfigError, match=f"yours is in {sudo}: call this without sudo, or make a service of it with"
    ):
        refuse_callers_exit(None)
    refuse_callers_exit(sudo / "exit.toml")
    config_dir().mkdir(parents=True)
    (config_dir() / "identity").touch()
    refuse_callers_exit(None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives directories away")
def test_root_leaves_the_runtime_directory_of_another_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `sudo -E` leaves it in the environment."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_control_socket("client") == tmp_path / "cryprq" / "client.sock"
    os.chown(tmp_path, 4_321, 4_321)
    assert default_control_socket("client") == Path("/run/cryprq/client.sock")
    monkeypatch.setattr(os, "geteuid", lambda: 4_321)
    assert default_control_socket("client") == tmp_path / "cryprq" / "client.sock"


def test_a_home_of_another_user_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(os, "geteuid", lambda: 54_321)
    monkeypatch.setenv("HOME", str(tmp_path))
    owner = user_name(os.getuid())
    with pytest.raises(ConfigError, match=f"no exit is named: .*; HOME is {tmp_path}, of the user {owner}$"):
        load_client()

    def refuse(*_: object) -> None:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(os, "lstat", refuse)
    with pytest.raises(ConfigError, match=f"permission denied; HOME is {tmp_path}, of the user {owner}$"):
        load_client()


def test_a_relative_home_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(os, "geteuid", lambda: 54_321)
    entry = pwd.struct_passwd(("ann", "x", 54_321, 54_321, "", "/home/ann", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: entry)
    monkeypatch.setenv("HOME", "there")
    assert paths.config_dir() == Path("/home/ann/.config/cryprq")


def test_a_link_that_is_not_followed_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a directory of another user, whose files a deputy opens."""
    (tmp_path / "dotfiles").write_text("")
    (tmp_path / "exit.toml").symlink_to("dotfiles")
    monkeypatch.setattr(paths, "access_for", lambda path, what: FileAccess(links=False))
    with pytest.raises(
        ConfigError, match=r"exit.toml is a link, which root does not follow .*: put the file"
    ):
        paths.read_text(tmp_path / "exit.toml", "the configuration")


def test_the_id_of_the_person_who_called_sudo_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    entry = pwd.struct_passwd(("ann", "x", 1_000, 1_000, "", str(tmp_path), "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwnam", lambda name: entry)
    refuse_callers_keys(None)
    own = tmp_path / ".config/cryprq/identity"
    own.parent.mkdir(parents=True)
    own.touch()
    with pytest.raises(ConfigError, match=f"no identity at .*, and yours is {own}: call this without sudo"):
        refuse_callers_keys(None)
    refuse_callers_keys(own)
    paths.ROOTS_CONFIG.mkdir(parents=True)
    (paths.ROOTS_CONFIG / "identity").touch()
    refuse_callers_keys(None)
