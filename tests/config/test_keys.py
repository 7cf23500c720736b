"""The identity as a file: new ones for their owner alone, and no key that others can read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cryprq_proxy.config.keys import load_identity, save_identity
from cryprq_proxy.crypto.identity import Identity
from cryprq_proxy.crypto.primitives import select_provider
from cryprq_proxy.errors import ConfigError

PROVIDER = select_provider()
IDENTITY = Identity(PROVIDER, bytes(32), bytes(range(32)))
LINE = IDENTITY.line()


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "a" / "identity"
    identity = Identity.generate(PROVIDER)
    save_identity(identity, path)
    assert load_identity(PROVIDER, path).peer_id == identity.peer_id
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_save_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="exists already"):
        save_identity(IDENTITY, path)
    assert path.read_text() == "precious"
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="exists already"):
        save_identity(IDENTITY, link)
    assert not (tmp_path / "nothing").exists()


def test_save_where_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    # Root looks first at whose path it is.
    with pytest.raises(ConfigError, match=r"cannot be (made|looked up)"):
        save_identity(IDENTITY, tmp_path / "file" / "identity")
    with pytest.raises(ConfigError, match=r"cannot be (written|looked up)"):
        save_identity(IDENTITY, tmp_path / ("long" * 100))


def test_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    path = tmp_path / "identity"
    with pytest.raises(ConfigError, match="no space left"):
        save_identity(IDENTITY, path)
    assert not path.exists()


def identity_file(path: Path, mode: int) -> Path:
    path.write_bytes(LINE)
    path.chmod(mode)
    if os.geteuid() == 0:
        # The group of root may read: what systemd gives to a service looks so.
        os.chown(path, -1, 54_321)
    return path


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o601, 0o620, 0o602, 0o777])
def test_load_refuses_a_file_open_to_others(tmp_path: Path, mode: int) -> None:
    path = identity_file(tmp_path / "identity", mode)
    with pytest.raises(ConfigError, match=r"chmod (600|go-w)"):
        load_identity(PROVIDER, path)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_load_accepts_the_owner(tmp_path: Path, mode: int) -> None:
    assert load_identity(PROVIDER, identity_file(tmp_path / "identity", mode)).peer_id == IDENTITY.peer_id


def test_load_of_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make one first"):
        load_identity(PROVIDER, tmp_path / "nothing")
    with pytest.raises(ConfigError):
        load_identity(PROVIDER, tmp_path)
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(ConfigError, match="not a regular file"):
        load_identity(PROVIDER, tmp_path / "fifo")
    with pytest.raises(ConfigError):
        load_identity(PROVIDER, Path("/proc/self/mem/identity"))
