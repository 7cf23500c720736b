"""The process around a role: signals, threads that do not end, the limit of open files."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys

import pytest

from cryprq_proxy.errors import CryprqError
from cryprq_proxy.process import Stop, raise_file_limit
from cryprq_proxy.tasks import spawn
from tests.processes import PATIENCE, environment


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


def test_a_thread_that_hangs_does_not_hold_the_process() -> None:
    script = """
import asyncio, threading
from cryprq_proxy.process import run
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


def test_the_limit_of_open_files_is_raised() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- reaching a goal before the end ---


async def test_a_goal_is_reached() -> None:
    work = spawn(forever(), "work")
    assert await Stop().until(asyncio.sleep(0, "goal"), work) is True
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
