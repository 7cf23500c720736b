"""Which endpoint of each exit worked: kept, read again, and never a reason to fail."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.base.paths import state_dir
from cryprq_proxy.carriers.dial.endpoint import Endpoint
from cryprq_proxy.client.endpoint_memory import FILE, EndpointFile
from cryprq_proxy.crypto.identity import PeerId

HOME, OTHER = PeerId(bytes(32)), PeerId(bytes(range(32)))
ENDPOINT = Endpoint("wss", Destination("exit.example", 443), "/x")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return state_dir() / FILE


async def written() -> None:
    """The loop's threads have done what they were given."""
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_what_worked_is_known_after_a_restart(state: Path) -> None:
    memory = EndpointFile.load([HOME, OTHER])
    assert memory.of(HOME).last is None
    memory.of(HOME).remember(ENDPOINT)
    await written()
    assert state.stat().st_mode & 0o777 == 0o600
    again = EndpointFile.load([HOME])
    assert (again.of(HOME).last, again.of(OTHER).last) == ("wss://exit.example/x", None)


async def test_the_same_again_is_no_news(state: Path) -> None:
    memory = EndpointFile.load([HOME])
    memory.of(HOME).remember(ENDPOINT)
    await written()
    state.unlink()
    memory.of(HOME).remember(ENDPOINT)
    assert not state.exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"x": 1}', "[" * 100_000, json.dumps({str(HOME): 5})])
def test_a_file_that_makes_no_sense_says_nothing(state: Path, text: str) -> None:
    state.parent.mkdir(parents=True)
    state.write_text(text)
    assert EndpointFile.load([HOME]).of(HOME).last is None


async def test_without_a_place_it_is_remembered_as_long_as_the_process_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(blocked))
    memory = EndpointFile.load([HOME])
    memory.of(HOME).remember(ENDPOINT)
    await written()
    assert memory.of(HOME).last == "wss://exit.example/x"
    assert EndpointFile(None, {}).of(HOME).last is None
