"""Reading the configuration again: one state or the other, never half of one, and one sentence where it is the old."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

import pytest

from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.errors import ConfigError
from cryprq_proxy.process.reload import Reloader
from cryprq_proxy.process.sd_notify import Notifier
from tests.support.descriptors import no_free_descriptor
from tests.support.notify_socket import NotifySocket


class Files:
    """What is read, and what is in force. With a `gate`, reading waits for it."""

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.text = "1"
        self.gate = gate
        self.reading = threading.Semaphore(0)
        self.reads = 0
        self.applied: list[int] = []
        self.time = 100.0

    def read(self) -> int:
        text, self.reads = self.text, self.reads + 1
        assert threading.current_thread() is not threading.main_thread()
        if self.gate is not None:
            self.reading.release()
            assert self.gate.wait(20)
        try:
            return int(text)
        except ValueError:
            raise ConfigError(f"client.toml: expected a number, got {text!a}") from None

    async def apply(self, value: int) -> str:
        assert threading.current_thread() is threading.main_thread()
        self.applied.append(value)
        return f"{value} rules"

    def reloader(self, notifier: Notifier | None = None) -> Reloader[int]:
        return Reloader(self.read, self.apply, notifier or Notifier(), lambda: self.time)


async def test_a_valid_state_is_applied_and_an_invalid_one_is_not(caplog: pytest.LogCaptureFixture) -> None:
    files = Files()
    reloader = files.reloader()
    assert (reloader.loaded_at, reloader.error) == (100, None)
    files.text, files.time = "2", 110
    with caplog.at_level(logging.INFO):
        assert await reloader.reload() == "2 rules"
        assert (reloader.loaded_at, reloader.error) == (110, None)
        files.text, files.time = "x", 120
        with pytest.raises(ConfigError, match=r"everything stays as it was: .*: expected a number"):
            await reloader.reload()
        assert (reloader.loaded_at, files.applied) == (110, [2])
        assert reloader.error is not None
        await reloader.quietly()
        files.text = "3"
        await reloader.quietly()
    assert (reloader.error, files.applied) == (None, [2, 3])
    said = [(record.levelname, record.getMessage().partition(":")[0]) for record in caplog.records]
    assert said == [
        ("INFO", "reloaded"),
        ("ERROR", "everything stays as it was"),
        ("ERROR", "everything stays as it was"),
        ("INFO", "reloaded"),
    ]


async def test_what_is_refused_while_it_is_applied_is_an_error_too() -> None:
    async def apply(value: int) -> str:
        raise ConfigError("there is no exit 'x'")

    reloader = Reloader(lambda: 1, apply, Notifier())
    with pytest.raises(ConfigError, match="stays as it was: there is no exit"):
        await reloader.reload()


async def test_a_fault_ends_one_reload_and_not_the_watch_on_files(caplog: pytest.LogCaptureFixture) -> None:
    files = Files()
    reloader = Reloader(files.read, Broken().apply, Notifier())
    with pytest.raises(ConfigError, match="the reload failed: a fault in this program"):
        await reloader.reload()
    await reloader.quietly()
    assert reloader.error is not None
    assert [record.exc_info is not None for record in caplog.records] == [True, True]


class Broken:
    async def apply(self, value: int) -> str:
        raise RuntimeError("can't start new thread")


async def test_who_asks_during_a_reload_shares_one_that_comes_after_it() -> None:
    gate = threading.Event()
    files = Files(gate)
    reloader = files.reloader()
    first = spawn(reloader.reload(), "first")
    await asyncio.to_thread(files.reading.acquire)
    files.text = "2"  # too late for the first one
    later = [spawn(reloader.reload(), "later") for _ in range(5)]
    await asyncio.sleep(0)
    gate.set()
    assert await first == "1 rules"
    assert await asyncio.gather(*later) == ["2 rules"] * 5
    assert files.reads == 2


async def test_the_manager_is_told_around_it(tmp_path: Path) -> None:
    files = Files()
    with NotifySocket.within(tmp_path) as manager:
        notifier = Notifier(manager.address)
        reloader = files.reloader(notifier)
        for files.text in ("5", "no number"):
            await reloader.quietly()
            assert manager.next()["RELOADING"] == "1"
            assert manager.next() == {"READY": "1"}
        notifier.close()


async def test_a_changed_file_is_read_when_there_is_a_descriptor() -> None:
    """A peer that was taken off the list would stay in for want of one."""
    waited = asyncio.Event()

    async def wait(_: float) -> None:
        waited.set()
        await asyncio.sleep(0)

    files = Files()
    reloader = Reloader(files.read, files.apply, Notifier(), lambda: 100.0, wait)
    with no_free_descriptor():
        reloading = spawn(reloader.quietly(), "reload")
        await waited.wait()
        assert not files.reads
    await reloading
    assert files.applied == [1]
