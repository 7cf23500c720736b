"""base/paths.py: the rule for places. What it says of a file that is read is tested with the configuration."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import NamedTuple

import pytest

from cryprq_proxy.base import paths
from cryprq_proxy.base.paths import (
    callers_file,
    config_dir,
    control_sockets,
    default_control_socket,
    state_dir,
)
from cryprq_proxy.commands.common import refuse_callers_exit
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
