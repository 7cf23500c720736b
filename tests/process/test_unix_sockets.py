"""What a Unix socket at a path is on Linux, and elsewhere."""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cryprq_proxy.process import unix_sockets
from cryprq_proxy.process.unix_sockets import ASKED_AGAIN, bind_closed, may_be_full


def refuse_modes(_: int, __: int) -> None:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_the_file_is_closed_to_others(platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if platform == "linux" != sys.platform:
        pytest.skip("only Linux gives the file the mode of its socket")
    monkeypatch.setattr(sys, "platform", platform)
    if platform == "darwin":
        monkeypatch.setattr(os, "fchmod", refuse_modes)
    before = os.umask(0o022)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            bind_closed(listener, str(tmp_path / "s"))
            assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
            assert os.umask(0o022) == 0o022, "the mask is as it was"
    finally:
        os.umask(before)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    taken: list[float] = []
    monkeypatch.setattr(time, "sleep", taken.append)
    return taken


def refusing(times: int, then: type[OSError] | None = None) -> Callable[[], None]:
    left = [times]

    def ask() -> None:
        if left[0]:
            left[0] -= 1
            raise ConnectionRefusedError
        if then is not None:
            raise then

    return ask


def test_linux_tells_a_full_queue_from_nobody(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert not may_be_full(refusing(0))
    assert not pauses


@pytest.mark.parametrize(
    ("ask", "full", "asked"),
    [
        (refusing(100), False, ASKED_AGAIN),
        (refusing(0), True, 1),
        (refusing(ASKED_AGAIN - 1), True, ASKED_AGAIN),
        (refusing(1, FileNotFoundError), False, 2),
    ],
)
def test_elsewhere_it_is_asked_again(
    ask: Callable[[], None], full: bool, asked: int, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert may_be_full(ask) is full
    assert pauses == [unix_sockets.ASK_SECONDS] * asked
