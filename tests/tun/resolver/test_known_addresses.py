"""The file of the exits' last addresses: what is kept, and what is not believed."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path

import pytest

from tun.resolver import known_addresses
from tun.resolver.known_addresses import MAX_ADDRESSES, MAX_SIZE, KnownAddresses

NAME, OTHER = "exit.example.org", "other.example.org"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "exit-addresses.json"


def held(path: Path) -> object:
    return json.loads(path.read_text())


def test_what_is_learned_is_known_at_the_next_start(path: Path) -> None:
    known = KnownAddresses.load(path, [NAME])
    assert known.of(NAME) == ()
    known.learn(NAME, ["2001:db8::5", "192.0.2.5"])
    assert path.stat().st_mode & 0o777 == 0o600
    assert KnownAddresses.load(path, [NAME]).of(NAME) == ("2001:db8::5", "192.0.2.5")
    assert KnownAddresses.load(path, [OTHER]).of(NAME) == ()
    known.learn(NAME, [f"192.0.2.{number}" for number in range(2 * MAX_ADDRESSES)])
    assert len(KnownAddresses.load(path, [NAME]).of(NAME)) == MAX_ADDRESSES
    known.forget(NAME)
    assert KnownAddresses.load(path, [NAME]).of(NAME) == ()


def test_the_file_is_written_only_for_news(path: Path) -> None:
    known = KnownAddresses.load(path, [NAME])
    known.learn(NAME, ["2001:db8::5", "192.0.2.5"])
    path.unlink()
    known.learn(NAME, ["192.0.2.5", "2001:db8::5"])
    known.forget(OTHER)
    assert not path.exists()


def test_a_fresh_answer_is_taken_once() -> None:
    known = KnownAddresses()
    known.learn(NAME, ["192.0.2.5"], fresh=True)
    assert [known.take_fresh(NAME), known.take_fresh(NAME)] == [True, False]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 50_000,
        b"[1]",
        json.dumps({NAME: "192.0.2.5"}).encode(),
        json.dumps({NAME: ["192.0.2.5", "not an address"]}).encode(),
        json.dumps({NAME: ["192.0.2.5"] * (MAX_ADDRESSES + 1)}).encode(),
        json.dumps({NAME: [7, None, ["192.0.2.5"]]}).encode(),
        json.dumps({NAME: ["192.0.2.5"]}).encode().ljust(MAX_SIZE + 1),
    ],
)
def test_damage_is_not_believed(path: Path, content: bytes) -> None:
    path.touch(0o600)
    path.write_bytes(content)
    known = KnownAddresses.load(path, [NAME])
    assert known.of(NAME) == ()
    known.learn(NAME, ["192.0.2.7"])
    assert held(path) == {NAME: ["192.0.2.7"]}


@pytest.mark.parametrize("kind", ["mode", "link", "fifo", "directory"])
def test_a_file_of_others_is_not_believed_and_replaced(
    path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    target = path.with_name("target")
    target.touch(0o600)
    target.write_text(json.dumps({NAME: ["192.0.2.66"]}))
    if kind == "mode":
        target.rename(path)
        path.chmod(0o622)
    elif kind == "link":
        path.symlink_to(target)
    elif kind == "fifo":
        os.mkfifo(path, 0o600)
    else:
        path.mkdir()
    known = KnownAddresses.load(path, [NAME])
    assert known.of(NAME) == ()
    assert "are not used" in caplog.text
    known.learn(NAME, ["192.0.2.7"])
    assert known.of(NAME) == ("192.0.2.7",)
    if kind == "directory":
        assert "cannot be kept" in caplog.text
        return
    assert held(path) == {NAME: ["192.0.2.7"]}
    assert not path.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o600
    if kind == "link":
        assert held(target) == {NAME: ["192.0.2.66"]}


def test_a_full_disk_costs_the_memory_only(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(known_addresses, "replace_file", full)
    known = KnownAddresses.load(path, [NAME])
    with caplog.at_level(logging.WARNING):
        known.learn(NAME, ["192.0.2.7"])
    assert known.of(NAME) == ("192.0.2.7",)
    assert "no space left" in caplog.text
