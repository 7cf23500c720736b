"""Which way to each exit worked: kept, read again, and never a reason to fail."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.base.paths import state_dir
from cryprq_proxy.carriers.dial.endpoint import Endpoint
from cryprq_proxy.client.remembered import FILE, Winners
from cryprq_proxy.crypto.identity import PeerId

HOME, OTHER = PeerId(bytes(32)), PeerId(bytes(range(32)))
WAY = Endpoint("wss", Destination("exit.example", 443), "/x")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return state_dir() / FILE


async def written() -> None:
    """The loop's threads have done what they were given."""
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_what_worked_is_known_after_a_restart(state: Path) -> None:
    winners = Winners.load([HOME, OTHER])
    assert winners.of(HOME) is None
    winners.remember(HOME, WAY)
    await written()
    assert state.stat().st_mode & 0o777 == 0o600
    again = Winners.load([HOME])
    assert (again.of(HOME), again.of(OTHER)) == ("wss://exit.example/x", None)


async def test_the_same_again_is_no_news(state: Path) -> None:
    winners = Winners.load([HOME])
    winners.remember(HOME, WAY)
    await written()
    state.unlink()
    winners.remember(HOME, WAY)
    assert not state.exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"x": 1}', "[" * 100_000, json.dumps({str(HOME): 5})])
def test_a_file_that_makes_no_sense_says_nothing(state: Path, text: str) -> None:
    state.parent.mkdir(parents=True)
    state.write_text(text)
    assert Winners.load([HOME]).of(HOME) is None


async def test_without_a_place_it_is_remembered_as_long_as_the_process_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(blocked))
    winners = Winners.load([HOME])
    winners.remember(HOME, WAY)
    await written()
    assert winners.of(HOME) == "wss://exit.example/x"
    assert Winners(None, {}).of(HOME) is None
