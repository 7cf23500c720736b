"""What a service manager is told: message by message, and by the real processes of both roles."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryprq_proxy.process.lifecycle import Stop
from cryprq_proxy.process.sd_notify import Notifier, summary
from cryprq_proxy.status import read
from tests.support.background import PATIENCE
from tests.support.notify_socket import NotifySocket
from tests.support.pairs import Setup
from tests.support.processes import Program, environment


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NotifySocket]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@cryprq-test-{uuid.uuid4().hex}"
    with NotifySocket(address) as socket:
        yield socket


# --- the environment ---


def test_the_environment_is_read_once_and_kept_from_children() -> None:
    variables = {
        "NOTIFY_SOCKET": "/run/x",
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/root",
    }
    notifier = Notifier.from_environment(variables)
    assert (notifier.listens, notifier.watchdog) == (True, 3.0)
    assert variables == {"HOME": "/root"}


@pytest.mark.parametrize(
    ("variables", "listens", "watchdog"),
    [
        ({}, False, 0),
        ({"NOTIFY_SOCKET": ""}, False, 0),
        ({"NOTIFY_SOCKET": "@"}, False, 0),
        ({"NOTIFY_SOCKET": "relative"}, False, 0),
        ({"NOTIFY_SOCKET": "vsock:2:9999", "WATCHDOG_USEC": "1000000"}, False, 0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000000"}, True, 1),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, True, 0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "-5"}, True, 0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "²"}, True, 0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "9" * 5000}, True, 0),
    ],
)
def test_what_counts_of_the_environment(variables: dict[str, str], listens: bool, watchdog: float) -> None:
    notifier = Notifier.from_environment(variables)
    assert (notifier.listens, notifier.watchdog) == (listens, watchdog)


async def test_without_a_manager_nothing_is_asked_and_nothing_sent() -> None:
    notifier = Notifier()
    notifier.ready(lambda: pytest.fail("nobody reads it"))
    with notifier.reloading():
        pass
    notifier.stopping()
    notifier.close()


# --- the messages ---


async def test_messages_in_order(manager: NotifySocket) -> None:
    notifier = Notifier(manager.address)
    notifier.ready(lambda: "link up\x1b[31m\nREADY=0")
    assert manager.next() == {"READY": "1", "STATUS": r"link up\x1b[31m\nREADY=0"}
    before = time.monotonic_ns() // 1000
    with pytest.raises(KeyError), notifier.reloading():
        raise KeyError
    message = manager.next()
    assert message.pop("RELOADING") == "1"
    assert before <= int(message.pop("MONOTONIC_USEC")) <= time.monotonic_ns() // 1000
    assert message == {}
    assert manager.next() == {"READY": "1"}
    notifier.stopping()
    assert manager.next() == {"STOPPING": "1", "STATUS": "stopping"}
    notifier.close()


async def test_the_status_is_told_when_it_has_changed(
    manager: NotifySocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cryprq_proxy.process.sd_notify.STATUS_SECONDS", 0.001)
    texts = iter(["one", "one", "one", "two" * 1000])
    last = asyncio.Event()

    def status() -> str:
        text = next(texts, None)
        if text is None:
            last.set()
            return ""
        return text

    notifier = Notifier(manager.address)
    notifier.ready(status)
    await last.wait()
    assert manager.next()["STATUS"] == "one"
    assert manager.next() == {"STATUS": ("two" * 100)}
    notifier.close()
    assert manager.silent_for(0.01)


async def test_a_manager_that_is_gone_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier(str(tmp_path / "nobody"))
    with caplog.at_level(logging.WARNING):
        notifier.ready(lambda: "x")
        notifier.stopping()
    assert [record.getMessage() for record in caplog.records] == [
        "cannot send to the service manager: no such file or directory"
    ]
    notifier.close()


async def test_the_first_signal_tells_that_we_stop(tmp_path: Path) -> None:
    with NotifySocket.within(tmp_path) as manager:
        stop = Stop(Notifier(manager.address))
        stop._signal()
        assert manager.next()["STOPPING"] == "1"
        stop.notifier.close()


# --- the watchdog ---

_STUCK = """
import asyncio, os, signal
from cryprq_proxy.process.sd_notify import Notifier

def stick():
    print("stuck", flush=True)
    os.read(0, 1)

async def main():
    notifier = Notifier.from_environment()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, stick)
    notifier.ready(lambda: "up")
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_the_watchdog_hears_twice_within_its_time(manager: NotifySocket) -> None:
    now = asyncio.get_running_loop().time()
    notifier = Notifier(manager.address, watchdog=60.0)
    notifier.ready(lambda: "")
    assert manager.next()["READY"] == "1"
    assert manager.next() == {"WATCHDOG": "1"}
    assert notifier._timers[-1].when() == pytest.approx(now + 30.0, abs=5.0)
    notifier.close()


@pytest.mark.process
def test_a_stuck_loop_misses_the_watchdog(tmp_path: Path) -> None:
    with (
        NotifySocket.within(tmp_path) as manager,
        subprocess.Popen(
            [sys.executable, "-c", _STUCK],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**environment(), **manager.environment(WATCHDOG_USEC="40000")},
        ) as process,
    ):
        try:
            assert process.stdin is not None and process.stdout is not None
            for _ in range(3):
                manager.wait("WATCHDOG", "1")
            process.send_signal(signal.SIGUSR1)
            assert process.stdout.readline() == b"stuck\n"
            manager.drain()
            assert manager.silent_for(0.4)
            process.stdin.write(b"x")
            process.stdin.flush()
            manager.wait("WATCHDOG", "1")
        finally:
            process.kill()
            process.wait(PATIENCE)


# --- both roles ---


@pytest.fixture
def pair(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


@pytest.mark.process
def test_exit_and_client_tell_how_they_are(
    pair: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first message to the last: ready, the watchdog, what `systemctl status` shows, a reload, the end."""

    def managed(manager: NotifySocket) -> None:
        for name, value in manager.environment(WATCHDOG_USEC="200000").items():
            monkeypatch.setenv(name, value)

    with (
        NotifySocket(str(tmp_path / "exit.notify")) as exits,
        NotifySocket(str(tmp_path / "client.notify")) as clients,
    ):
        managed(exits)
        exit = pair.exit()
        managed(clients)
        with exit, pair.client() as client:
            assert exits.next() == {"READY": "1", "STATUS": "0 sessions, 0 targets"}
            assert clients.next()["READY"] == "1"
            clients.wait("WATCHDOG", "1")
            exits.wait("WATCHDOG", "1")
            assert clients.wait("STATUS")["STATUS"] == f"link up to 127.0.0.1:{pair.exit_port}, 0 streams"
            assert exits.wait("STATUS")["STATUS"] == "1 session, 0 targets"
            for program, manager in ((client, clients), (exit, exits)):
                program.send(signal.SIGHUP)
                assert int(manager.wait("RELOADING", "1")["MONOTONIC_USEC"]) > 0
                manager.wait("READY", "1")
            assert _end(client, clients) == _end(exit, exits) == 0


def _end(program: Program, manager: NotifySocket) -> int:
    program.send(signal.SIGTERM)
    assert manager.wait("STOPPING", "1")["STATUS"] == "stopping"
    return program.wait()


# --- the status text ---


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ({"role": "client"}, "no link to ?: connecting"),
        (
            {"role": "client", "link": "down", "exit": {"address": "a:1"}, "last_error": "refused"},
            "no link to a:1: refused",
        ),
        (
            {"role": "client", "link": "up", "exit": {"address": "a:1"}, "session": {"streams": 1}},
            "link up to a:1, 1 stream",
        ),
        ({"role": "client", "link": "up", "session": None}, "link up to ?, 0 streams"),
        ({"role": "exit", "sessions": [{}, {}], "targets": 1}, "2 sessions, 1 target"),
        ({"role": "exit"}, "0 sessions, 0 targets"),
    ],
)
def test_summary(status: dict[str, object], text: str) -> None:
    assert summary(read(status)) == text
