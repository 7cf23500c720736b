"""Files that this process reads itself: what is looked at is what is read. Made-up users own the others."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from threading import Event, Timer

import pytest

from cryprq_proxy.base import file_access
from cryprq_proxy.base.file_access import open_list, open_own, path_again
from cryprq_proxy.carriers.dial import websocket
from cryprq_proxy.config.client import client_from
from cryprq_proxy.errors import ConfigError
from cryprq_proxy.exit.web_certificate import read_certificate
from cryprq_proxy.process.file_watch import FileWatch
from cryprq_proxy.rules import lists
from cryprq_proxy.service.client_parts import read_rules
from tests.support.deputies import on_a_thread
from tests.support.settings import dns_settings
from tests.support.web_links import make_certificates
from tun.dns import blocklist, setup

ALICE = 4_321

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")

type Read = Callable[[Path], object]


def by_rules(path: Path) -> object:
    """As a client at its start, and at every reload."""
    peer = f'peer = "cryprq://{"a" * 52}@exit.example:4433"'
    text = f'{peer}\n[[rule]]\nlists = ["{path}"]\nto = "direct"\n'
    return read_rules(client_from(text, path.with_name("client.toml"), True, {}), FileWatch())


READERS: dict[str, Read] = {
    "rules": by_rules,
    "blocklist": lambda path: blocklist.load((path,)),
    "look at a blocklist": lambda path: setup.check(dns_settings(blocklists=(path,))),
    "ca": websocket._context,
    "certificate": lambda path: read_certificate(path, path),
}


@pytest.fixture(params=READERS)
def read(request: pytest.FixtureRequest) -> Read:
    return READERS[request.param]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Good for all readers but those of lists, which skip its lines."""
    _, certificate, key = make_certificates(tmp_path)
    file = tmp_path / "all.pem"
    file.write_bytes(certificate.read_bytes() + key.read_bytes())
    return file


@only_root
def test_root_reads_nothing_that_another_user_leads_it_to(read: Read, file: Path) -> None:
    """The link is put there after the start, as before a reload; only root may read what it leads to."""
    theirs = file.parent / "theirs"
    theirs.mkdir()
    read(file)
    link = theirs / "link"
    link.symlink_to(file)
    os.chown(theirs, ALICE, ALICE)
    with pytest.raises(ConfigError, match=rf"{link} is in the hands of the user {ALICE}, "):
        read(link)
    os.chown(file, ALICE, ALICE)
    with pytest.raises(ConfigError, match=rf"{file} belongs to the user {ALICE}"):
        read(file)


def test_a_pipe_stops_nobody(read: Read, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    freed = Event()

    def free() -> None:
        freed.set()
        os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))

    timer = Timer(5, free)
    timer.start()
    with pytest.raises(ConfigError, match=r"regular file"):
        read(pipe)
    timer.cancel()
    assert not freed.is_set()


def test_a_list_that_becomes_a_pipe_after_the_look_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setattr(lists, "_size", lambda path: 1)
    with pytest.raises(ConfigError, match=f"the list {pipe} is not a regular file"):
        lists.load([pipe], [1], opener=open_list)
    with pytest.raises(ConfigError, match=f"the list {pipe} cannot be read: it is no regular file"):
        lists.load([pipe], [1])


@only_root
def test_what_is_opened_is_what_is_read(file: Path) -> None:
    text = file.read_bytes()
    with open_own(file, "the file") as opened:
        file.rename(file.with_name("moved"))
        file.write_bytes(b"another")
        assert Path(path_again(opened, file)).read_bytes() == opened.read() == text


def test_others_read_by_path(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: ALICE)
    with open_own(file, "the file") as opened:
        assert path_again(opened, file) == str(file)


@pytest.mark.skipif(os.geteuid() != 0, reason="looks at its own files as root")
def test_another_users_configuration_makes_root_read_nothing(
    read: Read, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if a command has forgotten to refuse its keys."""
    monkeypatch.chdir(file.parent)
    with on_a_thread(file.parent, everywhere=True) as deputy:
        file_access.appoint(deputy)
        try:
            with pytest.raises(
                ConfigError, match=r"^root opens the .* itself, and not for the configuration"
            ):
                read(file)
        finally:
            file_access._deputies.clear()


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        open_own(tmp_path, "the file")
    with pytest.raises(FileNotFoundError):
        open_own(tmp_path / "missing", "the file")
    with pytest.raises(ConfigError, match="the file /dev/null is not a regular file"):
        open_own(Path("/dev/null"), "the file")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "sock"))
        with pytest.raises(OSError, match="No such device or address"):
            open_own(tmp_path / "sock", "the file")


def test_an_authority_is_bounded_and_never_that_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ca.pem"
    file.touch()
    with pytest.raises(ConfigError, match=rf"{file}: no certificates could be read from it"):
        websocket._context(file)
    monkeypatch.setattr(websocket, "MAX_AUTHORITIES", 10)
    file.write_bytes(b"x" * 11)
    with pytest.raises(ConfigError, match=rf"the authority {file} is larger than"):
        websocket._context(file)
