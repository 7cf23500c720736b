"""The process around a role: signals, threads that do not end, the limit of open files."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pty
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.errors import CryprqError
from cryprq_proxy.process import lifecycle
from cryprq_proxy.process.lifecycle import Stop, raise_file_limit
from tests.support.background import PATIENCE
from tests.support.descriptors import no_free_descriptor
from tests.support.processes import environment
from tests.support.settle import settle


async def forever() -> None:
    await asyncio.Event().wait()


async def test_the_first_signal_asks_and_the_second_one_is_urgent() -> None:
    stop = Stop()
    stop.listen()
    try:
        work = spawn(forever(), "work")
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait(work)
        assert not stop.urgent.is_set()
        hurrying = spawn(stop.hurry(forever()), "hurry")
        os.kill(os.getpid(), signal.SIGINT)
        assert await hurrying is False
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        work.cancel()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            asyncio.get_running_loop().remove_signal_handler(number)


async def test_stopping_in_peace_comes_to_its_end() -> None:
    assert await Stop().hurry(asyncio.sleep(0)) is True


async def test_an_error_in_stopping_is_raised() -> None:
    async def broken() -> None:
        raise CryprqError("x")

    with pytest.raises(CryprqError, match="x"):
        await Stop().hurry(broken())


async def test_work_that_ends_by_itself_is_an_error() -> None:
    with pytest.raises(CryprqError, match="'work' ended unexpectedly"):
        await Stop().wait(spawn(asyncio.sleep(0), "work"))


@pytest.mark.process
def test_a_thread_that_hangs_does_not_hold_the_process() -> None:
    script = """
import asyncio, threading
from cryprq_proxy.process.lifecycle import run
async def role(stop):
    started = threading.Event()
    asyncio.get_running_loop().run_in_executor(None, lambda: (started.set(), threading.Event().wait()))
    started.wait()
    print("done", end="")
run(role)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done", "")


@pytest.mark.parametrize(
    ("before", "after"),
    [((256, 1 << 62), 10_240), ((256, 4_096), 4_096), ((20_000, 1 << 62), None), ((4_096, 4_096), None)],
)
def test_macos_takes_no_more_than_its_own_bound(
    before: tuple[int, int], after: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses what is beyond, so 256 would remain, which is too few for an exit."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(resource, "getrlimit", lambda _: before)
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    raise_file_limit()
    assert asked == ([] if after is None else [(after, before[1])])


def test_the_limit_of_open_files_is_raised() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_descriptors_for_an_event_loop_there_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """asyncio left a half of a loop and a coroutine that was never awaited, with a line in the log for each."""

    async def role(stop: Stop) -> None:
        raise AssertionError

    for name in ("raise_file_limit", "forbid_core_dumps"):
        monkeypatch.setattr(lifecycle, name, lambda: None)
    with (
        no_free_descriptor(),
        pytest.raises(CryprqError, match="loop cannot be made: too many open files; ulimit"),
    ):
        lifecycle.run(role)
    gc.collect()


def test_an_event_loop_needs_as_many_descriptors_as_are_looked_for() -> None:
    before = set(os.listdir("/proc/self/fd"))
    loop = lifecycle.make_loop()
    try:
        assert len(set(os.listdir("/proc/self/fd")) - before) == lifecycle.LOOP_DESCRIPTORS
    finally:
        loop.close()


# --- reaching a goal before the end ---


async def test_a_goal_is_reached() -> None:
    work = spawn(forever(), "work")
    assert await Stop().until(asyncio.sleep(0, "goal"), work) is True
    work.cancel()


async def test_nothing_waits_for_a_stop_any_more_when_the_goal_is_reached() -> None:
    work = spawn(forever(), "work")
    await Stop().until(asyncio.sleep(0), work)
    await settle()
    assert asyncio.all_tasks() == {work, asyncio.current_task()}
    work.cancel()


async def test_a_stop_comes_before_the_goal() -> None:
    stop, work = Stop(), spawn(forever(), "work")
    ended = asyncio.Event()

    async def goal() -> None:
        try:
            await forever()
        finally:
            ended.set()

    reaching = spawn(stop.until(goal(), work), "until")
    await asyncio.sleep(0)
    stop.asked.set()
    assert await reaching is False
    assert ended.is_set() and not work.done()
    work.cancel()


async def test_a_goal_that_fails_raises_its_error() -> None:
    async def broken() -> None:
        raise CryprqError("no way there")

    work = spawn(forever(), "work")
    with pytest.raises(CryprqError, match="no way there"):
        await Stop().until(broken(), work)
    work.cancel()


async def test_work_that_ends_before_the_goal_raises_what_it_ended_with() -> None:
    async def broken() -> None:
        raise CryprqError("the link is no good")

    with pytest.raises(CryprqError, match="the link is no good"):
        await Stop().until(forever(), spawn(broken(), "link"))
    with pytest.raises(CryprqError, match="'link' ended unexpectedly"):
        await Stop().until(forever(), spawn(asyncio.sleep(0), "link"))


_TELLS = """
import asyncio, os, signal, sys
from cryprq_proxy.process.lifecycle import Stop

async def main():
    if sys.stdin.isatty():
        os.open(os.ttyname(0), os.O_RDWR)  # a session's leader gets its controlling terminal by this
    if "nohup" in sys.argv:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = Stop()
    stop.listen()
    if "later" in sys.argv:
        stop.hold_reload()
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0)  # the loop hears of the signal by its own socket
        while not stop._reload_later:
            await asyncio.sleep(0)
        print("waits", flush=True)
    stop.reload_by(lambda: print("reload", flush=True))
    print("ready", flush=True)
    await stop.asked.wait()
    print("stop", flush=True)

asyncio.run(main())
"""


@contextlib.contextmanager
def telling(stdin: int, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process, in a session of its own, that says what a SIGHUP does."""
    with subprocess.Popen(
        [sys.executable, "-c", _TELLS, *arguments],
        stdin=stdin,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.process
def test_a_hangup_without_a_terminal_reads_files_again() -> None:
    with telling(subprocess.DEVNULL) as process:
        assert said(process) == "ready"
        process.send_signal(signal.SIGHUP)
        assert said(process) == "reload"
        process.send_signal(signal.SIGTERM)
        assert said(process) == "stop"


@pytest.mark.process
def test_a_hangup_before_the_role_can_reload_waits_for_it() -> None:
    with telling(subprocess.DEVNULL, "later") as process:
        assert [said(process) for _ in range(3)] == ["waits", "reload", "ready"]
        process.send_signal(signal.SIGTERM)
        assert said(process) == "stop"


@pytest.mark.process
@pytest.mark.parametrize(("arguments", "end"), [([], "stop"), (["nohup"], "reload")])
def test_a_hangup_is_a_stop_when_the_terminal_is_gone(arguments: list[str], end: str) -> None:
    master, slave = pty.openpty()
    with telling(slave, *arguments) as process:
        os.close(slave)
        assert said(process) == "ready"
        process.send_signal(signal.SIGHUP)
        assert said(process) == "reload"
        os.close(master)  # the kernel sends SIGHUP to the session's leader
        assert said(process) == end
