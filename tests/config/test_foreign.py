"""Another user's configuration in the hands of root: keys by way of a deputy, and what it may not name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryprq_proxy.base import file_access
from cryprq_proxy.config.client import client_from
from cryprq_proxy.config.exit import exit_from
from cryprq_proxy.config.foreign import only_harmless
from cryprq_proxy.config.keys import load_identity, own_identity, save_identity
from cryprq_proxy.crypto.identity import Identity
from cryprq_proxy.crypto.primitives import select_provider
from cryprq_proxy.errors import ConfigError
from tests.support.deputies import on_a_thread

PROVIDER = select_provider()
PEER = f'peer = "cryprq://{"a" * 52}@exit.example:4433"\n'


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that a deputy serves, and everything else too."""
    monkeypatch.chdir(tmp_path)
    with on_a_thread(tmp_path, everywhere=True) as deputy:
        file_access.appoint(deputy)
        yield tmp_path
    file_access._deputies.clear()


def test_an_identity_by_way_of_a_deputy(directory: Path) -> None:
    file = directory / "keys" / "identity"
    identity = own_identity(PROVIDER, file)
    assert own_identity(PROVIDER, file).peer_id == identity.peer_id
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="exists already; move it away"):
        save_identity(Identity.generate(PROVIDER), file)
    file.chmod(0o640)
    os.chown(file, -1, 54_321) if os.geteuid() == 0 else None
    with pytest.raises(ConfigError, match="others can read the identity"):
        load_identity(PROVIDER, file)
    with pytest.raises(ConfigError, match=r"the directory .* cannot be made: file exists"):
        save_identity(Identity.generate(PROVIDER), file / "below")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('control_socket = "/run/x.sock"', "control_socket"),
        ('ca = "ca.pem"', "ca"),
        ('tun.state_dir = "/etc"', "tun.state_dir"),
        ('tun.dns.blocklists = ["/etc/shadow"]', "tun.dns.blocklists"),
        ('[[rule]]\nlists = ["/etc/shadow"]\nto = "direct"', "rule.lists"),
        (f'[[exit]]\npeer = "cryprq://{"b" * 51}a@h:1"\nca = "x"', "exit.ca"),
    ],
)
def test_files_that_root_would_open_are_not_named_by_others(directory: Path, text: str, key: str) -> None:
    file = Path("client.toml")
    with pytest.raises(ConfigError, match=rf"root does not use the file that {key} names"):
        only_harmless(client_from(PEER + text, file, True, {}))
    file_access._deputies.clear()
    only_harmless(client_from(PEER + text, file, True, {}))


def test_all_else_is_allowed(directory: Path) -> None:
    only_harmless(client_from(f'{PEER}psk_file = "psk"\nuser_file = "user"\n', Path("client.toml"), True, {}))
    config = exit_from('authorized = "a"\nidentity = "b"\nmetrics_token_file = "c"', Path("exit.toml"), {})
    assert only_harmless(config) is config


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('ca = "{}"', "ca"),
        ('tun.state_dir = "{}"', "tun.state_dir"),
        ('tun.dns.blocklists = ["/etc/hosts", "{}"]', "tun.dns.blocklists"),
        ('[[rule]]\nlists = ["{}"]\nto = "direct"', "rule.lists"),
    ],
)
def test_a_configuration_of_root_names_no_file_in_the_hands_of_another_user(
    tmp_path: Path, text: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That user could lead root to any file by a link, or stop it by a pipe."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    config = client_from(PEER + text.format(theirs / "file"), tmp_path / "client.toml", True, {})
    only_harmless(config)
    os.chown(theirs, 4_321, 4_321)
    said = rf"^{key} names a file that root would open itself, but {theirs}/file is in the hands of the user 4321, "
    with pytest.raises(ConfigError, match=said):
        only_harmless(config)
    monkeypatch.setattr(os, "geteuid", lambda: 4_321)
    only_harmless(config)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_certificate_in_the_hands_of_another_user(tmp_path: Path) -> None:
    (tmp_path / "key.pem").touch()
    os.chown(tmp_path / "key.pem", 4_321, 4_321)
    text = f'websocket = {{ certificate = "{tmp_path}/cert.pem", key = "{tmp_path}/key.pem" }}'
    with pytest.raises(
        ConfigError, match=r"^websocket\.key names .* belongs to the user 4321; run: chown root "
    ):
        only_harmless(exit_from(text, Path("exit.toml"), {}))
